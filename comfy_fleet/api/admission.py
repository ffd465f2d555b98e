"""How many requests the API works on at once.

More at once would make none of them faster, and every step of the event loop longer: health checks,
heartbeats and cancels would wait behind all the rest. So those are let in at once, and the others wait in
line for a moment. A request counts from when its body is here until its answer begins: a client that sends
or takes slowly, and an event stream, keep nobody out.
"""

import re

from comfy_fleet.domain.errors import Busy
from comfy_fleet.settings import Settings
from comfy_fleet.turns import NoTurn, Turns

LINE = 8
"""So many times as many requests as are worked on may wait."""

OPEN_PATHS = frozenset({"/", "/health", "/api/v2/health", "/api/v1/health", "/api/v1/ready", "/metrics"})
"""These say nothing about anybody's work, and neither a browser nor a health check shows a key."""

_AT_ONCE = re.compile(r"/api/v1/agents/[^/]+/heartbeat|/api/v[12]/jobs/[^/]+/cancel")
_UPLOADS = "/api/v2/assets"
"""Uploads are written while they come: refused at their end, all of it would have to come again."""


class Admission:
    """The line in front of the API.

    Args:
        settings: How many, and how long the others wait.
    """

    def __init__(self, settings: Settings) -> None:
        most = settings.max_requests
        self.turns = Turns(most, wait_s=settings.request_wait_s, line=LINE * most)
        self._busy = (
            f"the API works on {most} requests already, and as many wait as can be answered soon "
            "(FLEET_MAX_REQUESTS): try again"
        )

    def ticket(self, method: str, path: str) -> "Ticket":
        """Return the place of one request, which it has yet to take."""
        free = path in OPEN_PATHS or (
            method == "POST" and (path == _UPLOADS or _AT_ONCE.fullmatch(path) is not None)
        )
        return Ticket(None if free else self.turns, self._busy)


class Ticket:
    """One request's place.

    Args:
        turns: The line; None: the request need not wait.
        busy: What is said to who waited in vain.
    """

    def __init__(self, turns: Turns | None, busy: str) -> None:
        self._turns = turns
        self._busy = busy
        self._inside = False

    async def enter(self) -> None:
        """Wait for the request's turn.

        Raises:
            Busy: There are too many.
        """
        if self._turns is None or self._inside:
            return
        try:
            await self._turns.take()
        except NoTurn:
            raise Busy(self._busy, retry_after_s=1) from None
        self._inside = True

    def leave(self) -> None:
        """Let the next one in; safe to call again."""
        if self._turns is not None and self._inside:
            self._inside = False
            self._turns.give()
