"""The port to what was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """What was used on one day by one user's jobs of one workflow in one pool; ``*`` is everything else.

    Attributes:
        tenant: Empty: the default one.
        owner: The user.
        workflow: Empty: graphs.
        pool: The pool that the jobs asked for.
        amounts: ``ms`` of GPUs, ``bytes`` of outputs, and how many jobs ended, by their state.
    """

    tenant: str
    owner: str
    workflow: str
    pool: str
    amounts: Mapping[str, int]


class UsageStore(Protocol):
    """Sums of what was used, by day."""

    async def day(self, number: int) -> Sequence[UsageRow]:
        """Return what was used on a day, counted from 1970-01-01 in UTC. Raises StoreDown."""
