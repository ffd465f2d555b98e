"""``/publish/NAME`` on the console's origin: a draft is checked, tested, looked at and published."""

from html import escape

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.console_page import (
    changes,
    console_page,
    form_of,
    listed,
    picture,
    said,
    see,
    small_picture,
    time_of,
    version_of,
)
from comfy_fleet.api.deps import artist, deps, links, principal, workflow_alone
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.errors import BadInput, Conflict, FleetError, NotFound
from comfy_fleet.domain.graphs.publish_check import (
    CheckName,
    CheckState,
    CheckStep,
    PublishCheck,
)
from comfy_fleet.domain.graphs.same_id_files import same_id_files
from comfy_fleet.domain.graphs.stored import MAX_NOTE
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from comfy_fleet.domain.jobs.job import Job, OutputKind
from comfy_fleet.services.draft_checks import TrialRun

REFRESH_S = 2
_TITLES = {
    CheckName.PARAMETERS: "Parameters",
    CheckName.NODES: "Nodes",
    CheckName.TEST_RUN: "Test run",
}
_HEAD = """<nav aria-label="Stored workflows"><a href="../workflows">Stored workflows</a>
<a href="../console">Console</a></nav>
<h1>Publish {name}</h1>
<p class="faint">{about}</p>
"""
_CHECK = """<form method="post">
<input type="hidden" name="do" value="{do}">
<button{kind}>{label}</button></form>
"""
_PUBLISH = """<h2 id="publish">Publish</h2>
<p>{effect}</p>
<form method="post" aria-labelledby="publish">
<input type="hidden" name="do" value="publish">
<input type="hidden" name="draft" value="{draft}">
<input type="hidden" name="over" value="{over}">
<label for="note">What has changed <span class="faint">(optional)</span></label>
<input id="note" name="note" maxlength="{most}" value="{note}">
{ask}<button>{label}</button></form>
"""
_ASK = """<p class="choice"><input type="checkbox" id="{name}" name="{name}" value="yes" required>
<label for="{name}">{label}</label></p>
"""


async def show(request: Request) -> Response:
    """``GET /publish/NAME``: what is known, without starting anything."""
    who, name = artist(request), workflow_alone(request)
    return await _page(request, who, name)


async def act(request: Request) -> Response:
    """``POST /publish/NAME``: check, test again, or publish."""
    who, name = artist(request), workflow_alone(request)
    form = await form_of(request)
    what = form.get("do", "check")
    publishing = deps(request).publishing
    try:
        if what != "publish":
            run = TrialRun(again=what == "again", quotas=principal(request).quotas)
            await publishing.check(who, name, run)
            return see(name)
        if (problem := _unasked(form)) is not None:
            return await _page(request, who, name, problem=problem, form=form)
        done = await publishing.publish(
            who,
            name,
            draft=form.get("draft", ""),
            over=form.get("over", ""),
            note=form.get("note", ""),
            breaking=form.get("breaking") == "yes",
            leave_out_unrun=form.get("leave_out_unrun") == "yes",
            leave_out_files=form.get("leave_out_files") == "yes",
        )
    except (BadInput, Conflict) as error:
        return await _page(request, who, name, problem=error, form=form)
    await audit(request, "workflow.published", workflow=name, version=done.version, before=done.before)
    return see(f"../workflows/{name}?published={done.version}")


def _unasked(form: dict[str, str]) -> FleetError | None:
    """Return why a form can't be followed although a browser would not have sent it."""
    if form.get("overtaken") and form.get("replace") != "yes":
        return BadInput("say that you mean to go on although somebody else has changed it")
    return None


async def _page(
    request: Request,
    who: str,
    name: str,
    *,
    problem: FleetError | None = None,
    form: dict[str, str] | None = None,
) -> Response:
    try:
        found = await deps(request).publishing.check(who, name)
    except (NotFound, Conflict) as error:
        head = _HEAD.format(name=said(name), about="Nothing to publish")
        status = 404 if isinstance(error, NotFound) else 409
        return console_page(
            request, f"Publish {name}", f"{head}{_notice(error.message, alarm=True)}", status=status
        )
    job = await deps(request).jobs.get(found.job_id) if found.job_id else None
    body = [
        _head(found),
        _notice(problem.message, alarm=True) if problem else "",
        _warnings(found),
        _steps(found),
        await _pictures(request, found, job),
        _differences(found),
        _confirm(found, form or {}) if found.ready and not found.unchanged else "",
    ]
    under_way = job is not None and not job.status.terminal
    status = 200 if problem is None else 400 if isinstance(problem, BadInput) else 409
    refresh = REFRESH_S if under_way and problem is None else 0
    return console_page(request, f"Publish {name}", "\n".join(body), status=status, refresh_s=refresh)


# -- the page's parts --------------------------------------------------------------------------------------


def _head(found: PublishCheck) -> str:
    called = f"{said(found.editor_name)}, " if found.editor_name not in ("", found.name) else ""
    return _HEAD.format(name=said(found.name), about=f"{called}your draft of {time_of(found.saved_at)}")


def _notice(message: str, *, alarm: bool = False) -> str:
    kind, role = ("notice alarm", "alert") if alarm else ("notice", "status")
    return f'<p class="{kind}" role="{role}">{said(message, 1000)}</p>'


