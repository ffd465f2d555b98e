"""The folder of stored workflows: ``NAME/workflow.json`` and, if titles are not enough, a manifest.

``NAME/editor.json`` may hold the same graph in the editor's own format, as an export of a published version
writes it: what App mode marks there declares parameters, too.
"""

import logging
import math
import os
import threading
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.workflows.manifest import resolve_content
from comfy_fleet.domain.errors import BadInput, ConfigError, FleetError, NotFound, WorkflowBroken
from comfy_fleet.domain.graphs import title_parameters
from comfy_fleet.domain.graphs.app_mode import marked_inputs
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.graph_file import read_graph, read_json
from comfy_fleet.domain.graphs.stored import EditorGraph, WorkflowContent
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_files import EDITOR_FILE, GRAPH_FILE, MANIFEST_FILE
from comfy_fleet.domain.graphs.workflow_names import NAME, slug
from comfy_fleet.ports.workflows import FoundWorkflow

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 8 * 1024 * 1024

_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """The last good version of a workflow, and what is wrong with its present files."""

    stamp: _Stamp
    found: FoundWorkflow | None
    error: ConfigError | None


class WorkflowCatalog:
    """Stored workflows, read again when their files change.

    After an edit that can't be used, the last good version stays in service and :meth:`errors` shows the
    problem: saving half a change stops nobody. Safe to use from several threads.

    Args:
        folder: Has a folder for each workflow.
        logged: Whether problems go to the log, too: who serves them has nobody else to tell.
    """

    def __init__(self, folder: Path, *, logged: bool = True) -> None:
        self.folder = folder
        self._logged = logged
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise ConfigError if the folder can't be read."""
        self._folders()

    def names(self) -> list[str]:
        """Return the sorted names of the usable workflows."""
        return [workflow.name for workflow in self.list()]

    def list(self) -> "list[Workflow]":
        """Return the usable workflows by name.

        Raises:
            ConfigError: The folder can't be read.
        """
        entries = [self._entry(name) for name in self._folders()]
        return [entry.found.workflow for entry in entries if entry and entry.found]

    def place(self, name: str) -> str | None:
        """See :meth:`comfy_fleet.ports.workflows.WorkflowFolder.place`."""
        folder = self.folder / name
        return str(folder) if NAME.fullmatch(name) and _stamp(folder / GRAPH_FILE) is not None else None

    def find(self, name: str) -> FoundWorkflow | None:
        """Return a workflow from its present files, or in its last good version; None if there is none.

        Raises:
            WorkflowBroken: It has never been readable since this process started.
        """
        entry = self._entry(name) if NAME.fullmatch(name) else None
        if entry is None:
            return None
        if entry.found is None:
            raise WorkflowBroken(
                f"stored workflow {name} can't be used: {entry.error}", details={"field": "workflow"}
            )
        return entry.found

    def get(self, name: str) -> Workflow:
        """Return a workflow from its present files, or in its last good version.

        Raises:
            NotFound: No such workflow; details list the existing ones.
            WorkflowBroken: It has never been readable since this process started.
        """
        if (found := self.find(name)) is None:
            have = self.names()
            raise NotFound(
                f"no workflow {name[:64]!r}; there are {', '.join(have) or 'none'}",
                details={"field": "workflow", "workflows": have},
            )
        return found.workflow

    def error_of(self, name: str) -> ConfigError | None:
        """See :meth:`comfy_fleet.ports.workflows.WorkflowFolder.error_of`."""
        entry = self._entry(name) if NAME.fullmatch(name) else None
        return entry.error if entry else None

    def errors(self) -> dict[str, ConfigError]:
        """Return the problems by workflow; meanwhile the last good version is served, if there is one."""
        found: dict[str, ConfigError] = {}
        for name in self._folders():
            entry = self._entry(name)
            if entry and entry.error:
                found[name] = entry.error
        found.update(self._overlooked())
        return found

    def _overlooked(self) -> dict[str, ConfigError]:
        """Return files that look like workflows but are not, with the reason."""
        found: dict[str, ConfigError] = {}
        for path in sorted(self.folder.iterdir()):
            name = path.name[:80]
            usable = slug(path.stem) or "my_workflow"
            if path.suffix == ".json" and path.is_file():
                found[name] = ConfigError(f"a workflow is a folder: move it to {usable}/{GRAPH_FILE}")
            elif not NAME.fullmatch(path.name) and (path / GRAPH_FILE).is_file():
                found[name] = ConfigError(
                    "names of workflows are 1 to 63 of a-z 0-9 _ . - and start with a letter or digit: "
                    f"rename the folder, to {usable} for example"
                )
            elif os.path.lexists(path / GRAPH_FILE) and not (path / GRAPH_FILE).is_file():
                found[name] = ConfigError(f"its {GRAPH_FILE} is no file, or a link to none")
            elif (path / MANIFEST_FILE).is_file() and not (path / GRAPH_FILE).is_file():
                found[name] = ConfigError(f"there is no {GRAPH_FILE}: save ComfyUI's Export (API) there")
        return found

    def _folders(self) -> Sequence[str]:
        try:
            return sorted(
                path.name
                for path in self.folder.iterdir()
                if NAME.fullmatch(path.name) and (path / GRAPH_FILE).is_file()
            )
        except OSError as error:
            raise ConfigError(
                f"the folder of stored workflows, {self.folder}, can't be read: {error.strerror}; "
                "set FLEET_WORKFLOWS"
            ) from None

    def _entry(self, name: str) -> _Entry | None:
        """Return a workflow's state, read again if its files changed; None if it is gone."""
        folder = self.folder / name
        stamp = tuple(_stamp(folder / file) for file in (GRAPH_FILE, MANIFEST_FILE, EDITOR_FILE))
        with self._lock:
            known = self._entries.get(name)
            if stamp[0] is None:
                self._entries.pop(name, None)
                return None
            if known and known.stamp == stamp:
                return known
            found: FoundWorkflow | None = None
            error: ConfigError | None = None
            try:
                found = load_whole(folder)
            except ConfigError as problem:
                error = problem
                found = known.found if known else None
            if error and self._logged:
                facts = {"workflow": name, "error": str(error), "serving": found is not None}
                logger.error("stored workflow can't be used", extra=facts)
            entry = _Entry(stamp=stamp, found=found, error=error)
            self._entries[name] = entry
            return entry


