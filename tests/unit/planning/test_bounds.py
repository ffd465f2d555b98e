"""Bounds: by hand, and never above what a policy reaches."""

import pytest

from comfy_fleet.planning.bounds import MAX_NODES, Bounds, bounds
from comfy_fleet.planning.fleet import planned
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.registry import CONTENDERS
from tests.unit.planning.kit import GIB, fleet, group, job, models, simulate

A, B, C = models("a"), models("b"), models("c")


def close(found: Bounds) -> tuple[int, float | None, int | None]:
    return found.loads, None if found.makespan_s is None else round(found.makespan_s, 6), found.best_loads


def test_one_set_on_one_node_is_loaded_and_computed() -> None:
    assert close(bounds([job("1", loads=A), job("2", loads=A)], fleet())) == (1, 30.0, 1)


def test_a_large_set_is_split_if_that_pays_for_a_second_load() -> None:
    long = [job(str(n), loads=A, run_s=10.0) for n in range(8)]
    assert close(bounds(long, fleet(2))) == (1, 50.0, 2)
    assert close(bounds(long[:1], fleet(2))) == (1, 20.0, 1)


def test_sets_are_spread_over_nodes() -> None:
    jobs = [job("1", loads=A, run_s=30.0), job("2", loads=B, run_s=20.0), job("3", loads=C, run_s=5.0)]
    # a alone: 40; b and c together: 45. Splitting a would cost 10 more than it brings.
    assert close(bounds(jobs, fleet(2))) == (3, 45.0, 3)


def test_a_faster_node_gets_more() -> None:
    nodes = planned([group(1), group(1, speed=3.0)])
    jobs = [job(str(n), run_s=10.0) for n in range(8)]
    assert close(bounds(jobs, nodes)) == (0, 20.0, 2)


def test_large_cases_have_a_bound_on_loads_only() -> None:
    jobs = [job("1", loads=A), job("2", loads=B)]
    assert bounds(jobs, fleet(MAX_NODES + 1)) == Bounds(loads=2)
    many = [job(str(n), loads=models(f"m{n}")) for n in range(11)]
    assert bounds(many, fleet()) == Bounds(loads=11)


@pytest.mark.parametrize("policy", sorted(CONTENDERS))
@pytest.mark.parametrize("seed", range(3))
def test_no_policy_undercuts_the_bounds(policy: str, seed: int) -> None:
    wanted = Generated(
        jobs=60, rate=0.0, sets=5, set_bytes=(10 * GIB, 18 * GIB), run_s=4.0, beside=0, seed=seed
    )
    jobs, nodes = list(generate(wanted)), fleet(3)
    found = bounds(jobs, nodes)
    outcome = simulate(jobs, nodes, policy).outcome
    assert found.makespan_s is not None
    assert outcome.makespan_s >= found.makespan_s - 1e-6
    assert outcome.loads >= found.loads
