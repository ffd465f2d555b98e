"""Which model files a node has on its card and in its memory, and what loading others would take."""

from collections import OrderedDict
from typing import NamedTuple

from comfy_fleet.domain.schedule.model_set import ModelSet
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode

LEARNED = 0.3
"""How much one measured load counts against all earlier ones."""
STEP = 4.0
"""One measured load changes a rate by this factor at most."""


class Missing(NamedTuple):
    """What a node has to bring onto its card, in bytes, by where it is."""

    from_disk: int
    from_memory: int


class Warmth:
    """A node's files on three levels: on the card, in memory, and else on disk.

    The card has what the last run used: ComfyUI lets go of models as soon as a prompt does not load them,
    whatever the room. Memory keeps what was used last, by bytes against its size; a file that is read from
    the disk stays there, too. What a node really does is not known; measured loads correct the rates.
    """

    __slots__ = (
        "_card",
        "_disk_rate",
        "_memory",
        "_memory_used",
        "_ram_bytes",
        "_ram_rate",
    )

    def __init__(self, node: ScheduledNode) -> None:
        self._disk_rate = node.disk_rate
        self._ram_rate = node.ram_rate
        self._ram_bytes = node.ram_bytes
        self._card: OrderedDict[str, int] = OrderedDict()  # file → bytes, least recently used first
        self._memory: OrderedDict[str, int] = OrderedDict()
        self._memory_used = 0

    @property
    def card(self) -> OrderedDict[str, int]:
        """The files on the card and their bytes, least recently used first. Not to be changed."""
        return self._card

    @property
    def memory(self) -> OrderedDict[str, int]:
        """The files in memory and their bytes, least recently used first. Not to be changed."""
        return self._memory

    def resize(self, node: ScheduledNode) -> None:
        """Take over a node's sizes, and keep what is warm."""
        self._ram_bytes = node.ram_bytes

    def load_s(self, models: ModelSet) -> float:
        """Return how long it probably takes to bring a set onto the card, in seconds."""
        card, memory = self._card, self._memory
        seconds = 0.0
        for name, size in models.files:
            if name not in card:
                seconds += size / (self._ram_rate if name in memory else self._disk_rate)
        return seconds

    def cold_s(self, models: ModelSet) -> float:
        """Return how long it takes to load a set from the disk, in seconds."""
        return models.size / self._disk_rate

    def file_s(self, name: str, size: int) -> float:
        """Return how long it takes to load a file that is not on the card, in seconds."""
        return size / (self._ram_rate if name in self._memory else self._disk_rate)

    def missing(self, models: ModelSet) -> Missing:
        """Return what of a set is not on the card."""
        card, memory = self._card, self._memory
        absent = [(name, size) for name, size in models.files if name not in card]
        warm = sum(size for name, size in absent if name in memory)
        return Missing(sum(size for _, size in absent) - warm, warm)

    def use(self, models: ModelSet) -> list[str]:
        """Note that a run uses a set, and return the files that have left the card."""
        card, memory = self._card, self._memory
        for name, size in models.files:
            if name in card:
                card.move_to_end(name)
            else:
                card[name] = size
            if name in memory:
                memory.move_to_end(name)
            else:
                memory[name] = size
                self._memory_used += size
        gone = []
        while len(card) > len(models.files):
            gone.append(card.popitem(last=False)[0])
        while self._memory_used > self._ram_bytes and memory:
            self._memory_used -= memory.popitem(last=False)[1]
        return gone

    def measured(self, missing: Missing, load_s: float) -> None:
        """Correct the rates by a load that was measured.

        Args:
            missing: What was loaded, as it was expected.
            load_s: How long it took, in seconds.
        """
        expected = missing.from_disk / self._disk_rate + missing.from_memory / self._ram_rate
        if expected <= 0.0 or load_s <= 0.0:
            return  # what was thought to be there was not, or the other way round: that says nothing of rates
        factor = min(STEP, max(1 / STEP, expected / load_s))
        if missing.from_disk:
            self._disk_rate *= 1.0 + LEARNED * (factor - 1.0)
        else:
            self._ram_rate *= 1.0 + LEARNED * (factor - 1.0)
