"""Who changed the fleet, what and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One thing that somebody did.

    Attributes:
        event: Its stable name, such as ``node.drained``.
        by: The user; empty if it was nobody's.
        key: The id of their key; empty without one.
        address: Where the request came from.
        about: What it was done to.
        at: Unix seconds; 0 as long as it is not stored.
        id: The store's name for it; empty as long as it is not stored.
    """

    event: str
    by: str
    key: str = ""
    address: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    id: str = ""


class AuditTrail(Protocol):
    """The newest entries; how many are kept is bounded."""

    async def note(self, entry: AuditEntry) -> None:
        """Add an entry.

        Raises:
            StoreDown: It was not stored, or that is not known.
        """

    async def read(
        self, *, since: float, user: str | None, limit: int, before: str | None = None
    ) -> tuple[Sequence[AuditEntry], str | None]:
        """Return entries, the newest first, and what to send as ``before`` for those that follow, if any may.

        Args:
            since: Unix seconds; earlier ones are left out.
            user: Only what this user did; None: everybody.
            limit: How many at most.
            before: Only entries before this one, by its id.
        """
