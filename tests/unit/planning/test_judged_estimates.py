"""Estimates are judged by what the simulator makes of the jobs."""

import pytest

from comfy_fleet.planning.conditions import Conditions
from comfy_fleet.planning.estimates import Estimates
from comfy_fleet.planning.fleet import NodeGroup, planned
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.judged_estimates import EstimateQuality
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.simulation import Simulation

LOADS = [0.6, 0.8, 0.95]


def judged(load: float, *, policy: str = "fair", wanted: bool = True) -> EstimateQuality | None:
    """Simulate three owners' jobs of very different lengths on four nodes, two of them slow."""
    fleet = planned([NodeGroup(count=2), NodeGroup(count=2, speed=0.5)])
    jobs = Generated(
        jobs=1500, rate=load * 3 / 8.3, owners=3, run_s=6.0, run_spread=0.8, sets=4, beside=0, seed=3
    )
    conditions = Conditions(estimates=Estimates(run_error=0.2), estimate_ends=wanted)
    return Simulation(fleet, CONTENDERS[policy], conditions).run(generate(jobs)).estimates


@pytest.mark.parametrize("load", LOADS)
def test_they_hold_as_often_as_they_say_and_beat_an_average(load: float) -> None:
    found = judged(load)
    assert found is not None and found.jobs > 1400
    assert 0.45 <= found.by_p50 <= 0.55
    assert 0.85 <= found.by_p90 <= 0.95
    assert found.error_s <= 0.5 * found.ewma_error_s


def test_only_the_fleets_own_policy_is_judged_and_only_if_wanted() -> None:
    assert judged(0.6, policy="fifo") is None
    assert judged(0.6, wanted=False) is None
