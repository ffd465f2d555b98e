"""The rules of choosing, one by one."""

import pytest

from comfy_fleet.domain.schedule.policy import Nothing
from comfy_fleet.domain.schedule.scheduled_node import GIB
from comfy_fleet.domain.schedule.waiting_job import BATCH, EDITOR
from tests.unit.schedule.kit import Fleet, chooser, chosen, job, models, node

A, B = models("a"), models("b")


def test_nothing_waits_and_nothing_is_to_be_looked_for() -> None:
    assert chooser(node()).next_for("n1", 0.0) == Nothing(None)
    assert chooser().next_for("unknown", 0.0) == Nothing(None)


def test_the_lowest_rank_goes_first() -> None:
    fair = chooser(
        node(), waiting=[job("late", at=2.0), job("soon", at=1.0), job("wanted", at=3.0, priority_s=60)]
    )
    assert [chosen(fair.next_for("n1", 3.0)) for _ in range(4)] == ["wanted", "soon", "late", None]


def test_an_editors_run_goes_before_a_single_submit_and_that_before_a_batch() -> None:
    fair = chooser(
        node(),
        waiting=[
            job("batch", tier=BATCH, priority_s=1e6),
            job("single", priority_s=60),
            job("editor", tier=EDITOR),
        ],
    )
    assert [chosen(fair.next_for("n1", 0.0)) for _ in range(3)] == ["editor", "single", "batch"]


def test_owners_take_turns_whatever_their_priorities() -> None:
    fair = chooser(
        node(),
        waiting=[
            *(job(f"a{i}", priority_s=1e6) for i in range(3)),
            *(job(f"b{i}", owner="bob") for i in range(3)),
        ],
    )
    order = [chosen(fair.next_for("n1", 0.0)) for _ in range(6)]
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_an_owner_with_twice_the_weight_gets_twice_as_much() -> None:
    fair = chooser(
        node(),
        weights={"ann": 2.0},
        waiting=[job(f"{owner}{i:02}", owner=owner) for owner in ("ann", "bob") for i in range(20)],
    )
    first = [str(chosen(fair.next_for("n1", 0.0)))[:3] for _ in range(15)]
    assert first.count("ann") == 10


def test_a_node_stays_with_its_models() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job("a1", A), job("b1", B), job("a2", A), job("b2", B)])
    assert chosen(fair.next_for("n1", 0.0)) == "a1"
    assert chosen(fair.next_for("n2", 0.0)) == "b1"
    fair.ended("b1", "n2", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n2", 10.0)) == "b2"  # though a2 came first
    fair.ended("a1", "n1", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n1", 10.0)) == "a2"


def test_what_is_in_memory_is_loaded_before_what_is_on_disk() -> None:
    sets = [models(f"m{i}", gib=10) for i in range(7)]
    fair = chooser(node(vram_gib=80), patience_s=1e6)
    for i, each in enumerate(sets):
        fair.submitted(job(f"j{i}", each, at=20.0 * i), 20.0 * i)
        assert chosen(fair.next_for("n1", 20.0 * i)) == f"j{i}"
        fair.ended(f"j{i}", "n1", load_s=5.0, run_s=1.0, ok=True, now=20.0 * i + 6.0)
    fair.submitted(job("cold", B, at=200.0), 200.0)
    fair.submitted(job("oldest", sets[0], at=201.0), 201.0)
    assert chosen(fair.next_for("n1", 201.0)) == "oldest"


def test_a_job_without_models_is_warm_everywhere() -> None:
    fair = chooser(node(), waiting=[job("a1", A)])
    fair.next_for("n1", 0.0)
    fair.submitted(job("plain", at=1.0), 1.0)
    fair.submitted(job("b1", B, at=2.0), 2.0)
    fair.ended("a1", "n1", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n1", 10.0)) == "plain"


def test_of_models_that_no_node_has_those_with_the_most_work_come_first() -> None:
    fair = chooser(node(), waiting=[job("first", A), job("b1", B), job("b2", B)])
    assert chosen(fair.next_for("n1", 0.0)) == "b1"


def test_another_set_is_loaded_only_if_its_backlog_lasts_longer_than_the_load() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job(f"a{i:02}", A) for i in range(10)])
    assert chosen(fair.next_for("n1", 0.0)) == "a00"
    answer = fair.next_for("n2", 0.0)  # 9 s of work, and 9 s to load
    assert answer == Nothing(10.0)  # it would be done with a01 by then, had it taken it
    for i in range(10, 20):
        fair.submitted(job(f"a{i:02}", A), 0.0)
    assert chosen(fair.next_for("n2", 0.1)) is not None


def test_a_look_in_vain_counts_for_like_nodes_that_look_at_the_same_moment() -> None:
    fair = chooser(node("n1"), node("n2"), node("n3"), waiting=[job("a1", A), job("a2", A)])
    fair.next_for("n1", 0.0)
    assert fair.next_for("n2", 0.0) == Nothing(10.0)
    assert fair.next_for("n3", 0.0) == Nothing(1.0)
    fair.submitted(job("b1", B), 0.0)
    assert chosen(fair.next_for("n3", 0.0)) == "b1"  # no node holds it


def test_a_set_whose_only_node_is_busy_for_long_is_loaded_elsewhere() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job("long", A, run_s=600.0)])
    fair.next_for("n1", 0.0)
    fair.submitted(job("short", A, at=1.0), 1.0)
    assert chosen(fair.next_for("n2", 1.0)) == "short"


