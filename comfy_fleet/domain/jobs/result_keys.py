"""What makes two jobs equal, so that one may get the other's result.

A key is a hash of everything that a result follows from and everything that is written into its files: the
graph with all its nodes, what was sent beside it, the content of uploads instead of their names, and which
model files there are. Names of saved files follow from the graph, too.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.deterministic_classes import CLASSES
from comfy_fleet.domain.graphs.graph import Graph, Place, copied
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow import CacheMode, ParameterType, Workflow

FORMAT = 1
"""Part of every key: another number when equal keys would no longer mean equal results."""
ANY_SEED: dict[str, str] = {"seed": "any"}
# Names with a time in them, and files that a text encoder reads because a prompt names them.
_OF_THE_MOMENT = re.compile(r"%date:|%(?:year|month|day|hour|minute|second)%|embedding:")


@dataclass(frozen=True, kw_only=True)
class ResultKeys:
    """Whose result a job may get, and who may get its own.

    Attributes:
        wanted: The key under which a result is looked for; empty: the job is computed in any case.
        kept: The keys under which its own result is kept.
        versions: Versions of ComfyUI on the nodes that can run it: a result of another one is none.
        max_age_s: How old the result may be, in seconds; None: any age.
        any_seed: Whether the result may be one with another seed.
    """

    wanted: str = ""
    kept: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    max_age_s: float | None = None
    any_seed: bool = False


def is_repeatable(runs: Graph, inventories: Iterable[Inventory], *, vouched: bool) -> bool:
    """Return whether a graph's results follow from its inputs alone.

    Args:
        runs: What runs of a checked graph.
        inventories: The fleet's, each different one once.
        vouched: Whether its author says so of its classes.
    """
    names = {node["class_type"] for node in runs.values()}
    if not vouched and not names <= CLASSES:
        return False
    infos = [info for one in inventories for name in names if (info := one.classes.get(name)) is not None]
    if any(info.api_node or (info.pack and not vouched) for info in infos):
        return False
    return _OF_THE_MOMENT.search(_canonical(runs)) is None


def exact_key(
    graph: Graph,
    files: Mapping[Place, str],
    models: Iterable[tuple[str, int, float]],
    extra_data: Mapping[str, Any],
) -> str:
    """Return the key of a graph.

    Args:
        graph: All of it, as it was checked.
        files: What stands for the content of an owner's file, by the place that names it.
        models: Model files with their bytes, and when they were changed.
        extra_data: What the node gets besides, without secrets.
    """
    return _hash(["exact", _with_files(graph, files), sorted(models), extra_data])


def any_seed_key(
    graph: Graph,
    files: Mapping[Place, str],
    models: Iterable[tuple[str, int, float]],
    extra_data: Mapping[str, Any],
    workflow: Workflow,
    params: Mapping[str, Any],
) -> str:
    """Return the key of a workflow's graph whatever its seeds; for the rest see :func:`exact_key`."""
    masked = _with_files(graph, files)
    for name in seeds_of(workflow):
        parameter = workflow.parameter(name)
        for target in parameter.targets if parameter else ():
            if target.node_id in masked:
                masked[target.node_id]["inputs"][target.input] = ANY_SEED
    others = {name: value for name, value in params.items() if name not in seeds_of(workflow)}
    about = [workflow.name, workflow.version, others]
    return _hash(["any-seed", masked, sorted(models), extra_data, about])


def seeds_of(workflow: Workflow) -> frozenset[str]:
    """Return the names of a workflow's seeds."""
    return frozenset(one.name for one in workflow.parameters if one.type is ParameterType.SEED)


def result_keys(
    exact: str,
    any_seed: str,
    *,
    mode: CacheMode,
    seeds: frozenset[str],
    drawn: frozenset[str],
    versions: tuple[str, ...],
    max_age_s: float | None,
) -> ResultKeys:
    """Return under which keys a job's result is looked for and kept.

    Args:
        exact: Its key.
        any_seed: That for any seed; empty if the mode is another.
        mode: When it may get an earlier result; not :attr:`CacheMode.OFF`.
        seeds: The names of its workflow's seeds.
        drawn: Those that its client has not fixed.
        versions: See :class:`ResultKeys`.
        max_age_s: The same; 0: it is to be computed.
    """
    kept = (exact, any_seed) if any_seed else (exact,)
    any_will_do = mode is CacheMode.ANY_SEED and bool(drawn) and drawn == seeds
    wanted = any_seed if any_will_do else "" if drawn else exact
    if max_age_s is not None and max_age_s <= 0:
        wanted = ""
    return ResultKeys(
        wanted=wanted,
        kept=kept,
        versions=versions,
        max_age_s=max_age_s,
        any_seed=bool(wanted) and any_will_do,
    )


def _with_files(graph: Graph, files: Mapping[Place, str]) -> Graph:
    made = copied(graph)
    for (node_id, path), content in files.items():
        holder: Any = made[node_id]["inputs"]
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = {"file": content}
    return made


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(_canonical([FORMAT, *content]).encode()).hexdigest()[:40]


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
