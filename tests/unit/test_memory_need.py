"""What runs' ends say about a job's memory."""

import random

import pytest

from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.eligibility import GIB
from comfy_fleet.domain.nodes.memory_need import NO_NEED, FamilyMemory, MemoryNeed, Seen, need_of, too_small

LATER = 1e12
CARDS = (24, 24, 16, 12)


def seen(gib: float, pixels: float, owner: str = "ada") -> Seen:
    return Seen(owner=owner, room=round(gib * GIB), pixels=pixels, until=LATER)


def job(pixels: float, *, gib: float = 6) -> Workload:
    return Workload(family="checkpoints/a", model_bytes=round(gib * GIB), pixels=pixels)


def least(pixels: float, known: FamilyMemory, *, gib: float = 6, owner: str = "ada") -> float:
    """What a job needs at least, in GiB."""
    return need_of(job(pixels, gib=gib), known, owner).least / GIB


def test_of_what_never_ran_only_the_model_is_known() -> None:
    assert need_of(job(4), FamilyMemory(), "ada") == MemoryNeed(peak=6 * GIB, least=0)
    assert need_of(None, FamilyMemory(fails=(seen(12, 1),)), "ada") == NO_NEED


def test_a_failure_speaks_for_all_that_compute_as_much() -> None:
    known = FamilyMemory(fails=(seen(12, 4),))
    assert need_of(job(4), known, "ada").least == 12 * GIB + 1
    assert need_of(job(400), known, "ada").least == 12 * GIB + 1
    assert need_of(job(4), known, "ada").peak == 12 * GIB + 1


def test_of_what_computes_less_it_says_less() -> None:
    known = FamilyMemory(fails=(seen(24, 4),))
    assert least(2, known) == 12
    assert least(1, known) == 6
    assert need_of(job(0), known, "ada").least == 0  # nobody knows what it computes


def test_a_success_speaks_for_all_that_compute_no_more() -> None:
    known = FamilyMemory(fails=(seen(24, 4),), fits=(seen(10, 2),))
    assert least(2, known) == 10
    assert least(2.2, known) == pytest.approx(13.2)
    assert least(4, known) == pytest.approx(24)


@pytest.mark.parametrize(
    ("refused", "ran", "whole"), [(0, 0, False), (2, 0, False), (3, 0, True), (3, 1, False), (9, 2, True)]
)
def test_models_count_as_a_whole_once_they_had_to_fit(refused: int, ran: int, whole: bool) -> None:
    known = FamilyMemory(refused=refused, ran=ran)
    assert least(1, known, gib=18) == (18 if whole else 0)
    assert need_of(job(0, gib=18), known, "ada").least == (18 * GIB if whole else 0)


def test_beside_a_model_that_has_to_fit_the_rest_is_in_proportion() -> None:
    known = FamilyMemory(fails=(seen(24, 4), seen(5, 1)), refused=3)
    assert least(2, known) == 15
    assert least(0.5, known) == 8.25


def test_a_success_says_more_than_the_rule_for_models() -> None:
    assert least(1, FamilyMemory(fits=(seen(12, 1),), refused=9), gib=18) == 12


def test_an_owner_s_failure_keeps_nobody_else_from_a_card() -> None:
    known = FamilyMemory(fails=(seen(12, 4),))
    assert (round(least(4, known)), least(4, known, owner="bob")) == (12, 0)


def test_what_two_owners_agree_on_counts_for_all() -> None:
    known = FamilyMemory(fails=(seen(16, 4), seen(12, 4, "bob")))
    found = [round(least(4, known, owner=owner)) for owner in ("ada", "bob", "eve")]
    assert found == [16, 12, 12]


def test_anybody_s_success_says_more_than_what_others_agree_on_but_not_than_an_owner_s_own_failure() -> None:
    known = FamilyMemory(fails=(seen(16, 4), seen(16, 4, "bob")), fits=(seen(12, 5, "eve"),))
    found = [round(least(4, known, owner=owner)) for owner in ("ada", "eve", "zoe")]
    assert found == [16, 12, 12]


@pytest.mark.parametrize(
    ("gib", "above"), [(0, 0), (11, 0), (12, 0), (13, 12), (16.5, 16), (24, 16), (30, 16), (1e9, 16)]
)
def test_the_largest_card_is_never_too_small(gib: float, above: float) -> None:
    assert too_small([card * GIB for card in CARDS], round(gib * GIB)) == above * GIB


def test_unknown_cards_are_not_too_small() -> None:
    assert too_small([0, 0], 5) == 0
    assert too_small([0, 4, 8], 5) == 4
    assert too_small([], 5) == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_never_says_more_than_the_truth(seed: int) -> None:
    """If needs rise in a line from the weights on, no job is kept from a card that it fits on."""
    chance = random.Random(seed)
    weights, slope = chance.uniform(0, 14), chance.uniform(0.1, 3)
    whole = chance.random() < 0.5
    base = weights if whole else chance.uniform(0, 1)
    fits: list[Seen] = []
    fails: list[Seen] = []
    failures = 0
    for _ in range(300):
        pixels = chance.uniform(0.1, 8)
        truth = base + slope * pixels
        known = FamilyMemory(fits=tuple(fits), fails=tuple(fails), refused=3 if whole else 0)
        found = least(pixels, known, gib=weights)
        assert found <= truth + 1e-6
        card = chance.choice([card for card in CARDS if card >= found] or [24])
        (fits if truth <= card else fails).append(seen(card, pixels))
        failures += card < min(truth, max(CARDS))
    assert failures <= 40
