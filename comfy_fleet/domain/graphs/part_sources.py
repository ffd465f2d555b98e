"""Where the classes and files of a graph come from, as the editor's form of the graph says it.

ComfyUI's editor keeps with each node the package of its class (``cnr_id``, ``ver``) and, in templates, where
its model files can be got (``models``: name, URL, folder). All of it is written by whoever made the graph, so
it is a hint for people: it is bounded, it is shown, and nothing is ever fetched.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

MOST_NODES, MOST_SUBGRAPHS, MOST_MODELS = 20_000, 1000, 20_000
"""How much of a graph is read."""
MOST_URL = 1000
"""Longest URL that is shown, in characters."""
CORE = "comfy-core"
"""What the editor calls ComfyUI itself."""
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9_.-]{0,99})?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){0,5}")
_URL = re.compile(rf"https?://[!-~]{{1,{MOST_URL - 8}}}", re.IGNORECASE)
_AWKWARD = frozenset("\"'<>\\^`{|}")
"""What no URL holds unescaped."""


@dataclass(frozen=True, kw_only=True)
class PartSource:
    """Where a class or a file comes from; what is not known is empty.

    Attributes:
        package: The package of a class, as ComfyUI's registry calls it, or ``OWNER/REPOSITORY``.
        version: The package's version, or its commit.
        url: Where a file can be got.
        folder: Below ``models``.
    """

    package: str = ""
    version: str = ""
    url: str = ""
    folder: str = ""

    @property
    def is_known(self) -> bool:
        """Whether it says where to get the part, and not only where to put it."""
        return bool(self.package or self.url)


NO_SOURCE = PartSource()


@dataclass(frozen=True, kw_only=True)
class PartSources:
    """What a graph says of its parts.

    Attributes:
        classes: By class.
        files: By class and file name, and by file name alone (with an empty class). A name is the last part
            of a path.
    """

    classes: Mapping[str, PartSource] = field(default_factory=dict)
    files: Mapping[tuple[str, str], PartSource] = field(default_factory=dict)

    def of_class(self, class_type: str) -> PartSource:
        """Return what is known of a class."""
        return self.classes.get(class_type, NO_SOURCE)

    def of_file(self, class_type: str, file: str) -> PartSource:
        """Return what is known of a file that a class loads."""
        name = base_name(file)
        return self.files.get((class_type, name)) or self.files.get(("", name), NO_SOURCE)


def base_name(path: str) -> str:
    """Return the last part of a path of either kind of system."""
    return path.replace("\\", "/").rpartition("/")[2]


def part_sources(workflow: object) -> PartSources:
    """Read what a graph in the editor's format says of its parts.

    Args:
        workflow: Hostile; what is not of the editor's form is left out.
    """
    classes: dict[str, PartSource] = {}
    files: dict[tuple[str, str], PartSource] = {}
    if not isinstance(workflow, Mapping):
        return PartSources()
    for model in _list(workflow.get("models"), MOST_MODELS):
        _note_model(files, "", model)
    for node in islice(_nodes(workflow), MOST_NODES):
        class_type, about = node.get("type"), node.get("properties")
        if not isinstance(class_type, str) or not isinstance(about, Mapping):
            continue
        if class_type not in classes and (found := _package(about)) is not None:
            classes[class_type] = found
        for model in _list(about.get("models"), MOST_MODELS - len(files)):
            _note_model(files, class_type, model)
    return PartSources(classes=classes, files=files)


def checked_url(value: object) -> str:
    """Return a URL that may be shown; nothing if it is not one of the web, or hides where it leads."""
    if not isinstance(value, str) or not _URL.fullmatch(value) or not _AWKWARD.isdisjoint(value):
        return ""
    try:
        parts = urlsplit(value)
        named = parts.hostname and parts.port != 0
    except ValueError:
        return ""
    return value if named and "@" not in parts.netloc else ""


def checked_folder(value: object) -> str:
    """Return a folder below ``models``; nothing if it is none."""
    found = _text(value, _FOLDER)
    return "" if ".." in found else found


# ----------------------------------------------------------------------------------------------------


def _nodes(workflow: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """Yield the nodes of a graph and of its subgraphs, which stand beside each other."""
    definitions = workflow.get("definitions")
    inner = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    for graph in (workflow, *_list(inner, MOST_SUBGRAPHS)):
        nodes = graph.get("nodes")
        yield from (node for node in _list(nodes, MOST_NODES))


def _list(value: object, most: int) -> list[Mapping[Any, Any]]:
    found = value[: max(0, most)] if isinstance(value, list) else []
    return [one for one in found if isinstance(one, Mapping)]


def _package(about: Mapping[Any, Any]) -> PartSource | None:
    name = _text(about.get("cnr_id"), _PACKAGE) or _text(about.get("aux_id"), _PACKAGE)
    return PartSource(package=name, version=_text(about.get("ver"), _VERSION)) if name else None


def _note_model(files: dict[tuple[str, str], PartSource], class_type: str, model: Mapping[Any, Any]) -> None:
    name = model.get("name")
    if not isinstance(name, str) or not name:
        return
    source = PartSource(url=checked_url(model.get("url")), folder=checked_folder(model.get("directory")))
    if source != NO_SOURCE:
        files.setdefault((class_type, base_name(name)), source)
        files.setdefault(("", base_name(name)), source)


def _text(value: object, pattern: re.Pattern[str]) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""
