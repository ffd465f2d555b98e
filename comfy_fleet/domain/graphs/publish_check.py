"""What is known about a draft before it is published: three steps, and what it would change."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.graphs.breaking_changes import BreakingChange
from comfy_fleet.domain.graphs.graph import is_link
from comfy_fleet.domain.graphs.stored import EditorGraph, WorkflowContent
from comfy_fleet.domain.graphs.workflow import Parameter, ParameterType, TargetForm, Workflow
from comfy_fleet.domain.graphs.workflow_diff import WorkflowDifference


class CheckState(StrEnum):
    """How a step went."""

    PASSED = "passed"
    FAILED = "failed"
    WAITING = "waiting"
    """It is under way, or has not begun."""


class CheckName(StrEnum):
    """The steps, in their order."""

    PARAMETERS = "parameters"
    """Every parameter finds its places in the graph."""

    NODES = "nodes"
    """Some node that may run it has its classes and models."""

    TEST_RUN = "test_run"
    """A run with default parameters succeeds."""


@dataclass(frozen=True, kw_only=True)
class CheckStep:
    """One step.

    Attributes:
        message: What was found, as a sentence.
        problems: What is wrong, each in words.
    """

    name: CheckName
    state: CheckState
    message: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PublishCheck:
    """What was found out about a draft.

    Attributes:
        name: The stored workflow.
        draft: The draft's seal: says exactly what was checked, see :func:`sealed`.
        version: The version that it would become; empty if it can't be used at all.
        editor_name: What its owner calls it in the editor.
        saved_at: When it was saved, in Unix seconds.
        steps: All of them, in the order of :class:`CheckName`.
        job_id: The job of the test run; empty if there is none.
        production: The version in production; empty if the workflow is new.
        changed_by: Who put that into production, or removed the workflow.
        changed_at: When, in Unix seconds.
        base_version: The version that the draft was made from; empty if none.
        overtaken: Whether somebody else has put a version into production since the draft's base, or removed
            the workflow.
        theirs: What that changed, as far as the base is still there.
        changes: What publishing would change.
        breaking: What of it breaks callers.
        unrun: A file of the owner's that was saved since, and not run yet; empty if none, or if it is one of
            ``files`` that the draft is not of.
        files: Files of the owner's whose names become this id, if there are several.
    """

    name: str
    draft: str
    version: str = ""
    editor_name: str = ""
    saved_at: float
    steps: tuple[CheckStep, ...]
    job_id: str = ""
    production: str = ""
    changed_by: str = ""
    changed_at: float = 0.0
    base_version: str = ""
    overtaken: bool = False
    theirs: tuple[WorkflowDifference, ...] = ()
    changes: tuple[WorkflowDifference, ...] = ()
    breaking: tuple[BreakingChange, ...] = ()
    unrun: str = ""
    files: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether all steps have passed."""
        return all(step.state is CheckState.PASSED for step in self.steps)

    @property
    def removed(self) -> bool:
        """Whether what the draft was made from was removed by somebody else, or is not there at all."""
        return self.overtaken and not self.production

    @property
    def unchanged(self) -> bool:
        """Whether the very same is in production already."""
        return bool(self.version) and self.version == self.production

    def step(self, name: CheckName) -> CheckStep:
        """Return one of the steps."""
        return next(step for step in self.steps if step.name is name)


class DraftChanged(Conflict):
    """What was checked is not what would be published any more."""

    code = "draft_changed"


class NotChecked(Conflict):
    """A step has not passed; ``details["checks"]`` has the steps' names."""

    code = "not_checked"


class SavedSince(Conflict):
    """A file was saved since the draft, and not run; ``details["file"]`` is its name."""

    code = "saved_since"


class BreaksCallers(Conflict):
    """Publishing would break callers, and nobody said that it may; ``details["breaking"]`` says how."""

    code = "breaking_changes"


def sealed(content: WorkflowContent, ui: EditorGraph | None) -> str:
    """Return ``sha256:<hex>`` of all that a draft would publish: its content, and the editor's graph."""
    # orjson has read both, so that they are not deep.
    text = json.dumps([content.version, ui], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def trial_values(workflow: Workflow) -> dict[str, Any]:
    """Return the values for a test run: what the graph itself holds where there is no default.

    The seed is the graph's, too, so that two versions' pictures can be compared.
    """
    found = {}
    for parameter in workflow.parameters:
        if parameter.required or parameter.type is ParameterType.SEED:
            value = _held(parameter, workflow.graph)
            drawn = parameter.type is ParameterType.SEED and not (isinstance(value, int) and value >= 0)
            if value is not None and not drawn:
                found[parameter.name] = value
    return found


def _held(parameter: Parameter, graph: Mapping[str, Any]) -> Any:
    for target in parameter.targets:
        if target.form is not TargetForm.VALUE:
            continue
        value = graph[target.node_id]["inputs"].get(target.input)
        if value is None or is_link(value):
            continue
        if parameter.type is ParameterType.CHOICE:
            return next((choice.name for choice in parameter.choices if choice.value == value), None)
        return value
    return None
