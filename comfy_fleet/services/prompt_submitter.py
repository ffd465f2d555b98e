"""Submit a graph as ComfyUI's ``POST /prompt`` does: refused in its words, run in part if a part is sound.

ComfyUI runs the outputs that it can and tells what is wrong with the others. So does the fleet, as long as
nothing but the graph's own inputs is wrong: files that a graph may not name, and classes that no node has,
are reasons to refuse all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from comfy_fleet.domain.errors import FleetError, InvalidWorkflow, MissingAsset
from comfy_fleet.domain.graphs import prompt_errors
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.prompt_errors import Declaration, PromptError, prompt_error
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.object_info_answers import FleetClasses
from comfy_fleet.services.submitter import NO_OUTPUTS, JobOptions, Submitter

ROUNDS = 8
"""How often a graph is checked again without outputs that can't run."""
_UNSOUND = frozenset({"not_an_object", "missing_class_type", "missing_inputs"})


class InvalidPrompt(InvalidWorkflow):
    """The graph is refused, in ComfyUI's words.

    Attributes:
        error: What is wrong with the whole.
        node_errors: What is wrong with its nodes.
    """

    def __init__(self, error: PromptError, node_errors: Mapping[str, Any] | None = None) -> None:
        super().__init__(error["message"])
        self.error = error
        self.node_errors = dict(node_errors or {})


@dataclass(frozen=True, kw_only=True)
class PromptTaken:
    """A job that was made of a prompt.

    Attributes:
        node_errors: What is wrong with the part that does not run.
    """

    job: Job
    node_errors: Mapping[str, Any]


class ClassDescriptions(Protocol):
    """The nodes' own descriptions of their classes."""

    async def classes(self) -> FleetClasses:
        """Return them. Raises FleetError if nothing is known."""


class PromptSubmitter:
    """Submits prompts.

    Args:
        submitter: Checks graphs, and writes jobs.
        inventories: Which classes are output nodes.
        descriptions: How classes declare their inputs, for refusals.
    """

    def __init__(
        self, submitter: Submitter, inventories: NodeInventories, descriptions: ClassDescriptions
    ) -> None:
        self._submitter = submitter
        self._inventories = inventories
        self._descriptions = descriptions

    async def submit(self, owner: str, graph: dict[str, Any], options: JobOptions) -> PromptTaken:
        """Submit a graph, or the part of it that can run.

        Raises:
            InvalidPrompt: No output of it can run.
            FleetError: As :meth:`Submitter.graph`.
        """
        left_out: dict[str, Any] = {}
        for _ in range(ROUNDS):
            try:
                done = await self._submitter.graph(owner, graph, options)
            except (InvalidWorkflow, MissingAsset) as error:
                if (unsound := _unsound(graph, error)) is not None:
                    raise InvalidPrompt(*unsound) from error
                outputs = self._outputs(graph, options)
                defects = _defects(error)
                left_out |= prompt_errors.node_errors(
                    graph, defects, outputs=outputs, declarations=await self._declarations(graph, defects)
                )
                below = prompt_errors.dependents(graph, defects)
                rest = tuple(output for output in outputs if output not in below)
                if not _may_run_in_part(defects) or len(rest) in (0, len(outputs)):
                    raise _refused(graph, error, defects, left_out, outputs) from error
                options = replace(options, prompt=replace(options.prompt, targets=rest))
            else:
                return PromptTaken(job=done.job, node_errors=left_out)
        raise InvalidPrompt(prompt_errors.failed_outputs(left_out, left_out), left_out)

    def _outputs(self, graph: Graph, options: JobOptions) -> tuple[str, ...]:
        found = self._inventories.output_nodes(graph)
        targets = options.prompt.targets
        return tuple(node_id for node_id in found if node_id in targets) if targets else found

    async def _declarations(
        self, graph: Graph, defects: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> prompt_errors.Declarations:
        named = {graph[node_id]["class_type"] for node_id in defects if node_id in graph}
        try:
            bodies = (await self._descriptions.classes()).bodies
        except FleetError:  # a refusal without declarations is good enough
            bodies = {}
        known = {name: orjson.loads(bodies[name]) for name in named if name in bodies}

        def declaration(class_type: str, name: str, given: Mapping[str, Any]) -> Declaration:
            return prompt_errors.declaration(known.get(class_type, {}), name, given)

        return declaration


# ----------------------------------------------------------------------------------------------------


def _defects(error: FleetError) -> dict[str, list[Mapping[str, Any]]]:
    """Return what is wrong, by node."""
    if isinstance(error, MissingAsset) and "node_id" in error.details:
        found = {
            "field": error.details.get("input", ""),
            "reason": "missing_asset",
            "message": error.message,
        }
        return {str(error.details["node_id"]): [found]}
    return dict(error.details.get("node_errors") or {})


def _may_run_in_part(defects: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    return bool(defects) and all(prompt_errors.leaves_others(found) for found in defects.values())


def _unsound(graph: dict[str, Any], error: FleetError) -> tuple[PromptError, dict[str, Any]] | None:
    """Return the error of a graph whose nodes have no sound shape; None if they have."""
    if not graph:
        return prompt_error("prompt_no_outputs", "Prompt has no outputs"), {}
    defects = _defects(error)
    for node_id, found in defects.items():
        node = graph.get(node_id)
        for defect in found:
            if defect.get("reason") not in _UNSOUND:
                continue
            if not isinstance(node, dict):
                return prompt_error("invalid_prompt", str(defect["message"]), f"Node ID '#{node_id}'"), {}
            if defect["reason"] == "missing_class_type":
                return prompt_errors.missing_class(node_id, node), {}
            return prompt_error("invalid_prompt", str(defect["message"]), f"Node ID '#{node_id}'"), {}
    if all(
        isinstance(node, dict)
        and isinstance(node.get("inputs"), dict)
        and isinstance(node.get("class_type"), str)
        for node in graph.values()
    ):
        return None
    return prompt_error("invalid_prompt", error.message), {}


def _refused(
    graph: Graph,
    error: FleetError,
    defects: Mapping[str, Sequence[Mapping[str, Any]]],
    node_errors: Mapping[str, Any],
    outputs: Sequence[str],
) -> InvalidPrompt:
    if not outputs or error.details.get("reason") == NO_OUTPUTS:
        missing = _missing_class(graph, defects)
        return missing or InvalidPrompt(prompt_error("prompt_no_outputs", "Prompt has no outputs"))
    if (missing := _missing_class(graph, defects)) is not None:
        return missing
    if not defects:
        return InvalidPrompt(prompt_error("invalid_prompt", error.message))
    details = str(error.details.get("together") or "")
    return InvalidPrompt(prompt_errors.failed_outputs(node_errors, outputs, details), node_errors)


def _missing_class(graph: Graph, defects: Mapping[str, Sequence[Mapping[str, Any]]]) -> InvalidPrompt | None:
    """Return the refusal of a graph with a class that is on no node; the first one counts, as in ComfyUI."""
    for node_id, node in graph.items():
        if any(defect.get("reason") == "unknown_class" for defect in defects.get(node_id, ())):
            lacking = [defect for other in graph for defect in defects.get(other, ()) if "missing" in defect]
            return InvalidPrompt(prompt_errors.missing_class(node_id, node, lacking))
    return None
