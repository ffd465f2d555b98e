"""A ComfyUI graph in API format: checked, searched, and made ready for one run.

A graph is JSON: node id → ``{"class_type", "inputs", ...}``; an input is a value or a link
``[node id, slot]``. Every other key of a node (``_meta``, ``is_changed``, ...) is normal and kept.
Nothing here changes a graph that it was given.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypeGuard, cast

from comfy_fleet.domain.errors import InvalidWorkflow, MissingAsset, WorkflowFormatUi

Graph: TypeAlias = dict[str, dict[str, Any]]
Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in a node's inputs: the input's name, then keys and indices inside it."""
Place: TypeAlias = tuple[str, Path]
"""Node id and path."""

MAX_NODES = 10_000
MAX_DEPTH = 64
ASSET_TYPE = "core/ASSET"
BUST_INPUT = "fleet_run"

# What fits into JSON as every reader of ours (and SQLite's and JavaScript's tools) can hold it.
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class AssetReference:
    """A ``core/ASSET`` object in a graph.

    Attributes:
        node_id: The node it stands in.
        input: The input it stands in.
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
class NamedUpload:
    """An input that names an uploaded file, as ``LoadImage`` does.

    Attributes:
        name: The file's name without ComfyUI's annotation, e.g. ``photo.png`` of ``photo.png [input]``.
    """

    node_id: str
    input: str
    name: str

    @property
    def place(self) -> Place:
        """Key for the replacements of :func:`for_run`."""
        return self.node_id, (self.input,)


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Tell whether an input is a link to another node's output, by ComfyUI's own rule."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def check(graph: object, *, max_nodes: int = MAX_NODES) -> Graph:
    """Return ``graph`` typed, if its structure is sound; whether a node can run it is not asked here.

    Raises:
        WorkflowFormatUi: It is the editor's own format.
        InvalidWorkflow: It has defects; ``details["node_errors"]`` lists ``{field, reason, message}`` by
            node id. Reasons: ``not_an_object``, ``missing_class_type``, ``missing_inputs``, ``bad_value``,
            ``bad_link``, ``unknown_node``, ``cycle``.
    """
    if not isinstance(graph, dict):
        raise InvalidWorkflow(
            f"the workflow is {_kind(graph)}; it must be an object of nodes by id (ComfyUI: Export (API))",
            details={"field": "workflow", "node_errors": {}},
        )
    _refuse_editor_format(graph)
    if not graph:
        raise InvalidWorkflow("the workflow has no nodes", details={"field": "workflow", "node_errors": {}})
    if len(graph) > max_nodes:
        raise InvalidWorkflow(
            f"the workflow has {len(graph)} nodes; at most {max_nodes} are taken",
            details={"field": "workflow", "limit": max_nodes, "node_errors": {}},
        )
    errors: dict[str, list[dict[str, str]]] = {}
    for node_id, node in graph.items():
        if found := list(_node_defects(graph, node_id, node)):
            errors[str(node_id)] = [
                {"field": field, "reason": reason, "message": message} for field, reason, message in found
            ]
    if not errors:
        for node_id, field in _cycle(cast(Graph, graph)):
            errors[node_id] = [
                {"field": field, "reason": "cycle", "message": f"{field} closes a circle of links"}
            ]
    if errors:
        node_id, defects = next(iter(errors.items()))
        rest = sum(map(len, errors.values())) - 1
        more = f" (and {rest} more)" if rest else ""
        raise InvalidWorkflow(
            f"node {node_id}: {defects[0]['message']}{more}",
            details={"field": "workflow", "node_errors": errors},
        )
    return cast(Graph, graph)


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


UPLOADS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "LoadImage": frozenset({"image"}),
        "LoadImageMask": frozenset({"image"}),
        "LoadImageOutput": frozenset({"image"}),
        "LoadAudio": frozenset({"audio"}),
        "LoadVideo": frozenset({"file"}),
        "Load3D": frozenset({"model_file"}),
        "Load3DAnimation": frozenset({"model_file"}),
        "VHS_LoadVideo": frozenset({"video"}),
        "VHS_LoadAudioUpload": frozenset({"audio"}),
    }
)
"""Inputs that name uploaded files, by class: what is known without asking a node."""


def upload_candidates(
    graph: Graph, uploads: Mapping[str, frozenset[str]] | None = None
) -> tuple[NamedUpload, ...]:
    """Find the inputs that name an uploaded file.

    Files of a node's own ``output`` and ``temp`` folders (``name [output]``) are no uploads.

    Args:
        graph: A checked graph.
        uploads: Such inputs by class, from :attr:`comfy_fleet.domain.inventory.Inventory.uploads`;
            :data:`UPLOADS` when no node's inventory is known.
    """
    known = UPLOADS if uploads is None else uploads
    found = []
    for node_id, node in graph.items():
        for name in sorted(known.get(node["class_type"], ())):
            value = node["inputs"].get(name)
            if not isinstance(value, str) or not value:
                continue
            file, _, folder = value.rpartition(" [") if value.endswith("]") else (value, "", "input]")
            if folder in ("output]", "temp]"):
                continue
            file = file if folder == "input]" else value
            found.append(NamedUpload(node_id=node_id, input=name, name=file.strip()))
    return tuple(found)


def copied(graph: Graph) -> Graph:
    """Return a copy that shares nothing that could be changed with the original's inputs."""
    return {node_id: {**node, "inputs": _copied(node["inputs"])} for node_id, node in graph.items()}


