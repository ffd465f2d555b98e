"""Where jobs stand, and when they will probably have ended; held against fleets that play it."""

from random import Random
from typing import Any

import pytest

from comfy_fleet.domain.schedule.standing import Capacity, OwnerBacklog, Standing, Underway, end_in_s
from comfy_fleet.domain.schedule.waiting_job import BATCH, EDITOR
from tests.unit.schedule.kit import Fleet, chooser, job, models, node


def ends(standing: Standing, *free_in_s: float, speed: float = 1.0) -> float | None:
    return end_in_s(standing, Capacity(free_in_s=free_in_s, speed=speed))


def queued(jobs: int, *, own: int = 1, each_s: float = 10.0, **more: Any) -> Standing:
    return Standing(run_s=each_s, own=own, own_s=each_s, jobs=jobs, jobs_s=jobs * each_s, **more)


def test_nobody_knows_without_a_node() -> None:
    assert ends(queued(1)) is None


def test_an_idle_node_takes_it_at_once() -> None:
    assert ends(queued(1), 0.0, 30.0) == 10.0
    assert ends(queued(1, load_s=4.0), 0.0) == 14.0
    assert ends(queued(1), 7.0, 30.0) == 17.0


def test_the_first_node_counts_if_nothing_is_before_it() -> None:
    nodes = Capacity(free_in_s=(0.0, 5.0), speed=0.75, first_speed=0.5)
    assert end_in_s(queued(1), nodes) == 20.0
    assert end_in_s(queued(2, own=2, ahead=1), nodes) == pytest.approx(7.5 + 10 / 0.75)


def test_own_jobs_before_it_come_first() -> None:
    assert ends(queued(6, own=6, ahead=5), 3.0) == 3 + 50 + 10
    assert ends(queued(6, own=6, ahead=5), 3.0, speed=0.5) == 3 + 100 + 20
    assert ends(queued(1, beside=4, queues=1, foreign=0), 0.0) == 50.0


@pytest.mark.parametrize("count", [2, 4, 100])
def test_nodes_share_what_comes_before(count: int) -> None:
    found = ends(queued(10 * count + 1, own=10 * count + 1, ahead=10 * count), *[0.0] * count)
    assert found == pytest.approx(110, abs=6)


@pytest.mark.parametrize(("weight", "theirs"), [(1.0, 2), (2.0, 4), (0.5, 1)])
def test_an_owner_that_has_had_less_goes_first_until_it_has_had_as_much(weight: float, theirs: int) -> None:
    crowd = OwnerBacklog(tag=80.0, weight=weight, jobs=1000)
    assert ends(queued(1001, tag=100.0, owners=2, others=(crowd,)), 0.0) == 10.0 * theirs + 10


def test_an_owner_with_little_left_is_done_soon() -> None:
    little = OwnerBacklog(tag=0.0, weight=1.0, jobs=1)
    assert ends(queued(2, tag=100.0, owners=2, others=(little,)), 0.0) == 20.0


def test_a_crowd_with_a_higher_tag_holds_up_nobody() -> None:
    crowd = OwnerBacklog(tag=100.0, weight=1.0, jobs=1000)
    assert ends(queued(1001, tag=99.0, owners=2, others=(crowd,)), 4.0) == 14.0


def test_more_owners_are_taken_together() -> None:
    some = tuple(OwnerBacklog(tag=0.0, weight=1.0, jobs=3) for _ in range(2))
    alone = ends(queued(1 + 9 * 3, own=1, tag=20.0, owners=10, others=some), 0.0)
    assert alone == pytest.approx(9 * 20 + 10)


def test_a_warm_node_is_waited_for_only_as_long_as_loading_is_worth() -> None:
    for held_in_s, expected in ((0.0, 10.0), (5.0, 15.0), (40.0, 18.0)):
        one = queued(1, load_s=8.0, family_s=10.0, holders=1, held_in_s=held_in_s)
        assert ends(one, 0.0, 40.0) == expected


@pytest.mark.parametrize("seed", range(12))
def test_it_comes_true_where_nothing_comes_after(seed: int) -> None:
    """Owners, tiers and mixed speeds: what is estimated of all that wait, against what happens to them."""
    chance = Random(seed)
    nodes = [node(f"n{number}", speed=chance.choice([0.5, 1.0])) for number in range(chance.randint(1, 6))]
    fair = chooser(*nodes)
    fleet = Fleet(nodes, fair)
    jobs = [
        job(
            f"j{number}",
            owner=f"o{chance.choice([0, 0, 0, 1, 2, 3])}",
            tier=chance.choice([EDITOR, 1, BATCH]),
            run_s=chance.choice([5.0, 10.0]),
        )
        for number in range(80)
    ]
    fleet.submit(*jobs)
    told: dict[str, float] = {}

    def estimate(now: float) -> None:
        for each in jobs:
            standing, nodes = fair.standing(each.id, now), fair.capacity(each.id, now)
            if standing is not None and nodes is not None:
                found = end_in_s(standing, nodes)
                assert found is not None
                told[each.id] = now + found

    fleet.at(0.5, estimate)
    fleet.run()
    assert len(told) == len(jobs) - len(nodes)
    span = max(fleet.ended.values())
    off = sorted(abs(fleet.ended[name] - at) / span for name, at in told.items())
    assert off[len(off) // 2] <= 0.08
    assert off[-1] <= 0.5


def test_models_that_are_loaded_elsewhere_count() -> None:
    fair = chooser(node("a"), node("b", load_s=18))
    first = job("first", models("m1"))
    fair.submitted(first, 0.0)
    fair.next_for("a", 0.0)  # 9 s of loading and 1 s of computing
    fair.submitted(job("same", models("m1")), 0.0)
    fair.submitted(job("other", models("m2"), owner="bob"), 0.0)
    same, other = (fair.standing(name, 0.0) for name in ("same", "other"))
    assert same is not None and other is not None
    assert (same.holders, same.held_in_s, same.load_s) == (1, 10.0, 18.0)
    assert (other.holders, other.load_s) == (0, 18.0)
    assert fair.standing("first", 0.0) is None and fair.capacity("first", 0.0) is None


def test_queues_beside_count_where_nodes_serve_both() -> None:
    fair = chooser(node("a", "x", "y"), node("b", "z"))
    for number in range(3):
        fair.submitted(job(f"x{number}", place="x", at=float(number)), float(number))
        fair.submitted(job(f"z{number}", place="z", at=float(number)), float(number))
    fair.submitted(job("y", place="y", at=9.0), 9.0)
    found = fair.standing("y", 9.0)
    assert found is not None
    assert (found.jobs, found.beside, found.foreign, found.queues) == (1, 3, 0, 1)


def test_a_run_goes_at_its_own_pace_the_further_it_is() -> None:
    run = Underway(since_s=10.0, run_s=20.0)
    assert run.whole_s(None) == run.whole_s(0.0) == 20.0
    assert run.whole_s(0.5) == 20.0
    assert 20.0 < run.whole_s(0.25) < 40.0 and run.whole_s(1.0) == 10.0
