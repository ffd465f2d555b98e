"""The answers about versions, drafts and manifests of stored workflows."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from comfy_fleet.api.answers import ANYTHING, Time, Url
from comfy_fleet.domain.graphs.stored import WorkflowAction
from comfy_fleet.domain.graphs.workflow import ParameterType
from comfy_fleet.domain.graphs.workflow_diff import DifferenceKind

_Version = Annotated[str, Field(description="`sha256:` and 64 digits.")]
_Value = Annotated[Any, ANYTHING]


class DifferenceAnswer(TypedDict):
    """One thing that differs between two versions."""

    kind: DifferenceKind
    message: Annotated[str, Field(description="All of it, in words.")]
    node_id: Annotated[str, Field(description="The node of the graph, if it is about one.")]
    class_type: str
    field: Annotated[str, Field(description="The input, or the field of the parameter.")]
    parameter: Annotated[str, Field(description="The parameter, if it is about one.")]
    before: _Value
    after: _Value


class BreakingChangeAnswer(TypedDict):
    """A change that can break programs: a parameter disappears, or takes less."""

    parameter: str
    message: str


class PublishedWorkflowAnswer(TypedDict):
    """A version that is in production now, or would be."""

    name: str
    version: _Version
    before: Annotated[str | None, Field(description="The version that was in production.")]
    changed: Annotated[bool, Field(description="False if this very version was in production already.")]
    dry_run: bool
    published_at: Time | None
    parameters: Annotated[list[str], Field(description="Their names.")]
    differences: list[DifferenceAnswer]
    breaking_changes: list[BreakingChangeAnswer]


class VersionFactsAnswer(TypedDict):
    """A version without its content."""

    version: _Version
    author: str
    published_at: Time
    note: str
    labels: Annotated[list[str], Field(description="Those that name it.")]
    has_ui: Annotated[bool, Field(description="Whether the editor's own format is there.")]
    thumbnail_url: Url | None
    size_bytes: int


class WorkflowVersionsAnswer(TypedDict):
    """The versions of a stored workflow; one in the folder has none."""

    name: str
    folder: Annotated[str | None, Field(description="Where it is kept, if it was not published.")]
    editor_name: str
    production: _Version
    changed_by: Annotated[str | None, Field(description="Who put that version into production.")]
    changed_at: Time | None
    labels: Annotated[dict[str, str], Field(description="The version that each label names.")]
    versions: Annotated[list[VersionFactsAnswer], Field(description="The one last in production first.")]


class WorkflowVersionAnswer(TypedDict):
    """A version with all that belongs to it."""

    name: str
    version: _Version
    draft: bool
    folder: str | None
    author: str | None
    published_at: Time | None
    note: str
    graph: Annotated[dict[str, Any], Field(description="In API format.")]
    ui: Annotated[dict[str, Any] | None, Field(description="In the editor's own format.")]
    manifest: Annotated[dict[str, Any], Field(description="As in `workflow.toml`.")]
    thumbnail_url: Url | None


class HistoryEntryAnswer(TypedDict):
    """One thing that happened to a stored workflow."""

    at: Time
    author: str
    action: WorkflowAction
    version: _Version
    before: Annotated[str | None, Field(description="What the label named until then.")]
    label: str
    note: str


class WorkflowHistoryAnswer(TypedDict):
    """What happened to a stored workflow, the latest first."""

    name: str
    history: list[HistoryEntryAnswer]


class WorkflowDiffAnswer(TypedDict):
    """What differs between two versions."""

    name: str
    a: _Version
    b: _Version
    differences: list[DifferenceAnswer]
    breaking_changes: Annotated[
        list[BreakingChangeAnswer], Field(description="What breaks callers of a when b takes its place.")
    ]


class LabelAnswer(TypedDict):
    """A label, and the version that it names now."""

    name: str
    label: str
    version: _Version
    before: Annotated[str | None, Field(description="What it named until then.")]
    changed: bool


class DraftAnswer(TypedDict):
    """The caller's own draft."""

    name: str
    editor_name: str
    saved_at: Time
    base_version: Annotated[str | None, Field(description="The version that it was made from.")]
    job_id: Annotated[str | None, Field(description="A job that ran it.")]
    graph: dict[str, Any]
    ui: dict[str, Any] | None
    manifest: Annotated[dict[str, Any] | None, Field(description="null: that in production is kept.")]


class ParameterChoiceAnswer(TypedDict):
    """One value of a choice."""

    name: Annotated[str, Field(description="What callers send.")]
    label: str
    value: _Value


class ParameterTargetAnswer(TypedDict):
    """An input that a parameter sets."""

    node_id: str
    input: str
    form: Literal["value", "hash"]


class ParameterAnswer(TypedDict):
    """A parameter as it is in use: what graph and manifest say together. Null is not set."""

    name: str
    type: ParameterType
    title: str
    description: str
    default: _Value
    required: bool
    min: float | None
    max: float | None
    multiple_of: float | None
    min_length: int | None
    max_length: int | None
    format: str | None
    choices: list[ParameterChoiceAnswer]
    accept: list[str]
    max_bytes: int | None
    role: str | None
    targets: list[ParameterTargetAnswer]


class ManifestAnswer(TypedDict):
    """A stored workflow's manifest, and the parameters that follow from it and the graph."""

    name: str
    version: _Version
    folder: str | None
    manifest: Annotated[dict[str, Any], Field(description="As in `workflow.toml`.")]
    parameters: list[ParameterAnswer]
