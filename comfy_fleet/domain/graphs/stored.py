"""What the workflow store keeps: versions of stored workflows, their history, and drafts.

A version is addressed by its content: graph, manifest, and the inputs that App mode marks. It never changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.workflow import version_of
from comfy_fleet.domain.graphs.workflow_names import PRODUCTION, short

EditorGraph: TypeAlias = Mapping[str, Any]
"""A graph in the editor's own format."""

MAX_THUMBNAIL_BYTES = 64 * 1024
MAX_NOTE = 1000
"""Characters of a note."""


@dataclass(frozen=True, kw_only=True)
class MarkedInput:
    """An input that the editor's App mode shows, as places in the graph in API format.

    Attributes:
        name: What the editor calls it there; the basis of the parameter's name.
        targets: Node id and input of each place that it sets; several if it is one of a subgraph.
        description: What its author says about it there.
    """

    name: str
    targets: tuple[tuple[str, str], ...]
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkflowContent:
    """What a version consists of; equal content is the same version.

    Attributes:
        graph: In API format.
        manifest: As in ``workflow.toml``.
        marked: The inputs that App mode marks, in its order.
    """

    graph: Graph
    manifest: Mapping[str, Any] = field(default_factory=dict)
    marked: tuple[MarkedInput, ...] = ()

    @property
    def version(self) -> str:
        """``sha256:<hex>``; that of a workflow in the folder with the same files."""
        marked = [
            [one.name, [list(target) for target in one.targets], one.description] for one in self.marked
        ]
        return version_of(self.graph, self.manifest, marked)


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """A version that is to be published.

    Attributes:
        ui: The same graph in the editor's format, so that the next one can go on with it; it does not count
            for the version, and a later publication of the same content may bring another.
        author: The owner who publishes it.
        note: What has changed, in the author's words.
        thumbnail: A small WebP of what it makes, at most :data:`MAX_THUMBNAIL_BYTES`.
        editor_name: What the author calls the workflow in the editor; empty if the name is the id itself.
    """

    content: WorkflowContent
    ui: EditorGraph | None = None
    author: str
    note: str = ""
    thumbnail: bytes | None = None
    editor_name: str = ""


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """A version without its content.

    Attributes:
        published_at: When it was first published, in Unix seconds.
        labels: Those that name it now; only in a :class:`WorkflowRecord`.
        size_bytes: What it takes in the store.
    """

    version: str
    author: str
    published_at: float
    note: str = ""
    labels: tuple[str, ...] = ()
    has_ui: bool = False
    has_thumbnail: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkflowVersion:
    """A published version."""

    facts: VersionFacts
    content: WorkflowContent
    ui: EditorGraph | None = None
    thumbnail: bytes | None = None


class WorkflowAction(StrEnum):
    """What happened to a stored workflow."""

    PUBLISHED = "published"
    ROLLED_BACK = "rolled_back"
    LABELED = "labeled"
    UNLABELED = "unlabeled"


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One thing that happened to a stored workflow.

    Attributes:
        at: When, in Unix seconds.
        author: Who did it.
        version: What it was done with; of a label that was removed, what it named.
        before: What the label named until then; empty if nothing.
        label: Which label was set or removed; publishing and rolling back set ``production``.
    """

    at: float
    author: str
    action: WorkflowAction
    version: str
    before: str = ""
    label: str = PRODUCTION
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkflowRecord:
    """A stored workflow in the store.

    Attributes:
        production: The version that a plain name means.
        changed_by: Who made it that.
        changed_at: When, in Unix seconds.
        labels: Every label, ``production`` among them, and the version that it names.
        versions: The last in production first: one that was gone back to stands before newer ones.
        editor_name: What it is called in the editor; empty if its id.
    """

    name: str
    production: str
    changed_by: str
    changed_at: float
    labels: Mapping[str, str]
    versions: tuple[VersionFacts, ...]
    editor_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A publication that was made.

    Attributes:
        at: When, in Unix seconds.
        before: The version that was in production; empty if the workflow is new.
        changed: False if this very version was in production already.
    """

    version: str
    at: float
    before: str = ""
    changed: bool = True


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A stored workflow's end.

    Attributes:
        by: Who removed it.
        at: When, in Unix seconds.
        version: The version that was in production.
    """

    by: str
    at: float
    version: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A person's own next version of a stored workflow.

    Attributes:
        graph: In API format, as it was run.
        ui: The same graph in the editor's format.
        manifest: None: that of the version in production, if there is one.
        base_version: The version in production when the draft was begun; empty if there was none.
        editor_name: What its owner calls the workflow in the editor; empty if its id.
        job_id: A job that ran it; empty if none is known.
        saved_at: Unix seconds, of the store's clock.
    """

    graph: Graph
    ui: EditorGraph | None = None
    manifest: Mapping[str, Any] | None = None
    base_version: str = ""
    editor_name: str = ""
    job_id: str = ""
    saved_at: float = 0.0


