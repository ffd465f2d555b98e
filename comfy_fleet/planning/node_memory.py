"""What a node holds: the model files of its last run on its card, and earlier ones in its RAM.

As ComfyUI does it, where its host has no 128 GiB of RAM to spare: files stay on the card after a run until
one begins that does not use them. A file that leaves the card is still in RAM, unless newer ones have taken
its place there. A file that is larger than the card is read from RAM in every run.
"""

from typing import NamedTuple

from comfy_fleet.domain.schedule.model_set import ModelSet
from comfy_fleet.planning.fleet import PlannedNode


class Load(NamedTuple):
    """What a run loads before it computes.

    Attributes:
        seconds: How long it takes.
        from_disk: How many files are read from disk.
        from_ram: How many come from RAM.
    """

    seconds: float
    from_disk: int
    from_ram: int


WARM = Load(0.0, 0, 0)


class NodeMemory:
    """The files of one node, those in RAM in order of use, the least recent first."""

    def __init__(self, planned: PlannedNode) -> None:
        self._planned = planned
        self._vram, self._ram = planned.node.vram_bytes, planned.node.ram_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all files, as a restart does."""
        self._card: dict[str, int] = {}
        self._cached: dict[str, int] = {}
        self._on_card = self._in_ram = 0
        self._latest: tuple[ModelSet, int] | None = None

    def load(self, models: ModelSet, peak: int) -> Load:
        """Bring a job's models onto the card.

        Args:
            models: Its files, loaded in their order.
            peak: Most bytes that the job has on the card; what exceeds its models is needed beside them.

        Returns:
            What that takes; :data:`WARM` if all of them are there.
        """
        latest = self._latest
        if latest is not None and latest[0] is models and peak <= latest[1]:
            return WARM  # the last run has left it all as this one needs it
        used = {file for file, _ in models.files}
        for file in [file for file in self._card if file not in used]:
            self._on_card -= self._card.pop(file)
        seconds, from_disk, from_ram = 0.0, 0, 0
        beside = max(0, peak - models.size)
        for file, size in models.files:
            if file in self._card:
                self._card[file] = self._card.pop(file)
                self._touch(file)
                continue
            if cached := file in self._cached:
                self._touch(file)
                from_ram += 1
            else:
                self._keep(file, size)
                from_disk += 1
            seconds += self._planned.load_s(size, from_disk=not cached)
            if size + beside <= self._vram:
                self._make_room(size + beside)
                self._card[file] = size
                self._on_card += size
        self._make_room(beside)
        whole = all(file in self._card for file, _ in models.files)
        self._latest = (models, max(peak, models.size)) if whole else None
        return Load(seconds, from_disk, from_ram) if from_disk or from_ram else WARM

    def holds(self, models: ModelSet) -> bool:
        """Return whether all of these files are on the card."""
        return all(file in self._card for file, _ in models.files)

    def _make_room(self, wanted: int) -> None:
        while self._card and self._on_card + wanted > self._vram:
            file = next(iter(self._card))
            self._on_card -= self._card.pop(file)

    def _touch(self, file: str) -> None:
        if file in self._cached:
            self._cached[file] = self._cached.pop(file)

    def _keep(self, file: str, size: int) -> None:
        if size > self._ram:
            return
        while self._cached and self._in_ram + size > self._ram:
            oldest = next(iter(self._cached))
            self._in_ram -= self._cached.pop(oldest)
        self._cached[file] = size
        self._in_ram += size
