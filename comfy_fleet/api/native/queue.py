"""ComfyUI's interface: /queue."""

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, owner
from comfy_fleet.api.endpoint import JSON, ServedRoute
from comfy_fleet.api.native.body import ids_in, read_params
from comfy_fleet.api.native.row import row
from comfy_fleet.services.job_queries import prompt_job


async def get_queue(request: Request) -> Response:
    """Return all of the caller's prompts that run or wait; graphs only as far as they fit into the limit."""
    d = deps(request)
    prompts = await d.prompts.queue(owner(request))
    items = await d.prompt_items.queue(prompts, d.settings.max_listing_bytes)
    running = sum(prompt.running for prompt in prompts)
    parts = b",".join(items[:running]), b",".join(items[running:])
    return Response(b'{"queue_running":[%b],"queue_pending":[%b]}' % parts, media_type=JSON)


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
