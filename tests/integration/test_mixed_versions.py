"""Versions at work on one Redis: what an earlier one wrote, what a newer one will, and who may claim.

``data/redis_0_1.json.gz`` is what a fleet of version 0.1.0 (commit 582529e) had in Redis: name -> [type,
value], bytes as Latin-1.
"""

import asyncio
import gzip
import logging
import os
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.redis.asset_record import load_asset
from comfy_fleet.adapters.redis.inventories import pack, unpack
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.api.main import build
from comfy_fleet.api.v1.health import not_ready
from comfy_fleet.bootstrap import Stores, check_schema, open_nodes
from comfy_fleet.cli.app import build as build_cli
from comfy_fleet.domain.errors import ConfigError, Outdated
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory
from comfy_fleet.domain.jobs.job import Job, JobError, JobFilter, JobStatus, Placement
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import GpuAllocation, Heartbeat, Joining, NodeReport
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.settings import Settings
from tests.factories import new_job, picture
from tests.fleet import fleet_of, until
from tests.integration.api_kit import running
from tests.integration.redis_kit import add_nodes, claim, submit

NEWER = {"of_a_newer_version": "1"}
DATA = Path(__file__).parents[1] / "data" / "redis_0_1.json.gz"
RECORDS = ("fleet:job:", "fleet:run:", "fleet:node:", "fleet:asset:", "rq:job:", "rq:execution:")
FOREIGN = ("fleet:graph:", "fleet:inventory:")  # the client's own, and one that is tested by itself
OURS = {"metadata", "params", "uploads", "progress", "error", "last_error", "attempts"}


def grown(text: str) -> str:
    """Return a JSON object or list of objects with a field more in each; other text as it is."""

    def more(value: Any) -> Any:
        if isinstance(value, list):
            return [more(one) for one in value]
        return {**{k: more(v) for k, v in value.items()}, **NEWER} if isinstance(value, dict) else value

    return orjson.dumps(more(orjson.loads(text))).decode() if text.startswith(("{", "[{")) else text


def grow(key: str, kind: str, value: Any) -> Any:
    if key.startswith(FOREIGN):
        return value
    if kind == "hash":
        fields = {n: v if n in ("metadata", "params", "uploads") else grown(v) for n, v in value.items()}
        record = key.startswith(RECORDS) and not key.endswith(":outputs") and "fleet:asset:job:" not in key
        return {**fields, **NEWER} if record else fields
    if kind == "list":
        return [grown(one) for one in value]
    return grown(value) if kind == "string" else value


async def load(client: Any, *, newer: bool) -> None:
    """Write the earlier version's data; or as a version writes it that has a field more in each record."""
    for key, (kind, value) in orjson.loads(gzip.decompress(DATA.read_bytes())).items():
        if newer:
            value = grow(key, kind, value)

        def raw(text: str) -> bytes:
            return text.encode("latin-1")

        name = raw(key)
        if kind == "string":
            await client.set(name, raw(value))
        elif kind == "hash":
            await client.hset(name, mapping={raw(n): raw(v) for n, v in value.items()})
        elif kind == "set":
            await client.sadd(name, *map(raw, value))
        elif kind == "zset":
            await client.zadd(name, {raw(n): score for n, score in value.items()})
        elif kind == "list":
            await client.rpush(name, *map(raw, value))
        else:
            for entry in value:
                await client.xadd(name, {raw(n): raw(v) for n, v in entry.items()})


async def listed(stores: Stores) -> dict[str, Job]:
    page = await stores.jobs.find(JobFilter(owner="local", limit=100))
    return {job.id: job for job in page.jobs}


