"""What became of jobs' memory, over a dict."""

import time
from collections.abc import Callable
from dataclasses import replace

from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.memory_need import FamilyMemory, Seen
from tests.fakes.base import Fake

MOST_ENDS = 8


class FakeMemoryStore(Fake):
    """:class:`comfy_fleet.ports.memory.MemoryStore`.

    Attributes:
        families: What is known, by family.
        refused: Of all families, as in :class:`FamilyMemory`.
        ran: Of all families.
    """

    def __init__(self) -> None:
        super().__init__()
        self.families: dict[str, FamilyMemory] = {}
        self.refused = self.ran = 0
        self.clock = time.time

    async def known(self, family: str) -> FamilyMemory:
        self.answer("known")
        now, found = self.clock(), self.families.get(family, FamilyMemory())
        return FamilyMemory(
            fits=tuple(one for one in found.fits if one.until > now),
            fails=tuple(one for one in found.fails if one.until > now),
            refused=self.refused,
            ran=self.ran,
        )

    async def note(self, workload: Workload, *, owner: str, room: int, fits: bool, ttl_s: int) -> None:
        self.answer("note")
        if workload.model_bytes > room:
            self.ran, self.refused = self.ran + fits, self.refused + (not fits)
        if workload.pixels <= 0:
            return
        known = self.families.get(workload.family, FamilyMemory())
        new = Seen(owner=owner, room=room, pixels=workload.pixels, until=self.clock() + ttl_s)
        if fits:
            fails = tuple(one for one in known.fails if not _easier(one, new))
            known = replace(known, fails=fails, fits=_joined(known.fits, new, _easier))
        else:
            kept = tuple(one for one in known.fits if not _easier(new, one))
            if len(kept) == len(known.fits):
                known = replace(known, fails=_joined(known.fails, new, lambda a, b: _easier(b, a)))
            known = replace(known, fits=kept)
        self.families[workload.family] = known


def _easier(one: Seen, other: Seen) -> bool:
    """Whether one run had no less room than another of its owner, and no more to compute."""
    return one.owner == other.owner and one.room >= other.room and one.pixels <= other.pixels


def _joined(ends: tuple[Seen, ...], new: Seen, says_less: Callable[[Seen, Seen], bool]) -> tuple[Seen, ...]:
    left = tuple(one for one in ends if not says_less(one, new))
    if any(says_less(new, one) for one in left):
        return left
    own = [one for one in left if one.owner == new.owner]
    oldest = own[0] if len(own) >= MOST_ENDS else None
    return (*(one for one in left if one is not oldest), new)
