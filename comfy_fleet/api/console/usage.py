"""The console's page about what was used, and the same as CSV."""

import csv
import io
from typing import Any, Literal, get_args
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.rendering import page, plain
from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.v1.usage import DAY_S, UsageAnswer, UsageQuery, used

EACH = 50
By = Literal["user", "tenant", "workflow", "pool"]
PERIODS = ((7, "7 days"), (30, "30 days"), (90, "90 days"), (365, "a year"))
_FIGURES = ("gpu_seconds", "jobs", "succeeded", "failed", "canceled", "expired", "output_bytes")
_NAMELESS = {"workflow": "graphs", "tenant": "default", "pool": "any", "user": ""}


async def show(request: Request) -> Response:
    """``GET /console/usage``: operators see all, others their own. Query: ``by``, ``days``, ``page``."""
    by, days = _chosen(request)
    found, daily = await _found(request, by, days)
    pages = Pages(total=len(found["rows"]), each=EACH, number=number(request.query_params.get("page", "")))
    most = max((one["gpu_seconds"] for one in found["rows"]), default=0)
    total: dict[str, Any] = {
        name: sum(one[name] for one in found["rows"])  # type: ignore[literal-required]
        for name in _FIGURES
    }
    plot = [
        [at for at, _ in daily],
        [round(amounts["ms"] / 1000, 1) for _, amounts in daily],
    ]
    return page(
        request,
        "usage.html",
        title="Usage",
        here="usage",
        rows=[(_named(one["name"], by), one) for one in found["rows"][pages.first : pages.last]],
        total=total,
        most=most,
        since=found["since"],
        plot=orjson.dumps(plot).decode(),
        by=by,
        kinds=get_args(By),
        days=days,
        periods=PERIODS,
        pages=pages,
        own=not principal(request).operator,
        query=urlencode({"by": by, "days": days}),
    )


async def table(request: Request) -> Response:
    """``GET /console/usage.csv``: all rows. Query: ``by``, ``days``."""
    by, days = _chosen(request)
    found, _ = await _found(request, by, days)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([by, *_FIGURES])
    for one in found["rows"]:
        name = plain(_named(one["name"], by))
        safe = f"'{name}" if name[:1] in ("=", "+", "-", "@") else name  # a spreadsheet would compute it
        writer.writerow([safe, *(one[figure] for figure in _FIGURES)])  # type: ignore[literal-required]
    headers = {
        "Content-Disposition": f'attachment; filename="usage-by-{by}-{days}-days.csv"',
        "Cache-Control": "no-store",
    }
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


async def _found(request: Request, by: By, days: int) -> tuple[UsageAnswer, list[tuple[int, Any]]]:
    now = await deps(request).store_time()
    return await used(request, UsageQuery(by=by, since=max(0.0, now - (days - 1) * DAY_S), until=None))


def _chosen(request: Request) -> tuple[By, int]:
    """Return what the query asks for; what can't be meant is as if nothing were said."""
    query = request.query_params
    by: By = next((one for one in get_args(By) if one == query.get("by")), "user")
    return by, next((days for days, _ in PERIODS if str(days) == query.get("days")), 30)


def _named(name: str, by: By) -> str:
    return "others" if name == "*" else name or _NAMELESS[by]


routes = [
    ServedRoute("/console/usage", show, name="console_usage", console=True),
    ServedRoute("/console/usage.csv", table, name="console_usage_csv", console=True),
]
