"""How many requests the API works on at once.

More at once would not be faster, and would make every turn of the event loop longer: health checks,
heartbeats and cancels would wait behind everything else. So those are let in at once, and other requests wait
in line for a moment. A request counts from the arrival of its body until its answer begins: slow clients and
event streams block nobody. It counts no longer once it waits in another line, such as that for pictures.
"""

import re
from collections.abc import Iterable

from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.errors import Busy
from comfy_fleet.settings import Settings
from comfy_fleet.turns import NoTurn, Turns

_NAME = re.compile(r"{\w+}")
LINE = 8
"""How many requests may wait, as a multiple of those in progress."""


class Admission:
    """The line in front of the API.

    Args:
        settings: How many, and how long the others wait.
        routes: The routes; some of them are let in at once.
    """

    def __init__(self, settings: Settings, routes: Iterable[ServedRoute]) -> None:
        most = settings.max_requests
        self.turns = Turns(most, wait_s=settings.request_wait_s, line=LINE * most)
        self._busy = (
            f"the API works on {most} requests already, and as many wait as can be answered soon "
            "(FLEET_MAX_REQUESTS): try again"
        )

        paths: dict[str, list[str]] = {}
        for route in routes:
            if route.open or route.at_once:
                for method in route.methods or ():
                    paths.setdefault(method, []).append(_NAME.sub("[^/]+", route.path))
        self._at_once = {method: re.compile("|".join(found)) for method, found in paths.items()}

    def ticket(self, method: str, path: str) -> "Ticket":
        """Return the place of one request, which it has yet to take."""
        at_once = self._at_once.get(method)
        free = at_once is not None and at_once.fullmatch(path) is not None
        return Ticket(None if free else self.turns, self._busy)


class Ticket:
    """One request's place.

    Args:
        turns: The line; None if the request need not wait.
        busy: The error's message if the wait fails.
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
