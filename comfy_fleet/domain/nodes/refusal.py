"""Why no node can run a graph, as its sender is told: per node of the graph, and per server."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.graph_problems import Problem, ProblemKind
from comfy_fleet.domain.graphs.missing import LackingNodes, MissingPart, PartKind, missing_parts
from comfy_fleet.domain.graphs.part_sources import PartSource
from comfy_fleet.domain.nodes import eligibility, no_common_node, waiting_reason
from comfy_fleet.domain.nodes.eligibility import Candidate, Requirements
from comfy_fleet.domain.nodes.no_common_node import GraphPart

_SHOWN = 20  # how many nodes a refusal explains


class UnableNode:
    """A node that can't run a graph, and why."""

    def __init__(self, candidate: Candidate, problems: list[Problem], reasons: list[str]) -> None:
        self.candidate = candidate
        self.problems = problems
        self.reasons = reasons

    @property
    def distance(self) -> tuple[bool, int, int]:
        """How far it is from running the graph, by the graph: a class that it lacks weighs most."""
        lacks = sum(problem.kind is ProblemKind.UNKNOWN_CLASS for problem in self.problems)
        return not self.problems, lacks, len(self.problems)

    def sentences(self) -> list[str]:
        """Return each reason once."""
        return list(dict.fromkeys([*self.reasons, *eligibility.sentences(self.problems)]))


def refusal(
    graph: Graph, needs: Requirements, bad: Mapping[str, UnableNode], *, absent: Collection[str] = ()
) -> LackingNodes:
    """Explain node by node; problems in the graph are those of the node that comes closest.

    If each of its parts is fine on some node, the problems are the parts that no node has together.

    Args:
        graph: As it was checked.
        needs: What it needs of a node.
        bad: The nodes of its pools, by name.
        absent: The others of them, which have never answered.
    """
    lacking = no_common_node.with_inputs(
        {
            name: eligibility.lacking(graph, needs, found.candidate, found.problems)
            for name, found in bad.items()
        }
    )
    best = min(bad, key=lambda name: bad[name].distance)
    errors: dict[str, list[dict[str, Any]]] = {}
    together = ""
    if chosen := no_common_node.apart(lacking):
        together = no_common_node.told(lacking, chosen)
        for part in dict.fromkeys(part for parts in lacking.values() for part in parts):
            if part.node_id and part.what in chosen:
                errors.setdefault(part.node_id, []).append(_apart(part, together))
    else:
        for problem in bad[best].problems:
            if problem.node_id:  # else it is about the whole graph
                errors.setdefault(problem.node_id, []).append(_defect(problem))
    reasons = {name: found.sentences() for name, found in sorted(bad.items())}
    of_graph = {problem.message for problem in bad[best].problems}.issuperset
    alike = len({tuple(found) for found in reasons.values()}) == 1
    words = waiting_reason.told(reasons)
    if alike and (len(reasons) > 1 or of_graph(reasons[best])):
        # Problems of the graph itself are reported for the graph, not for the nodes.
        of_nodes = (eligibility.of_every_node(text) for text in reasons[best][:3])
        words = ", ".join(reasons[best][:3] if of_graph(reasons[best][:1]) else of_nodes)
    away = {name: ["it has not answered since it was added"] for name in sorted(absent)}
    if away:
        words += f"; {waiting_reason.told(away)}"
    return LackingNodes(
        f"no node can run this workflow: {words}",
        details={
            "field": "workflow",
            "node_errors": errors,
            "nodes": {name: found[:5] for name, found in list({**reasons, **away}.items())[:_SHOWN]},
            **({"together": together} if together else {}),
        },
        parts=_parts(bad, errors),
    )


def _parts(
    bad: Mapping[str, UnableNode], errors: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[MissingPart]:
    """Return what is missing where a refusal says that something is wrong, with the folders of files."""
    places = {(node_id, defect["field"]) for node_id, defects in errors.items() for defect in defects}
    return [
        replace(part, source=PartSource(folder=eligibility.model_folder(part.class_type, part.input)))
        if part.kind is PartKind.FILE
        else part
        for part in missing_parts({name: found.problems for name, found in bad.items()}, places)
    ]


def _defect(problem: Problem) -> dict[str, Any]:
    told = {
        "field": problem.field or "class_type",
        "reason": problem.kind.value,
        "message": problem.message,
        "class_type": problem.class_type,
    }
    if problem.kind is ProblemKind.TYPE_MISMATCH:
        told["received_type"], told["wanted_type"] = problem.value
    return told


def _apart(part: GraphPart, together: str) -> dict[str, Any]:
    return {
        "field": part.field or "class_type",
        "reason": "no_common_node",
        "message": together,
        "class_type": part.class_type,
    }
