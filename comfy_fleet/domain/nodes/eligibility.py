"""Which nodes can run a job: what the graph needs, what the nodes have, and what failed for lack of memory.

A job keeps its *needs*, not the names of today's able nodes: a node that joins later, or gets the missing
file, takes jobs that wait already. Needs hold only what some node lacks: with what every node has, each graph
would have its own queue. A node that is not known yet counts as able: it decides itself.

Memory needs are declared or learned from failures. An observed peak is not a need: ComfyUI caches models up
to the card's limit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.graph_problems import Problem, ProblemKind
from comfy_fleet.domain.graphs.inputs import alike, looks_like_file, unwrapped
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory, reached
from comfy_fleet.domain.graphs.version_conditions import version_allows
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.no_common_node import GraphPart
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.text import clip

GIB = 2**30
MOST_SHOWN = 200
"""Characters of a value in a sentence about nodes."""
CARD_TOLERANCE = 0.94
"""A "24 GB" card has about 23.5 GiB for programs: this fraction of a declared need is enough."""

Choice = tuple[str, str, str | int | float | bool]
"""Class, input, value."""


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """Where a job should run, as a workflow or a request says it.

    Attributes:
        pool: The pool it must have; None leaves it to ``prefer`` and the default.
        prefer: The pool that is tried first; any other takes the job if that one has no free node.
        spill_to: With ``pool``: pools that are tried, in this order, if it has no free node.
        zone: The zone it must have; empty means any.
        labels: Labels that a node must carry.
        comfyui: ComfyUI versions, e.g. ``>=0.3.71``.
        vram_bytes: Video memory that it declares; 0 means any.
        node: The node that it is to warm, the only one that gets it; empty means any.
    """

    pool: str | None = None
    prefer: str | None = None
    spill_to: tuple[str, ...] = ()
    zone: str = ""
    labels: Mapping[str, str] | None = None
    comfyui: str = ""
    vram_bytes: int = 0
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a node must have for a job, in addition to being in the right pool.

    Attributes:
        classes: Node classes.
        choices: Values of enumerations, model files above all.
        comfyui: Version condition.
        vram_bytes: Declared video memory; 0 means any.
        zone: Zone; empty means any.
        labels: Labels, sorted.
    """

    classes: frozenset[str] = frozenset()
    choices: frozenset[Choice] = frozenset()
    comfyui: str = ""
    vram_bytes: int = 0
    zone: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return it JSON-ready, always in the same order, without empty fields."""
        fields: dict[str, object] = {
            "classes": sorted(self.classes),
            "choices": sorted((list(choice) for choice in self.choices), key=repr),
            "comfyui": self.comfyui,
            "vram_bytes": self.vram_bytes,
            "zone": self.zone,
            "labels": [list(pair) for pair in sorted(self.labels)],
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Requirements":
        """Read :meth:`to_json` back."""
        rows = data.get("choices")
        labels = data.get("labels")
        return cls(
            classes=frozenset(_texts(data.get("classes"))),
            choices=frozenset((row[0], row[1], row[2]) for row in rows)
            if isinstance(rows, list)
            else frozenset(),
            comfyui=str(data.get("comfyui", "")),
            vram_bytes=int(str(data.get("vram_bytes", 0))),
            zone=str(data.get("zone", "")),
            labels=tuple((str(k), str(v)) for k, v in labels) if isinstance(labels, list) else (),
        )

    @cached_property  # each of a batch's items asks for it several times
    def key(self) -> str:
        """Short content hash; empty where nothing is needed."""
        data = self.to_json()
        if not data:
            return ""
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What eligibility needs to know of a node.

    Attributes:
        inventory: None while it is not known.
        comfyui: Its ComfyUI's version; empty while it is not known.
        vram_bytes: Memory of its card; 0 while it is not known.
    """

    node: Node
    inventory: Inventory | None = None
    comfyui: str = ""
    vram_bytes: int = 0


