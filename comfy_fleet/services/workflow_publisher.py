"""Publishes versions of stored workflows, changes their manifests, goes back, and says what differs."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from comfy_fleet.domain.errors import (
    BadInput,
    ConfigError,
    Conflict,
    InvalidManifest,
    NotFound,
    WorkflowBroken,
)
from comfy_fleet.domain.graphs.app_mode import marked_inputs
from comfy_fleet.domain.graphs.breaking_changes import BreakingChange, breaking_changes
from comfy_fleet.domain.graphs.graph import Graph, check
from comfy_fleet.domain.graphs.stored import (
    EditorGraph,
    HistoryEntry,
    MarkedInput,
    NewVersion,
    Published,
    WorkflowAction,
    WorkflowChanged,
    WorkflowContent,
)
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_diff import WorkflowDifference, differences
from comfy_fleet.domain.graphs.workflow_names import (
    PRODUCTION,
    WorkflowReference,
    kept_in_folder,
    short,
    version_digits,
)
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.absent_versions import no_version
from comfy_fleet.services.large_graphs import LARGE_BYTES, MANY_NODES, has_many_inputs, worked
from comfy_fleet.services.version_names import VersionNames

MOST_SHOWN = 100
"""Differences that a conflict's details list."""
_ABOUT = "the manifest: "
_TRIES = 10
"""How often a change that was made from no version in particular is merged into what has come meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What somebody wants to publish.

    Attributes:
        graph: In API format, not checked yet.
        author: The owner who publishes it.
        ui: The same graph in the editor's format.
        manifest: None keeps the one in production: limits, choices and roles of parameters.
        base_version: The version that the author started from, or the beginning of it, or a label; None:
            the workflow must be new.
        force: Publish over whatever is in production.
        size_bytes: About how large the graph is.
    """

    graph: object
    author: str
    ui: EditorGraph | None = None
    manifest: Mapping[str, Any] | None = None
    base_version: str | None = None
    force: bool = False
    note: str = ""
    thumbnail: bytes | None = None
    editor_name: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A version as it would be published.

    Attributes:
        workflow: With its parameters.
        current: The one in production; None if the workflow is new, or can't be used.
        differences: From the one in production; none if the workflow is new.
        breaking: What would break callers of the one in production.
    """

    content: WorkflowContent
    workflow: Workflow
    current: Workflow | None
    differences: tuple[WorkflowDifference, ...] = ()
    breaking: tuple[BreakingChange, ...] = ()


class WorkflowPublisher:
    """Changes the workflow store on behalf of people.

    Args:
        catalog: Both places, for what is in use now.
        store: Where versions are published.
    """

    def __init__(self, catalog: Catalog, store: WorkflowStore) -> None:
        self._catalog = catalog
        self._store = store
        self._names = VersionNames(store)

    async def prepare(self, name: str, wanted: Publication) -> Prepared:
        """Check what somebody wants to publish, and compare it with what is in production.

        Raises:
            NameTaken: The workflow is kept in the folder.
            InvalidWorkflow: The graph is wrong.
            WorkflowFormatUi: It is in the editor's format.
            InvalidManifest: The manifest does not fit the graph.
            WorkflowBroken: The manifest in production is to be kept, and can't be read.
        """
        self._check_free(name)
        large = wanted.size_bytes > LARGE_BYTES
        graph = await worked(large, lambda: check(wanted.graph))
        before = await self._in_use(name, needed=wanted.manifest is None)
        manifest = wanted.manifest
        if manifest is None:
            manifest = before.manifest if before else {}
        if wanted.ui is not None:
            ui = wanted.ui
            marked = await worked(large, lambda: marked_inputs(ui, graph))
        else:
            marked = _still_there(before.marked, graph) if before else ()
        content = WorkflowContent(graph=graph, manifest=manifest, marked=marked)
        try:
            return await self._prepared(name, content, before, large=large)
        except InvalidManifest as error:
            if wanted.manifest is not None or before is None:
                raise
            raise InvalidManifest(
                f"the manifest of the version in production is kept, and does not fit this graph: "
                f"{error.message.removeprefix(_ABOUT)}; to change it, too, send `manifest` along",
                details=error.details,
            ) from None

    async def publish(self, name: str, wanted: Publication) -> tuple[Prepared, Published]:
        """Publish a version.

        Raises:
            WorkflowChanged: Another version is in production; details have who made it, when, ``theirs``
                (what it changed of the base) and ``differences`` (what this one would change of it). Or the
                base is no version that the workflow ever had.
            FleetError: Everything that :meth:`prepare` and the store's ``publish`` raise.
        """
        made = await self.prepare(name, wanted)
        expected = await self._names.base(name, wanted.base_version, known=not wanted.force)
        new = NewVersion(
            content=made.content,
            ui=wanted.ui,
            author=wanted.author,
            note=wanted.note,
            thumbnail=wanted.thumbnail,
            editor_name=wanted.editor_name,
        )
        try:
            done = await self._store.publish(name, new, expected=expected, force=wanted.force)
        except WorkflowChanged as error:
            raise await self._explained(error, name, made, expected) from None
        return made, done

    async def change_manifest(
        self, name: str, patch: Mapping[str, Any], *, author: str, base_version: str | None, note: str = ""
    ) -> tuple[Prepared, Published]:
        """Publish the version in production with a changed manifest.

        Args:
            name: The workflow.
            patch: What changes (RFC 7396): objects go into objects, None removes, all else replaces.
            author: The owner who does it.
            base_version: The version whose manifest the author has seen; None: that in production now.
            note: What has changed.

        Raises:
            NotFound: The store has no such workflow.
            FleetError: Everything that :meth:`publish` raises.
        """
        self._check_free(name)
        for turn in range(_TRIES):
            try:
                return await self._changed(name, patch, author=author, base_version=base_version, note=note)
            except WorkflowChanged:
                # Who named no base has no part in what somebody else published meanwhile.
                if base_version is not None or turn == _TRIES - 1:
                    raise
        raise AssertionError  # the last turn returns or raises

    async def _changed(
        self, name: str, patch: Mapping[str, Any], *, author: str, base_version: str | None, note: str
    ) -> tuple[Prepared, Published]:
        reference = WorkflowReference(name=name, label=PRODUCTION)
        if (whole := await self._store.version(reference)) is None:
            raise self._missing(name)
        expected = whole.facts.version if base_version is None else await self._names.base(name, base_version)
        manifest = merged(whole.content.manifest, patch)
        content = replace(whole.content, manifest=manifest)
        made = await self._prepared(name, content, whole.content, large=_is_large(content.graph))
        new = NewVersion(content=content, ui=whole.ui, author=author, note=note, thumbnail=whole.thumbnail)
        try:
            done = await self._store.publish(name, new, expected=expected)
        except WorkflowChanged as error:
            raise await self._explained(error, name, made, expected) from None
        return made, done

    async def roll_back(
        self,
        name: str,
        to: str | None,
        *,
        author: str,
        base_version: str | None = None,
        note: str = "",
    ) -> HistoryEntry:
        """Make an earlier version the one in production.

        Args:
            name: The workflow.
            to: A version, the beginning of one, or a label; None: what was in production before.
            author: The owner who does it.
            base_version: What must be in production until now; None: whatever is, if ``to`` is given. Without
                ``to`` it is needed, with its digits: what was before depends on it, and so a repeated call
                takes nothing back.
            note: Why.

        Raises:
            NotFound: There is no such workflow or version.
            BadInput: Neither says where to.
            Conflict: There is nothing to go back to.
            WorkflowChanged: Another version is in production.
        """
        self._check_free(name)
        expected: str | None
        if to is None:
            expected, to = await self._before(name, base_version)
        else:
            expected = await self._names.base(name, base_version, known=False)
        return await self._labeled(name, PRODUCTION, to, author=author, note=note, expected=expected)

    async def _before(self, name: str, base_version: str | None) -> tuple[str, str]:
        """Return the version that is to be replaced, and the one that was in production before it."""
        record = await self._store.record(name)
        if record is None:
            raise self._missing(name)
        if base_version is None or not version_digits(base_version):
            raise BadInput(
                f"say where to (version), or what is to be replaced (base_version); version "
                f"{short(record.production)} of {name} is in production",
                details={"field": "base_version", "production": record.production},
            )
        base = await self._names.base(name, base_version) or ""
        there = {one.version for one in record.versions}
        history = await self._store.history(name)
        latest = next((one for one in history if one.label == PRODUCTION and one.version == base), None)
        if latest is None or latest.before not in there:
            raise Conflict(
                f"no version of {name} was in production before {short(base)}, or it is no longer kept: name "
                f"one of `fleet workflow history {name}`",
                details={"field": "version"},
            )
        if latest.action is WorkflowAction.ROLLED_BACK:
            # To go back from there would be to undo what somebody else may have done a moment ago.
            raise Conflict(
                f"{latest.author} has rolled {name} back from version {short(latest.before)} to "
                f"{short(base)} already: name the version to put into production, one of "
                f"`fleet workflow history {name}`",
                details={"field": "version", "changed_by": latest.author, "changed_at": latest.at},
            )
        return base, latest.before

    async def label(
        self,
        name: str,
        label: str,
        to: str,
        *,
        author: str,
        note: str = "",
        base_version: str | None = None,
        new: bool = False,
    ) -> HistoryEntry:
        """Make a label name a version.

        Args:
            name: The workflow.
            label: The label.
            to: A version, the beginning of one, or a label.
            author: The owner who does it.
            note: Why.
            base_version: What the label must name until now; None: whatever it names.
            new: Whether it must name nothing until now.

        Raises:
            NotFound: There is no such workflow or version.
            BadInput: The label can't be one.
            WorkflowChanged: The label names another version.
        """
        self._check_free(name)
        expected = "" if new else await self._names.base(name, base_version, known=False)
        return await self._labeled(name, label, to, author=author, note=note, expected=expected)

    async def _labeled(
        self, name: str, label: str, to: str, *, author: str, note: str, expected: str | None
    ) -> HistoryEntry:
        reference = self._names.reference(name, to)
        try:
            return await self._store.label(
                name, label, reference, author=author, note=note, expected=expected
            )
        except NotFound:
            raise await no_version(self._store, reference, field="version") from None

    async def diff(
        self, name: str, before: str, after: str, *, owner: str
    ) -> tuple[Workflow, Workflow, tuple[WorkflowDifference, ...], tuple[BreakingChange, ...]]:
        """Return two versions, what differs, and what breaks callers.

        Args:
            name: The workflow, in the folder or in the store.
            before: A version, the beginning of one, a label, or ``draft``.
            after: The same.
            owner: Whose draft that is.

        Raises:
            FleetError: Everything that the catalog's ``get`` raises.
        """
        old = await self._side(name, before, owner, field="a")
        new = await self._side(name, after, owner, field="b")
        large = len(old.graph) + len(new.graph) > MANY_NODES
        found = await worked(large, lambda: differences(old, new))
        return old, new, found, breaking_changes(old, new)

    async def _side(self, name: str, which: str, owner: str, *, field: str) -> Workflow:
        try:
            return await self._catalog.get(f"{name}@{which}", owner)
        except (BadInput, NotFound) as error:
            if "workflows" not in error.details:  # which lists them if there is no such workflow at all
                error.details["field"] = field
            raise

    async def base(self, name: str, text: str | None) -> str | None:
        """Return the whole version that a draft is based on; see :meth:`VersionNames.began_with`."""
        return await self._names.began_with(name, text)

    # ------------------------------------------------------------------------------------------------------

    async def _prepared(
        self, name: str, content: WorkflowContent, before: WorkflowContent | None, *, large: bool
    ) -> Prepared:
        try:
            workflow = await worked(large, lambda: self._catalog.resolved(name, content))
        except ConfigError as error:
            raise InvalidManifest(
                f"{_ABOUT}{error}", details={"field": "manifest", **error.details}
            ) from None
        current: Workflow | None = None
        if before is not None:
            try:
                current = await worked(large, lambda: self._catalog.resolved(name, before))
            except ConfigError:  # of another release of the fleet; its successor need not fit it
                current = None
        if current is None:
            return Prepared(content=content, workflow=workflow, current=None)
        old = current
        return Prepared(
            content=content,
            workflow=workflow,
            current=old,
            differences=await worked(large, lambda: differences(old, workflow)),
            breaking=breaking_changes(old, workflow),
        )

    async def _explained(
        self, error: WorkflowChanged, name: str, made: Prepared, base: str | None
    ) -> WorkflowChanged:
        """Return the conflict with what the others have changed, and what this version would."""
        found = await self._resolved(name, error.details.get("production"))
        if found is not None:
            ours = await asyncio.to_thread(differences, found, made.workflow)
            error.details["differences"] = [asdict(one) for one in ours[:MOST_SHOWN]]
            if (started := await self._resolved(name, base)) is not None:
                theirs = await asyncio.to_thread(differences, started, found)
                error.details["theirs"] = [asdict(one) for one in theirs[:MOST_SHOWN]]
        return error

    async def _resolved(self, name: str, version: str | None) -> Workflow | None:
        content = await self._store.content(name, version) if version else None
        try:
            return await asyncio.to_thread(self._catalog.resolved, name, content) if content else None
        except ConfigError:
            return None

    async def _in_use(self, name: str, *, needed: bool) -> WorkflowContent | None:
        reference = WorkflowReference(name=name, label=PRODUCTION)
        if (version := await self._store.find(reference)) is None:
            return None
        found = await self._store.content(name, version)
        if found is None and needed and await self._store.find(reference) == version:
            raise WorkflowBroken(
                f"the version of {name} in production, {short(version)}, can't be read, so its limits, "
                "choices and roles would be lost: send `manifest` along ({} for none), or go back to another "
                f"version first (`fleet workflow rollback {name} VERSION`)",
                details={"field": "manifest"},
            )
        return found

    def _check_free(self, name: str) -> None:
        if folder := self._catalog.folder_of(name):
            raise kept_in_folder(name, folder)

    def _missing(self, name: str) -> NotFound:
        return NotFound(f"the fleet's store has no workflow {name}", details={"field": "workflow"})


def _is_large(graph: Graph) -> bool:
    return len(graph) > MANY_NODES or has_many_inputs(graph)


def merged(value: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a patch in it (RFC 7396)."""
    made = dict(value)
    for key, one in patch.items():
        if one is None:
            made.pop(key, None)
        elif isinstance(one, Mapping):
            inner = made.get(key)
            made[key] = merged(inner if isinstance(inner, Mapping) else {}, one)
        else:
            made[key] = one
    return made


def _still_there(marked: tuple[MarkedInput, ...], graph: Graph) -> tuple[MarkedInput, ...]:
    """Return the marks of the version before that the new graph still has."""
    found = []
    for one in marked:
        targets = tuple(
            (node_id, input_)
            for node_id, input_ in one.targets
            if node_id in graph and isinstance(graph[node_id]["inputs"].get(input_), str | int | float)
        )
        if targets:
            found.append(replace(one, targets=targets))
    return tuple(found)
