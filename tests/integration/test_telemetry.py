"""What observers are told of real jobs, and that one which fails hurts none of them."""

from typing import Any, cast

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.telemetry import Observers
from comfy_fleet.domain.jobs.job import JobStatus, Placement
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH
from tests.fleet import fleet_of, until


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Recorder:
    """Keeps what it is told, and raises afterwards if asked to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def take(*args: Any, **more: Any) -> None:
            self.told.append((name, args, more))
            if self.fails:
                raise RuntimeError(name)

        return take

    def of_runs(self) -> list[str]:
        return [name for name, _, _ in self.told if name not in ("lease_refused", "store_retried")]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_jobs_life_is_told_in_order(redis_port: int, fails: bool) -> None:
    recorder = Recorder(fails=fails)
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=0.1)}) as fleet:
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        wished = Placement(pool="made-up", spill=("default",))
        done = await fleet.ended((await fleet.submit(GRAPH, placement=wished)).id)
        assert done.status is JobStatus.SUCCEEDED
        await until(lambda: "ended" in recorder.of_runs(), what="the end is told")
    assert sorted(recorder.of_runs()) == ["claimed", "ended", "left", "posted"]
    assert recorder.of_runs()[0] == "claimed" and recorder.of_runs()[-1] == "ended"
    told = {name: (args, more) for name, args, more in recorder.told}
    assert told["left"][1]["busy_s"] > 0
    claims = [told[name][0][0] for name in ("claimed", "posted", "left", "ended")]
    assert {claim.pool for claim in claims} == {"default"}, "not what the client made up"
    (claim, status), more = told["ended"]
    assert (claim.job.id, claim.node, status) == (done.id, "g1", JobStatus.SUCCEEDED)
    assert (more["error"], more["outputs"]) == (None, 1) and more["duration_s"] > 0


async def test_a_lost_run_is_given_back_and_its_node_is_let_go(redis_port: int) -> None:
    recorder = Recorder()
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=0.1)}) as fleet:
        fleet.sims["g1"].faults.update({"crash_mid_run": "always"})
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        done = await fleet.ended((await fleet.submit(GRAPH, max_attempts=1)).id)
        assert done.status is JobStatus.FAILED
        await until(lambda: "left" in recorder.of_runs(), what="the node is let go")
    assert sorted(recorder.of_runs()) == ["claimed", "given_back", "left", "posted"]
    ((_, status), more) = next((args, more) for name, args, more in recorder.told if name == "given_back")
    assert (status, more["counts"], more["error"].code) == (JobStatus.FAILED, True, "node_lost")


async def test_expired_jobs_are_told(redis_port: int) -> None:
    recorder = Recorder()
    async with fleet_of(redis_port, dispatch=False) as fleet:
        await fleet.submit(GRAPH, deadline_s=0.001)
        await fleet.dispatcher(telemetry=Observers(cast(Telemetry, recorder)))
        await until(lambda: ("expired", (1,), {}) in recorder.told, what="it is told")
