"""The console's page about a stored workflow's versions: what differs between them, and going back."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.console.rendering import changing, done, page
from comfy_fleet.api.console_page import form_of
from comfy_fleet.api.deps import ApiDeps, artist, deps, owner, principal, workflow_alone
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.errors import BadInput, FleetError, NotFound
from comfy_fleet.domain.graphs.stored import WorkflowRecord
from comfy_fleet.domain.graphs.workflow_names import PRODUCTION, short, version_digits
from comfy_fleet.domain.roles import Role
from comfy_fleet.services.unrun_saves import unrun_message

MOST_ROWS = 100
DRAFT = "draft"


async def show(request: Request) -> Response:
    """``GET /console/workflows/NAME/versions``. Query: ``a`` and ``b``, versions to compare, or ``draft``."""
    who, d, name = owner(request), deps(request), workflow_alone(request)
    unrun = await d.drafts.unrun(who, name)
    drafted = (await d.workflows.drafts(who)).get(name)
    record = await d.workflows.record(name)
    found = None
    try:
        found = await d.catalog.find(name, who)
    except NotFound:
        if drafted is None and unrun is None:
            raise
    caller = principal(request)
    # By age, whichever was in production last: each is compared with the one that it was made after.
    versions = sorted(record.versions, key=lambda one: one.published_at, reverse=True) if record else []
    return page(
        request,
        "versions.html",
        title=f"Versions of {name}",
        here="workflows",
        name=name,
        workflow=found.workflow if found else None,
        folder=found.folder if found else "",
        record=record if found and not found.folder else None,
        rows=[
            {"facts": one, "short": short(one.version), "before": short(before.version) if before else ""}
            for one, before in zip(versions[:MOST_ROWS], [*versions[1:], None], strict=False)
        ],
        production=short(record.production) if record else short(found.workflow.version) if found else "",
        drafted=drafted,
        published=record is not None and _published(record, who, drafted),
        unrun=await unrun_message(d.drafts, who, unrun) if unrun else "",
        history=[
            {"one": one, "version": short(one.version), "before": short(one.before) if one.before else ""}
            for one in (await d.workflows.history(name))[:MOST_ROWS]
        ],
        production_label=PRODUCTION,
        compared=await _compared(request, d, name, who),
        may=caller.operator or Role.ARTIST in caller.roles,
    )


async def back(request: Request) -> Response:
    """``POST /console/workflows/NAME/versions/back``, with ``version`` and ``expected``, the one in use."""
    changing(request)
    who, name, form = artist(request), workflow_alone(request), await form_of(request)
    version, expected = (version_digits(form.get(one, "")) for one in ("version", "expected"))
    if not version or not expected:
        raise BadInput("name a version", details={"field": "version"})
    entry = await deps(request).publisher.roll_back(name, version, author=who, base_version=expected)
    await audit(request, "workflow.rolled_back", workflow=name, version=entry.version, note="")
    return done(f"{name} is version {short(entry.version)} from the next job on")


def _published(record: WorkflowRecord, who: str, drafted: float | None) -> bool:
    """Return whether a draft was published since it was saved."""
    return drafted is not None and record.changed_by == who and record.changed_at >= drafted


async def _compared(request: Request, d: ApiDeps, name: str, who: str) -> dict[str, Any] | None:
    """Return what differs between the versions ``a`` and ``b`` of the query, if it names them."""
    asked = [request.query_params.get(one, "")[:80] for one in "ab"]
    which = [one if one in (DRAFT, PRODUCTION) else version_digits(one) for one in asked]
    if not any(asked):
        return None
    if not all(which):
        return {"trouble": "name two versions to compare, a and b"}
    try:
        before, after, found, breaking = await d.publisher.diff(name, which[0], which[1], owner=who)
    except FleetError as error:
        return {"trouble": error.message}
    return {
        "trouble": "",
        "a": short(before.version),
        "b": "your draft" if which[1] == DRAFT else short(after.version),
        "changes": [one.message for one in found[:MOST_ROWS]],
        "more": max(0, len(found) - MOST_ROWS),
        "breaking": [one.message for one in breaking[:MOST_ROWS]],
    }


routes = [
    ServedRoute("/console/workflows/{workflow}/versions", show, name="console_versions", console=True),
    ServedRoute(
        "/console/workflows/{workflow}/versions/back",
        back,
        name="console_versions_back",
        method="POST",
        console=True,
    ),
]
