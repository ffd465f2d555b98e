"""Which nodes could run a stored workflow, and what keeps the others from it: from what is in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.graphs.graph_problems import Problem
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.nodes.eligibility import Candidate
from comfy_fleet.domain.text import natural
from comfy_fleet.services.workflow_check import check_workflow

MOST_KINDS = 20
"""Kinds of nodes that a workflow is looked at on; nodes with equal classes and files are one kind."""


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes with equal classes and files.

    Attributes:
        nodes: Their names.
        inventory: What they have.
        comfyui: Their version of ComfyUI; empty if it is not known.
    """

    nodes: tuple[str, ...]
    inventory: Inventory
    comfyui: str


@dataclass(frozen=True, kw_only=True)
class WorkflowFitness:
    """How nodes suit a workflow.

    Attributes:
        workflow: It.
        able: How many nodes can run it, some choices perhaps left out.
        lacking: Kinds of nodes with the problems that they have with it, those without which every job fails
            first; kinds without a problem are left out.
    """

    workflow: Workflow
    able: int
    lacking: Sequence[tuple[NodeKind, Sequence[Problem]]]


def kinds_of(candidates: Iterable[Candidate]) -> tuple[list[NodeKind], list[str]]:
    """Return the kinds of nodes, the largest first, and the names of those that were not read yet."""
    together: dict[tuple[int, str], list[Candidate]] = {}
    unread = []
    for one in candidates:
        if one.inventory is None:
            unread.append(one.node.name)
        else:  # equal nodes share an inventory
            together.setdefault((id(one.inventory), one.comfyui), []).append(one)
    kinds = [
        NodeKind(
            nodes=tuple(sorted((one.node.name for one in alike), key=natural)),
            inventory=alike[0].inventory,
            comfyui=alike[0].comfyui,
        )
        for alike in together.values()
        if alike[0].inventory is not None
    ]
    kinds.sort(key=lambda kind: (-len(kind.nodes), natural(kind.nodes[0])))
    return kinds, sorted(unread, key=natural)


def fitness_of(workflow: Workflow, kinds: Sequence[NodeKind], policy: FilePolicy) -> WorkflowFitness:
    """Return how nodes suit a workflow; the first :data:`MOST_KINDS` kinds are looked at."""
    able, lacking = 0, []
    for kind in kinds[:MOST_KINDS]:
        found = check_workflow(workflow, kind.inventory, kind.comfyui or None, policy=policy)
        if all(problem.only_with for problem in found):
            able += len(kind.nodes)
        if found:
            lacking.append((kind, sorted(found, key=lambda problem: bool(problem.only_with))))
    return WorkflowFitness(workflow=workflow, able=able, lacking=lacking)
