"""Stored workflows of both places, the folder and the store, under one name each."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from comfy_fleet.domain.errors import ConfigError, NotFound, WorkflowBroken
from comfy_fleet.domain.graphs.app_mode import marked_inputs
from comfy_fleet.domain.graphs.stored import WorkflowContent
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_names import (
    NAME,
    PRODUCTION,
    WorkflowReference,
    in_both,
    short,
    slug,
)
from comfy_fleet.ports.workflow_store import WorkflowStore
from comfy_fleet.ports.workflows import FoundWorkflow, Resolver, WorkflowFolder
from comfy_fleet.services.absent_versions import no_version
from comfy_fleet.services.large_graphs import MANY_NODES, worked

CACHE_BYTES = 32 * 1024 * 1024
"""Bytes of graphs, as JSON, of which the workflows are kept in memory."""
_SMALL = 64 * 1024  # bytes of a graph that is read without a thread
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class _Version:
    """A version as it was read; it never changes."""

    content: WorkflowContent
    workflow: Workflow | None
    error: ConfigError | None
    size: int


class StoredWorkflows:
    """:class:`comfy_fleet.ports.workflows.Catalog`.

    Which version a reference means is read from the store each time, and the versions themselves are kept in
    memory: so the next job after a publication uses it, whichever process made that.

    Args:
        folder: Those that an operator keeps.
        store: Those that people publish.
        resolver: Makes a workflow of a version's content.
        why_no_draft: Says why an owner has no draft of a name, if more is known than that; else empty.
    """

    def __init__(
        self,
        folder: WorkflowFolder,
        store: WorkflowStore,
        resolver: Resolver,
        *,
        why_no_draft: Callable[[str, str], Awaitable[str]] | None = None,
    ) -> None:
        self._folder = folder
        self._store = store
        self.resolved = resolver
        self._why_no_draft = why_no_draft
        self._versions: OrderedDict[tuple[str, str], _Version] = OrderedDict()
        self._size = 0

    async def get(self, reference: str, owner: str) -> Workflow:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.get`."""
        return (await self.find(reference, owner)).workflow

    async def find(self, reference: str, owner: str) -> FoundWorkflow:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.find`."""
        name = reference.partition("@")[0]
        if not NAME.fullmatch(name):
            raise await self._unknown(name)
        wanted = WorkflowReference.parse(reference)
        if wanted.draft:
            return await self._draft(wanted, owner)
        if (kept := self._folder.place(name)) is not None:
            return await self._in_folder(wanted, kept)
        if (read := await self._current(wanted)) is None:
            raise await self._unknown(name, wanted)
        if read.workflow is None:
            raise WorkflowBroken(
                f"stored workflow {wanted} can't be used: {read.error}", details={"field": "workflow"}
            )
        return FoundWorkflow(workflow=read.workflow, content=read.content)

    async def list(self) -> Sequence[Workflow]:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.list`."""
        published = await self._store.names()
        here = [one for one in self._folder.list() if one.name not in published]
        read = await self._published({n: v for n, v in published.items() if self._folder.place(n) is None})
        return sorted(
            [*here, *(one.workflow for one in read.values() if one.workflow is not None)],
            key=lambda one: one.name,
        )

    async def errors(self) -> Mapping[str, ConfigError]:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.errors`."""
        published = await self._store.names()
        found = dict(self._folder.errors())
        read = await self._published(published)
        for name, version in published.items():
            one = read.get(name)
            error = _unreadable(name, version) if one is None else one.error
            if error is not None:
                found[name] = error
        for name in published:
            if (kept := self._folder.place(name)) is not None:
                found[name] = ConfigError(str(in_both(name, kept)))
        return found

    async def error_of(self, name: str) -> ConfigError | None:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.error_of`."""
        kept = self._folder.place(name)
        version = await self._store.find(WorkflowReference(name=name, label=PRODUCTION))
        if version is None:
            return self._folder.error_of(name)
        if kept is not None:
            return ConfigError(str(in_both(name, kept)))
        read = await self._version(name, version)
        return _unreadable(name, version) if read is None else read.error

    def folder_of(self, name: str) -> str:
        """See :meth:`comfy_fleet.ports.workflows.Catalog.folder_of`."""
        return self._folder.place(name) or ""

    async def _in_folder(self, wanted: WorkflowReference, kept: str) -> FoundWorkflow:
        production = WorkflowReference(name=wanted.name, label=PRODUCTION)
        if await self._store.find(production) is not None:
            raise in_both(wanted.name, kept)
        found = self._folder.find(wanted.name)
        if found is None:  # removed a moment ago
            raise await self._unknown(wanted.name)
        version = found.workflow.version.removeprefix("sha256:")
        if wanted.label == PRODUCTION or (wanted.version and version.startswith(wanted.version)):
            return found
        raise NotFound(
            f"there is no {wanted}: stored workflow {wanted.name} is kept in {kept}, which has one version "
            "only and no labels",
            details={"field": "workflow"},
        )

    async def _draft(self, wanted: WorkflowReference, owner: str) -> FoundWorkflow:
        name = wanted.name
        draft = await self._store.draft(owner, name)
        if draft is None:
            why = await self._why_no_draft(owner, name) if self._why_no_draft else ""
            raise NotFound(
                why
                or f"you have no draft of {name}: save it in the editor and run it once to make a draft, or "
                f"PUT one to /api/v1/workflows/{name}/draft",
                details={"field": "workflow"},
            )
        manifest = draft.manifest if draft.manifest is not None else await self._kept_manifest(name)
        marked = marked_inputs(draft.ui, draft.graph)
        content = WorkflowContent(graph=draft.graph, manifest=manifest, marked=marked)
        read = await self._read(name, content)
        if read.workflow is None:
            raise WorkflowBroken(
                f"your draft of {name} can't be used: {read.error}",
                details={"field": "workflow", **(read.error.details if read.error else {})},
            )
        return FoundWorkflow(workflow=read.workflow, content=content, ui=draft.ui, draft=True)

    async def _kept_manifest(self, name: str) -> Mapping[str, Any]:
        """Return the manifest of the version in production, which a draft keeps; empty if there is none."""
        wanted = WorkflowReference(name=name, label=PRODUCTION)
        try:
            if (kept := self._folder.place(name)) is not None:
                return (await self._in_folder(wanted, kept)).content.manifest
            read = await self._current(wanted)
        except WorkflowBroken as error:
            raise WorkflowBroken(
                f"your draft of {name} can't be used: it would lose the limits, choices and roles of the "
                f"version in production, since {error.message}",
                details={"field": "workflow"},
            ) from None
        return {} if read is None else read.content.manifest

    async def _current(self, wanted: WorkflowReference) -> _Version | None:
        """Return the version that a reference means now; None if there is none.

        Raises:
            WorkflowBroken: There is one, and the store can't read it.
        """
        for last in (False, True):  # it may go between the two questions, but not twice
            if (version := await self._store.find(wanted)) is None:
                return None
            if (read := await self._version(wanted.name, version)) is not None:
                return read
            if last:
                raise WorkflowBroken(
                    f"stored workflow {wanted} can't be used: {_unreadable(wanted.name, version)}",
                    details={"field": "workflow"},
                )
        return None

    async def _published(self, versions: Mapping[str, str]) -> dict[str, _Version]:
        """Return the versions in production by name."""
        names, found = list(versions), {}
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            read = await asyncio.gather(*(self._version(name, versions[name]) for name in some))
            found.update({name: one for name, one in zip(some, read, strict=True) if one is not None})
        return found

    async def _version(self, name: str, version: str) -> _Version | None:
        key = name, version
        if (known := self._versions.get(key)) is not None:
            self._versions.move_to_end(key)
            return known
        if (content := await self._store.content(name, version)) is None:
            return None
        read = await self._read(name, content)
        if key not in self._versions:
            self._size += read.size
        self._versions[key] = read
        while self._size > CACHE_BYTES and len(self._versions) > 1:
            self._size -= self._versions.popitem(last=False)[1].size
        return read

    async def _read(self, name: str, content: WorkflowContent) -> _Version:
        size = await worked(len(content.graph) > MANY_NODES, lambda: len(orjson.dumps(content.graph)))

        def read() -> _Version:
            try:
                workflow = self.resolved(name, content)
            except ConfigError as error:
                return _Version(content=content, workflow=None, error=error, size=size)
            return _Version(content=content, workflow=workflow, error=None, size=size)

        return read() if size <= _SMALL else await asyncio.to_thread(read)

    async def _unknown(self, name: str, wanted: WorkflowReference | None = None) -> NotFound:
        if wanted is not None and await self._store.record(name) is not None:
            return await no_version(self._store, wanted, field="workflow")
        have = sorted({*self._folder.names(), *await self._store.names()})
        usual = slug(name)
        meant = f"; did you mean {usual}?" if usual != name and usual in have else ""
        return NotFound(
            f"no workflow {name[:64]!r}; there are {', '.join(have) or 'none'}{meant}",
            details={"field": "workflow", "workflows": have},
        )


def _unreadable(name: str, version: str) -> ConfigError:
    return ConfigError(
        f"its version {short(version)} can't be read: go back to another one (`fleet workflow rollback "
        f"{name} VERSION`), or publish one with its manifest"
    )