def needs_of(
    graph: Graph,
    request: PlacementRequest,
    inventories: Sequence[Inventory],
    *,
    near: Sequence[Inventory] | None = None,
) -> Requirements:
    """Return the requirements of a checked graph that not every node meets.

    Linked values, uploads, ``remote`` enumerations and open values are not requirements. A value that a class
    may accept unlisted is one if some node lists it: that node is the safer choice.

    Args:
        graph: The graph.
        request: What the workflow and the request declare.
        inventories: The fleet's inventories, each different one once.
        near: Those of the nodes in the job's pools; None: all of them.
    """
    classes = {
        node["class_type"]
        for node in graph.values()
        if any(node["class_type"] not in known.classes for known in inventories)
    }
    visited = (
        frozenset().union(*(reached(graph, known) for known in inventories)) if inventories else frozenset()
    )
    choices: set[Choice] = set()
    for node_id in visited:
        node = graph[node_id]
        class_type = node["class_type"]
        infos = [info for known in inventories if (info := known.classes.get(class_type))]
        laid_out = [(info, info.laid_out(node["inputs"])) for info in infos]
        for name, given in node["inputs"].items():
            value = unwrapped(given)
            if not isinstance(value, str | int | float | bool):
                continue
            # Inputs of a group's other values are ignored, as ComfyUI ignores them.
            lacking = [
                info
                for info, inputs in laid_out
                if inputs.input(name) is not None and offers(info, name, value) is False
            ]
            # Perhaps no node has it now: a node that gets it later may take the job.
            if lacking and (
                not any(info.may_take(name, spec, value) for info in lacking for spec in info.possible(name))
                or any(
                    offers(known.classes[class_type], name, value)
                    for known in (inventories if near is None else near)
                    if class_type in known.classes
                )
            ):
                choices.add((class_type, name, alike(value) if isinstance(value, str) else value))
    return Requirements(
        classes=frozenset(classes),
        choices=frozenset(choices),
        comfyui=request.comfyui,
        vram_bytes=request.vram_bytes,
        zone=request.zone,
        labels=tuple(sorted((request.labels or {}).items())),
    )


def offers(info: ClassInfo, name: str, value: object) -> bool | None:
    """Return whether an enumeration offers a value; None if the input is not a closed enumeration.

    An input inside a group offers its options for every value of the group.
    """
    specs = [spec for spec in info.possible(name) if spec.closed and not spec.multiselect]
    return any(spec.offers(value) for spec in specs) if specs else None


def why_not(needs: Requirements, candidate: Candidate) -> list[str]:
    """Return why a node can't run a job with these requirements, in words; empty if it can."""
    node, found = candidate.node, []
    if needs.zone and node.zone != needs.zone:
        found.append(f"is in zone {node.zone or '(none)'}, not {needs.zone}")
    for name, value in needs.labels:
        if node.labels.get(name) != value:
            found.append(f"has no label {name}={value}")
    if needs.comfyui and candidate.comfyui and version_allows(candidate.comfyui, needs.comfyui) is False:
        found.append(f"has ComfyUI {candidate.comfyui}, not {needs.comfyui}")
    if needs.vram_bytes and 0 < candidate.vram_bytes < needs.vram_bytes * CARD_TOLERANCE:
        found.append(f"has {gib(candidate.vram_bytes)} of VRAM, not {gib(needs.vram_bytes)}")
    if candidate.inventory is not None:
        known = candidate.inventory.classes
        found += [f"has no class `{name}`" for name in sorted(needs.classes) if name not in known]
        for class_type, input_, wanted in sorted(needs.choices, key=repr):
            info = known.get(class_type)
            if info is not None and offers(info, input_, wanted) is False:
                found.append(_lacks(class_type, input_, wanted))
    return found


def lacking(
    graph: Graph, needs: Requirements, candidate: Candidate, problems: Iterable[Problem]
) -> list[GraphPart]:
    """Return the parts of a graph that a node lacks.

    Args:
        graph: The graph.
        needs: What it needs.
        candidate: The node.
        problems: What is certainly wrong with the graph there.
    """
    found = [
        GraphPart(node_id=one.node_id, class_type=one.class_type, field=one.field, what=_what(one))
        for one in problems
    ]
    rest = replace(needs, classes=frozenset(), choices=frozenset())
    found += [GraphPart(node_id="", class_type="", field="", what=text) for text in why_not(rest, candidate)]
    known = candidate.inventory.classes if candidate.inventory is not None else {}
    for class_type, name, wanted in needs.choices:
        info = known.get(class_type)
        if info is None or offers(info, name, wanted) is not False:
            continue
        found += [
            GraphPart(
                node_id=node_id, class_type=class_type, field=name, what=_choice(class_type, name, wanted)
            )
            for node_id, node in graph.items()
            if node["class_type"] == class_type and _same(unwrapped(node["inputs"].get(name)), wanted)
        ]
    return list(dict.fromkeys(found))


