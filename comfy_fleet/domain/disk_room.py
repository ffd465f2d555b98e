"""Room on the disk that keeps the fleet's files, and who may still use it.

    free space ────────────────┬─────────────────────┬──────────────── 0
       everybody               │ floor: no submits,  │ half the floor: no outputs either;
                               │ no uploads          │ what is left is for Redis' append-only file

Deletes are always possible: they make room.
"""

from dataclasses import dataclass

USUAL_FLOOR_BYTES = 512 * 10**6
"""Half of it is enough for Redis to rewrite a large fleet's append-only file."""
SHARE = 10
"""On a small disk the floor is this fraction of it: one tenth."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How full the disk is.

    Attributes:
        path: The folder, as the operator named it.
        free_bytes: What an unprivileged process may still write.
        total_bytes: Size of the file system.
        floor_bytes: Free space below which nothing new is taken.
    """

    path: str
    free_bytes: int
    total_bytes: int
    floor_bytes: int

    @property
    def reserve_bytes(self) -> int:
        """Free space that outputs leave to Redis."""
        return self.floor_bytes // 2

    @property
    def full(self) -> bool:
        """Whether submits and uploads are refused."""
        return self.free_bytes < self.floor_bytes

    def lacks(self, needed_bytes: int) -> str | None:
        """Return the error message if less than this is free; else None."""
        if self.free_bytes >= needed_bytes:
            return None
        return (
            f"the fleet's disk is full: {size_text(self.free_bytes)} left at {self.path}, "
            f"needs {size_text(needed_bytes)}"
        )


def floor_of(total_bytes: int, wanted_bytes: int | None) -> int:
    """Return the floor of a disk: what the operator wants, else the usual one or a tenth of a small disk."""
    return min(USUAL_FLOOR_BYTES, total_bytes // SHARE) if wanted_bytes is None else wanted_bytes


def size_text(count: int) -> str:
    """Return a number of bytes for people: ``0 B``, ``812 kB``, ``1.3 MB``, ``20 GB``."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.1f} {units[0]}" if size < 10 and units[0] != "B" else f"{size:.0f} {units[0]}"