def test_what_was_passed_over_for_too_long_is_loaded() -> None:
    fleet = Fleet([node()], chooser(patience_s=20.0))
    fleet.submit(*(job(f"a{i:03}", A, at=0.9 * i) for i in range(100)), job("b", B, at=5.0))
    fleet.run()
    waited = fleet.start_of("b").wait_s
    assert 20.0 <= waited <= 20.0 + 9.0 + 2.0
    assert fleet.start_of("b").reason == "overdue"


def test_overdue_jobs_are_left_to_the_node_that_has_their_models_and_is_free_sooner() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job("a1", A, run_s=1.0), job("a2", A)], patience_s=5.0)
    fair.next_for("n1", 0.0)  # free in 10 s
    assert chosen(fair.next_for("n2", 0.0)) is None
    assert chosen(fair.next_for("n2", 5.5)) is None  # in 4.5 s, which is less than 9
    assert chosen(fair.next_for("n2", 11.0)) is None  # it is late, and may be free soon
    assert chosen(fair.next_for("n2", 13.0)) == "a2"  # a2 has been left to it for as long as a load takes


def test_a_stronger_job_of_the_same_owner_is_not_passed_for_the_sake_of_models() -> None:
    fair = chooser(node(), waiting=[job("a1", A)])
    fair.next_for("n1", 0.0)
    fair.submitted(job("a2", A, at=1.0, tier=BATCH), 1.0)
    fair.submitted(job("b1", B, at=2.0, tier=EDITOR), 2.0)
    fair.ended("a1", "n1", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n1", 10.0)) == "b1"


def test_a_higher_priority_is_not_passed_either_but_an_equal_one_is() -> None:
    fair = chooser(node(), waiting=[job("a1", A)])
    fair.next_for("n1", 0.0)
    fair.submitted(job("b1", B, at=1.0), 1.0)
    fair.submitted(job("a2", A, at=2.0), 2.0)
    fair.submitted(job("a3", A, at=2.0), 2.0)
    fair.ended("a1", "n1", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n1", 10.0)) == "a2"
    fair.submitted(job("b2", B, at=3.0, priority_s=60.0), 10.0)
    fair.ended("a2", "n1", load_s=0.0, run_s=1.0, ok=True, now=11.0)
    assert chosen(fair.next_for("n1", 11.0)) == "b2"


def test_a_job_that_needs_more_than_the_card_is_no_candidate() -> None:
    fair = chooser(
        node("small", vram_gib=12), node("large", vram_gib=24), waiting=[job("big", memory=20 * GIB)]
    )
    assert chosen(fair.next_for("small", 0.0)) is None
    assert chosen(fair.next_for("large", 0.0)) == "big"


@pytest.mark.parametrize("need_gib", [12.5, 23.0, 40.0])
def test_jobs_that_do_not_fit_hide_none_that_does(need_gib: float) -> None:
    fair = chooser(
        node(vram_gib=12), waiting=[job(f"big{i}", memory=int(need_gib * GIB)) for i in range(200)]
    )
    fair.submitted(job("small", at=1.0, memory=4 * GIB), 1.0)
    assert chosen(fair.next_for("n1", 1.0)) == "small"


def test_only_places_that_a_node_serves() -> None:
    fair = chooser(node("n1", "image"), node("n2", "image", "video"), waiting=[job("film", place="video")])
    assert chosen(fair.next_for("n1", 0.0)) is None
    assert chosen(fair.next_for("n2", 0.0)) == "film"


def test_the_earliest_wish_goes_first_among_equals() -> None:
    fair = chooser(
        node(),
        waiting=[job("later", finish_by=90.0), job("sooner", finish_by=50.0), job("last", finish_by=4000.0)],
    )
    assert [chosen(fair.next_for("n1", 0.0)) for _ in range(3)] == ["sooner", "later", "last"]


def test_who_can_not_make_it_any_more_does_not_hold_up_others() -> None:
    fair = chooser(
        node(), waiting=[job("missed", finish_by=10.0, run_s=5.0), job("able", finish_by=20.0, run_s=5.0)]
    )
    assert [chosen(fair.next_for("n1", 8.0)) for _ in range(2)] == ["able", "missed"]


def test_nothing_starts_after_its_time() -> None:
    fair = chooser(node(), waiting=[job("old", start_by=5.0), job("new", at=1.0)])
    assert chosen(fair.next_for("n1", 5.1)) == "new"
    assert chosen(fair.next_for("n1", 5.2)) is None


def test_a_canceled_job_is_not_chosen() -> None:
    fair = chooser(node(), waiting=[job("gone"), job("here", at=1.0)])
    fair.withdrawn("gone", 1.0)
    fair.withdrawn("unknown", 1.0)
    assert [chosen(fair.next_for("n1", 1.0)) for _ in range(2)] == ["here", None]


def test_a_job_that_goes_back_is_chosen_again() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job("a1", A)])
    fair.next_for("n1", 0.0)
    fair.ended("a1", "n1", load_s=3.0, run_s=0.0, ok=False, now=3.0)
    fair.node_down("n1", 3.0)
    fair.submitted(job("a1", A), 3.0)
    assert chosen(fair.next_for("n2", 3.0)) == "a1"
    assert fair.next_for("n1", 3.0) == Nothing(None)


