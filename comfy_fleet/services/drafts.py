"""Makes drafts of stored workflows from what people save and run in the editor.

The editor saves its own format and runs the API format; only with both is there something to publish. A save
as ``workflows/NAME.json`` and a run of the same graph, in either order, give both: each carries the editor's
format, and by its signature one is found for the other. Nothing is converted.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from comfy_fleet.domain.errors import BadInput, FleetError, NotFound
from comfy_fleet.domain.graphs.editor_graph import opened_from, signature
from comfy_fleet.domain.graphs.stored import Draft, EditorGraph
from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME
from comfy_fleet.domain.user_data import WORKFLOWS
from comfy_fleet.ports.editor import MOST_SEEN, UNREAD, Renames, SavedGraph, SeenGraphs
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.userdata import UserData
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.services.draft_names import editor_name, renames, workflow_of
from comfy_fleet.services.fair_work import FairWork
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked
from comfy_fleet.tasks import start
from comfy_fleet.turns import FairTurns

logger = logging.getLogger(__name__)

MAX_EDITOR_BYTES = 20 * 1024 * 1024
"""Most bytes of a saved graph that are read: as large as a file of a person's may be."""
MAX_EDITOR_MARKS = 4_000_000
"""Most commas and brackets in it, which is more than it has values: they need memory."""
MOST_RUNS, MOST_RUNS_EACH = 64, 32
"""Runs that may wait to be looked at in one process, of all and of one owner; more are passed over, and can
be run again."""
UNRUN_S = 2.0
"""How long who asks for drafts waits for saves that are being looked at."""
MOST_UNRUN = 20
"""Saves without a run that are told of at once."""
_AT_ONCE = 2


def run_it_once(file: str, workflow: str) -> str:
    """Return what is said of a save that was never run."""
    return f"{file} was saved and never run: run it once in the editor to make a draft of {workflow}"