class WorkflowChanged(Conflict):
    """Another version is in production than the one that a change was based on.

    Attributes:
        record: What the store says now; None if the workflow was removed. ``details`` has it, too:
            ``production``, ``changed_by``, ``changed_at``.
    """

    code = "workflow_changed"


def changed_meanwhile(name: str, *, production: str, by: str, at: float, base: str) -> WorkflowChanged:
    """Return the error for a publication over a version that its author has not seen.

    Args:
        base: The version that the author started from; empty: none.
        production: The one in production; empty: the workflow was removed.
        by: Who put that there, or removed it; empty: nobody knows.
        at: When, in Unix seconds.
    """
    if not production:
        who = f"{by} has removed stored workflow {name}" if by else f"stored workflow {name} is there no more"
        message = f"{who}, of which you have version {short(base)}: publish it as a new one if you mean to"
    elif base:
        message = (
            f"{by} has published version {short(production)} of {name} since version {short(base)}, from "
            "which you started: look at the difference, then publish over it with force"
        )
    else:
        message = (
            f"stored workflow {name} is there already, in version {short(production)} of {by}: say which "
            "version yours is based on (base_version), or publish over it with force"
        )
    return _changed(message, name, production=production, by=by, at=at, base=base)


def no_such_base(name: str, production: str, *, by: str, at: float, base: str) -> WorkflowChanged:
    """Return the error for a change of what the history does not have.

    Args:
        name: The workflow.
        production: The version in production.
        by: Who put it there.
        at: When, in Unix seconds.
        base: The version that its author names.
    """
    message = (
        f"the history of {name} has no version {short(base)}: say which one yours is based on; "
        f"{short(production)} of {by} is in production"
    )
    return _changed(message, name, production=production, by=by, at=at, base=base)


def _changed(message: str, name: str, *, production: str, by: str, at: float, base: str) -> WorkflowChanged:
    return WorkflowChanged(
        message,
        details={
            "field": "base_version",
            "workflow": name,
            "production": production or None,
            "changed_by": by or None,
            "changed_at": at or None,
            "base_version": base or None,
        },
    )


def label_moved(name: str, label: str, *, version: str, by: str, at: float, base: str) -> WorkflowChanged:
    """Return the error for moving a label that has been moved since its caller looked.

    Args:
        name: The workflow.
        label: The label.
        version: What it names; empty: nothing.
        by: Who moved it.
        at: When.
        base: What the caller has seen; empty: nothing.
    """
    seen = f"version {short(base)}" if base else "nothing"
    now = f"version {short(version)} since {by} changed it" if version else "nothing"
    message = (
        f"{name}@{label} does not name {seen}, as you have seen it, but {now}: look at "
        f"`fleet workflow history {name}`, then try again if you still want to"
    )
    details = {
        "field": "base_version",
        "workflow": name,
        "label": label,
        "version": version or None,
        "changed_by": by or None,
        "changed_at": at or None,
        "base_version": base or None,
    }
    if label == PRODUCTION:
        details["production"] = version or None
    return WorkflowChanged(message, details=details)
