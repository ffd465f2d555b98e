"""What the figures about scheduling are made of."""

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.figures.schedule_shares import NODES, Case, worst
from benchmarks.schedule import nodes, set_jobs, simulate
from comfy_fleet.planning.states import SimulatedRun
from comfy_fleet.planning.trace import TraceJob


def test_each_set_has_as_many_jobs_in_an_order_that_the_seed_decides() -> None:
    jobs = set_jobs(160, run_s=2.0, seed=1)
    assert set(Counter(job.models.key for job in jobs).values()) == {20}
    assert {(job.submitted, job.run_s) for job in jobs} == {(0.0, 2.0)}
    assert [job.models for job in jobs] == [job.models for job in set_jobs(160, run_s=2.0, seed=1)]
    assert [job.models for job in jobs] != [job.models for job in set_jobs(160, run_s=2.0, seed=2)]


def test_a_set_takes_the_load_that_is_said_every_time() -> None:
    jobs = set_jobs(16, run_s=1.0)
    runs = simulate("fifo", jobs, nodes(7.0, count=1)).runs
    loads = {round(run.load_s, 6) for run in runs}
    assert loads <= {0.0, 7.0}
    changes = sum(before.job.models != after.job.models for before, after in pairwise(runs))
    assert sum(run.load_s > 0 for run in runs) == changes + 1


@pytest.mark.parametrize(("stolen", "off"), [(0, 0.0), (6, 6 / 60)])
def test_off_is_the_largest_part_of_a_minute_that_an_owner_got_too_much(stolen: int, off: float) -> None:
    case = Case(name="", jobs=[], active=lambda _: frozenset({"two", "guest"}), until=200.0)
    # In each second, two of three seconds are one owner's; for some of them, in the middle, all three are.
    runs = []
    for second in range(200):
        greedy = 100 <= second < 100 + stolen
        for owner, share in (("two", 1.0 if greedy else 2 / 3), ("guest", 0.0 if greedy else 1 / 3)):
            job = TraceJob(id="", submitted=0.0, run_s=1.0, owner=owner)
            runs += [SimulatedRun(job, "n", float(second), 0.0, share, ok=True)] * NODES
    assert worst(runs, case) == pytest.approx(off / 3, abs=1e-9)
