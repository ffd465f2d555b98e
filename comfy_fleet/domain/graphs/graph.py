"""A ComfyUI graph in API format: checked, searched, and made ready for one run.

A graph is JSON: node id → ``{"class_type", "inputs", ...}``; an input is a value or a link
``[node id, slot]``. Every other key of a node (``_meta``, ``is_changed``, ...) is normal and kept.
Nothing here changes a graph that it was given.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from comfy_fleet.domain.errors import MissingAsset
from comfy_fleet.domain.graphs.file_access import KNOWN, STAGING, Use, Uses, names_prefix, use_of
from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.graphs.inputs import unwrapped
from comfy_fleet.domain.graphs.saved_names import expanded, safe_path
from comfy_fleet.domain.graphs.structure import MAX_NODES, Graph, check, is_link

__all__ = [
    "ASSET_TYPE",
    "BUST_INPUT",
    "COSTLY",
    "MAX_NODES",
    "AssetReference",
    "Graph",
    "NamedFile",
    "Path",
    "Place",
    "asset_places",
    "asset_reference",
    "asset_references",
    "check",
    "classes",
    "copied",
    "for_run",
    "is_link",
    "part",
    "place_names",
    "profile",
    "sinks",
    "texts_in",
    "with_texts",
]

Path: TypeAlias = tuple[str | int, ...]
"""Where a value is in a node's inputs: the input's name, then keys and indices inside it."""
Place: TypeAlias = tuple[str, Path]
"""Node id and path."""

ASSET_TYPE = "core/ASSET"
BUST_INPUT = "fleet_run"


@dataclass(frozen=True, kw_only=True)
class AssetReference:
    """A ``core/ASSET`` object in a graph.

    Attributes:
        node_id: The node it is in.
        input: The input it is in.
        path: Where exactly; begins with ``input``.
        asset_id: ``info.id``: the only part that counts.
    """

    node_id: str
    input: str
    path: Path
    asset_id: str

    @property
    def place(self) -> Place:
        """Key for the replacements of :func:`for_run`."""
        return self.node_id, self.path


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A text that may name a file of the owner's, as in ``LoadImage``.

    Attributes:
        path: Where it is in the node's inputs.
        folder: The folder in which it is.
        name: Its name there, with subfolders: ``photo.png`` of ``photo.png [output]``.
    """

    node_id: str
    path: Path
    folder: Folder
    name: str

    @property
    def place(self) -> Place:
        """Key for the replacements of :func:`for_run`."""
        return self.node_id, self.path


def asset_references(graph: Graph) -> tuple[AssetReference, ...]:
    """Find every ``core/ASSET`` object, at any depth of any input.

    Raises:
        MissingAsset: One has no usable ``info.id``.
    """
    found = []
    for node_id, path, value in _objects(graph):
        if value.get("__type") != ASSET_TYPE:
            continue
        info = value.get("info")
        asset_id = info.get("id") if isinstance(info, dict) else None
        if not isinstance(asset_id, str) or not asset_id:
            raise MissingAsset(
                f"node {node_id}, input {path[0]}: the asset reference has no info.id",
                details={"field": "workflow", "node_id": node_id, "input": str(path[0])},
            )
        found.append(AssetReference(node_id=node_id, input=str(path[0]), path=path, asset_id=asset_id))
    return tuple(found)


def asset_reference(asset_id: str) -> dict[str, Any]:
    """Return the object that stands for an asset inside a graph."""
    return {"__type": ASSET_TYPE, "info": {"id": asset_id}}