@pytest.mark.parametrize("newer", [False, True])
async def test_data_of_another_version_opens_and_goes_on(
    stores: Stores, newer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = stores.redis
    await load(client, newer=newer)
    await check_schema(stores)
    assert await client.get("fleet:schema") == str(SCHEMA).encode()

    jobs = await listed(stores)
    assert Counter(job.status for job in jobs.values()) == {
        JobStatus.QUEUED: 4,
        JobStatus.RUNNING: 1,
        JobStatus.SUCCEEDED: 1,
        JobStatus.FAILED: 1,
    }
    whole = {job_id: await stores.jobs.get(job_id) for job_id in jobs}
    by_status = {job.status: job for job in whole.values() if job}
    done, failed, running = (
        by_status[status] for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.RUNNING)
    )
    assert done.metadata == {"team": "a"} and len(done.outputs) == 1
    assert failed.error and failed.error.code == "oops"
    assert running.progress and running.progress.value == 0.5 and running.node == "g2"
    asset = await client.hgetall(f"fleet:asset:{done.outputs[0].asset_id}")
    assert load_asset({name.decode(): value.decode() for name, value in asset.items()}).job_id == done.id

    g1, g2 = await stores.nodes.states()
    assert g1.done == 1 and g1.node.simulated and g2.job == running.id
    assert {error["code"] for error in await stores.nodes.errors("g1")} == {"node_lost", "oops"}
    waiting = {head.placement: head.count for head in await stores.runs.waiting()}
    (needing,) = (placement for placement in waiting if placement.needs)
    assert waiting == {Placement(): 3, needing: 1}
    needs = await stores.inventories.needs(needing.needs)
    assert needs and needs.classes == {"SaveImage"} and needs.vram_bytes == 5
    # What nodes have was packed in another form: they are asked anew.
    assert await stores.inventories.load(g1.reading.inventory) is None
    assert (await stores.nodes.states())[0].reading.wanted
    await NodeDirectory(stores.nodes, stores.inventories).look()

    async def ends(run: Any) -> None:
        status = await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
        assert status is JobStatus.SUCCEEDED

    await until(lambda: _expired(client), what="the run's lease ends")
    await client.delete(
        "fleet:clock"
    )  # else time stands still for who has not been told of it for some seconds
    (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=9, limit=9)
    assert held.claim.job.id == running.id and held.phase == "accepted"
    await ends(held.claim)
    await submit(stores)
    for placement in (*[Placement()] * 4, needing):
        await ends(await claim(stores, placement=placement))
    assert not await stores.runs.waiting()
    assert {job.status for job in (await listed(stores)).values()} == {JobStatus.SUCCEEDED, JobStatus.FAILED}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def _expired(client: Any) -> bool:
    (_, score), *_ = await client.zrange("fleet:runs", 0, 0, withscores=True)
    return bool((await client.time())[0] > score)


async def test_fields_of_a_newer_version_in_what_a_gpu_host_says(stores: Stores) -> None:
    client: Any = stores.redis
    for host, name in (("h1", "a"), ("h2", "b")):
        await stores.hosts.admit(host, host)
        joining = Joining(name=name, url=f"http://127.0.0.1:{9000 + ord(name)}", agent="127.0.0.1:9")
        await stores.hosts.join(host, joining, now=1.0)
    reports = {
        name: NodeReport(name=name, readiness=Readiness.READY, gpu_allocation=GpuAllocation(gpu="GPU-1"))
        for name in ("a", "b")
    }
    await stores.hosts.beat(Heartbeat(host="h1", instance="h1", nodes=(reports["a"],)), now=1.0)
    at, _, gpu_allocation = (await client.hget("fleet:gpu:GPU-1", "a")).decode().partition(" ")
    await client.hset("fleet:gpu:GPU-1", "a", f"{at} {grown(gpu_allocation)}")
    assert "of_a_newer" in grown(gpu_allocation)
    await client.set("fleet:host:h1", grown((await client.get("fleet:host:h1")).decode()), keepttl=True)
    orders = await stores.hosts.beat(Heartbeat(host="h2", instance="h2", nodes=(reports["b"],)), now=1.0)
    assert set(orders.neighbours) >= {"a"}
    assert [state.host for state in await stores.hosts.hosts()] == ["h1", "h2"]


def test_fields_of_a_newer_version_in_an_inventory() -> None:
    known = Inventory(classes={"A": ClassInfo(name="A", outputs=("IMAGE",))})
    lines = zlib.decompress(pack(known)[1]).splitlines()
    entries = [orjson.loads(line) for line in lines]
    newer = b"".join(orjson.dumps([name, {**raw, **NEWER}]) + b"\n" for name, raw in entries)
    assert unpack(zlib.compress(newer)) == known


async def test_fields_of_a_newer_version_in_an_event(stores: Stores) -> None:
    job = await submit(stores)
    async with stores.events.subscribe(job.id) as seen:
        event = {"seq": 1, "type": "status", "run": None, "data": {"status": "canceled", **NEWER}, **NEWER}
        await stores.redis.publish(f"fleet:events:{job.id}", orjson.dumps(event))
        assert (await anext(seen)).data["status"] == "canceled"


