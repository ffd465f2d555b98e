"""Publishes drafts: exactly what was checked and shown, and over nobody else's version unasked."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from comfy_fleet.domain.errors import Busy, FleetError, NoRoom, NotFound, WorkflowBroken
from comfy_fleet.domain.graphs.breaking_changes import breaking_changes
from comfy_fleet.domain.graphs.publish_check import (
    BreaksCallers,
    CheckName,
    CheckState,
    CheckStep,
    DraftChanged,
    NotChecked,
    PublishCheck,
    SavedSince,
    sealed,
)
from comfy_fleet.domain.graphs.same_id_files import files_left_out
from comfy_fleet.domain.graphs.stored import (
    MAX_THUMBNAIL_BYTES,
    Draft,
    NewVersion,
    Published,
    Removal,
    WorkflowRecord,
    changed_meanwhile,
)
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_diff import WorkflowDifference, differences
from comfy_fleet.domain.graphs.workflow_names import DRAFT, kept_in_folder, short
from comfy_fleet.domain.jobs.job import Job, OutputKind
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.editor import SavedGraph
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.ports.workflows import Catalog, FoundWorkflow
from comfy_fleet.services.draft_checks import MOST_PROBLEMS, MOST_TEXT, DraftChecks, TrialRun
from comfy_fleet.services.draft_names import editor_name
from comfy_fleet.services.drafts import Drafts
from comfy_fleet.services.picture_forms import NoSuchForm
from comfy_fleet.services.picture_work import PictureWork
from comfy_fleet.services.unrun_saves import unrun_message

logger = logging.getLogger(__name__)

THUMBNAIL_SIDE = 384
"""Most pixels of the longer side of a version's picture."""