def classes(graph: Graph) -> frozenset[str]:
    """Return the node classes that the graph uses."""
    return frozenset(node["class_type"] for node in graph.values())


COSTLY = frozenset({"steps", "width", "height", "batch_size", "length", "frames", "megapixels", "scale_by"})
"""Inputs that a graph's duration hangs on most."""


def profile(graph: Graph) -> str:
    """Return what the graph's duration is remembered under: its classes and its costly inputs.

    Prompts, seeds and file names don't count, so that a graph's variations share their statistics.
    """
    lines = Counter[str]()
    for node in graph.values():
        costs = sorted(
            f"{name}={value!r}"
            for name, value in node["inputs"].items()
            if name in COSTLY and isinstance(value, int | float | str)
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
    bust: frozenset[str] = frozenset(),
) -> Graph:
    """Return the graph as one run posts it.

    Files are named as they are staged on the node, and everything that is saved goes below
    ``fleet/JOB/RUN/``: that keeps users apart, makes clean-up a matter of one folder, and makes the save
    nodes run again where ComfyUI's cache would name a file that is gone.

    Args:
        graph: A checked graph.
        job_id: Letters, digits, ``-`` and ``_``.
        run_id: The same.
        replacements: What stands at a place instead: the staged name of an asset or an upload.
        bust: Nodes that must not come from the cache though they have no file prefix. They get an
            input ``fleet_run`` that no class declares: ComfyUI leaves it out of validation and call, but
            counts it in the cache's key.
    """
    if not (_SAFE_ID.fullmatch(job_id) and _SAFE_ID.fullmatch(run_id)):
        raise ValueError("job_id and run_id must consist of letters, digits, '-' and '_'")
    folder = f"fleet/{job_id}/{run_id}"
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
        for name in inputs:
            # Newer nodes name inputs inside a group "group.input".
            if name.rpartition(".")[2] == "filename_prefix":
                inputs[name] = f"{folder}/{_safe_prefix(_literal(graph, inputs[name]))}"
        if node_id in bust:
            inputs[BUST_INPUT] = run_id
        result[node_id] = {**node, "inputs": inputs}
    return result


# ----------------------------------------------------------------------------------------------------

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# ComfyUI fills in %width% and the like, its editor %date:yyyy-MM-dd% and %Node.input%.
_TOKEN = re.compile(r"(%[A-Za-z][^%/\\\x00-\x1f\x7f]{0,80}%)")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*%\ud800-\udfff]')


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "not JSON")


def _is_editor_format(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("nodes"), list)
        and any(key in value for key in ("links", "last_node_id", "last_link_id", "version"))
    )


def _refuse_editor_format(graph: Mapping[Any, Any]) -> None:
    where = None
    if _is_editor_format(graph):
        where = "the workflow is"
    else:
        nested = [key for key, value in graph.items() if _is_editor_format(value)]
        if nested:
            where = f"{nested[0]!r} inside the workflow is"
    if where:
        raise WorkflowFormatUi(
            f"{where} the editor's own format (nodes and links); export it with Workflow > Export (API)",
            details={"field": "workflow"},
        )
    for key in ("prompt", "workflow"):
        inner = graph.get(key)
        if isinstance(inner, dict) and "class_type" not in inner and len(graph) <= 4:
            first = next(iter(inner.values()), None)
            if isinstance(first, dict) and "class_type" in first:
                raise InvalidWorkflow(
                    f"the graph is wrapped in {key!r}; send what is inside",
                    details={"field": "workflow", "node_errors": {}},
                )


