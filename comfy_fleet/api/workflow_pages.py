"""``/workflows`` on the console's origin: stored workflows, their history, differences, and going back."""

from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console_page import (
    changes,
    console_page,
    form_of,
    listed,
    said,
    see,
    small_picture,
    time_of,
    version_of,
)
from comfy_fleet.api.deps import artist, deps, owner, workflow_alone
from comfy_fleet.api.editor_address import address
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.origins import editor_base
from comfy_fleet.domain.errors import BadInput, Conflict, FleetError, NotFound
from comfy_fleet.domain.graphs.stored import HistoryEntry, VersionFacts, WorkflowRecord
from comfy_fleet.domain.graphs.workflow import Parameter, Workflow
from comfy_fleet.domain.graphs.workflow_names import PRODUCTION, WorkflowReference, short, version_digits
from comfy_fleet.services.unrun_saves import unrun_message

MOST_ROWS = 100
_LONG = frozenset({"Name", "Title", "Where", "Note", "About", "Default", "Draft"})
_NAV = """<nav aria-label="Stored workflows"><a href="../workflows">Stored workflows</a>
<a href="../console">Console</a></nav>
"""
_LIST = """<h1>Stored workflows</h1>
<p class="faint">What programs run by name. Open one in the editor, change it, save it and run it once: that
makes a draft, which you check and publish here.</p>
{drafts}
<h2>In use</h2>
{table}
{broken}"""
_TABLE = """<table><thead><tr>{names}</tr></thead><tbody>
{rows}
</tbody></table>"""
_BACK = """<form class="inline" method="post">
<input type="hidden" name="version" value="{version}"><input type="hidden" name="expected" value="{expected}">
<button class="second" aria-label="Go back to version {short}">Go back to it</button></form>"""


async def show_list(request: Request) -> Response:
    """``GET /workflows``."""
    who, d = owner(request), deps(request)
    published = await d.workflows.names()
    rows = []
    for workflow in await d.catalog.list():
        name = workflow.name
        folder = d.catalog.folder_of(name)
        place = f"kept in {said(folder)}" if folder else "in the fleet's store"
        rows.append(
            {
                "Name": f'<a href="workflows/{escape(name)}">{said(name)}</a>',
                "Title": said(workflow.title) if workflow.title != name else "",
                "Version": version_of(workflow.version),
                "Where": place,
            }
        )
    drafts = []
    for name, at in (await d.workflows.drafts(who)).items():
        if (version := published.get(name)) is not None:
            record = await d.workflows.record(name)
            if record is not None and record.changed_by == who and record.changed_at >= at:
                continue  # published since
        kind = "changes it" if version else "is new"
        drafts.append(
            {
                "Draft": f'<a href="publish/{escape(name)}">{said(name)}</a>',
                "Saved": time_of(at),
                "State": kind,
            }
        )
    unrun = [said(await unrun_message(d.drafts, who, one), 1000) for one in await d.drafts.all_unrun(who)]
    broken = [
        f"<b>{said(name)}</b>: {said(str(error))}" for name, error in (await d.catalog.errors()).items()
    ]
    body = _LIST.format(
        drafts=(f"<h2>Your drafts</h2>\n{_table(drafts)}" if drafts else "")
        + (f"<h2>No drafts yet</h2>\n{listed(unrun)}" if unrun else ""),
        table=_table(rows) if rows else "<p>There is none yet.</p>",
        broken=f"<h2>Not usable</h2>\n{listed(broken)}" if broken else "",
    )
    return console_page(request, "Stored workflows", body)


async def show(request: Request) -> Response:
    """``GET /workflows/NAME``, with ``a`` and ``b`` also what differs between two versions."""
    return await _page(request, owner(request))


