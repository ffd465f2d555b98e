"""Stored workflows: those in the folder and those in the store, as one catalog."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.stored import EditorGraph, WorkflowContent
from comfy_fleet.domain.graphs.workflow import Workflow

Resolver: TypeAlias = Callable[[str, WorkflowContent], Workflow]
"""Makes a stored workflow of a name and of what a version consists of; raises ConfigError, whose
``details["problems"]`` has everything that is wrong, each with its key of the manifest."""


@dataclass(frozen=True, kw_only=True)
class FoundWorkflow:
    """A stored workflow in the version that a reference means.

    Attributes:
        workflow: With its parameters.
        content: What it was made of.
        ui: The same graph in the editor's format, if a folder or a draft has it; for that of a published
            version, ask the store.
        folder: The folder that it is kept in; empty if it comes from the store.
        draft: Whether it is the caller's own draft.
    """

    workflow: Workflow
    content: WorkflowContent
    ui: EditorGraph | None = None
    folder: str = ""
    draft: bool = False


class WorkflowFolder(Protocol):
    """The folder of stored workflows that operators keep."""

    def place(self, name: str) -> str | None:
        """Return the folder of a workflow, whether it can be used or not; None if there is none."""

    def find(self, name: str) -> FoundWorkflow | None:
        """Return a workflow from its present files, or in its last good version; raises WorkflowBroken."""

    def list(self) -> Sequence[Workflow]:
        """Return the usable workflows by name; raises ConfigError if the folder can't be read."""

    def names(self) -> Sequence[str]:
        """Return the names of the usable workflows; raises ConfigError if the folder can't be read."""

    def error_of(self, name: str) -> ConfigError | None:
        """Return what is wrong with a workflow's files; None if nothing, or if it is not here."""

    def errors(self) -> Mapping[str, ConfigError]:
        """Return what is wrong with a workflow's files, by its name."""


class Catalog(Protocol):
    """The stored workflows of both places. Any call may raise StoreDown.

    A reference is ``NAME``, ``NAME@VERSION``, ``NAME@LABEL`` or ``NAME@draft``
    (:class:`comfy_fleet.domain.graphs.workflow_names.WorkflowReference`).
    """

    async def get(self, reference: str, owner: str) -> Workflow:
        """Return the workflow that a reference of this owner's means now.

        Raises:
            NotFound: There is none; details list the existing ones.
            BadInput: The reference is malformed, or means several versions.
            NameTaken: Folder and store both have a workflow of this name.
            WorkflowBroken: It can't be used; the message says why.
        """

    async def find(self, reference: str, owner: str) -> FoundWorkflow:
        """Return the same with what it was made of; raises the same."""

    async def list(self) -> Sequence[Workflow]:
        """Return all usable workflows by name, those of the store as they are in production."""

    async def error_of(self, name: str) -> ConfigError | None:
        """Return the same as :meth:`errors` of one workflow, without reading any other."""

    async def errors(self) -> Mapping[str, ConfigError]:
        """Return why a workflow can't be used, or an earlier version of its files is, by its name."""

    def resolved(self, name: str, content: WorkflowContent) -> Workflow:
        """Return a stored workflow of content that is not published yet.

        Raises:
            ConfigError: ``details["problems"]`` has all problems, each with its key of the manifest.
        """

    def folder_of(self, name: str) -> str:
        """Return the folder that a workflow is kept in; empty if none is: then the store may have it."""
