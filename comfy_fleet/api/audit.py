"""Writes down who changed the fleet: a log line with a stable name, and an entry in the audit trail."""

import logging
from typing import Any

from starlette.requests import Request

from comfy_fleet.api.deps import deps, principal
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.audit import AuditEntry

logger = logging.getLogger(__name__)


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
