"""Writes down who changed the fleet: a log line with a stable name, and an entry in the audit trail."""

import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from comfy_fleet.api.deps import deps, principal
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.audit import AuditEntry

logger = logging.getLogger(__name__)


REFUSED = "refused"
"""The event of something that the caller may not do."""
_AGAIN_S = 60.0
_MOST = 10


class Refusals:
    """Writes down who tried what only operators may do.

    The same once a minute, and at most ten of one user's: nobody pushes others' entries out of the trail.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, dict[tuple[str, str, str], float]] = {}  # by user

    async def note(self, request: Request, code: str) -> None:
        """Write down a refused request.

        Args:
            request: It.
            code: The code of its error.
        """
        if "principal" not in request.scope:
            return
        now, path, by = self._clock(), request.url.path[:200], principal(request).owner
        self._told = {
            user: fresh
            for user, all_ in self._told.items()
            if (fresh := {what: at for what, at in all_.items() if now - at < _AGAIN_S})
        }
        told = self._told.setdefault(by, {})
        what = (request.scope["client_address"], request.method, path)
        if what not in told and len(told) < _MOST:
            told[what] = now
            await audit(request, REFUSED, method=request.method, path=path, code=code)


async def audit(request: Request, event: str, **about: Any) -> None:
    """Write down what the caller has just done. It is done, so nothing here makes the request fail.

    Args:
        request: Theirs.
        event: Its stable name, such as ``node.drained``.
        about: What it was done to, never a secret.
    """
    who = principal(request)
    entry = AuditEntry(
        event=event,
        by=who.owner,
        key=who.key,
        address=request.scope["client_address"],
        about=about,
    )
    told = {"event": event, "by": entry.by, "by_key": entry.key, "address": entry.address, "about": about}
    logger.info("audit", extra=told)
    try:
        await deps(request).audit.note(entry)
    except StoreDown as error:
        logger.warning("audit entry not stored", extra={**told, "error": error.message})
