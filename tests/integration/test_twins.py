"""One ComfyUI under two names is one node; two that are alike are two."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.hosts import RedisHosts
from comfy_fleet.agent.host import HostAgent
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import Heartbeat, Joining, NodeReport
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import SimTiming
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until

SLOW = SimTiming(job_s=0.6)


@pytest.fixture
def hosts(stores: Stores) -> RedisHosts:
    return RedisHosts(stores.redis)


async def add(stores: Stores, name: str, url: str, at: float = 0.0) -> None:
    await stores.nodes.add(Node(name=name, url=url, added_at=at))


async def shows(hosts: RedisHosts, name: str, address: str, *runs: str, host: str = "c") -> None:
    report = NodeReport(name=name, readiness=Readiness.READY, address=address, runs=runs)
    said = Heartbeat(host=host, instance="i", central=host == "c", nodes=[report])
    await hosts.beat(said, now=time.time())


async def drained(stores: Stores) -> dict[str, str]:
    return {node.name: node.cordon_reason for node in await stores.nodes.nodes() if node.cordoned}


async def test_the_later_of_two_that_show_one_run_is_drained_until_the_other_is_removed(
    stores: Stores, hosts: RedisHosts
) -> None:
    await add(stores, "z", "http://127.0.0.1:1", at=1)
    await add(stores, "b", "http://localhost:1", at=2)
    run = str(uuid4())
    await shows(hosts, "b", "localhost:1", run)
    assert await drained(stores) == {}
    await shows(hosts, "z", "127.0.0.1:1", run)
    assert await drained(stores) == {"b": "is the same ComfyUI as node z: one ComfyUI is one node"}
    await stores.nodes.remove("z")
    assert await drained(stores) == {}


async def test_what_an_operator_says_of_a_twin_stays(stores: Stores, hosts: RedisHosts) -> None:
    await add(stores, "a", "http://127.0.0.1:1", at=1)
    await add(stores, "b", "http://localhost:1", at=2)
    run = str(uuid4())
    await stores.nodes.cordon("a", reason="by hand")
    for name, address in (("a", "127.0.0.1:1"), ("b", "localhost:1")):
        await shows(hosts, name, address, run)
    assert await drained(stores) == {"a": "by hand"}  # one of them works: the one that the operator wants
    await stores.nodes.uncordon("a")
    await shows(hosts, "a", "127.0.0.1:1", run)
    assert list(await drained(stores)) == ["b"]
    await stores.nodes.cordon("b", reason="new fans")
    await stores.nodes.remove("a")
    assert await drained(stores) == {"b": "new fans"}


async def test_different_runs_a_move_or_a_node_that_is_gone_make_no_twins(
    stores: Stores, hosts: RedisHosts
) -> None:
    await add(stores, "a", "http://127.0.0.1:1", at=1)
    await add(stores, "b", "http://127.0.0.1:2", at=2)
    run = str(uuid4())
    await shows(hosts, "a", "127.0.0.1:1", str(uuid4()))
    await shows(hosts, "b", "127.0.0.1:2", str(uuid4()))
    await shows(hosts, "a", "127.0.0.1:1", run)
    await shows(hosts, "b", "127.0.0.1:9", run)  # looked at before it moved
    await stores.nodes.remove("a")
    await shows(hosts, "b", "127.0.0.1:2", run)
    await add(stores, "a", "http://127.0.0.1:3", at=3)  # the name is another machine's now
    await shows(hosts, "b", "127.0.0.1:2", run)
    assert await drained(stores) == {}


async def test_a_twin_that_moves_works_again(stores: Stores, hosts: RedisHosts) -> None:
    one = Joining(name="h-0", url="http://10.0.0.1:1", agent="10.0.0.1:9")
    other = replace(one, name="i-0", url="http://gpu.test:1")
    run = str(uuid4())

    async def found() -> None:
        await shows(hosts, "h-0", "10.0.0.1:1", run, host="h")
        await shows(hosts, "i-0", "gpu.test:1", run, host="i")
        assert list(await drained(stores)) == ["i-0"]

    await hosts.join("h", one, now=1.0)
    await hosts.join("i", other, now=2.0)
    await found()
    await hosts.join("i", replace(other, url="http://gpu.test:2"), now=3.0)
    assert await drained(stores) == {}
    await hosts.join("i", other, now=4.0)
    await found()
    await hosts.join("h", replace(one, url="http://10.0.0.1:2"), now=5.0)
    assert await drained(stores) == {}


@asynccontextmanager
async def beating(fleet: Fleet, host: HostAgent) -> AsyncIterator[None]:
    """Send an agent's heartbeats to the store, as its link and the API do."""
    hosts = RedisHosts(fleet.stores.redis)

    async def beats() -> None:
        while True:
            await hosts.beat(host.heartbeat(), now=time.time())
            await asyncio.sleep(0.2)

    task = asyncio.create_task(beats())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def colors() -> Iterator[int]:
    return iter(range(1, 1_000_000))


async def work(fleet: Fleet, colors: Iterator[int], jobs: int) -> set[str | None]:
    """Run jobs; returns on which nodes."""
    sent = [await fleet.submit(picture(next(colors))) for _ in range(jobs)]
    ended = [await fleet.ended(job.id, timeout_s=60) for job in sent]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    return {job.node for job in ended}


async def test_one_comfyui_under_two_names_is_found_at_work(
    redis: Redis, redis_port: int, colors: Iterator[int]
) -> None:
    async with fleet_of(redis_port) as fleet:
        sim = await fleet.add_sim("one", timing=SLOW)
        await fleet.stores.nodes.add(
            Node(name="two", url=sim.url.replace("127.0.0.1", "localhost"), added_at=time.time() + 1)
        )
        for name in ("one", "two"):
            await fleet.verdict(name)
        async with beating(fleet, fleet.host):
            working = asyncio.create_task(work(fleet, colors, 8))
            await until(lambda: _twin(fleet, "two", "one"), what="they are found to be one")
            await working  # what they had is done
            assert await work(fleet, colors, 3) == {"one"}
            assert not (await fleet.state("one")).node.cordoned
            await fleet.stores.nodes.remove("one")
            await fleet.verdict("two")
            assert await work(fleet, colors, 3) == {"two"}


async def _twin(fleet: Fleet, name: str, other: str) -> bool:
    node = (await fleet.state(name)).node
    return node.cordoned and f"is the same ComfyUI as node {other}" in node.cordon_reason


async def test_two_that_are_alike_are_two_also_when_jobs_go_from_one_to_the_other(
    redis: Redis, redis_port: int, colors: Iterator[int]
) -> None:
    async with (
        fleet_of(redis_port, "one", "two", sim={"timing": SLOW}) as fleet,
        beating(fleet, fleet.host),
    ):
        working = asyncio.create_task(work(fleet, colors, 10))
        for name in ("one", "two", "one"):
            await until(partial(_works, fleet, name), what=f"{name} works")
            await fleet.stores.nodes.release(name)
        assert await working == {"one", "two"}
        assert await drained(fleet.stores) == {}


async def _works(fleet: Fleet, name: str) -> bool:
    return (await fleet.state(name)).run is not None
