"""Which model files a graph names, whatever its classes are.

An enumeration of files tells by itself. Other values name a model file if nodes list it, if they lead into
such an enumeration, or if nothing is known of the class that has them and they look like one. Subgraphs are
flat in a graph (``12:3``), and members of groups are named ``group.member``: neither matters here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from comfy_fleet.domain.graphs.file_access import Use, names_prefix, use_of
from comfy_fleet.domain.graphs.graph import ASSET_TYPE, Graph, is_link
from comfy_fleet.domain.graphs.inputs import Inputs, InputSpec, alike, looks_like_file, unwrapped
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory

LONGEST = 300
"""Characters of a value that may be a file's name; a longer one is a text."""

_SETTINGS = (".yaml",)
"""Files of model folders that are read once and never held."""
_NO_MODELS = frozenset({Use.SHOWN, Use.PREFIX, Use.TARGET})
_SWITCHES = ("on", "enabled", "active")
"""Keys of an object among a class's values that say whether the rest of it counts."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model file, and where a graph names it.

    Attributes:
        name: With its folders, and ``/`` between them.
        class_type: The class that loads it.
        input: The input that names it there.
        choices: What the input offers instead; empty if that is not known.
    """

    name: str
    class_type: str
    input: str
    choices: tuple[Any, ...] = ()


def named_models(
    graph: Graph, inventories: Sequence[Inventory], is_listed: Callable[[str], bool]
) -> list[NamedModel]:
    """Return the model files that a graph names, each place once.

    Args:
        graph: What runs of a checked graph.
        inventories: The fleet's, each different one once.
        is_listed: Whether some node lists a file of this name in a folder of models.
    """
    feeds: dict[str, _Place] | None = None
    found: dict[tuple[str, str, str], NamedModel] = {}
    for node_id, name, text in _candidates(graph):
        info, inputs = _laid_out(graph[node_id], inventories)
        spec = inputs.input(name) if inputs else None
        if feeds is None and info is not None and (spec is None or spec.options is None):
            feeds = _feeds(graph, inventories)  # seldom needed
        feeding = (feeds or {}).get(node_id)
        file = alike(text)
        if not _names(info, spec, name, sure=feeding is not None) and not (
            is_listed(file) and _may_name(info, name)
        ):
            continue
        place = _Place(graph[node_id]["class_type"], name, () if spec is None else spec.options or ())
        if feeding is not None and not place.choices:
            place = feeding
        one = NamedModel(name=file, class_type=place.class_type, input=place.input, choices=place.choices)
        found.setdefault((file, one.class_type, one.input), one)
    return list(found.values())


# ----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """An input that takes files, and what it offers."""

    class_type: str
    input: str
    choices: tuple[Any, ...]


def _candidates(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """Walk node, input and text of everything that looks like a model file."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                if _may_be(value):
                    yield node_id, name, value
            elif isinstance(value, list | dict) and not is_link(value):
                yield from ((node_id, name, text) for text in _texts(unwrapped(value)) if _may_be(text))


def _laid_out(
    node: Mapping[str, Any], inventories: Sequence[Inventory]
) -> tuple[ClassInfo | None, Inputs | None]:
    for known in inventories:
        if (info := known.classes.get(node["class_type"])) is not None:
            return info, info.laid_out(node["inputs"])
    return None, None


def _feeds(graph: Graph, inventories: Sequence[Inventory]) -> dict[str, _Place]:
    """Return the nodes whose value another one takes as a file's name, and where."""
    found: dict[str, _Place] = {}
    for node in graph.values():
        links = [(name, value) for name, value in node["inputs"].items() if is_link(value)]
        _, inputs = _laid_out(node, inventories) if links else (None, None)
        for name, value in links:
            spec = inputs.input(name) if inputs else None
            if spec is not None and _offers_models(spec):
                found.setdefault(value[0], _Place(node["class_type"], name, spec.options or ()))
    return found


def _offers_models(spec: InputSpec) -> bool:
    return spec.options is not None and not spec.upload and any(map(looks_like_file, spec.options))


def _names(info: ClassInfo | None, spec: InputSpec | None, name: str, *, sure: bool) -> bool:
    """Return whether a text that looks like a model file is one, without knowing what nodes have."""
    if info is None:
        return not names_prefix(name)
    if spec is not None and spec.options is not None:
        return not spec.upload
    return sure and _may_name(info, name)


def _may_name(info: ClassInfo | None, name: str) -> bool:
    return not names_prefix(name) and (info is None or use_of(info.files, name) not in _NO_MODELS)


def _may_be(text: str) -> bool:
    return (
        len(text) <= LONGEST
        and looks_like_file(text)
        and not text.lower().endswith(_SETTINGS)
        and text.isprintable()
    )


def _texts(value: object) -> Iterator[str]:
    """Walk the texts of a value, but not what it switches off itself."""
    # A checked graph is not deep, so this ends.
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict) and not _is_off(value):
        for inner in value.values():
            yield from _texts(inner)


def _is_off(value: Mapping[str, Any]) -> bool:
    return value.get("__type") == ASSET_TYPE or any(value.get(key) is False for key in _SWITCHES)
