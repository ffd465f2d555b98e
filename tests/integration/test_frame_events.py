"""The frames of a job's runs, for whoever listens: from a node's websocket through Redis to a reader."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from comfy_fleet.adapters.redis.events import MOST_WAITING_BYTES
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.frames import RawFrame, parse_binary
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, new_job, picture, sampled, with_model
from tests.fleet import fleet_of, until
from tests.integration.redis_kit import add_nodes, claim, submit, wakes

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def frame(got: Claim, data: bytes, *, text: bool = False) -> RawFrame:
    return RawFrame(run=got.run, data=data, text=text)


async def test_frames_are_heard_as_they_were_and_stored_nowhere(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores)
    sent = [frame(got, b'{"type": "x y"}', text=True), frame(got, bytes(range(256))), frame(got, b"")]
    assert await stores.runs.frames([(got, sent)]) == [0]
    before = {key: await stores.redis.dump(key) for key in await stores.redis.keys("*")}
    async with stores.events.frames(job.id) as frames, stores.events.subscribe(job.id) as events:
        assert await stores.runs.frames([(got, sent)]) == [1]
        assert [await anext(frames) for _ in sent] == sent
        await stores.runs.waits(got, None)
        assert {key: await stores.redis.dump(key) for key in await stores.redis.keys("*")} == before
        await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
        assert (await anext(events)).type == "status"  # and no frame before it


async def test_whoever_lost_the_run_publishes_nothing(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores)
    async with stores.events.frames(job.id) as frames:
        lost = replace(got, token="of another")
        sent = [(lost, [frame(got, b"late")]), (got, [frame(got, b"in time")])]
        assert await stores.runs.frames(sent) == [None, 1]
        assert (await anext(frames)).data == b"in time"


async def test_dispatchers_hear_of_who_listens(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    first, second = await submit(stores), await submit(stores)
    async with stores.events.frames(second.id):
        one, two = await claim(stores, "g1"), await claim(stores, "g2")
        assert (one.job.id, one.heard, two.job.id, two.heard) == (first.id, False, second.id, True)
        beat = await stores.runs.beat("d1", [one, two], ttl_s=5)
        assert beat.heard == {two.run}
        async with wakes(stores) as said, stores.events.frames(first.id):
            pass
        assert said == [f"frames {first.id}".encode()]

    async def nobody() -> bool:
        return not (await stores.runs.beat("d1", [one, two], ttl_s=5)).heard

    await until(nobody, what="the channels are left")


async def test_a_slow_reader_gets_the_newest_and_holds_little(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(stores)
    got = await claim(stores)
    name = stores.redis.keyspace.frames(job.id)
    async with stores.events.frames(job.id) as slow, stores.events.channel(name) as quick:
        for index in range(24):
            await stores.runs.frames([(got, [frame(got, bytes([index]) * MIB)])])
        async with asyncio.timeout(60):
            while (await quick.get())[-1] != 23:
                pass
        kept = MOST_WAITING_BYTES // MIB - 1  # each is a little larger
        assert [(await anext(slow)).data[0] for _ in range(kept)] == list(range(24 - kept, 24))


async def all_frames(fleet: Any, job_id: str, *, graph: dict[str, Any]) -> list[RawFrame]:
    """Listen, submit, and return all frames of the job's run."""
    found: list[RawFrame] = []
    async with fleet.stores.events.frames(job_id) as frames:
        await fleet.stores.jobs.submit(new_job(graph, id=job_id), idempotency=None, depth_limit=9)
        async with asyncio.timeout(60):
            async for one in frames:
                found.append(one)
                if one.text and json.loads(one.data)["data"].get("node", "") is None:
                    return found
    raise AssertionError(found)


def texts(frames: Sequence[RawFrame]) -> list[tuple[str, Any]]:
    """Return types and nodes of the frames that tell of a prompt."""
    told = [json.loads(frame.data) for frame in frames if frame.text]
    return [(one["type"], one["data"].get("node")) for one in told if one["data"].get("prompt_id")]


async def test_a_listener_gets_what_a_client_of_the_node_itself_would(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        job_id = new_job().id
        ours = await all_frames(fleet, job_id, graph=picture(1))
        done = await fleet.ended(job_id)
        assert done.status is JobStatus.SUCCEEDED and {frame.run for frame in ours} == {done.run}
        sim = fleet.sims["g1"]
        async with connect(f"{sim.url.replace('http', 'ws')}/ws?clientId=direct") as socket:
            await fleet.stores.nodes.cordon("g1", reason="somebody else's now")
            async with httpx.AsyncClient() as client:
                body = {"prompt": picture(2), "client_id": "direct"}
                prompt = (await client.post(f"{sim.url}/prompt", json=body)).json()["prompt_id"]
            theirs: list[tuple[str, Any]] = []
            while ("executing", None) not in theirs:
                message = json.loads(await socket.recv())
                if message["data"].get("prompt_id") == prompt:
                    theirs.append((message["type"], message["data"].get("node")))
        assert texts(ours) == theirs
        assert "executed" in dict(theirs) and "execution_success" in dict(theirs)


async def test_pictures_come_too(redis_port: int) -> None:
    sim = {"timing": SimTiming(job_s=0.5), "previews": True, "models": with_model(1)}
    async with fleet_of(redis_port, "g1", sim=sim) as fleet:
        frames = await all_frames(fleet, new_job().id, graph=sampled())
        pictures = [parse_binary(frame.data) for frame in frames if not frame.text]
        assert pictures and None not in pictures


@pytest.mark.parametrize("told_by", ["a wake-up", "a beat"])
async def test_who_comes_late_gets_what_follows(redis_port: int, told_by: str) -> None:
    pace: dict[str, Any] = {"beat_s": 0.1} if told_by == "a beat" else {"beat_s": 60.0, "lease_ttl_s": 300.0}
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=60)}, **pace) as fleet:
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        async with (
            asyncio.timeout(60),
            fleet.stores.events.channel(fleet.stores.redis.keyspace.frames(job.id)) as queue,
        ):
            if told_by == "a wake-up":
                async with fleet.stores.events.frames(job.id):
                    pass
            (execution,) = fleet.dispatchers[0].dispatcher.flying.values()
            await until(lambda: execution.heard, what="the run knows that somebody listens")
            await fleet.stores.jobs.request_cancel(job.id)
            while b"execution_interrupted" not in await queue.get():
                pass
        assert (await fleet.ended(job.id)).status is JobStatus.CANCELED


async def test_without_a_listener_no_frame_goes_to_redis(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[object] = []

    async def frames(self: RedisRunStore, sent: object) -> list[int | None]:
        published.append(sent)
        return []

    monkeypatch.setattr(RedisRunStore, "frames", frames)
    async with fleet_of(redis_port, "g1") as fleet:
        job = await fleet.submit(GRAPH)
        async with fleet.stores.events.subscribe(job.id):  # an event stream is no listener
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
    assert not published
