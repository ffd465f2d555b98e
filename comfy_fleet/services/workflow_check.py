"""Check that a node can run a stored workflow, with every choice that a caller may make."""

from collections.abc import Iterator
from dataclasses import replace

from comfy_fleet.domain.errors import InvalidParameter, InvalidWorkflow
from comfy_fleet.domain.graphs import file_check
from comfy_fleet.domain.graphs.binding import bind
from comfy_fleet.domain.graphs.file_check import SHIPPED, Declared, FilePolicy
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.graph_problems import Problem, ProblemKind, problems
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.version_conditions import version_allows
from comfy_fleet.domain.graphs.workflow import FILES, Parameter, ParameterType, Workflow


def check_workflow(
    workflow: Workflow,
    inventory: Inventory,
    version: str | None = None,
    *,
    policy: FilePolicy = SHIPPED,
) -> list[Problem]:
    """Return what prevents a node from running the workflow, worst first; empty means it can.

    "ComfyUI too old" and "file missing" are distinguished: if the node's version is below ``[requires]
    comfyui``, that comes first and explains unknown classes and values.

    Args:
        workflow: The workflow.
        inventory: The node's ``/object_info``.
        version: The node's ComfyUI version; None uses the inventory's.
        policy: Which files graphs may name.
    """
    version = inventory.version if version is None else version
    found: list[Problem] = []
    wanted = workflow.requires.comfyui
    too_old = bool(wanted) and version_allows(version, wanted) is False
    if too_old:
        found.append(
            Problem(
                kind=ProblemKind.COMFYUI_TOO_OLD,
                value=version,
                message=f"ComfyUI {version} does not fulfil {wanted}: update it",
            )
        )
    seen: set[tuple[str, str, str, str]] = set()
    sources = {model.file: model for model in workflow.requires.models}
    for label, graph in _variants(workflow):
        for problem in (*problems(graph, inventory), *_of_files(graph, inventory, policy)):
            key = (problem.kind, problem.node_id, problem.field, repr(problem.value))
            if key in seen:
                continue
            seen.add(key)
            message = problem.message
            model = sources.get(problem.value) if isinstance(problem.value, str) else None
            if problem.kind is ProblemKind.FILE_MISSING and model:
                message += f"; put it into models/{model.folder}" + (
                    f" ({model.source})" if model.source else ""
                )
            elif too_old and problem.kind in (ProblemKind.UNKNOWN_CLASS, ProblemKind.VALUE_NOT_IN_LIST):
                message += f"; newer versions have it ({wanted})"
            suffix = f" (only with {label})" if label else ""
            found.append(replace(problem, message=message + suffix, only_with=label))
    return found


def _of_files(graph: Graph, inventory: Inventory, policy: FilePolicy) -> Iterator[Problem]:
    """Yield the problems with file names for which a submit would refuse it."""
    try:
        file_check.check(graph, Declared([inventory]), policy=policy)
    except InvalidWorkflow as error:
        for node_id, defects in error.details["node_errors"].items():
            class_type = graph[node_id]["class_type"]
            for defect in defects:
                yield Problem(
                    kind=ProblemKind(defect["reason"]),
                    node_id=node_id,
                    class_type=class_type,
                    field=defect["field"],
                    message=f"node {node_id} ({class_type}): {defect['message']}",
                )


def _variants(workflow: Workflow) -> Iterator[tuple[str, Graph]]:
    """Yield the graph with all defaults, then once with each choice and switch, each with a label."""
    filled = {parameter.name: _sample(parameter) for parameter in workflow.parameters}
    base = {name: value for name, value in filled.items() if value is not None}
    yield "", _bound(workflow, base)
    for parameter in workflow.parameters:
        values: list[object] = []
        if parameter.type is ParameterType.CHOICE:
            values = [choice.name for choice in parameter.choices]
        elif parameter.type is ParameterType.BOOLEAN:
            values = [True, False]
        for value in values:
            shown = str(value).lower() if isinstance(value, bool) else value
            yield f"{parameter.name} = {shown}", _bound(workflow, {**base, parameter.name: value})


def _sample(parameter: Parameter) -> object:
    """Return a value for a parameter that has no default."""
    if not parameter.required:
        return None
    if parameter.type in FILES:
        return "00000000-0000-0000-0000-000000000000"
    if parameter.type is ParameterType.STRING:
        return "<a>a</a>" if parameter.format == "xml" else "a" * max(1, parameter.min_length or 0)
    if parameter.type is ParameterType.CHOICE:
        return parameter.choices[0].name
    if parameter.type is ParameterType.BOOLEAN:
        return False
    return parameter.minimum if parameter.minimum is not None else parameter.multiple_of or 1


def _bound(workflow: Workflow, values: dict[str, object]) -> Graph:
    try:
        return bind(workflow, values, draw_seed=lambda: 0).graph
    except InvalidParameter:
        # If no sample fits a limit, the binding's own check reports it; the exported graph still shows a lot.
        return workflow.graph
