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
from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME, NAME, slug
from comfy_fleet.ports.editor import SavedGraph, SeenGraphs
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

MAX_EDITOR_BYTES = 20 * 1024 * 1024
"""Most bytes of a saved graph that are read: as large as a file of a person's may be."""
MAX_EDITOR_MARKS = 4_000_000
"""Most commas and brackets in it, which is more than it has values: they need memory."""
MOST_RUNS = 64
"""Runs that may wait to be looked at in one process; more are passed over, and can be run again."""
_AT_ONCE = 2
_ENDINGS = (".app.json", ".json")


def editor_name(file: str) -> str:
    """Return what the editor calls the graph in a file; empty if it is no graph's file."""
    for ending in _ENDINGS:
        if file.lower().endswith(ending):
            return file[: -len(ending)]
    return ""


class Drafts:
    """:class:`comfy_fleet.ports.editor.EditorSaves` and :class:`comfy_fleet.ports.editor.EditorRuns`.

    Args:
        seen: Remembers saves without a run, and runs without a save.
        store: Keeps the drafts.
        jobs: Have the graphs of runs.
        clock: Unix seconds.
    """

    def __init__(
        self, seen: SeenGraphs, store: WorkflowStore, jobs: JobStore, *, clock: Callable[[], float]
    ) -> None:
        self._seen = seen
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._runs: set[asyncio.Task[None]] = set()

    async def saved(self, owner: str, name: str, content: bytes) -> None:
        """See :meth:`comfy_fleet.ports.editor.EditorSaves.saved`."""
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
        if len(self._runs) >= MOST_RUNS:
            logger.warning("run made no draft: too many wait", extra={"owner": owner, "job_id": job_id})
            return
        task = start(self._note_run(owner, job_id, ui), name="draft of a run")
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def settled(self) -> None:
        """Wait until every run that was told of has been looked at."""
        while self._runs:
            await asyncio.wait(self._runs)

    async def unrun(self, owner: str, workflow: str) -> SavedGraph | None:
        """Return the newest save of a stored workflow if that very graph has made no draft yet.

        It was never run, or it is no graph of the editor's, or the draft is of another file.
        """
        newest = next((one for one in await self._seen.saves(owner) if one.workflow == workflow), None)
        if newest is None:
            return None
        draft = await self._store.draft(owner, workflow)
        if draft is None:
            return newest
        if newest.saved_at <= draft.saved_at or (draft.ui and await _signature(draft.ui) == newest.signature):
            return None
        return newest

    async def files(self, owner: str, workflow: str) -> list[str]:
        """Return the owner's files of this id that were saved lately, the newest first."""
        return [one.file for one in await self._seen.saves(owner) if one.workflow == workflow]

    # ------------------------------------------------------------------------------------------------------

    async def _saved(self, owner: str, file: str, content: bytes) -> None:
        name = editor_name(file)
        workflow = slug(name)
        if not name or len(file) > MAX_EDITOR_NAME or not file.isprintable() or not NAME.fullmatch(workflow):
            return
        ui: EditorGraph | None = None
        found = ""
        try:
            ui, found = await self._read(content)
        except BadInput as error:
            logger.info("save is no graph", extra={"owner": owner, "file": file, "error": str(error)})
        saved = SavedGraph(file=file, workflow=workflow, signature=found, saved_at=self._clock())
        job_id = await self._seen.save(owner, saved)
        if ui is not None and job_id is not None:
            await self._make(owner, saved, ui, job_id)

    async def _note_run(self, owner: str, job_id: str, ui: EditorGraph) -> None:
        try:
            async with self._turns:
                found = await asyncio.to_thread(signature, ui)
            for saved in await self._seen.run(owner, found, job_id, self._clock()):
                await self._make(owner, saved, ui, job_id)
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

    async def _read(self, content: bytes) -> tuple[EditorGraph, str]:
        if len(content) > MAX_EDITOR_BYTES:
            raise BadInput(f"the file is larger than {MAX_EDITOR_BYTES} bytes")
        async with self._turns:
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