def load(folder: Path) -> Workflow:
    """Read one stored workflow; its name is the folder's. Raises as :func:`load_whole`."""
    return load_whole(folder).workflow


def load_whole(folder: Path) -> FoundWorkflow:
    """Read one stored workflow with what it is made of; its name is the folder's.

    Raises:
        ConfigError: A file can't be read or used; the message names file and key.
    """
    graph_file, manifest_file = folder / GRAPH_FILE, folder / MANIFEST_FILE
    if not NAME.fullmatch(folder.name):
        raise ConfigError(f"{folder.name!r} can't be a workflow's name: use a-z 0-9 _ . -")
    where = f"{folder.name}/{GRAPH_FILE}"
    content = _content(graph_file)
    try:
        read = read_graph(content)
    except BadInput as error:
        raise ConfigError(f"{where} {error}") from None
    try:
        graph = check(read)
    except BadInput as error:
        raise ConfigError(f"{where}: {error}", details=error.details) from None
    try:
        title_parameters.declared(graph)
    except ConfigError as error:  # further problems with these parameters would only follow from this one
        raise ConfigError(f"{where}: {error}", details=error.details) from None
    where = f"{folder.name}/{MANIFEST_FILE}"
    manifest: dict[str, Any] = {}
    if manifest_file.exists():
        try:
            # Some editors on Windows write a byte order mark first.
            manifest = tomllib.loads(_content(manifest_file).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not TOML: {error}") from None
    if odd := _unwritable(manifest, ""):
        raise ConfigError(f"{where}: {odd}")
    ui = _editor_graph(folder)
    whole = WorkflowContent(graph=graph, manifest=manifest, marked=marked_inputs(ui, graph))
    try:
        workflow = resolve_content(folder.name, whole)
    except FleetError as error:
        raise ConfigError(f"{where}: {error}", details=error.details) from None
    return FoundWorkflow(
        workflow=replace(workflow, folder=str(folder)), content=whole, ui=ui, folder=str(folder)
    )


def _editor_graph(folder: Path) -> EditorGraph | None:
    path = folder / EDITOR_FILE
    if not path.exists():
        return None
    try:
        read = read_json(_content(path))
    except BadInput as error:
        raise ConfigError(f"{folder.name}/{EDITOR_FILE} {error}") from None
    if not isinstance(read, dict):
        raise ConfigError(f"{folder.name}/{EDITOR_FILE} must be a graph as the editor saves it")
    return read


def _unwritable(value: object, key: str) -> str:
    """Return the first value that JSON can't carry, and why; empty if there is none."""
    match value:
        case dict():
            inside = ((f"{key}.{name}" if key else name, one) for name, one in value.items())
        case list():
            inside = ((f"{key}[{index}]", one) for index, one in enumerate(value))
        case bool():
            return ""
        case int() if not -(2**63) <= value < 2**64:
            return f"{key} is a number of {value.bit_length()} bits; at most 64 are taken"
        case float() if not math.isfinite(value):
            return f"{key} is {value}, which JSON can't hold"
        case date() | time():
            return f"{key} is a date or a time: write it as a text"
        case _:
            return ""
    return next(filter(None, (_unwritable(one, name) for name, one in inside)), "")


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path.parent.name}/{path.name} can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path.parent.name}/{path.name} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
