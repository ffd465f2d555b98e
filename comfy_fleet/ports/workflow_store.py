"""The workflow store: versions of stored workflows that people publish, and their drafts.

Every call is one step: whoever is killed in between leaves either all of it or nothing, and of two that
publish at once, one is told what the other did. Any call may raise StoreDown.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from comfy_fleet.domain.graphs.stored import (
    Draft,
    HistoryEntry,
    NewVersion,
    Published,
    Removal,
    WorkflowContent,
    WorkflowRecord,
    WorkflowVersion,
)
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference

MAX_WORKFLOWS = 1000
MAX_VERSIONS = 100
"""Versions of a workflow that are kept; those that a label or a live job names stay in any case."""
MAX_VERSION_BYTES = 32 * 1024 * 1024
"""Bytes of a workflow's versions in the store; above it, older versions go before there are a hundred."""
MAX_HISTORY = 500
MAX_LABELS = 50
MAX_DRAFTS = 100
"""Drafts of one owner; the one that was saved longest ago makes room for another."""
MAX_DRAFT_BYTES = 64 * 1024 * 1024
"""Bytes of one owner's drafts together, compressed; above it, those saved longest ago make room, too.

Each is at most half of it, so the one that is saved always has a place.
"""
BASE_KEPT_S = 86_400
"""How long it is remembered what a draft was based on whose file was deleted."""


class WorkflowStore(Protocol):
    """Stored workflows that are kept by the fleet itself.

    ``name`` is always an id (:data:`comfy_fleet.domain.graphs.workflow_names.NAME`); versions are whole
    (``sha256:<hex>``), except in a reference.
    """

    async def names(self) -> Mapping[str, str]:
        """Return the version in production of every workflow, by name."""

    async def find(self, reference: WorkflowReference) -> str | None:
        """Return the version that a reference means now; None if there is none.

        Drafts are not versions: for them, see :meth:`draft`.

        Raises:
            BadInput: More than one version begins with these digits.
        """

    async def content(self, name: str, version: str) -> WorkflowContent | None:
        """Return what a version consists of; None if it is not there (any more). It never changes."""

    async def version(self, reference: WorkflowReference) -> WorkflowVersion | None:
        """Return the version that a reference means now, with the editor's graph and the picture.

        Raises:
            BadInput: More than one version begins with these digits.
        """

    async def record(self, name: str) -> WorkflowRecord | None:
        """Return a workflow's labels and versions; None if it is not in the store."""

    async def history(self, name: str) -> Sequence[HistoryEntry]:
        """Return what happened to a workflow, the latest first; at most :data:`MAX_HISTORY` entries."""

    async def publish(
        self, name: str, new: NewVersion, *, expected: str | None, force: bool = False
    ) -> Published:
        """Add a version, unless its content is there already, and put it into production.

        Then versions above the limits are removed, the oldest first.

        Args:
            expected: The version that must be in production; None: the workflow must be new. If this very
                content is in production already, nothing has to change and this does not matter.
            force: Publish whatever is in production.

        Raises:
            WorkflowChanged: Another version is in production than the expected one.
            NameTaken: The workflow has another name in the editor; but who has published a version of it, and
                has no file of that name any more, has renamed it.
            Conflict: There are :data:`MAX_WORKFLOWS` already.
            BadInput: The picture, the note or the whole is too large.
        """

    async def label(
        self,
        name: str,
        label: str,
        reference: WorkflowReference,
        *,
        author: str,
        note: str = "",
        expected: str | None = None,
    ) -> HistoryEntry:
        """Make a label name a version; of ``production``, that is a rollback.

        Args:
            expected: The version that the label must name until now; empty: it must name none; None:
                whatever it names.

        Returns:
            What happened; ``before`` is ``version`` if the label named it already, and then the history has
            no entry of it.

        Raises:
            NotFound: There is no such workflow or version.
            WorkflowChanged: The label names another version than the expected one.
            Conflict: There are :data:`MAX_LABELS` already.
            BadInput: The label can't be one; more than one version begins with these digits.
        """

    async def unlabel(self, name: str, label: str, *, author: str) -> bool:
        """Remove a label; return whether it was there.

        Raises:
            Conflict: It is ``production``, without which there is no workflow.
        """

    async def remove(self, name: str, *, author: str) -> bool:
        """Remove a workflow with all its versions and its history; return whether it was there.

        Jobs go on: each has its own copy of its graph. Drafts stay their owners'. Who removed it is kept, for
        the :data:`MAX_WORKFLOWS` that were removed last.
        """

    async def removal(self, name: str) -> Removal | None:
        """Return who removed a workflow, unless it is there again; None if nobody is known to have."""

    async def draft(self, owner: str, name: str) -> Draft | None:
        """Return an owner's draft."""

    async def save_draft(self, owner: str, name: str, draft: Draft) -> Draft:
        """Store a draft, in place of an earlier one of this name, and return it with ``saved_at``.

        A ``base_version`` that is empty becomes that of the draft before, or else the one in production: the
        author started from it. Above :data:`MAX_DRAFTS` or :data:`MAX_DRAFT_BYTES`, the owner's drafts that
        were saved longest ago are forgotten.

        Raises:
            NameTaken: The draft of this id has another name in the editor, of which the owner has a file; or
                the published workflow has, as with :meth:`publish`.
            BadInput: It is too large.
        """

    async def rebase_draft(self, owner: str, name: str, version: str, *, saved_at: float) -> bool:
        """Say that a draft is based on another version from now on, as it is once it was published.

        Args:
            owner: Whose.
            name: The stored workflow.
            version: The version.
            saved_at: When the draft was saved; one that was saved again since is left alone.

        Returns:
            Whether it was still there.
        """

    async def forget_draft(self, owner: str, name: str, editor_name: str) -> bool:
        """Forget a draft whose file was deleted, but for :data:`BASE_KEPT_S` not what it was based on.

        Args:
            owner: Whose.
            name: The stored workflow.
            editor_name: The file's name; a draft of another one is left alone, and so is all if there is such
                a file.

        Returns:
            Whether it was there.
        """

    async def drafts(self, owner: str) -> Mapping[str, float]:
        """Return when each of an owner's drafts was saved, by name, the latest first."""

    async def drop_draft(self, owner: str, name: str) -> bool:
        """Forget a draft; return whether it was there."""