def texts_in(path: Path, value: object) -> Iterator[tuple[Path, str]]:
    """Walk every text inside the value at ``path`` except those of asset references."""
    # check() has limited the depth, so this recursion ends.
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict) and value.get("__type") != ASSET_TYPE:
        for key, inner in value.items():
            yield from texts_in((*path, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts_in((*path, index), inner)


def place_names(assets: Mapping[Place, str]) -> dict[str, str]:
    """Return the assets by place, in the form of :attr:`NewJob.uploads`: by ``NODE/INPUT[/KEY ...]``."""
    return {place_name(place): asset_id for place, asset_id in assets.items()}


def asset_places(graph: Graph, uploads: Mapping[str, str]) -> dict[Place, str]:
    """Return the assets by place: the inverse of :func:`place_names`.

    References that were not recorded are included; the caller must refuse them.
    """
    places: dict[Place, str] = {one.place: one.asset_id for one in asset_references(graph)}
    if uploads:
        for node_id, node in graph.items():
            for name, value in node["inputs"].items():
                for path, _ in texts_in((name,), value):
                    if asset_id := uploads.get(place_name((node_id, path))):
                        places[node_id, path] = asset_id
    return places


def place_name(place: Place) -> str:
    """Return a place as :func:`place_names` writes it."""
    node_id, path = place
    return "/".join([node_id, *map(str, path)])


def with_texts(graph: Graph, texts: Mapping[Place, str]) -> Graph:
    """Return a copy with other texts in some places."""
    made = copied(graph)
    for (node_id, path), text in texts.items():
        inside: Any = made[node_id]["inputs"]
        for step in path[:-1]:
            inside = inside[step]
        inside[path[-1]] = text
    return made


def copied(graph: Graph) -> Graph:
    """Return a copy whose inputs can be changed without changing the original's."""
    return {node_id: {**node, "inputs": _copied(node["inputs"])} for node_id, node in graph.items()}


def upstream(graph: Graph, node_ids: Iterable[str]) -> set[str]:
    """Return these nodes and those that they read, directly or not."""
    waiting = list(node_ids)
    found: set[str] = set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in found and node_id in graph:
            found.add(node_id)
            waiting.extend(value[0] for value in graph[node_id]["inputs"].values() if is_link(value))
    return found


def sinks(graph: Graph) -> tuple[str, ...]:
    """Return the nodes that no other node reads, in the graph's order."""
    read = {value[0] for node in graph.values() for value in node["inputs"].values() if is_link(value)}
    return tuple(node_id for node_id in graph if node_id not in read)


def part(graph: Graph, wanted: Collection[str]) -> Graph:
    """Return the graph with only these nodes."""
    return {node_id: node for node_id, node in graph.items() if node_id in wanted}


def classes(graph: Graph) -> frozenset[str]:
    """Return the node classes that the graph uses."""
    return frozenset(node["class_type"] for node in graph.values())


COSTLY = frozenset({"steps", "width", "height", "batch_size", "length", "frames", "megapixels", "scale_by"})
"""The inputs that a graph's duration depends on most."""


_MODELS = frozenset({"ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "clip_name3"})


def profile(graph: Graph) -> str:
    """Return the key for the graph's statistics of duration and memory: classes, costly inputs, models.

    Prompts, seeds, LoRAs and other files don't count, so that a graph's variations share their statistics.
    """
    lines = Counter[str]()
    for node in graph.values():
        costs = sorted(
            f"{name}={value!r}"
            for name, value in node["inputs"].items()
            if (name in COSTLY or name in _MODELS) and isinstance(value, int | float | str)
        )
        lines[" ".join([node["class_type"], *costs])] += 1
    text = "\n".join(f"{count} {line}" for line, count in sorted(lines.items()))
    return "graph:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def for_run(
    graph: Graph,
    *,
    job_id: str,
    run_id: str,
    replacements: Mapping[Place, str] | None = None,
    rerun_nodes: frozenset[str] = frozenset(),
    saves: Mapping[str, Uses] = KNOWN,
    at: datetime | None = None,
) -> Graph:
    """Return the graph as one run posts it.

    Files get the names under which they are staged on the node, and everything that is saved goes below
    ``fleet/JOB/RUN/``. That keeps users apart, leaves one folder to clean up, and makes the save nodes run
    again where ComfyUI's cache would name a file that is gone.

    Args:
        graph: A checked graph.
        job_id: Letters, digits, ``-`` and ``_``.
        run_id: The same.
        replacements: The new value for a place: the staged name of an asset or an upload.
        rerun_nodes: Nodes that must not come from the cache although they have no file prefix. They get an
            input ``fleet_run`` that no class declares: ComfyUI ignores it when it validates and calls the
            node, but it is part of the cache's key.
        saves: What the inputs of each class name.
        at: The time that ``%date:...%`` in a saved file's name stands for, as the editor would write it.
    """
    if not (_SAFE_ID.fullmatch(job_id) and _SAFE_ID.fullmatch(run_id)):
        raise ValueError("job_id and run_id must consist of letters, digits, '-' and '_'")
    folder = f"{STAGING}/{job_id}/{run_id}"
    by_node: dict[str, dict[Path, str]] = {}
    for (node_id, path), value in (replacements or {}).items():
        by_node.setdefault(node_id, {})[path] = value
    result: Graph = {}
    for node_id, node in graph.items():
        places = by_node.get(node_id, {})
        inputs = {
            name: _replaced(value, (name,), places) if places else _copied(value)
            for name, value in node["inputs"].items()
        }
        inputs.update(_saved_below(folder, graph, inputs, saves.get(node["class_type"], {}), at))
        if node_id in rerun_nodes:
            inputs[BUST_INPUT] = run_id
        meta = node.get("_meta")
        # A server that replaces the class with another one copies this, and fails if it is missing.
        result[node_id] = {**node, "inputs": inputs, "_meta": meta if isinstance(meta, dict) else {}}
    return result


# ----------------------------------------------------------------------------------------------------


def _saved_below(
    folder: str, graph: Graph, inputs: Mapping[str, Any], uses: Uses, at: datetime | None
) -> dict[str, str]:
    """Return new values for the inputs that say where a node saves, missing ones included."""
    # Without a value the class takes its own default, which is the same for every job.
    left_out = [name for name in uses if name not in inputs and "." not in name]
    targets = [name for name in (*inputs, *left_out) if use_of(uses, name) is Use.TARGET]
    found = {}
    for name in (*inputs, *left_out):
        # Newer nodes name inputs inside a group "group.input".
        use = use_of(uses, name)
        if use in (Use.PREFIX, Use.TARGET) or (use is None and names_prefix(name)):
            path = safe_path(expanded(_literal(graph, inputs.get(name)), graph, at))
            # A prefix that is joined to a folder can't create folders in it.
            joined = targets and name not in targets
            found[name] = path.rpartition("/")[2] if joined else f"{folder}/{path}"
    return found


_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _objects(graph: Graph) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Walk every object inside the inputs, in the graph's order."""
    for node_id, node in graph.items():
        stack: list[tuple[Path, object]] = [((name,), v) for name, v in reversed(node["inputs"].items())]
        while stack:
            path, value = stack.pop()
            if isinstance(value, dict):
                yield node_id, path, value
                stack.extend(((*path, key), inner) for key, inner in reversed(value.items()))
            elif isinstance(value, list):
                stack.extend(((*path, i), inner) for i, inner in reversed(list(enumerate(value))))


def _copied(value: Any) -> Any:
    # check() has limited the depth, so this recursion ends.
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value


def _replaced(value: Any, path: Path, places: Mapping[Path, str]) -> Any:
    if path in places:
        return places[path]
    if isinstance(value, dict):
        return {key: _replaced(inner, (*path, key), places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, (*path, i), places) for i, inner in enumerate(value)]
    return value


def _literal(graph: Graph, value: object) -> str:
    """Return a prefix's text; for a link, only if it leads to a node that holds a fixed text."""
    if is_link(value):
        value = graph[value[0]]["inputs"].get("value")
    value = unwrapped(value)
    if isinstance(value, int | float):
        return str(value)  # as ComfyUI does where it expects a text
    return value if isinstance(value, str) else ""
