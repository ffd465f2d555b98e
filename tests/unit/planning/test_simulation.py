"""The event loop, in cases that can be worked out by hand; and what must hold in every case."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.schedule.model_set import NO_MODELS
from comfy_fleet.planning.estimates import Estimates
from comfy_fleet.planning.fleet import planned
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.registry import CONTENDERS
from comfy_fleet.planning.trace import TraceJob
from tests.unit.planning.kit import GIB, fleet, group, job, models, simulate

A, B, C = models("a"), models("b"), models("c")


def test_a_node_runs_one_job_after_the_other_with_the_gap_between_them() -> None:
    found = simulate([job("1"), job("2"), job("3", at=5.0)], fleet(), gap_s=0.5)
    assert found.started() == {"1": 0.0, "2": 10.5, "3": 21.0}
    assert found.outcome.makespan_s == 31.0
    assert found.outcome.computing_s == 30.0
    assert found.outcome.idle_s == 1.0
    assert (found.outcome.wait is not None) and found.outcome.wait.p50 == 10.5


def test_speed_shortens_computing_and_not_loading() -> None:
    found = simulate([job("1", loads=A)], fleet(speed=2.0))
    assert [(round(run.load_s, 6), run.run_s) for run in found.runs] == [(10.0, 5.0)]


def test_models_are_loaded_from_disk_once_then_from_ram_then_not_at_all() -> None:
    # However large the card is, a run drops what it does not use itself; two files of one run stay together.
    sets = (A, A, B, A, C, models("a", "b"), B, NO_MODELS, B)
    jobs = [job(str(n), run_s=1.0, loads=loads) for n, loads in enumerate(sets)]
    found = simulate(jobs, fleet())
    assert [round(run.load_s, 6) for run in found.runs] == [10.0, 0.0, 10.0, 1.0, 10.0, 2.0, 0.0, 0.0, 1.0]
    assert (found.outcome.loads, found.outcome.disk_reads) == (6, 3)
    assert found.outcome.loading_s == pytest.approx(34.0)


def test_what_a_job_needs_beside_its_models_pushes_others_out() -> None:
    jobs = [
        job("1", loads=A, run_s=1.0),
        job("2", loads=B, run_s=1.0, memory=15 * GIB),
        job("3", loads=A, run_s=1.0),
    ]
    assert [round(run.load_s, 6) for run in simulate(jobs, fleet()).runs] == [10.0, 10.0, 1.0]


def test_a_job_that_runs_out_of_memory_goes_to_a_larger_card() -> None:
    nodes = planned([group(1, vram_gib=12), group(1, vram_gib=24)])
    big = job("big", loads=A, run_s=3.0, memory=20 * GIB)
    found = simulate([big], nodes)
    runs = [(run.node, round(run.started, 6), round(run.load_s, 6), run.run_s, run.ok) for run in found.runs]
    assert runs == [("default-12g-1", 0.0, 10.0, 0.0, False), ("default-24g-1", 10.0, 10.0, 3.0, True)]
    assert (found.outcome.out_of_memory, found.outcome.succeeded, found.outcome.failed) == (1, 1, 0)
    assert found.outcome.wait is not None and found.outcome.wait.most == pytest.approx(10.0)


@pytest.mark.parametrize(("policy", "attempts"), [("fifo", 2), ("edf", 1), ("round-robin", 3)])
def test_a_job_that_fits_nowhere_fails(policy: str, attempts: int) -> None:
    # fifo learns from the card of 12 GiB, edf knows it all, and round-robin tries every node.
    nodes = planned([group(2, vram_gib=12), group(1, vram_gib=24)])
    found = simulate([job("1", loads=A, memory=30 * GIB)], nodes, policy)
    assert (found.outcome.out_of_memory, found.outcome.failed, found.outcome.succeeded) == (attempts, 1, 0)


def test_a_waiting_job_is_canceled_and_a_running_one_frees_its_node() -> None:
    jobs = [job("runs", canceled_at=4.0), job("waits", canceled_at=3.0), job("next", at=1.0)]
    found = simulate(jobs, fleet())
    assert found.started() == {"runs": 0.0, "next": 4.0}
    assert (found.outcome.canceled, found.outcome.succeeded) == (2, 1)
    assert found.outcome.computing_s == 14.0


def test_loading_is_not_interrupted_by_a_cancel() -> None:
    found = simulate([job("1", loads=A, canceled_at=4.0), job("2")], fleet())
    assert found.started()["2"] == pytest.approx(10.0)


def test_a_job_expires_unless_it_starts_within_its_ttl() -> None:
    jobs = [job("1"), job("late", ttl_s=9.0), job("just", ttl_s=10.0)]
    found = simulate(jobs, fleet())
    assert found.started() == {"1": 0.0, "just": 10.0}
    assert (found.outcome.expired, found.outcome.succeeded) == (1, 2)


def test_a_wish_counts_as_met_if_the_job_is_done_by_then() -> None:
    jobs = [job("1", finish_by=10.0), job("2", finish_by=19.0), job("3", finish_by=50.0, canceled_at=5.0)]
    outcome = simulate(jobs, fleet()).outcome
    assert (outcome.wished, outcome.met, outcome.met_share) == (2, 1, 0.5)


def test_cost_is_for_all_nodes_until_the_last_end() -> None:
    assert simulate([job("1", run_s=1800.0)], fleet(4, price=2.0)).outcome.cost == pytest.approx(4.0)


def test_priority_is_worth_its_seconds() -> None:
    jobs = [job("1"), job("2"), job("3", at=1.0, priority=1)]
    assert simulate(jobs, fleet()).started() == {"1": 0.0, "3": 10.0, "2": 20.0}


def test_a_dead_node_comes_back_cold_and_its_job_is_tried_again() -> None:
    jobs = [job(str(number), at=number * 20.0, run_s=15.0, loads=A) for number in range(100)]
    found = simulate(jobs, fleet(2), mean_up_s=300.0, repair_s=60.0, seed=4)
    outcome = found.outcome
    assert outcome.node_failures > 0
    assert outcome.down_s > 0
    assert outcome.disk_reads > 2
    assert outcome.succeeded + outcome.failed == 100
    lost = [run for run in found.runs if not run.ok]
    assert len(lost) == outcome.node_failures
    assert all(run.load_s + run.run_s < 25.0 + 1e-9 for run in lost)


def test_a_job_whose_nodes_keep_dying_fails_after_its_attempts() -> None:
    found = simulate([job("1", run_s=1e6)], fleet(), mean_up_s=10.0, repair_s=1.0, max_attempts=3)
    assert (found.outcome.failed, found.outcome.node_failures) == (1, 3)


def test_jobs_run_in_their_pool_only() -> None:
    nodes = planned([group(1), group(1, pool="big")])
    found = simulate([job("1"), job("2"), job("3", pool="big")], nodes)
    assert found.started() == {"1": 0.0, "2": 10.0, "3": 0.0}


def test_a_job_for_a_pool_without_nodes_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"job 7 is for pool big, which has no nodes; there are default"):
        simulate([job("7", pool="big")], fleet())


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(BadInput, match="two jobs are called 1"):
        simulate([job("1"), job("1")], fleet())


def test_progress_is_told() -> None:
    from comfy_fleet.planning.simulation import Simulation

    told: list[tuple[int, float]] = []
    jobs = (job(str(number), at=float(number), run_s=0.5) for number in range(10_000))
    Simulation(fleet(), CONTENDERS["fifo"]).run(jobs, lambda count, at: told.append((count, at)))
    assert told
    assert all(0 < count <= 10_000 and 0 <= at <= 10_001 for count, at in told)


JOBS = st.builds(
    lambda number, at, run_s, set_, **more: job(str(number), at, run_s, loads=set_, **more),
    number=st.integers(0, 10**9),
    at=st.integers(0, 60).map(float),
    run_s=st.sampled_from([0.5, 3.0, 20.0]),
    set_=st.sampled_from([A, B, C]),
    owner=st.sampled_from(["ada", "bob"]),
    pool=st.sampled_from(["default", "big"]),
    priority=st.integers(-2, 2),
    memory=st.sampled_from([0, 11 * GIB, 20 * GIB, 50 * GIB]),
    ttl_s=st.sampled_from([None, 5.0, 30.0]),
    canceled_at=st.sampled_from([None, 60.0, 90.0]),
    finish_by=st.sampled_from([None, 70.0, 200.0]),
)
TRACES = st.lists(JOBS, min_size=1, max_size=30, unique_by=lambda one: one.id).map(
    lambda jobs: sorted(jobs, key=lambda one: one.submitted)
)


@pytest.mark.parametrize("policy", sorted(CONTENDERS))
@settings(max_examples=60, deadline=None)
@given(jobs=TRACES, dying=st.booleans())
def test_every_job_ends_once_and_every_second_of_a_node_is_used_once(
    policy: str, jobs: list[TraceJob], dying: bool
) -> None:
    nodes = planned([group(2, vram_gib=12), group(1), group(2, pool="big", speed=2.0)])
    conditions = {
        "mean_up_s": 40.0 if dying else None,
        "repair_s": 5.0,
        "estimates": Estimates(run_error=0.5, memory_error=0.3),
    }
    found = simulate(jobs, nodes, policy, **conditions)
    outcome = found.outcome
    ends = outcome.succeeded + outcome.failed + outcome.expired + outcome.canceled
    assert (ends, outcome.starved, outcome.jobs) == (len(jobs), 0, len(jobs))
    assert max(Counter(run.job.id for run in found.runs if run.ok).values(), default=1) == 1
    by_node: dict[str, list[tuple[float, float]]] = {}
    for run in found.runs:
        by_node.setdefault(run.node, []).append((run.started, run.started + run.load_s + run.run_s))
        assert run.started >= run.job.submitted
        if run.ok and run.job.ttl_s is not None:
            assert run.started <= run.job.submitted + run.job.ttl_s
    for spans in by_node.values():
        spans.sort()
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(spans))
    used = sum(owner.gpu_s for owner in outcome.owners.values())
    assert used == pytest.approx(outcome.computing_s + outcome.loading_s)
    again = simulate(jobs, nodes, policy, **conditions)
    assert again.runs == found.runs
    assert again.outcome == outcome


@pytest.mark.parametrize("policy", sorted(CONTENDERS))
def test_the_same_seed_gives_the_same_outcome_and_another_one_another(policy: str) -> None:
    wanted = Generated(jobs=300, rate=0.5, seed=1)
    nodes = fleet(3)
    first = simulate(list(generate(wanted)), nodes, policy, estimates=Estimates(run_error=0.3))
    assert (
        first.outcome
        == simulate(list(generate(wanted)), nodes, policy, estimates=Estimates(run_error=0.3)).outcome
    )
    assert first.outcome != simulate(list(generate(replace(wanted, seed=2))), nodes, policy).outcome
