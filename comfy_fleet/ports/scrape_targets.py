"""Where Prometheus finds the metrics of each process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class ScrapeTarget:
    """A process that serves metrics.

    Attributes:
        process: ``api``, ``dispatch``, ``haproxy`` or ``agent``.
        host: The machine by its name; an agent's as its nodes' label ``host`` says.
        address: ``HOST:PORT`` where it serves them.
        only_on: The machine of which only programs can reach it; empty: any can.
    """

    process: str
    host: str
    address: str
    only_on: str = ""


class ScrapeTargets(Protocol):
    """Remembers them; each process says again and again where it is."""

    async def announce(self, target: ScrapeTarget) -> None:
        """Remember a process for ten minutes: one that is killed must be missed before it is forgotten."""

    async def leave(self, target: ScrapeTarget) -> None:
        """Forget a process that ends as it should."""

    async def targets(self) -> Sequence[ScrapeTarget]:
        """Return all of them, by process and host."""