async def go_back(request: Request) -> Response:
    """``POST /workflows/NAME``: put an earlier version into production again."""
    who, name = artist(request), workflow_alone(request)
    form = await form_of(request)
    try:
        reference = _version(name, form.get("version", ""))
        await deps(request).workflows.label(
            name, PRODUCTION, reference, author=who, expected=form.get("expected", "")
        )
    except (BadInput, Conflict, NotFound) as error:
        return await _page(request, who, problem=error)
    return see(name)


async def _page(request: Request, who: str, *, problem: FleetError | None = None) -> Response:
    d, name = deps(request), workflow_alone(request)
    try:
        found = await d.catalog.find(name, who)
    except (NotFound, Conflict) as error:
        unrun = await d.drafts.unrun(who, name) if isinstance(error, NotFound) else None
        message = await unrun_message(d.drafts, who, unrun) if unrun else error.message
        alarm = f'<p class="notice alarm" role="alert">{said(message, 1000)}</p>'
        status = 404 if isinstance(error, NotFound) else 409
        return console_page(request, name, f"{_NAV}<h1>{said(name)}</h1>\n{alarm}", status=status)
    record = await d.workflows.record(name)
    workflow = found.workflow
    title = f'<p class="faint">{said(workflow.title)}</p>' if workflow.title not in ("", name) else ""
    about = f"<p>{said(workflow.description, 2000)}</p>" if workflow.description else ""
    parts = [
        f"{_NAV}<h1>{said(name)}</h1>\n{title}",
        _news(request, record, problem),
        await _unrun(request, who, name),
        about,
        await _now(request, record, workflow, found.folder),
        await _compared(request, name, who),
        f"<h2>Parameters</h2>\n{_parameters(workflow.parameters)}",
    ]
    if record is not None:
        history = await d.workflows.history(name)
        parts += [f"<h2>Versions</h2>\n{_versions(record)}", f"<h2>History</h2>\n{_history(history)}"]
    status = 200 if problem is None else 409 if isinstance(problem, Conflict) else 400
    return console_page(request, name, "\n".join(filter(None, parts)), status=status)


async def _unrun(request: Request, who: str, name: str) -> str:
    drafts = deps(request).drafts
    if (found := await drafts.unrun(who, name)) is None:
        return ""
    message = await unrun_message(drafts, who, found)
    return f'<p class="notice" role="status">{said(message, 1000)}</p>'


def _news(request: Request, record: WorkflowRecord | None, problem: FleetError | None) -> str:
    if problem is not None:
        return f'<p class="notice alarm" role="alert">{said(problem.message, 1000)}</p>'
    published = version_digits(request.query_params.get("published", ""))
    if record is None or not published:
        return ""
    if record.production == f"sha256:{published}":
        now = f"Published: version {version_of(record.production)} is in use from the next job on."
    else:
        now = (
            f"Your version {version_of(published)} was published, and since then {said(record.changed_by)} "
            f"has put {version_of(record.production)} into production."
        )
    return f'<p class="notice" role="status">{now}</p>'


async def _now(request: Request, record: WorkflowRecord | None, workflow: Workflow, folder: str) -> str:
    d = deps(request)
    if record is None:
        return f"<p>Version {version_of(workflow.version)}, kept in <code>{said(folder)}</code>.</p>"
    reference = WorkflowReference(name=record.name, version=short(record.production))
    kept = await d.workflows.version(reference)
    caption = (
        f"In production: {version_of(record.production)}, by {said(record.changed_by)} at "
        f"{time_of(record.changed_at)}."
    )
    shown = small_picture(kept.thumbnail if kept else None, caption, f"Picture of {record.name}")
    open_it = ""
    if kept is not None and kept.ui is not None and d.settings.editor:
        there = address(f"{editor_base(request, d.settings)}/", record.name)
        open_it = f'<p><a class="button" href="{escape(there)}">Open in the editor</a></p>'
    return f'<div class="pictures">{shown}</div>\n{open_it}'


