"""What became of jobs' memory, by family of models."""

from typing import Protocol

from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.memory_need import FamilyMemory


class MemoryStore(Protocol):
    """A small memory of runs that ran out of memory, and of those that did not."""

    async def known(self, family: str) -> FamilyMemory:
        """Return what is known of a family; nothing if that can't be read. Raises StoreDown."""

    async def note(self, workload: Workload, *, owner: str, room: int, fits: bool, ttl_s: int) -> None:
        """Note a run's end.

        What contradicts earlier ends of its owner takes their place. But a first failure only takes a success
        away: something else may have caused it.

        Args:
            workload: Its job's.
            owner: Whose job it was.
            room: Bytes that its node could use; above 0.
            fits: True if it succeeded, False if it ran out of memory.
            ttl_s: For how long it counts.
        """
