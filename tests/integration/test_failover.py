"""A replica of Redis is made the primary, and lacks the newest writes: no lease from before counts."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.relay import Relay
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim
from comfy_fleet.settings import Settings
from comfy_fleet.sim import SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.api_kit import running
from tests.integration.redis_kit import add_nodes, claim, refused, submit
from tests.integration.replica_kit import RedisServer, eventually, pair

TTL_S = 5.0


@asynccontextmanager
async def stores_of(server: RedisServer) -> AsyncIterator[Stores]:
    async with open_stores(Settings(redis_url=f"redis://127.0.0.1:{server.port}/0")) as made:
        yield made


def caught_up(primary: RedisServer, replica: RedisServer) -> None:
    with primary.client as one, replica.client as other:
        eventually(
            lambda: (
                one.info("replication")["master_repl_offset"]
                == other.info("replication")["master_repl_offset"]
            )
        )


async def after_the_pause(stores: Stores) -> None:
    """Let the pause be over: only its ends are moved."""
    client: Any = stores.redis
    await client.hset("fleet:server", "until", 0)
    for run in await client.zrange("fleet:runs", 0, -1):
        await client.zadd("fleet:runs", {run: 0})


async def test_after_a_failover_all_runs_are_taken_over_before_anything_is_claimed(tmp_path: Path) -> None:
    with pair(tmp_path) as (primary, replica):
        async with stores_of(primary) as stores:
            await add_nodes(stores, "g1", "g2", "g3")
            for _ in range(3):
                await submit(stores)
            kept, ended = await claim(stores, "g1"), await claim(stores, "g2")
            await stores.runs.beat("d1", [kept, ended], ttl_s=TTL_S)
            caught_up(primary, replica)
            replica.promote()  # from here on it gets nothing
            lost = await claim(stores, "g3")
            await stores.runs.finish(ended, JobStatus.SUCCEEDED, error=None, duration_s=None)
        primary.kill()
        async with stores_of(replica) as stores:
            # Whoever comes first notices; here it is a dispatcher that looks for work.
            paused = await refused(stores, "g3")
            assert paused.why == "failover" and paused.left_s > TTL_S
            beat = await stores.runs.beat("d1", [kept, ended, lost], ttl_s=TTL_S)
            assert beat.lost == {kept.run, ended.run, lost.run}
            for run in (kept, ended, lost):
                with pytest.raises(LeaseLost):
                    await stores.runs.accepted(run)
            assert [await stores.runs.known(run.run) for run in (kept, ended, lost)] == [True, True, False]
            assert not await stores.runs.take_over(dispatcher="d2", ttl_s=TTL_S, limit=9)  # for one TTL

            await after_the_pause(stores)
            held = await stores.runs.take_over(dispatcher="d2", ttl_s=TTL_S, limit=9)
            assert {one.claim.run for one in held} == {kept.run, ended.run}
            assert {one.claim.token for one in held}.isdisjoint({kept.token, ended.token, ""})
            again = await claim(stores, "g3")
            assert again.job.id == lost.job.id and again.run != lost.run
            for one in held:
                assert await stores.runs.finish(one.claim, JobStatus.SUCCEEDED, error=None, duration_s=None)
            # It happens once: these leases go on.
            assert not (await stores.runs.beat("d2", [again], ttl_s=TTL_S)).lost


async def test_a_restart_from_the_append_only_file_is_no_failover(tmp_path: Path) -> None:
    port = free_port()
    argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]

    def started() -> RedisServer:
        process = subprocess.Popen(
            mortal([*argv, "--appendonly", "yes", "--appendfsync", "always"]), stdout=subprocess.DEVNULL
        )
        made = RedisServer(port=port, process=process)
        with made.client as client:
            eventually(client.ping)
        return made

    server = started()
    try:
        async with stores_of(server) as stores:
            await add_nodes(stores, "g1", "g2")
            await submit(stores)
            await submit(stores)
            one = await claim(stores, "g1", ttl=60)
            await stores.runs.beat("d1", [one], ttl_s=60)
            server.kill()
            server = started()
            assert not (await stores.runs.beat("d1", [one], ttl_s=60)).lost
            got = await stores.runs.claim(
                node="g2",
                placements=[one.job.placement],
                run=str(uuid4()),
                token="t",
                dispatcher="d",
                ttl_s=60,
            )
            assert isinstance(got, Claim)
    finally:
        server.kill()


async def test_a_fleet_goes_on_with_the_replica_and_ends_every_job_once(tmp_path: Path) -> None:
    slow = {"timing": SimTiming(job_s=0.5)}
    with pair(tmp_path) as (primary, replica):
        async with (
            Relay(("127.0.0.1", primary.port)).running() as address,
            fleet_of(address.port, "g1", "g2", sim=slow) as fleet,
            running(address.port, tmp_path / "api", redis_replicas=1, redis_replicas_s=5) as api,
        ):
            await fleet.dispatcher("d2")
            jobs = [(await api.submit(picture(seed)))["id"] for seed in range(10)]

            async def some_ended() -> bool:
                return sum([(await fleet.job(job)).status.terminal for job in jobs]) >= 2

            await until(some_ended, what="some have ended")
            primary.kill()
            address.lead_to(None)
            replica.promote()
            address.lead_to(("127.0.0.1", replica.port))
            client: Any = fleet.stores.redis
            for job in jobs:
                assert (await fleet.ended(job, timeout_s=60)).status is JobStatus.SUCCEEDED
                assert await client.xlen(f"rq:results:{job}") == 1
            # Nothing was computed twice but what was under way, which goes on where it is.
            assert sum(len(sim.engine.history) for sim in fleet.sims.values()) == len(jobs)
