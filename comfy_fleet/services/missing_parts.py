"""Refusals that say how to get what is missing; the fleet remembers what people asked for."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfy_fleet.domain.errors import FleetError, InvalidWorkflow
from comfy_fleet.domain.graphs.missing import CLASS_FIELD, MOST_NAME, LackingNodes, MissingPart, sourced
from comfy_fleet.domain.graphs.part_sources import (
    PartSource,
    PartSources,
    base_name,
    checked_folder,
    checked_url,
    part_sources,
)
from comfy_fleet.domain.graphs.stored import EditorGraph
from comfy_fleet.domain.graphs.workflow import ModelFile, Workflow
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference, version_digits
from comfy_fleet.domain.text import clip
from comfy_fleet.ports.missing import MissingRecord
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.large_graphs import MANY_NODES, worked
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_IN_MESSAGE = 3
NOTE_S = 2.0
"""Longest time that a refusal waits for the record."""


class MissingParts:
    """Explains refusals.

    Args:
        record: Remembers what people asked for; a refusal never fails because of it.
        catalog: Has the editor's graphs of stored workflows in the folder.
        store: Has those of published ones.
    """

    def __init__(self, record: MissingRecord, catalog: Catalog, store: WorkflowStore) -> None:
        self._record = record
        self._catalog = catalog
        self._store = store

    async def explained(
        self,
        owner: str,
        error: LackingNodes,
        *,
        extra_data: Mapping[str, Any],
        workflow: Workflow | None = None,
    ) -> InvalidWorkflow:
        """Return the refusal with where its parts come from and who lacks them, and take note of them.

        Args:
            owner: Who asked.
            error: What is refused.
            extra_data: What came with the graph; the editor's form of it says where its parts come from.
            workflow: The stored workflow that the graph was made of.
        """
        if not error.parts:
            return error
        known = [await asyncio.to_thread(_sent_along, extra_data)]
        if workflow is not None:
            known += [_of_models(workflow.requires.models), await self._of_stored(owner, workflow)]
        many = len(error.details["node_errors"]) > MANY_NODES
        parts = await worked(many, lambda: sourced(error.parts, *known))
        try:
            async with Timeout(NOTE_S):
                await self._record.note(owner, parts)
        except (FleetError, TimeoutError) as failure:
            logger.warning("missing parts not noted", extra={"owner": owner, "error": str(failure)})
        return await worked(many, lambda: _told(error, parts))

    async def _of_stored(self, owner: str, workflow: Workflow) -> PartSources:
        try:
            async with Timeout(NOTE_S):
                graph = await self._editor_graph(owner, workflow)
            return await asyncio.to_thread(part_sources, graph)
        except (FleetError, TimeoutError) as failure:
            extra = {"workflow": workflow.name, "error": str(failure)}
            logger.warning("editor's graph not read", extra=extra)
            return PartSources()

    async def _editor_graph(self, owner: str, workflow: Workflow) -> EditorGraph | None:
        if workflow.folder:
            return (await self._catalog.find(workflow.name, owner)).ui
        version = version_digits(workflow.version)
        found = await self._store.version(WorkflowReference(name=workflow.name, version=version))
        if found is not None:
            return found.ui
        draft = await self._store.draft(owner, workflow.name)
        return draft.ui if draft is not None else None


def _sent_along(extra_data: Mapping[str, Any]) -> PartSources:
    info = extra_data.get("extra_pnginfo")
    return part_sources(info.get("workflow") if isinstance(info, Mapping) else None)


def _of_models(models: Iterable[ModelFile]) -> PartSources:
    return PartSources(
        files={
            ("", base_name(one.file)): PartSource(
                folder=checked_folder(one.folder), url=checked_url(one.source)
            )
            for one in models
        }
    )


def _told(error: LackingNodes, parts: Sequence[MissingPart]) -> InvalidWorkflow:
    """Return the refusal with a hint behind each sentence about a part."""
    told_parts = [(part, part.to_json()) for part in parts]  # one for all nodes: there may be thousands
    by_place = {
        (node_id, part.input or CLASS_FIELD): (part, json)
        for part, json in told_parts
        for node_id in part.node_ids
    }
    message = error.message
    by_node: dict[str, list[dict[str, Any]]] = {}
    for node_id, defects in error.details["node_errors"].items():
        by_node[node_id] = []
        for defect in defects:
            known = by_place.get((node_id, defect["field"]))
            if known is None:
                by_node[node_id].append(defect)
                continue
            part, json = known
            # What no node has together is told with the nodes' names already.
            hint = part.way if defect["reason"] == "no_common_node" else part.hint
            longer = "; ".join(filter(None, (defect["message"], hint)))
            message = message.replace(defect["message"], longer, 1)
            told = {"message": longer, "hint": hint, "missing": json}
            by_node[node_id].append({**defect, **told})
    for part in parts[:_IN_MESSAGE]:
        if part.source.is_known and part.way not in message:
            message += f"; {clip(part.name, MOST_NAME)}: {part.way}"
    # First, because an answer has room for so much: of thousands of nodes, some are left out.
    details = {"missing": [json for _, json in told_parts], **error.details, "node_errors": by_node}
    return InvalidWorkflow(message, details=details)