async def _compared(request: Request, name: str, who: str) -> str:
    """Return what differs between the versions ``a`` and ``b`` of the query, if it names them."""
    d = deps(request)
    which = [version_digits(request.query_params.get(one, "")) for one in "ab"]
    if not all(which):
        return ""
    try:
        before, after, found, _ = await d.publisher.diff(name, which[0], which[1], owner=who)
    except FleetError as error:
        return f'<p class="notice alarm" role="alert">{said(error.message)}</p>'
    title = f"From {version_of(before.version)} to {version_of(after.version)}"
    return f'<h2 id="diff">{title}</h2>\n{changes(found) if found else "<p>Nothing differs.</p>"}'


def _parameters(parameters: Sequence[Parameter]) -> str:
    if not parameters:
        return "<p>None: every job is the same. Title a node <code>$NAME</code> to declare one.</p>"
    rows = []
    for one in parameters[:MOST_ROWS]:
        default = "required" if one.required else "" if one.default is None else str(one.default)
        rows.append(
            {
                "Name": f"<code>{said(one.name)}</code>",
                "Kind": said(one.type.value),
                "Default": said(default, 120),
                "About": said(one.description or one.title),
            }
        )
    return _table(rows)


def _versions(record: WorkflowRecord) -> str:
    rows = []
    # By age, whichever was in production last: each is compared with the one that it was made after.
    found = sorted(record.versions, key=lambda one: one.published_at, reverse=True)[:MOST_ROWS]
    for at, one in enumerate(found):
        before = found[at + 1] if at + 1 < len(found) else None
        rows.append(
            {
                "Version": version_of(one.version),
                "Labels": ", ".join(said(label) for label in one.labels),
                "Published": f"{time_of(one.published_at)} by {said(one.author)}",
                "Note": said(one.note),
                "": _links(record, one, before),
            }
        )
    return _table(rows)


def _links(record: WorkflowRecord, one: VersionFacts, before: VersionFacts | None) -> str:
    parts = []
    if before is not None:
        query = urlencode({"a": short(before.version), "b": short(one.version)})
        label = f"Differences of {short(one.version)} from {short(before.version)}"
        parts.append(f'<a href="?{escape(query)}#diff" aria-label="{label}">Differences</a>')
    if one.version != record.production:
        parts.append(
            _BACK.format(
                version=escape(one.version), expected=escape(record.production), short=short(one.version)
            )
        )
    return " ".join(parts)


def _history(history: Sequence[HistoryEntry]) -> str:
    rows = [
        {
            "When": time_of(one.at),
            "Who": said(one.author),
            "What": f"{said(one.action.value.replace('_', ' '))}"
            + (f" {said(one.label)}" if one.label != PRODUCTION else ""),
            "Version": version_of(one.version) + (f", before {version_of(one.before)}" if one.before else ""),
            "Note": said(one.note),
        }
        for one in history[:MOST_ROWS]
    ]
    return _table(rows)


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of HTML by column as a table, which stands as blocks on a phone."""
    if not rows:
        return "<p>None.</p>"
    names = "".join(f'<th scope="col">{name}</th>' for name in rows[0])
    lines = "\n".join(f"<tr>{''.join(_cell(*one) for one in row.items())}</tr>" for row in rows)
    return _TABLE.format(names=names, rows=lines)


def _cell(name: str, value: str) -> str:
    long = ' class="long"' if name in _LONG else ""
    return f'<td{long} data-name="{name}">{value}</td>' if name and value else f"<td{long}>{value}</td>"


def _version(name: str, version: str) -> WorkflowReference:
    digits = version_digits(version)
    if not digits:
        raise BadInput("name a version", details={"field": "version"})
    return WorkflowReference(name=name, version=digits)


routes = [
    ServedRoute("/workflows", show_list, name="workflows_page", console=True),
    ServedRoute("/workflows/{workflow}", show, name="workflow_page", console=True),
    ServedRoute("/workflows/{workflow}", go_back, name="workflow_page_form", method="POST", console=True),
]