class Drafts:
    """:class:`comfy_fleet.ports.editor.EditorSaves` and :class:`comfy_fleet.ports.editor.EditorRuns`.

    Args:
        seen: Remembers saves without a run, and runs without a save.
        store: Keeps the drafts.
        jobs: Have the graphs of runs.
        files: Have what was saved.
        clock: Unix seconds.
    """

    def __init__(
        self,
        seen: SeenGraphs,
        store: WorkflowStore,
        jobs: JobStore,
        files: UserData,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._seen = seen
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._files = files
        self._turns = FairTurns(_AT_ONCE, each=1, line=MOST_RUNS_EACH + _AT_ONCE, wait_s=None)
        self._runs: dict[asyncio.Task[None], str] = {}
        self._saves = FairWork(self._look_again, at_once=_AT_ONCE, each=MOST_SEEN, name="draft of a save")

    async def saved(self, owner: str, name: str) -> None:
        """See :meth:`comfy_fleet.ports.editor.EditorSaves.saved`.

        That there is a save is remembered before it is answered: if the process dies before it has looked, or
        has to pass it over, the draft before is not taken for what was saved, and the file is looked at when
        the owner runs something or asks for the draft.
        """
        workflow = workflow_of(name)
        if not workflow:
            return
        await self.moved(owner)
        saved = SavedGraph(file=name, workflow=workflow, signature=UNREAD, saved_at=self._clock())
        try:
            await self._seen.save(owner, saved)
        except FleetError as error:
            extra = {"owner": owner, "file": name, "error": str(error)}
            logger.warning("save not remembered", extra=extra)
        except Exception:  # the save itself is none of its business
            logger.exception("save not remembered", extra={"owner": owner, "file": name})
        self._saves.add(owner, name)

    async def moved(self, owner: str) -> None:
        """See :meth:`comfy_fleet.ports.editor.EditorSaves.moved`."""
        try:
            for move in await self._seen.moves(owner):
                found = renames(move, await self._seen.saves(owner), await self._seen.draft_names(owner))
                if await self._seen.follow(owner, move, found):
                    await self._look_at_moved(owner, found)
        except FleetError as error:
            logger.warning("drafts have not followed", extra={"owner": owner, "error": str(error)})
        except Exception:  # the move itself is none of its business
            logger.exception("drafts have not followed", extra={"owner": owner})

    async def deleted(self, owner: str, name: str) -> None:
        """See :meth:`comfy_fleet.ports.editor.EditorSaves.deleted`."""
        if not (workflow := workflow_of(name)):
            return
        await self.moved(owner)  # what has not followed yet would come back
        try:
            await self._seen.forget_save(owner, name)
            await self._store.forget_draft(owner, workflow, editor_name(name))
        except FleetError as error:
            logger.warning("draft not forgotten", extra={"owner": owner, "file": name, "error": str(error)})
        except Exception:  # the deletion itself is none of its business
            logger.exception("draft not forgotten", extra={"owner": owner, "file": name})

    async def look_at(self, owner: str, name: str, content: bytes) -> None:
        """Look at a graph that was saved; never raises, whatever the content is.

        Args:
            owner: Whose editor it is.
            name: The file's path below ``workflows/``.
            content: What it holds now.
        """
        about = {"owner": owner, "file": name[:MAX_EDITOR_NAME]}
        try:
            await self._saved(owner, name, content)
        except FleetError as error:
            logger.info("save made no draft", extra={**about, "error": str(error)})
        except Exception:  # the save itself is none of its business
            logger.exception("save not looked at", extra=about)

    def ran(self, owner: str, job_id: str, extra_data: Mapping[str, Any]) -> None:
        """See :meth:`comfy_fleet.ports.editor.EditorRuns.ran`."""
        info = extra_data.get("extra_pnginfo")
        ui = info.get("workflow") if isinstance(info, dict) else None
        if not isinstance(ui, dict) or not isinstance(ui.get("nodes"), list):
            return  # a program's
        own = sum(one == owner for one in self._runs.values())
        if len(self._runs) >= MOST_RUNS or own >= MOST_RUNS_EACH:
            logger.warning("run made no draft: too many wait", extra={"owner": owner, "job_id": job_id})
            return
        task = start(self._note_run(owner, job_id, ui), name="draft of a run")
        self._runs[task] = owner
        task.add_done_callback(lambda done: self._runs.pop(done, None))

    async def settled(self) -> None:
        """Wait until every save and every run that was told of has been looked at."""
        await self._saves.settled()
        while self._runs:
            await asyncio.wait(list(self._runs))

    async def ready(self, owner: str) -> None:
        """Wait for what an owner has saved and run and is being looked at, but not long."""
        await self.moved(owner)
        await self._look_at_unread(owner)
        await self._saves.settled(owner, patience_s=UNRUN_S)
        if own := [task for task, whose in self._runs.items() if whose == owner]:
            await asyncio.wait(own, timeout=UNRUN_S)

    async def unrun(self, owner: str, workflow: str) -> SavedGraph | None:
        """Return the newest save of a stored workflow if that very graph has made no draft yet.

        It was never run, or it is no graph of the editor's, or the draft is of another file. What is being
        looked at is waited for, but not long.
        """
        await self.ready(owner)
        newest = next((one for one in await self._seen.saves(owner) if one.workflow == workflow), None)
        if newest is None:
            return None
        draft = await self._store.draft(owner, workflow)
        if draft is None:
            return newest
        if newest.saved_at <= draft.saved_at or (draft.ui and await _signature(draft.ui) == newest.signature):
            return None
        return newest

    async def all_unrun(self, owner: str) -> list[SavedGraph]:
        """Return the same of all stored workflows, the newest first; at most :data:`MOST_UNRUN`.

        What is still being looked at is left out: it may well have been run.
        """
        await self.ready(owner)
        drafts = await self._store.drafts(owner)
        newest: dict[str, SavedGraph] = {}
        for one in await self._seen.saves(owner):
            newest.setdefault(one.workflow, one)
        found: list[SavedGraph] = []
        for workflow, one in newest.items():
            if len(found) >= MOST_UNRUN:
                break
            if one.signature == UNREAD:
                continue
            at = drafts.get(workflow)
            if at is None or (one.saved_at > at and await self.unrun(owner, workflow) is not None):
                found.append(one)
        return found

    async def files(self, owner: str, workflow: str) -> list[str]:
        """Return the owner's files of this id that were saved lately, the newest first."""
        found = [one.file for one in await self._seen.saves(owner) if one.workflow == workflow]
        if len(found) < 2:
            return found
        there = (await self._files.tree(owner)).files  # whatever was not told of, as by an earlier version
        return [one for one in found if f"{WORKFLOWS}{one}" in there]

    # ------------------------------------------------------------------------------------------------------

    async def _look_at_moved(self, owner: str, moved: Renames) -> None:
        """Have files looked at that have no draft where they are now: there, their run may make one."""
        drafts = await self._seen.draft_names(owner)
        for file, workflow in moved.saves.values():
            if workflow and drafts.get(workflow) != editor_name(file):
                self._saves.add(owner, file)
        await self._look_at_unread(owner)

    async def _look_at_unread(self, owner: str) -> None:
        """Have saves looked at that no process has: it ended meanwhile, or too many waited."""
        for one in await self._seen.saves(owner):
            if one.signature == UNREAD:
                self._saves.add(owner, one.file)

    async def _look_again(self, owner: str, name: str) -> None:
        """Look at what a file holds by now."""
        found = await self._files.read(owner, f"{WORKFLOWS}{name}")
        if found is not None:  # else it was deleted or renamed
            await self.look_at(owner, name, found[1])

    async def _saved(self, owner: str, file: str, content: bytes) -> None:
        workflow = workflow_of(file)
        if not workflow:
            return
        ui: EditorGraph | None = None
        found = ""
        try:
            ui, found = await self._read(owner, content)
        except BadInput as error:
            logger.info("save is no graph", extra={"owner": owner, "file": file, "error": str(error)})
        known = next((one for one in await self._seen.saves(owner) if one.file == file), None)
        same = known is not None and known.signature in (UNREAD, found)
        at = known.saved_at if known is not None and same else self._clock()  # of the save, not of the look
        saved = SavedGraph(file=file, workflow=workflow, signature=found, saved_at=at)
        job_id = await self._seen.save(owner, saved)
        if ui is not None and job_id is not None:
            await self._make(owner, saved, ui, job_id)

    async def _note_run(self, owner: str, job_id: str, ui: EditorGraph) -> None:
        try:
            async with self._turns.of(owner):
                found = await asyncio.to_thread(signature, ui)
            await self.moved(owner)
            for saved in await self._seen.run(owner, found, job_id, self._clock()):
                await self._make(owner, saved, ui, job_id)
            await self._look_at_unread(owner)
        except FleetError as error:
            logger.info("run made no draft", extra={"owner": owner, "job_id": job_id, "error": str(error)})

    async def _make(self, owner: str, saved: SavedGraph, ui: EditorGraph, job_id: str) -> None:
        """Store the draft, unless the file holds another graph by now."""
        job = await self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound("the job that ran it is forgotten: run it once more")
        data = await self._jobs.graph(job)
        graph = await worked(len(data) > LARGE_BYTES, lambda: orjson.loads(data))
        now = next((one for one in await self._seen.saves(owner) if one.file == saved.file), None)
        if now is None or now.signature != saved.signature:
            return
        workflow, version = opened_from(ui)
        draft = Draft(
            graph=graph,
            ui=ui,
            base_version=version if workflow == saved.workflow else "",
            editor_name=editor_name(saved.file),
            job_id=job_id,
        )
        await self._store.save_draft(owner, saved.workflow, draft)
        logger.info("draft saved", extra={"owner": owner, "workflow": saved.workflow, "job_id": job_id})

    async def _read(self, owner: str, content: bytes) -> tuple[EditorGraph, str]:
        if len(content) > MAX_EDITOR_BYTES:
            raise BadInput(f"the file is larger than {MAX_EDITOR_BYTES} bytes")
        async with self._turns.of(owner):
            return await worked(len(content) > LARGE_BYTES, lambda: _parsed(content))


def _parsed(content: bytes) -> tuple[EditorGraph, str]:
    if sum(content.count(mark) for mark in b",[{") > MAX_EDITOR_MARKS:
        raise BadInput("the file has too many values")
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the file is not JSON: {error}"[:300]) from None
    return found, signature(found)


async def _signature(ui: EditorGraph) -> str:
    try:
        return await asyncio.to_thread(signature, ui)
    except BadInput:
        return ""
