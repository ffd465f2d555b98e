"""REST: the audit trail, for operators."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.serialize import time
from comfy_fleet.api.typed_bodies import read_query


class AuditQuery(BaseModel):
    """Which entries."""

    user: str | None = Field(None, description="Only what this user did.")
    since: float = Field(0, ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds; none before.")
    limit: int = Field(100, ge=1, le=1000, description="Entries a page.")
    cursor: str | None = Field(None, max_length=40, description="`next_cursor` of the page before.")


class AuditEntryAnswer(TypedDict):
    """One thing that somebody did."""

    id: str
    at: str
    event: Annotated[str, Field(description="A stable name, such as `node.drained`.")]
    by: Annotated[str, Field(description="The user.")]
    key: Annotated[str, Field(description="The id of their key; empty without one.")]
    address: str
    about: dict[str, Any]


class AuditAnswer(TypedDict):
    """Entries, the newest first."""

    entries: list[AuditEntryAnswer]
    next_cursor: str | None


async def list_audit(request: Request) -> Response:
    """Who changed the fleet, what and when, the newest first. The last 100,000 entries are kept."""
    operator(request)
    query = read_query(request, AuditQuery)
    found, following = await deps(request).audit.read(
        since=query.since, user=query.user, limit=query.limit, before=query.cursor
    )
    entries = [
        {
            "id": one.id,
            "at": time(one.at),
            "event": one.event,
            "by": one.by,
            "key": one.key,
            "address": one.address,
            "about": dict(one.about),
        }
        for one in found
    ]
    return json_response({"entries": entries, "next_cursor": following})