async def test_a_queue_that_asks_for_what_is_not_known_is_left_alone(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    job = await submit(stores)
    await client.hset("fleet:sched:count", "default::::0:new", 1)
    (waiting,) = await stores.runs.waiting()
    assert waiting.placement == Placement()
    assert (await claim(stores)).job.id == job.id


async def test_only_the_newest_layout_takes_new_work(stores: Stores) -> None:
    client: Any = stores.redis
    newer = Scripts(stores.redis, schema=SCHEMA + 1)
    newer_runs = RedisRunStore(stores.redis, schema=SCHEMA + 1)
    await check_schema(stores)
    await add_nodes(stores, "g1", "g2", "g3")
    for _ in range(4):
        await submit(stores)
    mine, lapsed = await claim(stores, "g1"), await claim(stores, "g2", ttl=-1)
    await newer.start()
    await newer.start()
    assert await client.get("fleet:schema") == str(SCHEMA + 1).encode()

    with pytest.raises(Outdated, match=f"holds layout {SCHEMA + 1} and this process knows layout {SCHEMA}"):
        await claim(stores, "g3")
    with pytest.raises(Outdated):
        await submit(stores)
    with pytest.raises(Outdated):
        await stores.runs.check_schema()
    with pytest.raises(ConfigError, match="start the version that wrote it"):
        await check_schema(stores)
    assert await stores.jobs.depth() == 2

    # What it has begun, and what others of its version have, it ends.
    assert not (await stores.runs.beat("d1", [mine], ttl_s=9)).lost
    await stores.runs.accepted(mine)
    assert await stores.runs.finish(mine, JobStatus.SUCCEEDED, error=None, duration_s=1.0) == "succeeded"
    (held,) = await stores.runs.take_over(dispatcher="d1", ttl_s=9, limit=9)
    assert held.claim.job.id == lapsed.job.id
    why = JobError(code="node_lost", message="gone")
    assert await stores.runs.requeue(held.claim, counts=False, reason=why) == "queued"

    # What the newer version has begun is the newer version's.
    args = {"run": str(uuid4()), "token": "t", "dispatcher": "d2", "ttl_s": -1.0}
    await newer_runs.claim(node="g1", placements=[Placement()], **args)  # type: ignore[arg-type]
    assert not await stores.runs.take_over(dispatcher="d1", ttl_s=9, limit=9)
    assert len(await newer_runs.take_over(dispatcher="d2", ttl_s=9, limit=9)) == 1


@pytest.mark.parametrize("strange", ["2.5", "soon", "-1", "\u0662", b"\xff"])
async def test_a_layout_that_is_no_number_stops_new_work(stores: Stores, strange: str | bytes) -> None:
    await stores.redis.set("fleet:schema", strange)
    with pytest.raises(Outdated):
        await submit(stores)
    with pytest.raises(ConfigError):
        await check_schema(stores)


def test_a_dispatcher_of_an_older_version_does_not_start(redis_port: int, tmp_path: Path) -> None:
    client = SyncRedis(port=redis_port)
    client.flushall()
    client.set("fleet:schema", SCHEMA + 1)
    client.close()
    env = {**os.environ, "FLEET_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0", "FLEET_DATA": str(tmp_path)}
    for command in ("dispatch", "api"):
        argv = [sys.executable, "-m", "comfy_fleet", command]
        ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 1 and "Traceback" not in ran.stderr
        assert f"Redis holds layout {SCHEMA + 1} and this process knows layout {SCHEMA}" in ran.stderr


async def test_an_emptied_redis_gets_the_layout_of_who_writes_next(stores: Stores) -> None:
    client: Any = stores.redis
    newer = RedisJobStore(stores.redis, ageing_s=1.0, schema=SCHEMA + 1)
    await newer.submit(new_job(), idempotency=None, depth_limit=9)
    assert await client.get("fleet:schema") == str(SCHEMA + 1).encode()
    await client.flushall()
    await newer.submit(new_job(), idempotency=None, depth_limit=9)
    assert await client.get("fleet:schema") == str(SCHEMA + 1).encode()


class Held(RedisRunStore):
    """Lets no run end before the gate opens; ``ending`` are those that wait for it."""

    gate: asyncio.Event
    ending: list[str]

    async def finish(self, claim: Claim, status: JobStatus, **rest: Any) -> JobStatus:
        self.ending.append(claim.job.id)
        await self.gate.wait()
        return await super().finish(claim, status, **rest)


@pytest.mark.timeout(180)
async def test_the_layout_is_raised_while_an_old_dispatcher_has_twenty_runs(
    redis_port: int, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"g{number}" for number in range(20)]
    # A run whose lease is old by the time of its post goes back to the queue, where the old one leaves it.
    async with fleet_of(redis_port, *names, dispatch=False, lease_ttl_s=60.0) as fleet:
        held = Held(fleet.stores.redis)
        held.gate, held.ending = asyncio.Event(), []
        fleet.stores = replace(fleet.stores, runs=held)
        old = await fleet.dispatcher()
        first = [await fleet.submit(picture(number)) for number in range(20)]
        await until(lambda: len(held.ending) == 20, what="twenty runs are about to end", timeout_s=60)

        newer = Scripts(fleet.stores.redis, schema=SCHEMA + 1)
        await newer.start()
        with pytest.raises(Outdated):
            await fleet.submit(picture(99))
        fleet.stores = replace(
            fleet.stores,
            jobs=RedisJobStore(fleet.stores.redis, ageing_s=60.0, schema=SCHEMA + 1),
            runs=RedisRunStore(fleet.stores.redis, schema=SCHEMA + 1),
        )
        later = [await fleet.submit(picture(100 + number)) for number in range(10)]
        await until(lambda: "takes no more jobs" in caplog.text, what="the old one says so")
        assert len(old.dispatcher.flying) == 20
        held.gate.set()
        with pytest.raises(ConfigError, match="newer version"):  # alone with what waits, it takes none of it
            await asyncio.wait_for(asyncio.shield(old.task), 30)
        assert old.dispatcher.done == 20 and not old.dispatcher.flying
        assert all([(await fleet.job(job.id)).status == "succeeded" for job in first])
        assert all([(await fleet.job(job.id)).status == "queued" for job in later])
        said = [record for record in caplog.records if "takes no more jobs" in record.message]
        assert len(said) == 1 and said[0].levelno == logging.ERROR
        assert not [record for record in caplog.records if record.exc_info]

        await fleet.dispatcher("d2")
        ended = [await fleet.ended(job.id) for job in (*first, *later)]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        runs = [attempt.run for job in ended for attempt in job.attempts]
        assert len(runs) == len(set(runs)) == 30  # each ran once


async def test_an_old_api_says_that_it_takes_no_new_jobs(stores: Stores, tmp_path: Path) -> None:
    client: Any = stores.redis
    settings = Settings(data=tmp_path)
    async with open_nodes(settings, stores) as nodes:
        deps = build(settings, stores, nodes)

        async def why() -> dict[str, str]:
            return {reason["part"]: reason["why"] for reason in await not_ready(deps)}

        async def dispatcher(name: str, layout: int) -> None:
            await client.set(f"fleet:dispatcher:{name}", layout)
            await client.sadd("fleet:dispatchers", name)

        await dispatcher("old", 1)  # as is a Redis whose layout is not written yet
        assert not {"schema", "dispatcher"} & (await why()).keys() and await deps.notes() == []
        await client.set("fleet:schema", SCHEMA + 1)
        reasons = await why()
        assert "takes no new jobs: start the newer version" in reasons["schema"]
        assert reasons["dispatcher"].startswith("no other dispatcher is running: 1 of an older version")
        await dispatcher("new", SCHEMA + 1)
        assert "dispatcher" not in await why()
        (note,) = await deps.notes()
        assert note.startswith("dispatchers: 1 of an older version ends its runs")


async def test_fleet_status_says_that_an_older_process_is_held_back(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async def status(url: str) -> tuple[int, str]:
        ran = await asyncio.to_thread(
            CliRunner().invoke, build_cli(["status"]), ["status", "--api", url], env={"COLUMNS": "300"}
        )
        return ran.exit_code, ran.output

    async with (
        fleet_of(redis_port, "g1") as fleet,
        running(redis_port, fleet.settings.data) as api,
    ):
        client: Any = fleet.stores.redis
        for name, schema in (("new", SCHEMA), ("old", SCHEMA - 1)):
            await client.set(f"fleet:dispatcher:{name}", schema)
            await client.sadd("fleet:dispatchers", name)
        code, text = await status(api.url)
        assert (code, "1 of an older version ends its runs" in text) == (0, True), text
        await client.set("fleet:schema", SCHEMA + 1)
        code, text = await status(api.url)
        assert (code, "takes no new jobs: start the newer version" in text) == (1, True), text
        assert f"layout {SCHEMA + 1}" in text
