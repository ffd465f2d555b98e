"""Ends websockets and event streams when the session ends that opened them: at a sign-out, or by its age.

Each process asks for the sessions of its open connections. That is one question in a second for all of them,
and it misses nothing, whichever process was told to sign out.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.sessions import Sessions

logger = logging.getLogger(__name__)

EVERY_S = 1.0
_AT_ONCE = 500


class SessionWatch:
    """Knows which sessions have open connections in this process.

    Args:
        sessions: All sessions.
        every_s: How often they are looked at.
    """

    def __init__(self, sessions: Sessions, *, every_s: float = EVERY_S) -> None:
        self._sessions = sessions
        self._every_s = every_s
        self._ended: dict[str, asyncio.Event] = {}
        self._open: Counter[str] = Counter()
        self._any = asyncio.Event()

    @contextmanager
    def follow(self, token: str) -> Iterator[asyncio.Event]:
        """Yield what is set when a session ends.

        Args:
            token: The session's; empty for a caller who showed a key: nothing ends that.
        """
        if not token:
            yield asyncio.Event()
            return
        self._open[token] += 1
        self._any.set()
        try:
            yield self._ended.setdefault(token, asyncio.Event())
        finally:
            self._open[token] -= 1
            if not self._open[token]:
                del self._open[token], self._ended[token]

    async def run(self) -> None:
        """Look at the sessions now and then, as long as there are any."""
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
        tokens = list(self._open)
        for start in range(0, len(tokens), _AT_ONCE):
            for token in await self._sessions.over(tokens[start : start + _AT_ONCE]):
                if (ended := self._ended.get(token)) is not None:
                    ended.set()
