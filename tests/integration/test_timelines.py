"""Where a job's time went: what real runs leave in records, and how that is read."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.job_records import Complaints, shown_job
from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.timeline import Delivery, Span, SpanName, timeline
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import running
from tests.integration.test_merged_runs import key_of
from tests.key_files import write_keys

ANN, BOB, OPS = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789"
STEPS = [SpanName.STAGE, SpanName.POST, SpanName.WAIT_ON_NODE, SpanName.EXECUTE, SpanName.COLLECT]


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def working(color: int, seconds: float = 1.0) -> dict[str, Any]:
    graph = picture(color)
    inputs = {"value": ["1", 0], "seconds": seconds, "steps": 20, "vram_gb": 0.0}
    graph["3"] = {"class_type": "SimWork", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def drawn(job: Job, **more: Any) -> tuple[Span, ...]:
    end = job.completed_at or job.created_at
    return timeline(job, **{"waiting_for": None, "deliveries": (), "now": end, **more}).spans


def of(spans: tuple[Span, ...], *names: SpanName) -> list[Span]:
    return [one for one in spans if one.name in names]


async def crashed(fleet: Fleet, job: Job) -> str:
    """Let the job's node die while it computes; return its name."""

    async def computes() -> bool:
        return (await fleet.job(job.id)).node is not None

    await until(computes, what="it runs")
    node = (await fleet.job(job.id)).node
    assert node is not None
    await until(lambda: fleet.sims[node].engine.running, what="it computes")
    await asyncio.sleep(0.3)  # so that its first attempt has taken some time
    await fleet.sims[node].crash()
    return node


async def test_runs_leave_their_steps_and_their_graphs_nodes(redis_port: int) -> None:
    timing = SimTiming()
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": timing}) as fleet:
        done = await fleet.ended((await fleet.submit(working(1))).id)
        spans = drawn(done)
        assert [one.name for one in of(spans, *STEPS)] == STEPS
        (attempt,) = of(spans, SpanName.ATTEMPT)
        inner = of(spans, *STEPS)
        assert sum(one.seconds for one in inner) <= attempt.seconds + 0.01
        by_class = {one.class_type: one for one in of(spans, SpanName.GRAPH_NODE)}
        work = by_class["SimWork"]
        (execute,) = of(spans, SpanName.EXECUTE)
        assert 0.9 <= work.seconds <= execute.seconds + 0.05
        assert max(by_class.values(), key=lambda one: one.seconds) is work

        lost = await fleet.submit(working(2, 3.0))
        node = await crashed(fleet, lost)
        again = await fleet.ended(lost.id)
        assert again.status is JobStatus.SUCCEEDED
        first, second = of(drawn(again), SpanName.ATTEMPT)
        assert (first.node, second.node != node, second.attempt) == (node, True, 2)
        assert first.note
        assert len(of(drawn(again), SpanName.QUEUE)) == 2
        assert SpanName.COLLECT not in {one.name for one in drawn(again) if one.attempt == 1}
        assert {one.name for one in drawn(again) if one.attempt == 2} >= set(STEPS)


async def test_cached_nodes_merged_prompts_and_cancels(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        gone = await fleet.submit(GRAPH)
        await fleet.stores.jobs.request_cancel(gone.id)
        canceled = await fleet.job(gone.id)
        assert [(one.name, one.note) for one in drawn(canceled)] == [(SpanName.QUEUE, "canceled")]
        jobs = [await fleet.submit(picture(n), merge=key_of(picture(n), MergeMode.EXACT)) for n in (1, 2)]
        await fleet.dispatcher()
        for job in jobs:
            done = await fleet.ended(job.id)
            assert done.status is JobStatus.SUCCEEDED
            spans = drawn(done)
            assert [one.name for one in of(spans, *STEPS)] == STEPS
            assert {one.node_id for one in of(spans, SpanName.GRAPH_NODE)} <= {"1", "2"}, "its own names"
        await fleet.ended((await fleet.submit(GRAPH)).id)
        (execute,) = of(drawn(await fleet.ended((await fleet.submit(GRAPH)).id)), SpanName.EXECUTE)
        assert execute.note.endswith("nodes cached")


async def test_a_dispatcher_that_takes_over_says_so(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=1)}) as fleet:
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        await fleet.dispatchers[0].kill()
        await fleet.dispatcher("d2")
        done = await fleet.ended(job.id)
        found = timeline(done, waiting_for=None, deliveries=(), now=done.completed_at or 0)
        assert [one.name for one in found.spans] == [SpanName.QUEUE, SpanName.ATTEMPT]
        assert "attempt 1" in found.unknown[0]


async def test_records_that_are_odd_or_older_are_drawn(redis_port: int, redis: Redis) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        done = await fleet.ended((await fleet.submit(GRAPH)).id)
        key = f"fleet:job:{done.id}"
        raw: Any = await fleet.stores.redis.hgetall(key)
        record = {name.decode(): value for name, value in raw.items()}
        for times in (None, "x", "{}", 7, '{"steps": {"left": "no"}}', "[]"):
            one = {"run": "r", "node": "g1", "started": done.created_at, "ended": done.created_at + 2}
            attempts = orjson.dumps([{**one, "counted": False, "times": times}])
            odd = shown_job(done.id, {**record, "attempts": attempts}, complaints=Complaints())
            assert odd is not None and odd.error is None
            assert of(drawn(odd), SpanName.ATTEMPT)[0].seconds == pytest.approx(2, abs=0.01)


async def test_the_route_has_the_jobs_rights(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    write_keys(tmp_path / "keys", f"ann {ANN}\nbob {BOB}\nops {OPS} operator\n")
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys") as api:
        await api.add_node(info=False)
        ann, bob, ops = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB, OPS))
        body = {
            "workflow": GRAPH,
            "webhook_url": "https://93.184.216.34/hook",
            "webhook_events": ["job.started", "job.succeeded"],
        }
        made = await api.client.post("/api/v2/jobs", json=body, headers=ann)
        assert made.status_code == 201, made.text
        path = f"/api/v1/jobs/{made.json()['id']}/timeline"
        waits = (await api.client.get(path, headers=ann)).json()
        assert [(one["name"], one["lasting"]) for one in waits["spans"]] == [("queue", True)]
        claim = await api.claim(made.json()["id"])
        runs = (await api.client.get(path, headers=ann)).json()
        assert [one["name"] for one in runs["spans"]] == ["queue", "attempt", "webhook"]
        assert runs["spans"][1]["lasting"] and runs["spans"][1]["node"] == "g1"
        await api.finish(claim)
        ended = (await api.client.get(path, headers=ops)).json()
        assert [one["name"] for one in ended["spans"]] == ["queue", "attempt", "webhook", "webhook"]
        assert ended["unknown"] and ended["status"] == "succeeded"
        assert "93.184" not in str(ended)
        assert (await api.client.get(path, headers=bob)).status_code == 404


def test_a_delivery_ends_with_its_last_try() -> None:
    job = Job(
        id="j",
        owner="o",
        status=JobStatus.SUCCEEDED,
        created_at=10,
        expires_at=99,
        graph_hash="",
        completed_at=12,
        cached=True,
    )
    told = Delivery(type="job.succeeded", at=12, tried_at=15, state="delivered", attempts=2, status=200)
    spans = drawn(job, deliveries=[told], now=100)
    assert [(one.name, one.start_s, one.seconds, one.lasting) for one in spans] == [
        (SpanName.FOLLOW, 0, 2, False),
        (SpanName.WEBHOOK, 2, 3, False),
    ]
