"""ComfyUI's interface: /history."""

from collections.abc import Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.native.body import ids_in, read_params
from comfy_fleet.api.native.refusals import PromptRefusal
from comfy_fleet.api.native.row import row
from comfy_fleet.domain.jobs.prompt_entries import listed_state
from comfy_fleet.services.job_queries import is_id, is_prompt_id, prompt_job
from comfy_fleet.services.prompt_items import history_item

MOST = 1000
"""Prompts that an answer has at most; ``offset`` asks for others."""
_CHUNK = 50
_WHOLE_NUMBER = 2**53


async def get_history(request: Request) -> Response:
    """Return the caller's prompts that are over, in the order in which they ended.

    ``max_items`` and ``offset`` count as on ComfyUI: an offset from the oldest one; without it, the newest.
    """
    d, who = deps(request), owner(request)
    most, offset = _whole(request, "max_items"), _whole(request, "offset")
    count = await d.prompts.ended(who)
    first, last, newest = _range(count, most, offset)
    entries: list[tuple[str, bytes]] = []
    left = d.settings.max_listing_bytes
    while first <= last and left > 0:
        start, end = (
            (max(first, last - _CHUNK + 1), last) if newest else (first, min(last, first + _CHUNK - 1))
        )
        ids = await d.prompts.history(who, start, end)
        made, whole = await d.prompt_items.history([*reversed(ids)] if newest else ids, left)
        entries += made
        left -= sum(len(text) for _, text in made)
        if not whole:
            break
        first, last = (first, start - 1) if newest else (end + 1, last)
    return _object(entries[::-1] if newest else entries)


async def get_prompt_history(request: Request) -> Response:
    """Return one prompt that is over; an empty object while it is not, or if it is not the caller's."""
    d, name = deps(request), request.path_params["prompt_id"]
    found = None
    if is_prompt_id(name):
        found = await d.prompts.ended_prompt(owner(request), name, or_job_id=is_id(name))
    return _object([] if found is None or listed_state(found[0]) is None else [(name, history_item(*found))])


async def post_history(request: Request) -> Response:
    """Delete prompts from the history: ``delete`` names them, ``clear`` means all. Their files stay."""
    d, who = deps(request), owner(request)
    body = await read_params(request)
    names = ids_in(body, "delete")
    if body.get("clear"):
        await d.jobs.hide(who, await d.prompts.history(who, 0, -1))
    jobs = [job for name in names if (job := await prompt_job(d.jobs, who, name)) is not None]
    await d.jobs.hide(who, [job.id for job in jobs])
    return Response()


def _range(count: int, most: int | None, offset: int | None) -> tuple[int, int, bool]:
    """Return the first and the last place that are wanted, and whether the newest go first if not all fit."""
    newest = offset is None or offset < 0
    latest = 0 if most is None else max(0, count - most)
    first = latest if newest else offset or 0
    # ComfyUI looks at the number after it has taken one.
    wanted = count if most is None else max(1, most)
    last = min(count, first + wanted) - 1
    if newest:
        return max(first, last - MOST + 1), last, True
    return first, min(last, first + MOST - 1), False


def _whole(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return max(-_WHOLE_NUMBER, min(int(text[:40]), _WHOLE_NUMBER))
    except ValueError:
        raise PromptRefusal("invalid_request", f"{name} must be a whole number") from None


def _object(entries: Sequence[tuple[str, bytes]]) -> Response:
    """Return a JSON object; of several values with one name, the last counts, as in ComfyUI."""
    found = dict(entries)
    body = b",".join(orjson.dumps(name) + b":" + text for name, text in found.items())
    return Response(b"{" + body + b"}", media_type="application/json")


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/history/{prompt_id}", get_prompt_history, "native_prompt_history"),
    *row("GET", "/history", get_history, "native_history"),
    *row("POST", "/history", post_history, "native_history_change"),
)
