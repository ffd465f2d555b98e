"""One prompt for several jobs: branches behind the nodes that they share, or one batch of latents.

The jobs of a merged prompt are its *members*. The first one's nodes keep their ids, so that whoever knows
only that job can follow the prompt. A node that another member has for itself gets the id ``mN:ID``.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from graphlib import TopologicalSorter
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph, copied, is_link

MOST_MEMBERS = 4
MOST_WINDOW_S = 10.0
BATCH_SIZE = "batch_size"

_MEMBERS = re.compile(r"m[1-9]\d*:")

SOURCES = frozenset({"EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage"})
"""Where a batch of latents begins."""
SAMPLERS = {"KSampler": "seed", "KSamplerAdvanced": "noise_seed", "RandomNoise": "noise_seed"}
"""Which input says what the noise of a batch is drawn from; it is drawn once, for all pictures."""
_SAMPLING = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"})
SAVERS = frozenset({"SaveImage", "PreviewImage"})
"""They return one file for each picture, in the batch's order."""
BATCHWISE = SAVERS | {
    "BasicGuider",
    "BasicScheduler",
    "CFGGuider",
    "CLIPLoader",
    "CLIPSetLastLayer",
    "CLIPTextEncode",
    "CLIPTextEncodeFlux",
    "CLIPTextEncodeSDXL",
    "CheckpointLoaderSimple",
    "ConditioningZeroOut",
    "DualCLIPLoader",
    "FluxGuidance",
    "ImageInvert",
    "ImageScale",
    "ImageScaleBy",
    "KSamplerSelect",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "ModelSamplingAuraFlow",
    "ModelSamplingFlux",
    "ModelSamplingSD3",
    "QuadrupleCLIPLoader",
    "SamplerCustomAdvanced",
    "TripleCLIPLoader",
    "UNETLoader",
    "VAEDecode",
    "VAEDecodeTiled",
    "VAELoader",
}
"""Classes that treat each picture of a batch alike and keep their order, beside sources and samplers."""


class MergeMode(StrEnum):
    """How jobs become one prompt: ``exact`` as branches, ``batch`` as pictures of one batch."""

    EXACT = "exact"
    BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """Which jobs of a stored workflow may be merged, as its manifest says.

    Attributes:
        most: Most jobs of one prompt, 2 to :data:`MOST_MEMBERS`.
        window_s: For how long a job waits for others, in seconds, if one like it came within this time.
    """

    mode: MergeMode
    most: int = MOST_MEMBERS
    window_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class MergedGraph:
    """Several graphs as one.

    Attributes:
        graph: What is posted.
        members: For each graph, in their order, its nodes' ids in the merged one.
    """

    graph: Graph
    members: tuple[Mapping[str, str], ...]


def has_member_ids(graph: Graph) -> bool:
    """Whether a graph has ids of the form that members' nodes get; it can't be merged."""
    return any(_MEMBERS.match(node_id) for node_id in graph)


def merged(graphs: Sequence[Graph]) -> MergedGraph:
    """Return graphs as branches of one: nodes that are equal in all, and read equal ones, are there once.

    Equal nodes have the same id, class and inputs. That is what ComfyUI's own cache goes by, so nothing is
    shared that two prompts in turn would not share, but for a class that asks to run anew each time
    (``IS_CHANGED``).

    Args:
        graphs: As each would be posted alone.

    Raises:
        ValueError: One has a cycle, or ids like those that are made here.
    """
    if any(map(has_member_ids, graphs)):
        raise ValueError("a node's id begins like those of a merged prompt's members")
    made: Graph = {}
    known: dict[tuple[str, str], str] = {}
    members = []
    for member, graph in enumerate(graphs):
        ids: dict[str, str] = {}
        for node_id in _in_order(graph):
            node = graph[node_id]
            inputs = {name: _relinked(value, ids) for name, value in node["inputs"].items()}
            content = json.dumps([node["class_type"], inputs], sort_keys=True)
            name = known.setdefault((node_id, content), f"m{member}:{node_id}" if member else node_id)
            ids[node_id] = name
            made.setdefault(name, {**node, "inputs": inputs})
        members.append(ids)
    return MergedGraph(graph=made, members=tuple(members))


def _in_order(graph: Graph) -> Sequence[str]:
    """Return a graph's nodes so that each comes behind those that it reads."""
    read = {
        node_id: [value[0] for value in node["inputs"].values() if is_link(value) and value[0] in graph]
        for node_id, node in graph.items()
    }
    return tuple(TopologicalSorter(read).static_order())


def _relinked(value: Any, ids: Mapping[str, str]) -> Any:
    return [ids[value[0]], value[1]] if is_link(value) and value[0] in ids else value


def batch_source(graph: Graph) -> str:
    """Return the node that says how many pictures a graph makes, if it can make those of several jobs.

    Raises:
        ValueError: It can't; why, in words.
    """
    sources = [node_id for node_id, node in graph.items() if node["class_type"] in SOURCES]
    samplers = [node_id for node_id, node in graph.items() if node["class_type"] in SAMPLERS]
    for node_id, node in graph.items():
        class_type = node["class_type"]
        if class_type not in BATCHWISE and class_type not in SOURCES and class_type not in SAMPLERS:
            raise ValueError(f"node {node_id} ({class_type}) is not known to treat each picture alike")
    if sum(node["class_type"] in _SAMPLING for node in graph.values()) != 1:
        raise ValueError("it does not sample exactly once")
    if len(samplers) != 1:
        raise ValueError(f"it has {len(samplers) or 'no'} samplers with a seed of their own, not one")
    if len(sources) != 1:
        raise ValueError(f"it has {len(sources) or 'no'} empty latents, not one")
    size = graph[sources[0]]["inputs"].get(BATCH_SIZE, 1)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"node {sources[0]}: {BATCH_SIZE} is not a number")
    return sources[0]


def seed_place(graph: Graph) -> tuple[str, str]:
    """Return node and input of the seed from which a graph's noise is drawn; one of :func:`batch_source`."""
    return next(
        (node_id, SAMPLERS[node["class_type"]])
        for node_id, node in graph.items()
        if node["class_type"] in SAMPLERS
    )


def batch_size(graph: Graph) -> int:
    """Return how many pictures a graph makes; one of :func:`batch_source`."""
    return int(graph[batch_source(graph)]["inputs"].get(BATCH_SIZE, 1))


def batched(graph: Graph, members: int) -> Graph:
    """Return a graph that makes so many times its pictures, in one batch; one of :func:`batch_source`."""
    source, made = batch_source(graph), copied(graph)
    made[source]["inputs"][BATCH_SIZE] = batch_size(graph) * members
    return made


def without_seeds(graph: Graph, places: Collection[tuple[str, str]]) -> Graph:
    """Return a copy in which these inputs, node and name, have no value: graphs that differ only there are
    equal."""
    made = copied(graph)
    for node_id, name in places:
        if node_id in made and name in made[node_id]["inputs"]:
            made[node_id]["inputs"][name] = None
    return made
