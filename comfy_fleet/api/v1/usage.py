"""REST: what was used."""

import asyncio
from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.jobs import seen_owners
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.errors import BadInput

DAY_S = 86400
MOST_DAYS = 400


class UsageQuery(BaseModel):
    """Which days, and by what they are added up."""

    by: Literal["tenant", "user", "workflow", "pool"] = Field("user", description="What the rows are.")
    since: float | None = Field(
        None, ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds, from that day on; 7 days ago."
    )
    until: float | None = Field(
        None, ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds, that day included; now."
    )


class UsageRowAnswer(TypedDict):
    """What was used by one of them."""

    name: Annotated[str, Field(description="Empty: graphs, or the default tenant; `*`: many others.")]
    gpu_seconds: Annotated[float, Field(description="For which runs had a node, those that failed too.")]
    jobs: Annotated[int, Field(description="That ended, in any way.")]
    succeeded: int
    failed: int
    canceled: int
    expired: int
    output_bytes: Annotated[int, Field(description="Of outputs that were made, not shared.")]


class UsageAnswer(TypedDict):
    """What was used, the most GPU seconds first."""

    by: str
    since: Annotated[Time, Field(description="The first day's begin, in UTC.")]
    until: Annotated[Time, Field(description="The last day's end, in UTC.")]
    rows: list[UsageRowAnswer]


async def usage(request: Request) -> Response:
    """By whole days in UTC, 400 at most. Operators see all, others their own, or their shared tenant's."""
    answer, _ = await used(request, read_query(request, UsageQuery))
    return json_response(answer)


async def used(request: Request, query: UsageQuery) -> tuple[UsageAnswer, list[tuple[int, Counter[str]]]]:
    """Return what was used, and day by day what was used by all together: Unix seconds with the amounts.

    Raises:
        BadInput: The query names no day, or too many.
    """
    owner(request)
    d = deps(request)
    now = await d.store_time()
    until = min(now, now if query.until is None else query.until)
    last = int(until // DAY_S)
    first = last - 7 if query.since is None else int(query.since // DAY_S)
    if first > last:
        raise BadInput("since must not be after until", details={"field": "since"})
    if last - first >= MOST_DAYS:
        raise BadInput(f"usage is known for {MOST_DAYS} days: ask for fewer", details={"field": "since"})
    seen_by = seen_owners(request, by_operator=True)
    sums: dict[str, Counter[str]] = {}
    days = []
    for day in range(first, last + 1):
        whole = Counter[str]()
        for row in await d.usage.day(day):
            if seen_by is None or row.owner in seen_by:
                name = {"tenant": row.tenant, "user": row.owner, "workflow": row.workflow}.get(
                    query.by, row.pool
                )
                sums.setdefault(name, Counter()).update(row.amounts)
                whole.update(row.amounts)
        days.append((day * DAY_S, whole))
        await asyncio.sleep(0)  # a year of a large fleet takes a while
    rows = [_row(name, amounts) for name, amounts in sums.items()]
    rows.sort(key=lambda row: (-row["gpu_seconds"], row["name"]))
    answer: UsageAnswer = {
        "by": query.by,
        "since": serialize.time(first * DAY_S),
        "until": serialize.time((last + 1) * DAY_S),
        "rows": rows,
    }
    return answer, days


def _row(name: str, amounts: Counter[str]) -> UsageRowAnswer:
    ends = {state: amounts[state] for state in ("succeeded", "failed", "canceled", "expired")}
    return {
        "name": name,
        "gpu_seconds": round(amounts["ms"] / 1000, 3),
        "jobs": sum(ends.values()),
        "succeeded": ends["succeeded"],
        "failed": ends["failed"],
        "canceled": ends["canceled"],
        "expired": ends["expired"],
        "output_bytes": amounts["bytes"],
    }
