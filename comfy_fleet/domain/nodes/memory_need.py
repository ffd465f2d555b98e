"""How much of a card's memory a job needs at least, by what became of jobs like it.

A run that ends out of memory says that the job needs more than its node could use; one that succeeds, that it
needs no more. Nobody sees the need itself: what a node holds at a time is mostly what it has cached. So an
estimate has two ends, and only the lower one may keep a job from a card: the least that agrees with all that
was seen.

A need is taken to rise with the pixels that are computed at once, and to be at least in proportion to them,
as ComfyUI itself reckons (:mod:`comfy_fleet.domain.graphs.pixels`). Weights are another matter: ComfyUI keeps
as much of a model on the card as there is room for beside its work, and the rest in memory
(``load_models_gpu`` in ``comfy/model_management.py``, 0.3.64 and 0.33). Whether models have to fit as a whole
depends on its options and on node packs; the fleet learns it for all models together.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from comfy_fleet.domain.jobs.workload import Workload

REFUSALS = 3
"""After this many jobs ran out of memory on cards smaller than their model, models count as a whole."""
REFUSED_SHARE = 4
"""But only if not even one such job succeeded for so many that did not."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A run's end.

    Attributes:
        owner: Whose job it was.
        room: Bytes that its node could use.
        pixels: What it computed at once.
        until: Until when it counts, in Unix seconds.
    """

    owner: str
    room: int
    pixels: float
    until: float


@dataclass(frozen=True, kw_only=True)
class FamilyMemory:
    """What is known of the jobs with one largest model.

    Attributes:
        fits: Runs that succeeded: each had less room than its owner's others, or computed more.
        fails: Runs that ended out of memory: each had more room than its owner's others, or computed less.
        refused: Of all families: runs out of memory whose model alone was larger than the room.
        ran: Of all families: runs with such a model that succeeded.
    """

    fits: tuple[Seen, ...] = ()
    fails: tuple[Seen, ...] = ()
    refused: int = 0
    ran: int = 0

    @property
    def whole(self) -> bool:
        """Whether a model has to fit as a whole."""
        return self.refused >= REFUSALS and self.refused > self.ran * REFUSED_SHARE


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """A job's predicted memory.

    Attributes:
        peak: Bytes that it probably uses at most, for people and for what else fits beside it; 0: unknown.
        least: Bytes below which it would run out of memory; 0: that is not known of any card.
    """

    peak: int = 0
    least: int = 0


NO_NEED = MemoryNeed()


def need_of(workload: Workload | None, known: FamilyMemory, owner: str) -> MemoryNeed:
    """Return what a job needs.

    What else its owner's jobs do (node packs, control models) may be the reason of a failure. So an owner's
    failures count for its own jobs, and for others as far as two owners' failures agree.

    Args:
        workload: The job's; None: it loads no model.
        known: What is known of its family.
        owner: Whose job it is.
    """
    if workload is None:
        return NO_NEED
    weights = workload.model_bytes if known.whole else 0
    least, pixels = float(weights), workload.pixels
    if pixels > 0:
        needs = {owner: 0.0}
        for one in known.fails:
            needs[one.owner] = max(needs.get(one.owner, 0.0), _least_by(one, pixels, weights))
        fits = [one for one in known.fits if pixels <= one.pixels]
        agreed = max(least, sorted(needs.values(), reverse=True)[1] if len(needs) > 1 else 0.0)
        least = max(
            min([agreed, *(one.room for one in fits)]),
            min([needs[owner], *(one.room for one in fits if one.owner == owner)]),
        )
    return MemoryNeed(peak=max(workload.model_bytes, round(least)), least=round(least))


def _least_by(fail: Seen, pixels: float, weights: int) -> float:
    """Return the least need that agrees with one failure."""
    if pixels >= fail.pixels:
        return fail.room + 1.0
    return weights + max(0, fail.room - weights) * pixels / fail.pixels


def too_small(cards: Iterable[int], least: int) -> int:
    """Return the largest card that is too small for a job; 0 if none is.

    The largest card of all is never too small: the job has to run somewhere.

    Args:
        cards: Memory of each card that may get it, in bytes; 0: unknown.
        least: What it needs, as :attr:`MemoryNeed.least`.
    """
    known = {card for card in cards if card > 0}
    largest = max(known, default=0)
    return max((card for card in known if card < least and card < largest), default=0)