def _warnings(found: PublishCheck) -> str:
    lines = []
    if found.unrun:
        lines.append(
            f"{found.unrun} was saved since, and that graph was not run yet: run it once to make it the "
            "draft. Below is the draft before."
        )
    if found.files:
        lines.append(same_id_files(found.name, found.files))
    if found.unchanged:
        lines.append("This very version is in production already: there is nothing to publish.")
    return "\n".join(_notice(line) for line in lines)


def _steps(found: PublishCheck) -> str:
    rows = "\n".join(_step(step) for step in found.steps)
    test = found.step(CheckName.TEST_RUN)
    under_way = bool(found.job_id) and test.state is CheckState.WAITING
    if found.step(CheckName.PARAMETERS).state is CheckState.FAILED:
        button = ""
    elif under_way:
        button = (
            '<p role="status">The test runs. This page looks again by itself. <a href="">Look now</a></p>'
        )
    elif found.job_id:
        button = _CHECK.format(do="again", kind=' class="second"', label="Test again")
    else:
        button = _CHECK.format(do="check", kind="", label="Check and test")
    return f"<h2>Checks</h2>\n{rows}\n{button}"


def _step(step: CheckStep) -> str:
    words = {
        CheckState.PASSED: "Passed",
        CheckState.FAILED: "Failed",
        CheckState.WAITING: "Waiting",
    }
    state = f'<span class="state {step.state.value}">{words[step.state]}</span>'
    problems = listed(map(said, step.problems)) if step.problems else ""
    return f"<div><p>{state} <b>{_TITLES[step.name]}</b>: {said(step.message)}</p>{problems}</div>"


async def _pictures(request: Request, found: PublishCheck, job: Job | None) -> str:
    """Return the test run's picture beside the one of the version in production."""
    made = next((one for one in job.outputs if one.kind is OutputKind.IMAGE), None) if job else None
    parts = []
    if made is not None:
        source = links(request).asset(made.asset_id)
        parts.append(picture(source, "Your draft, with default parameters.", "Picture of the test run"))
    if found.production:
        reference = WorkflowReference(name=found.name, version=found.production.removeprefix("sha256:"))
        before = await deps(request).workflows.version(reference)
        caption = f"In production: {version_of(found.production)} of {said(found.changed_by)}."
        if before is not None:
            parts.append(small_picture(before.thumbnail, caption, "Picture of the version in production"))
    if not parts:
        return ""
    return f'<h2>Pictures</h2>\n<div class="pictures">{"".join(parts)}</div>'


def _differences(found: PublishCheck) -> str:
    parts = []
    if found.removed:
        base = f" You started from {version_of(found.base_version)}."
        what = (
            f"{said(found.changed_by)} removed it at {time_of(found.changed_at)}."
            if found.changed_by
            else "It is not there any more."
        )
        parts.append(f'<h2>It was removed</h2>\n<p class="notice alarm" role="alert">{what}{base}</p>')
    elif found.overtaken:
        base = f" You started from {version_of(found.base_version)}." if found.base_version else ""
        parts.append(
            '<h2>Somebody else has published</h2>\n<p class="notice alarm" role="alert">'
            f"{said(found.changed_by)} put {version_of(found.production)} into production at "
            f"{time_of(found.changed_at)}.{base}</p>"
        )
        if found.theirs:
            parts.append(f"<p>That changed:</p>{changes(found.theirs)}")
    if found.breaking:
        lines = listed(said(one.message) for one in found.breaking)
        parts.append(f'<h2>Breaks callers</h2>\n<div class="notice alarm">{lines}</div>')
    if found.changes:
        parts.append(f"<h2>What publishing changes</h2>\n{changes(found.changes)}")
    return "\n".join(parts)


def _confirm(found: PublishCheck, form: dict[str, str]) -> str:
    ask = ""
    if found.overtaken:
        ask += '<input type="hidden" name="overtaken" value="yes">\n'
        by = f"Replace the version of {said(found.changed_by)}. It stays in the history."
        if found.removed:
            by = "Publish it as a new workflow all the same."
        ask += _ASK.format(name="replace", label=by)
    if found.unrun:
        label = f"Leave out what was saved as {said(found.unrun)} since."
        ask += _ASK.format(name="leave_out_unrun", label=label)
    if found.files:
        label = (
            f"Publish the draft of {said(found.editor_name or found.name)}, and leave out the other files."
        )
        ask += _ASK.format(name="leave_out_files", label=label)
    if found.breaking:
        ask += _ASK.format(name="breaking", label="Callers may break.")
    now = (
        f"{version_of(found.production)} stays in the history."
        if found.production
        else "It is a new workflow."
    )
    return _PUBLISH.format(
        effect=f"From the next job on, {said(found.name)} is version {version_of(found.version)}. {now}",
        draft=escape(found.draft),
        over=escape(found.production),
        most=MAX_NOTE,
        note=escape(form.get("note", "")[:MAX_NOTE]),
        ask=ask,
        label="Publish anyway" if ask else "Publish",
    )


routes = [
    ServedRoute("/publish/{workflow}", show, name="publish_page", console=True),
    ServedRoute("/publish/{workflow}", act, name="publish_page_form", method="POST", console=True),
]