def _what(problem: Problem) -> str:
    match problem.kind:
        case ProblemKind.UNKNOWN_CLASS:
            return f"the class `{problem.class_type}`"
        case ProblemKind.FILE_MISSING | ProblemKind.VALUE_NOT_IN_LIST:
            return _choice(problem.class_type, problem.field, problem.value)
    return problem.message


def _choice(class_type: str, name: str, value: object) -> str:
    if looks_like_file(value):
        return f"`{file_place(class_type, name, str(value))}`"
    return f"`{class_type}.{name}` = {clip(repr(value), MOST_SHOWN)}"


def _same(value: object, wanted: object) -> bool:
    return alike(value) == wanted if isinstance(value, str) else value == wanted


def able(
    placement: Placement,
    needs: Requirements,
    candidates: Iterable[Candidate],
    *,
    pools: Sequence[str] | None = None,
) -> frozenset[str]:
    """Return the names of the nodes that may run a job, in any of its pools.

    Cards on which it ran out of memory, and smaller ones, are left out as long as there is a larger one.

    Args:
        placement: Pools, excluded nodes and the largest card that was too small.
        needs: What :attr:`Placement.needs` stands for.
        candidates: All nodes.
        pools: The job's pools, if they are known already.
    """
    nodes = list(candidates)
    wanted = placement.pools({c.node.pool for c in nodes}) if pools is None else pools
    fit = [
        c for c in nodes if c.node.pool in wanted and placement.able([c.node.name]) and not why_not(needs, c)
    ]
    if placement.above:
        larger = [c for c in fit if not 0 < c.vram_bytes <= placement.above]
        largest = max((c.vram_bytes for c in fit), default=0)
        fit = larger or [c for c in fit if c.vram_bytes == largest]
    return frozenset(c.node.name for c in fit)


def sentences(problems: Iterable[Problem]) -> list[str]:
    """Return in words what ``graph_problems.problems`` found, each problem once."""
    found: dict[str, None] = {}
    for problem in problems:
        match problem.kind:
            case ProblemKind.UNKNOWN_CLASS:
                text = f"has no class `{problem.class_type}`"
            case ProblemKind.FILE_MISSING:
                text = _lacks(problem.class_type, problem.field, problem.value)
            case _:
                text = problem.message
        found.setdefault(text)
    return list(found)


def of_every_node(sentence: str) -> str:
    """As :func:`sentences`, about all nodes: ``no node has the class `A```."""
    if sentence.startswith("has no class "):
        return "no node has the class " + sentence.removeprefix("has no class ")
    if sentence.endswith("` missing"):
        return "no node has " + sentence.removesuffix(" missing")
    return f"every node {sentence}"


def gib(size: int) -> str:
    """Return bytes as people speak of cards: ``24 GiB``, ``11.8 GiB``."""
    value = size / GIB
    return f"{value:.0f} GiB" if abs(value - round(value)) < 0.05 else f"{value:.1f} GiB"


_FOLDERS = {
    "ckpt_name": "checkpoints",
    "vae_name": "vae",
    "lora_name": "loras",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
}
_FOLDERS_BY_CLASS = {"CLIPVisionLoader": "clip_vision", "UpscaleModelLoader": "upscale_models"}


def _lacks(class_type: str, name: str, value: object) -> str:
    if not looks_like_file(value):
        return f"`{class_type}.{name}` does not offer {value!r}"
    return f"`{file_place(class_type, name, str(value))}` missing"


def file_place(class_type: str, name: str, file: str) -> str:
    """Return a model file with its folder, if its input tells that: ``vae/ae.safetensors``."""
    return f"{model_folder(class_type, name) or f'{class_type}.{name}'}/{alike(file)}"


def model_folder(class_type: str, name: str) -> str:
    """Return the folder below ``models`` from which an input of a class reads; empty if it is not known."""
    return _FOLDERS_BY_CLASS.get(class_type) or _FOLDERS.get(name, "")


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
