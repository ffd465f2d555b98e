"""The console's pages about jobs.

Pictures are shown to whom they belong: operators see others' jobs, and no file of theirs.
"""

from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api import jobs
from comfy_fleet.api.console.rendering import changing, done, is_part, page
from comfy_fleet.api.console_page import form_of
from comfy_fleet.api.deps import deps, owner, principal
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.links import THUMBNAIL_WIDTH
from comfy_fleet.api.v1 import job_changes
from comfy_fleet.api.v1.jobs import shown
from comfy_fleet.api.v1.timelines import timeline_of
from comfy_fleet.domain.jobs.job import Job, JobError, JobFilter, JobStatus, Output
from comfy_fleet.domain.jobs.media import is_picture
from comfy_fleet.domain.principal import Principal

EACH = 50
MOST_PICTURES = 60
MOST_SPANS = 60
_STATUSES = tuple(status.value for status in JobStatus)


async def show_all(request: Request) -> Response:
    """``GET /console/jobs``: newest first. Query: ``status``, ``workflow``, ``user``, ``cursor``.

    Operators see everybody's, others their own and their shared tenant's.
    """
    owner(request)
    d, query, who = deps(request), request.query_params, principal(request)
    chosen = {name: query.get(name, "")[:128].strip() for name in ("status", "workflow", "user")}
    if chosen["status"] not in _STATUSES:
        chosen["status"] = ""
    whose = jobs.whose(request, user=chosen["user"] or None, everybodys=True)
    wanted = JobFilter(
        **({"owner": who.owner} | whose),
        statuses=frozenset([JobStatus(chosen["status"])] if chosen["status"] else []),
        workflow=chosen["workflow"] or None,
        limit=EACH,
        cursor=query.get("cursor", "")[:512] or None,
    )
    found = await jobs.listed(request, wanted, 1)
    places = await d.jobs.positions([job.id for job in found.jobs if job.status is JobStatus.QUEUED])
    mine = frozenset(d.keys.ring.seen_by(who))
    asked = {name: text for name, text in chosen.items() if text}
    return page(
        request,
        "jobs.html",
        title="Jobs",
        here="jobs",
        rows=[
            {
                "job": job,
                "place": places.get(job.id),
                "picture": _picture(job) if job.owner in mine else None,
                "may_cancel": _may_cancel(who, job),
            }
            for job in found.jobs
        ],
        chosen=chosen,
        statuses=_STATUSES,
        users=who.operator or len(mine) > 1,
        query=urlencode(asked),
        again=urlencode(asked | ({"cursor": wanted.cursor} if wanted.cursor else {})),
        first=wanted.cursor is None,
        next=found.next_cursor,
        workflows=[] if is_part(request) else [one.name for one in (await d.catalog.list())[:200]],
    )


async def show(request: Request) -> Response:
    """``GET /console/jobs/JOB``: one job with its pictures, its story, and where its time went."""
    job = await jobs.read_job(request, request.path_params["job_id"], by_operator=True)
    facts = await shown(request, job)
    who, mine = principal(request), frozenset(deps(request).keys.ring.seen_by(principal(request)))
    return page(
        request,
        "job.html",
        title=f"Job {job.id[:8]}",
        here="jobs",
        job=job,
        facts=facts,
        timeline=await timeline_of(request, job, facts["waiting_for"]),
        most_spans=MOST_SPANS,
        outputs=[_shown(one) for one in job.outputs[:MOST_PICTURES]] if job.owner in mine else None,
        params=_lines(job.params),
        metadata=_lines(job.metadata if isinstance(job.metadata, dict) else {}),
        story=_story(job.error),
        mine=job.owner == who.owner,
        may_cancel=_may_cancel(who, job),
        follows=job.owner in mine and not job.status.terminal,
    )


def _may_cancel(who: Principal, job: Job) -> bool:
    return not job.status.terminal and (who.operator or job.owner == who.owner)


async def cancel(request: Request) -> Response:
    """``POST /console/jobs/JOB/cancel``: operators cancel everybody's."""
    changing(request)
    job = await jobs.cancel_job(request, request.path_params["job_id"], by_operator=True)
    ends = {JobStatus.CANCELED: "is canceled", JobStatus.CANCELING: "ends at its next step"}
    return done(f"Job {job.id[:8]} {ends.get(job.status, f'had ended before: {job.status.value}')}")


async def again(request: Request) -> Response:
    """``POST /console/jobs/JOB/again``, with ``new_seed`` or without: the caller's own, as a new job."""
    changing(request)
    form = await form_of(request)
    how = job_changes.RetryBody(new_seed="new_seed" in form)
    made = await job_changes.submit_again(request, how, None)
    return Response(status_code=204, headers={"HX-Redirect": made.job.id, "Cache-Control": "no-store"})


def _picture(job: Job) -> str | None:
    """Return the address of a small picture of a job, below the console's root; None if it has none."""
    one = job.outputs[0] if job.outputs else None
    return None if one is None or one.withheld or not is_picture(one.content_type) else _small(one)


def _small(one: Output) -> str:
    return f"api/v2/assets/{one.asset_id}/content?format=webp&width={THUMBNAIL_WIDTH}"


def _shown(one: Output) -> dict[str, Any]:
    seen = is_picture(one.content_type) and not one.withheld
    return {
        "name": one.name,
        "kind": "withheld" if one.withheld else one.kind.value,
        "size": one.size_bytes,
        "address": f"api/v2/assets/{one.asset_id}/content",
        "picture": _small(one) if seen else None,
        "temporary": one.temporary,
    }


def _lines(values: Any) -> list[tuple[str, str]]:
    """Return names and values, each short enough to be shown."""
    return [
        (str(name), value if isinstance(value, str) else orjson.dumps(value, default=str).decode())
        for name, value in list(dict(values).items())[:100]
    ]


def _story(error: JobError | None) -> list[str]:
    """Return what a failed job's last run saw, line by line."""
    told = error.details.get("story") if error else None
    return [str(line) for line in told[-200:]] if isinstance(told, list) else []


routes = [
    ServedRoute("/console/jobs", show_all, name="console_jobs", console=True),
    ServedRoute("/console/jobs/{job_id}", show, name="console_job", console=True),
    ServedRoute(
        "/console/jobs/{job_id}/cancel", cancel, name="console_job_cancel", method="POST", console=True
    ),
    ServedRoute("/console/jobs/{job_id}/again", again, name="console_job_again", method="POST", console=True),
]
