"""Ends websockets and event streams when what opened them ends: a session, by sign-out or age; a key, when
it is revoked or expires.

Each process asks for the sessions of its open connections. That is one question in a second for all of them,
and it misses nothing, whichever process was told to sign out.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.sessions import Sessions

logger = logging.getLogger(__name__)

EVERY_S = 1.0
_AT_ONCE = 500


class SessionWatch:
    """Knows which sessions and keys have open connections in this process.

    Args:
        sessions: All sessions.
        holds: Says whether a key, by its id, is still good.
        every_s: How often they are looked at.
    """

    def __init__(
        self, sessions: Sessions, holds: Callable[[str], bool] = bool, *, every_s: float = EVERY_S
    ) -> None:
        self._sessions = sessions
        self._holds = holds
        self._every_s = every_s
        self._ended: dict[tuple[str, str], asyncio.Event] = {}
        self._open: Counter[tuple[str, str]] = Counter()
        self._any = asyncio.Event()

    @contextmanager
    def follow(self, token: str, key: str) -> Iterator[asyncio.Event]:
        """Yield what is set when a session or a key ends.

        Args:
            token: The session's; empty for a caller who showed a key.
            key: The id of that key, or of the one with which the session began; empty for a caller without.
        """
        if not token and not key:
            yield asyncio.Event()
            return
        both = token, key
        self._open[both] += 1
        self._any.set()
        try:
            yield self._ended.setdefault(both, asyncio.Event())
        finally:
            self._open[both] -= 1
            if not self._open[both]:
                del self._open[both], self._ended[both]

    async def run(self) -> None:
        """Look at them now and then, as long as there are any."""
        while True:
            await self._any.wait()
            await asyncio.sleep(self._every_s)
            try:
                await self._look()
            except StoreDown as error:
                logger.debug("sessions not looked at", extra={"error": error.message})
            if not self._open:
                self._any.clear()

    async def _look(self) -> None:
        for (_, key), ended in self._ended.items():
            if key and not self._holds(key):
                ended.set()
        tokens = list({token for token, _ in self._open if token})
        for start in range(0, len(tokens), _AT_ONCE):
            over = set(await self._sessions.over(tokens[start : start + _AT_ONCE]))
            for (token, _), ended in self._ended.items():
                if token in over:
                    ended.set()