def test_the_idle_node_that_has_the_models_is_asked_first() -> None:
    fair = chooser(node("n1"), node("n2"), waiting=[job("a1", A)])
    fair.next_for("n2", 0.0)
    fair.ended("a1", "n2", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    assert chosen(fair.next_for("n2", 10.0)) is None
    fair.submitted(job("a2", A, at=11.0), 11.0)
    assert fair.node_for(job("a2", A, at=11.0), {"n1": None, "n2": None}, 11.0) == "n2"
    assert fair.node_for(job("a2", A, at=11.0), {"n1": None}, 11.0) == Nothing(12.0)  # n2 may be free soon
    assert fair.node_for(job("a2", A, at=11.0), {"n1": None}, 12.0) == "n1"
    assert fair.node_for(job("a2", A, at=11.0), {}, 12.0) == Nothing(None)
    assert fair.node_for(job("unknown"), {"n1": None}, 11.0) == Nothing(None)


def test_a_node_that_knows_more_places_keeps_its_models() -> None:
    fair = chooser(node("n1", "image"), waiting=[job("a1", A, place="image")])
    fair.next_for("n1", 0.0)
    fair.ended("a1", "n1", load_s=9.0, run_s=1.0, ok=True, now=10.0)
    fair.node_up(node("n1", "image", "video"), 10.0)
    fair.submitted(job("b", B, place="video", at=10.0), 10.0)
    fair.submitted(job("a2", A, place="video", at=11.0), 11.0)
    assert chosen(fair.next_for("n1", 11.0)) == "a2"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_are_above_0(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of owner 'ann'"):
        chooser(weights={"ann": weight})
    with pytest.raises(ValueError, match="patience_s"):
        chooser(patience_s=-1.0)


def test_why_a_job_waits_is_said_in_words() -> None:
    fair = chooser(node("gpu3"), node("gpu4"), waiting=[job("a1", A, run_s=4.0), job("a2", A), job("a3", A)])
    assert fair.waiting_for("a3", 0.0) == "behind 2 of your own"
    fair.next_for("gpu3", 0.0)
    fair.next_for("gpu4", 0.0)
    assert fair.waiting_for("a2", 40.0) == "gpu3 has the model: at most 20 s more"
    assert fair.waiting_for("a2", 61.0) == "the next free node takes it"
    assert fair.waiting_for("a1", 0.0) is None
    fair.submitted(job("b1", owner="bob"), 0.0)
    fair.submitted(job("c1", owner="cat", place="nowhere"), 0.0)
    assert fair.waiting_for("b1", 0.0) == "all nodes are busy"
    assert fair.waiting_for("c1", 0.0) == "no node can run it"
    fair.next_for("gpu4", 0.0)
    fair.submitted(job("b2", owner="bob"), 0.0)
    fair.submitted(job("d1", owner="dan"), 0.0)
    assert fair.waiting_for("b2", 0.0) == "your share is used"