class Publishing:
    """Checks and publishes drafts.

    Args:
        catalog: Makes workflows of drafts and versions.
        store: Has them.
        checks: What is looked at.
        drafts: Knows what was saved and not run.
        jobs: Has the test runs.
        assets: Has their pictures.
        pictures: Makes small ones of them.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: WorkflowStore,
        checks: DraftChecks,
        drafts: Drafts,
        jobs: JobStore,
        assets: AssetStore,
        pictures: PictureWork,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._checks = checks
        self._drafts = drafts
        self._jobs = jobs
        self._assets = assets
        self._pictures = pictures

    async def check(self, owner: str, name: str, run: TrialRun | None = None) -> PublishCheck:
        """Return what is known about an owner's draft, and test it.

        Args:
            owner: Whose.
            name: The stored workflow.
            run: How to test it, unless a run has tested it already; None makes no run.

        Raises:
            NotFound: There is no draft; the message says what is missing.
            NameTaken: The workflow is kept in the folder.
            BadInput: The test is to have a value for what has a default.
            DraftChanged: The draft was replaced a moment ago.
        """
        return (await self._look(owner, name, run))[0]

    async def publish(
        self,
        owner: str,
        name: str,
        *,
        draft: str,
        over: str | None = None,
        note: str = "",
        breaking: bool = False,
        leave_out_unrun: bool = False,
        leave_out_files: bool = False,
    ) -> Published:
        """Publish a draft.

        Args:
            owner: Whose.
            name: The stored workflow.
            draft: The seal of what was checked.
            over: The version in production that the owner has seen, and means to replace; None: the one that
                the draft was made from, or one of the owner's own. Empty: there is none, also not any more.
            note: What has changed.
            breaking: Whether callers may break.
            leave_out_unrun: Whether what was saved since the draft, and not run, may be left out.
            leave_out_files: Whether other files of the owner's with the same id may be left out.

        Raises:
            DraftChanged: The draft is not the one that was checked.
            NotChecked: A step has not passed.
            SameIdFiles: Several of the owner's files have this id, and nobody said which are left out.
            SavedSince: Something was saved since, and nobody said that it may be left out.
            BreaksCallers: It would break callers, and that was not allowed.
            WorkflowChanged: Somebody else has put another version into production, or removed the workflow.
            FleetError: As :meth:`check`.
        """
        check, found, job = await self._look(owner, name, None)
        if check.draft != draft:
            raise DraftChanged(
                f"your draft of {name} is not the one that was checked any more: check it again",
                details={"field": "draft", "workflow": name, "draft": check.draft},
            )
        if not check.ready or found is None:
            missing = [step for step in check.steps if step.state is not CheckState.PASSED]
            raise NotChecked(
                f"{name} can't be published yet: "
                + "; ".join(f"{step.name.replace('_', ' ')}: {step.message}" for step in missing),
                details={"field": "draft", "workflow": name, "checks": [step.name for step in missing]},
            )
        if check.files and not leave_out_files:
            raise files_left_out(name, check.files, draft_of=check.editor_name or name)
        if check.unrun and not leave_out_unrun:
            raise SavedSince(
                f"{check.unrun} was saved since your draft of {name}: run it once to make it the draft (if "
                "you have just run it, try again in a moment), or say that it may be left out",
                details={"field": "leave_out_unrun", "workflow": name, "file": check.unrun},
            )
        if over is None and check.overtaken:
            raise changed_meanwhile(
                name,
                production=check.production,
                by=check.changed_by,
                at=check.changed_at,
                base=check.base_version,
            )
        if check.breaking and not breaking:
            said = [change.message for change in check.breaking]
            raise BreaksCallers(
                f"this breaks callers of {name}: {'; '.join(said[:MOST_PROBLEMS])}; `breaking` allows it",
                details={"field": "breaking", "workflow": name, "breaking": said[:MOST_PROBLEMS]},
            )
        new = NewVersion(
            content=found.content,
            ui=found.ui,
            author=owner,
            note=note,
            thumbnail=await self._thumbnail(job),
            editor_name=check.editor_name,
        )
        done = await self._store.publish(name, new, expected=check.production if over is None else over)
        with contextlib.suppress(FleetError):  # it is published; the draft would only seem to be older
            await self._store.rebase_draft(owner, name, done.version, saved_at=check.saved_at)
        logger.info(
            "workflow published", extra={"owner": owner, "workflow": name, "version": short(done.version)}
        )
        return done

    # ------------------------------------------------------------------------------------------------------

    async def _look(
        self, owner: str, name: str, run: TrialRun | None
    ) -> tuple[PublishCheck, FoundWorkflow | None, Job | None]:
        if folder := self._catalog.folder_of(name):
            raise kept_in_folder(name, folder)
        unrun = await self._drafts.unrun(owner, name)  # first: it waits for a draft that is being made
        draft = await self._store.draft(owner, name)
        if draft is None:
            raise _no_draft(name, unrun, await unrun_message(self._drafts, owner, unrun) if unrun else "")
        record = await self._store.record(name)
        gone = await self._store.removal(name) if record is None and draft.base_version else None
        files = await self._drafts.files(owner, name)
        since = unrun.file if unrun else ""
        if len(files) > 1 and editor_name(since) != draft.editor_name:
            since = ""  # it may well have been run: it is no draft since its id is another file's
        about = PublishCheck(
            name=name,
            draft="",
            editor_name=draft.editor_name,
            saved_at=draft.saved_at,
            steps=(),
            production=record.production if record else "",
            changed_by=record.changed_by if record else gone.by if gone else "",
            changed_at=record.changed_at if record else gone.at if gone else 0.0,
            base_version=draft.base_version,
            overtaken=_overtaken(record, gone, draft, owner),
            unrun=since,
            files=tuple(files) if len(files) > 1 else (),
        )
        try:
            found = await self._catalog.find(f"{name}@{DRAFT}", owner)
        except WorkflowBroken as error:
            return replace(about, steps=_broken(error)), None, None
        workflow = found.workflow
        seal = await asyncio.to_thread(sealed, found.content, found.ui)
        nodes = await self._checks.nodes(workflow)
        test, job = await self._checks.test_run(
            owner, workflow, run if nodes.state is CheckState.PASSED else None
        )
        before = await self._version(name, about.production, owner)
        base = await self._version(name, about.base_version, owner) if about.overtaken else None
        return (
            replace(
                about,
                draft=seal,
                version=workflow.version,
                steps=(self._checks.parameters(workflow), nodes, test),
                job_id=job.id if job else "",
                changes=await _changes(before, workflow),
                breaking=breaking_changes(before, workflow) if before else (),
                theirs=await _changes(base, before),
            ),
            found,
            job,
        )

    async def _version(self, name: str, version: str, owner: str) -> Workflow | None:
        """Return one of a workflow's versions, if it is still there and can be used."""
        if not version:
            return None
        try:
            return await self._catalog.get(f"{name}@{version}", owner)
        except (NotFound, WorkflowBroken):
            return None

    async def _thumbnail(self, job: Job | None) -> bytes | None:
        """Return a small picture of what the test run made; None if it made none, or it can't be had now."""
        picture = next((one for one in job.outputs if one.kind is OutputKind.IMAGE), None) if job else None
        asset = await self._assets.get(picture.asset_id) if picture else None
        if asset is None:
            return None
        try:
            return await self._pictures.thumbnail(asset, side=THUMBNAIL_SIDE, most_bytes=MAX_THUMBNAIL_BYTES)
        except (NoSuchForm, Busy, NoRoom, FileNotFoundError) as error:
            logger.info(
                "version without a picture", extra={"job_id": job.id if job else "", "error": str(error)}
            )
            return None


def _no_draft(name: str, unrun: SavedGraph | None, message: str) -> NotFound:
    message = message or f"you have no draft of {name}: open it in the editor, save it and run it once"
    unrun_file = unrun.file if unrun else ""
    return NotFound(message, details={"field": "workflow", "workflow": name, "file": unrun_file})


def _overtaken(record: WorkflowRecord | None, gone: Removal | None, draft: Draft, owner: str) -> bool:
    """Return whether somebody else has changed what is in production since the draft began, or removed it.

    What the owner has done is nothing to ask about: they know of it.
    """
    if record is None:
        return bool(draft.base_version) and (gone is None or gone.by != owner)
    if record.production == draft.base_version:
        return False
    return record.changed_by != owner


def _broken(error: FleetError) -> tuple[CheckStep, ...]:
    problems = error.details.get("problems")
    found = [str(one) for one in problems] if isinstance(problems, Sequence) else []
    skipped = "not begun: the parameters come first"
    return (
        CheckStep(
            name=CheckName.PARAMETERS,
            state=CheckState.FAILED,
            message=error.message[:MOST_TEXT],
            problems=tuple(one[:MOST_TEXT] for one in found[:MOST_PROBLEMS]),
        ),
        CheckStep(name=CheckName.NODES, state=CheckState.WAITING, message=skipped),
        CheckStep(name=CheckName.TEST_RUN, state=CheckState.WAITING, message=skipped),
    )


async def _changes(before: Workflow | None, after: Workflow | None) -> tuple[WorkflowDifference, ...]:
    if before is None or after is None:
        return ()
    return await asyncio.to_thread(differences, before, after)
