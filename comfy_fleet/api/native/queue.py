"""ComfyUI's interface: /queue."""

from itertools import zip_longest

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.json import json_response
from comfy_fleet.api.native.body import ids_in, read_params
from comfy_fleet.api.native.entries import queue_item
from comfy_fleet.api.native.row import row
from comfy_fleet.services.job_queries import prompt_job


async def get_queue(request: Request) -> Response:
    """Return all of the caller's prompts that run or wait; graphs only as far as they fit into the limit."""
    d = deps(request)
    prompts = await d.prompts.queue(owner(request))
    contents = await d.prompts.contents(prompts, d.settings.max_listing_bytes)
    items = [queue_item(*pair) for pair in zip_longest(prompts, contents)]
    running = sum(prompt.running for prompt in prompts)
    return json_response({"queue_running": items[:running], "queue_pending": items[running:]})


async def post_queue(request: Request) -> Response:
    """Remove prompts that wait: ``delete`` names them, ``clear`` means all of the caller's."""
    d, who = deps(request), owner(request)
    body = await read_params(request)
    names = ids_in(body, "delete")
    if body.get("clear"):
        await d.jobs.withdraw(who, await d.prompts.queued_ids(who))
    jobs = [job for name in names if (job := await prompt_job(d.jobs, who, name)) is not None]
    await d.jobs.withdraw(who, [job.id for job in jobs])
    return Response()


TABLE: tuple[ServedRoute, ...] = (
    *row("GET", "/queue", get_queue, "native_queue"),
    *row("POST", "/queue", post_queue, "native_queue_change"),
)
