"""Jobs that get onto a node which works for others, or whose prompt thread is dead: they run elsewhere."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.run_metrics import Measure, Measured
from comfy_fleet.sim import SimTiming
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until

DONE = JobStatus.SUCCEEDED


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def long(seconds: float) -> dict[str, Any]:
    graph = picture(0xABCDEF)
    inputs = {"value": ["1", 0], "seconds": seconds, "steps": 20, "vram_gb": 0.0}
    graph["3"] = {"class_type": "SimWork", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


async def occupy(fleet: Fleet, name: str, *, dead: bool = False, seconds: float = 600) -> str:
    """Have a node work for somebody else, or lose its prompt thread at that; returns the prompt's id."""
    sim = fleet.sims[name]
    if dead:
        sim.faults.update({"worker_dies": 1})
    prompt = str(uuid4())
    async with httpx.AsyncClient(base_url=sim.url) as client:
        answer = await client.post("/prompt", json={"prompt": long(seconds), "prompt_id": prompt})
        assert answer.status_code == 200, answer.text
    await until(lambda: sim.engine.running, what="the node works for somebody else")
    return prompt


async def queued_on(fleet: Fleet, name: str) -> list[str]:
    """Return the ids of the prompts that are on a node."""
    async with httpx.AsyncClient(base_url=fleet.sims[name].url) as client:
        queue = (await client.get("/queue")).json()
    return [row[1] for row in queue["queue_running"] + queue["queue_pending"]]


async def on(fleet: Fleet, job: Job, node: str) -> None:
    async def there() -> bool:
        return (await fleet.job(job.id)).node == node

    await until(there, what=f"the job is on {node}")


def came_back(job: Job, node: str) -> None:
    """Check that it was on that node, and that this cost it nothing."""
    first = job.attempts[0]
    assert (first.node, first.counted) == (node, False)
    assert first.error is not None and first.error.code == "node_busy"
    assert job.attempt == 0


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "busy"])
async def test_a_job_behind_somebody_elses_prompt_runs_where_a_node_is_free(
    redis_port: int, dead: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming()}, pending_s=600.0) as fleet:
        theirs = await occupy(fleet, "g1", dead=dead)
        await fleet.stores.nodes.cordon("g2", reason="later")
        job = await fleet.submit(picture(1))
        await on(fleet, job, "g1")
        await fleet.stores.nodes.uncordon("g2")
        done = await fleet.ended(job.id)
        assert (done.status, done.node) == (DONE, "g2")
        came_back(done, "g1")
        assert await queued_on(fleet, "g1") == [theirs]
        assert fleet.sims["g2"].stats.done == 1
        assert "run ended badly" not in caplog.messages, "nothing is wrong, and nobody need look at it"


async def test_it_goes_back_after_a_while_in_any_case(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming()}, pending_s=0.5) as fleet:
        theirs = await occupy(fleet, "g1")
        job = await fleet.submit(picture(1))

        async def back() -> bool:
            return bool((await fleet.job(job.id)).attempts)

        await until(back, what="it is back in the queue")
        await fleet.add_sim("g2")
        done = await fleet.ended(job.id)
        assert (done.status, done.node) == (DONE, "g2")
        came_back(done, "g1")
        assert await queued_on(fleet, "g1") == [theirs]


async def test_it_goes_on_there_if_the_others_work_ends_first(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[float | None] = []

    def succeeded(self: Measure, claim: Claim, *, took_s: float | None) -> Measured:
        took.append(took_s)
        return Measured()

    monkeypatch.setattr(Measure, "succeeded", succeeded)
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming()}, pending_s=600.0) as fleet:
        await occupy(fleet, "g1", seconds=3)
        done = await fleet.ended((await fleet.submit(picture(1))).id)
        assert (done.status, done.node, len(done.attempts)) == (DONE, "g1", 1)
        assert fleet.sims["g1"].stats.done == 2
        assert took == [None], "waiting says nothing of the node's speed"


async def test_a_cancel_leaves_nothing_behind(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming()}, pending_s=600.0) as fleet:
        theirs = await occupy(fleet, "g1")
        job = await fleet.submit(picture(1))
        await on(fleet, job, "g1")
        await fleet.stores.jobs.request_cancel(job.id)
        assert (await fleet.ended(job.id)).status is JobStatus.CANCELED
        assert await queued_on(fleet, "g1") == [theirs]


async def test_the_next_dispatcher_gets_it_away_as_well(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming()}, pending_s=600.0) as fleet:
        theirs = await occupy(fleet, "g1", dead=True)
        job = await fleet.submit(picture(1))

        async def waits() -> bool:
            return len(await queued_on(fleet, "g1")) == 2

        await until(waits, what="it waits behind the other")
        await fleet.dispatchers[0].kill()
        await fleet.dispatcher("d2")
        await fleet.add_sim("g2")
        done = await fleet.ended(job.id)
        assert (done.status, done.node) == (DONE, "g2")
        came_back(done, "g1")
        assert await queued_on(fleet, "g1") == [theirs]
        assert fleet.sims["g2"].stats.done == 1