def _node_defects(graph: Mapping[Any, Any], node_id: object, node: object) -> Iterator[tuple[str, str, str]]:
    if not isinstance(node_id, str) or not node_id:
        yield "id", "bad_value", "a node's id must be a string that is not empty"
    elif _bad_text(node_id):
        yield "id", "bad_value", "the node's id is not valid Unicode"
    if not isinstance(node, dict):
        yield "", "not_an_object", f"a node must be an object, not {_kind(node)}"
        return
    class_type = node.get("class_type")
    if class_type is None:
        yield "class_type", "missing_class_type", "class_type is missing"
    elif not isinstance(class_type, str) or not class_type:
        yield "class_type", "missing_class_type", "class_type must be the name of a node class"
    inputs = node.get("inputs")
    if inputs is None:
        yield "inputs", "missing_inputs", "inputs is missing; a node without inputs has an empty object"
    elif not isinstance(inputs, dict):
        yield "inputs", "not_an_object", f"inputs must be an object, not {_kind(inputs)}"
    for key, value in node.items():
        if key != "inputs" and (why := _bad_json(value)):
            yield str(key), "bad_value", f"{key} {why}"
    if not isinstance(inputs, dict):
        return
    for name, value in inputs.items():
        if why := _bad_json({name: value}):
            yield str(name), "bad_value", f"{name} {why}"
        elif defect := _link_defect(graph, value):
            yield str(name), *defect


def _link_defect(graph: Mapping[Any, Any], value: object) -> tuple[str, str] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    source, slot = value
    if isinstance(source, str) and isinstance(slot, int | float):
        if source not in graph:
            return "unknown_node", f"links to node {source!r}, which the graph does not have"
        if isinstance(slot, bool) or not isinstance(slot, int) or slot < 0:
            return "bad_link", f"links to slot {slot!r}; a slot is a whole number from 0"
    elif isinstance(source, str) and source in graph and slot is None:
        return "bad_link", "links to slot null; a slot is a whole number from 0"
    elif type(source) is int and type(slot) is int and source not in graph and str(source) in graph:
        # A slip of hand-written clients. A declared input can't hold such a list otherwise: ComfyUI
        # takes every list of two for a link.
        return "bad_link", f'links to node {source}; ids in links are strings: ["{source}", {slot}]'
    return None


def _bad_text(value: str) -> bool:
    return not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)


def _bad_json(value: object) -> str | None:
    """Say what is wrong with a value, if JSON can't carry it from here to a node unchanged."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                if _bad_text(item):
                    return "holds text that is not valid Unicode"
            elif isinstance(item, dict):
                if any(not isinstance(key, str) or _bad_text(key) for key in item):
                    return "holds a key that is not valid text"
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, bool) or item is None:
                continue
            elif isinstance(item, int):
                if not _MIN_INT <= item <= _MAX_INT:
                    return "holds a number of more than 64 bits"
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return "holds NaN or an infinite number"
            else:
                return "holds something that is not JSON"
        if not below:
            return None
        level = below
    return f"is nested deeper than {MAX_DEPTH} levels"


def _cycle(graph: Graph) -> list[tuple[str, str]]:
    """Return one circle of links as (node id, input), or nothing. Iterative: chains may be long."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        trail: list[tuple[str, str, Iterator[tuple[str, str]]]] = [(start, "", _sources(graph, start))]
        on_trail = {start: 0}
        while trail:
            node_id, _, links = trail[-1]
            for name, source in links:
                if source in on_trail:
                    ring = trail[on_trail[source] :]
                    fields = [entry[1] for entry in ring[1:]] + [name]
                    return [(entry[0], field) for entry, field in zip(ring, fields, strict=True)]
                if source not in done:
                    on_trail[source] = len(trail)
                    trail.append((source, name, _sources(graph, source)))
                    break
            else:
                trail.pop()
                del on_trail[node_id]
                done.add(node_id)
    return []


def _sources(graph: Graph, node_id: str) -> Iterator[tuple[str, str]]:
    for name, value in graph[node_id]["inputs"].items():
        if is_link(value):
            yield name, value[0]


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
    """Return a prefix's text; of a link only where the other end is a node that holds a fixed text."""
    if is_link(value):
        value = graph[value[0]]["inputs"].get("value")
    return value if isinstance(value, str) else ""


def _safe_prefix(original: str) -> str:
    """Make a relative path of at most 160 characters that can't leave its folder on any host."""
    parts = []
    for part in original.replace("\\", "/").split("/"):
        pieces = _TOKEN.split(part)
        pieces[::2] = [_UNSAFE.sub("_", piece) for piece in pieces[::2]]
        # Windows drops dots and blanks at a name's end, and ".." is nothing but them.
        if name := "".join(pieces).strip()[:80].rstrip(". "):
            parts.append(name)
    while len("/".join(parts)) > 160:
        parts.pop(0)
    return "/".join(parts) or "output"
