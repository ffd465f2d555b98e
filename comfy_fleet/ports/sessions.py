"""Sessions of people who have signed in with a browser."""

from collections.abc import Sequence
from typing import Protocol


class Sessions(Protocol):
    """The sessions, by their tokens, of which only hashes are stored."""

    async def begin(self, token: str, proof: str, *, ttl_s: float) -> None:
        """Store a session.

        Args:
            token: What its browser shows.
            proof: Says with which key it began, to who has the token and the key.
            ttl_s: How long it lasts.
        """

    async def proof(self, token: str) -> str | None:
        """Return a session's proof; None if there is no such session."""

    async def over(self, tokens: Sequence[str]) -> Sequence[str]:
        """Return those of these that are no sessions any more."""

    async def end(self, token: str) -> None:
        """Forget a session."""
