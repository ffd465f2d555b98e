"""What choosing needs to know of a node."""

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledNode:
    """A node that takes jobs.

    Attributes:
        name: The node's.
        places: The placement classes whose jobs it can run.
        vram_bytes: Bytes of the card that its ComfyUI can use.
        ram_bytes: Bytes of memory in which it keeps models that it has read.
        speed: How fast it computes: a job of ``run_s`` takes ``run_s / speed`` seconds.
        zone: Where it is.
        disk_rate: Bytes a second from its disk to the card, until loads were measured.
        ram_rate: Bytes a second from its memory to the card, until loads were measured.
    """

    name: str
    places: frozenset[str]
    vram_bytes: int
    ram_bytes: int
    speed: float = 1.0
    zone: str = ""
    disk_rate: float = 2.0 * GIB
    ram_rate: float = 12.0 * GIB
