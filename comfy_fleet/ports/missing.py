"""What people asked for and the fleet lacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.graphs.missing import MissingPart

KEPT_S = 30 * 86_400.0
"""How long a part is remembered after somebody asked for it last."""
MOST_OF_OWNER = 100
"""Parts that are remembered of one owner; the one that was asked for longest ago gives way."""


@dataclass(frozen=True, kw_only=True)
class AskedPart:
    """A class or a file that people asked for.

    Attributes:
        part: Which, without places in a graph; as the newest graph tells it that says where it is from.
        asked: How often.
        people: How many owners.
        first: When it was asked for first, in Unix seconds.
        last: When it was asked for last.
    """

    part: MissingPart
    asked: int
    people: int
    first: float
    last: float


class MissingRecord(Protocol):
    """The record of a fleet: bounded for each owner, so that nobody crowds out what others asked for."""

    async def note(self, owner: str, parts: Sequence[MissingPart]) -> None:
        """Take note that an owner asked for these. Raises StoreDown."""

    async def asked(self) -> Sequence[AskedPart]:
        """Return what all owners asked for, the newest first. Raises StoreDown."""
