"""Sessions of people who have signed in with a browser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """A sign-in on the console's origin, on its way to the editor's.

    Attributes:
        proof: Says with which key it began, to who has the code and the key.
        browser: Says which browser may bring it, to who has the nonce in that browser's cookie.
        session: What the session on the console's origin is known by, see :meth:`Sessions.known_by`.
    """

    proof: str = field(repr=False)
    browser: str = field(repr=False)
    session: str


class Sessions(Protocol):
    """The sessions, by their tokens, of which only hashes are stored.

    A token may end in ``.`` and what another session is known by: such a session is there only while the
    other one is, and to end either of them ends both.
    """

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
        """Forget a session, and the one that it belongs to."""

    def known_by(self, token: str) -> str:
        """Return what a session is known by to others; it opens nothing."""

    async def offer(self, code: str, hand_over: HandOver, *, ttl_s: float) -> None:
        """Store what a code is good for, once."""

    async def take(self, code: str) -> HandOver | None:
        """Return what a code is good for, which then is nothing any more; None if it is nothing already."""
