"""For how long classes and nodes are left alone after a look in vain."""

from collections.abc import Callable
from random import Random

import pytest

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.services.vain_looks import LEAST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_S, REST_S, VainLooks

ANY = Placement()


def classes(count: int) -> list[Placement]:
    return [Placement(pool=f"p{number}") for number in range(count)]


class World:
    """Time, and one dispatcher's looks."""

    def __init__(self, chance: Callable[[], float] | None = None) -> None:
        self.time = 100.0
        self.looks = VainLooks(lambda: self.time, chance or (lambda: 0.5))

    def vain(self, *placements: Placement, left_s: float = 0.0, node: str = "g1") -> float:
        self.looks.note(node, placements)
        return self.looks.pause(placements, left_s)


def test_a_class_is_left_alone_for_a_moment() -> None:
    world = World()
    assert world.looks.left_s(ANY) == 0
    pause_s = world.vain(ANY)
    assert PAUSE_S[0] < pause_s < PAUSE_S[1] and world.looks.left_s(ANY) == pytest.approx(pause_s)
    world.time += pause_s
    assert world.looks.left_s(ANY) == 0 == world.looks.left_s(Placement(pool="big"))


@pytest.mark.parametrize(
    ("left_s", "waits_s"), [(0.0, 0.2), (0.15, 0.15), (7.0, 0.2), (0.001, LEAST_PAUSE_S)]
)
def test_what_is_soon_worth_a_look_is_looked_at_then(left_s: float, waits_s: float) -> None:
    assert World().vain(ANY, left_s=left_s) == pytest.approx(waits_s)


@pytest.mark.parametrize("alike", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_however_many_classes_wait_there_are_no_more_looks(count: int, alike: int) -> None:
    world = World(Random(count).random)
    groups = [classes(count)[at : at + alike] for at in range(0, count, alike)]
    looks, until = 0, world.time + 30
    while world.time < until:
        for group in groups:
            for placement in group:
                if not world.looks.left_s(placement):
                    looks += 1
                    world.vain(*group)
        world.time += 0.01
    assert 2 * 30 <= looks <= 10 * 30


def test_a_class_waits_its_turn_no_longer_than_bound() -> None:
    world = World()
    assert max(world.vain(placement) for placement in classes(100)) == LONGEST_PAUSE_S


def test_a_new_job_is_looked_at_at_once_unless_the_last_look_was_just_now() -> None:
    world = World()
    for placement in classes(8):
        world.vain(placement)
    late = classes(8)[7]
    assert world.looks.left_s(late) > 1
    world.looks.wake(late)
    assert world.looks.left_s(late) == pytest.approx(PAUSE_S[0])
    world.time += PAUSE_S[0]
    assert world.looks.left_s(late) == 0
    other = classes(8)[6]
    world.time += PAUSE_S[0]
    world.looks.wake(other)
    assert world.looks.left_s(other) == 0


def test_a_flood_of_wake_ups_makes_no_flood_of_looks() -> None:
    world = World()
    looks, until = 0, world.time + 10
    while world.time < until:
        for placement in classes(8):
            world.looks.wake(placement)
            if not world.looks.left_s(placement):
                looks += 1
                world.vain(placement)
        world.time += 0.005
    assert 50 <= looks <= 8 + 10 / PAUSE_S[0]


def test_all_that_are_woken_look_one_after_the_other() -> None:
    world = World()
    for placement in classes(8):
        world.vain(placement)
    world.looks.wake()
    left = [world.looks.left_s(placement) for placement in classes(8)]
    gaps = [later - sooner for sooner, later in zip(sorted(left), sorted(left)[1:], strict=False)]
    assert min(gaps) >= PAUSE_S[0] - 1e-9 or len({*left}) < len(left)


def test_a_node_rests_for_the_classes_that_were_looked_at() -> None:
    world, big = World(), Placement(pool="big")
    world.vain(ANY, node="g1")
    world.time += REST_S / 2
    world.vain(ANY, node="g2")
    assert world.looks.resting(ANY) == {"g1", "g2"} and not world.looks.resting(big)
    world.time += REST_S / 2
    assert world.looks.resting(ANY) == {"g2"}
    world.looks.wake(ANY)  # the new job may be worth it anywhere
    assert not world.looks.resting(ANY)


def test_classes_without_jobs_are_forgotten() -> None:
    world, big = World(), Placement(pool="big")
    world.vain(ANY)
    world.vain(big)
    world.looks.forget({big: None})
    assert world.looks.left_s(ANY) == 0 < world.looks.left_s(big)
    assert not world.looks.resting(ANY) and world.looks.resting(big)
