"""The answers of ``/api/v1`` about drafts and publishing."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from comfy_fleet.api.answers import OutputAnswer, Time, Url
from comfy_fleet.api.v1.workflow_answers import BreakingChangeAnswer, DifferenceAnswer
from comfy_fleet.domain.graphs.publish_check import CheckName, CheckState


class CheckStepAnswer(TypedDict):
    """One step of a check."""

    name: CheckName
    state: CheckState
    message: str
    problems: list[str]


class TestRunAnswer(TypedDict):
    """The test run."""

    job_id: str
    outputs: list[OutputAnswer]


class InProductionAnswer(TypedDict):
    """The version that publishing would replace."""

    version: str
    changed_by: str
    changed_at: Time


class RemovedAnswer(TypedDict):
    """Who removed the workflow, as far as that is known."""

    removed_by: str | None
    removed_at: Time | None


class PublishCheckAnswer(TypedDict):
    """What is known about a draft."""

    workflow: str
    draft: Annotated[str, Field(description="Seal of what was checked: send it with `publish`.")]
    version: Annotated[str, Field(description="What it would become.")]
    editor_name: str
    saved_at: Time
    ready: Annotated[bool, Field(description="Whether all steps have passed.")]
    unchanged: Annotated[bool, Field(description="Whether the very same is in production already.")]
    steps: list[CheckStepAnswer]
    test_run: TestRunAnswer | None
    production: InProductionAnswer | None
    base_version: str
    overtaken: Annotated[
        bool,
        Field(
            description="Whether somebody else has published since the draft's base version, or removed it."
        ),
    ]
    removed: Annotated[
        RemovedAnswer | None, Field(description="If what the draft was made from is not there any more.")
    ]
    theirs: Annotated[list[DifferenceAnswer], Field(description="What that changed, if it is known.")]
    changes: Annotated[list[DifferenceAnswer], Field(description="What publishing would change.")]
    breaking: list[BreakingChangeAnswer]
    unrun: Annotated[str, Field(description="A file that was saved since and not run yet.")]
    files: Annotated[list[str], Field(description="Files whose names become this id, if several.")]
    files_message: Annotated[str, Field(description="For people: what to do about these files.")]


class PublishedAnswer(TypedDict):
    """A publication."""

    workflow: str
    version: str
    before: str
    changed: bool
    published_at: Time


class SavedDraftAnswer(TypedDict):
    """Where a draft can be checked and published."""

    workflow: str
    publish_url: Url


class DraftRowAnswer(TypedDict):
    """One of the caller's drafts."""

    workflow: str
    saved_at: Time
    publish_url: Url


class UnrunSaveAnswer(TypedDict):
    """A graph that was saved in the editor and is no draft, since it was never run."""

    workflow: str
    file: str
    saved_at: Time
    message: Annotated[str, Field(description="For people: what to do.")]


class DraftListAnswer(TypedDict):
    """The caller's drafts, the latest first."""

    drafts: list[DraftRowAnswer]
    unrun: list[UnrunSaveAnswer]
    workflows_url: Url


class EditorGraphAnswer(TypedDict):
    """A stored workflow as the editor opens it."""

    workflow: str
    version: str
    editor_name: str
    ui: dict[str, Any]
