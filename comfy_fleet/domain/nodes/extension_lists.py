"""What nodes say about their editors' extensions (``/extensions``), put together.

A package's scripts are at ``/extensions/PACKAGE/...``. Functions take pairs of a node and its answer, in the
order in which they count. Parts that make no sense are left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

FOLDER = "/extensions/"
OWN = "comfy_fleet"
"""The package that the fleet adds by itself; no node has one of this name."""
MOST_SCRIPTS = 10_000
"""Scripts of one node, and of all together."""
MOST_CHARS = 1000
"""Longest path of a script."""

FRONTEND = "core"
"""The package of the editor itself, which each ComfyUI has in its own version."""


@dataclass(frozen=True, kw_only=True)
class NodeScripts:
    """Scripts of one node: paths by package, in its order."""

    node: str
    packages: Mapping[str, tuple[str, ...]]


def scripts(answers: Iterable[tuple[str, Any]]) -> list[NodeScripts]:
    """Return the nodes' scripts by package."""
    found = []
    for node, answer in answers:
        packages: dict[str, list[str]] = {}
        for path in answer[:MOST_SCRIPTS] if isinstance(answer, list) else ():
            package = package_of(path) if isinstance(path, str) and len(path) <= MOST_CHARS else ""
            if package and package != OWN:
                packages.setdefault(package, []).append(path)
        made = {name: tuple(dict.fromkeys(paths)) for name, paths in packages.items()}
        found.append(NodeScripts(node=node, packages=made))
    return found


def package_of(path: str) -> str:
    """Return the package that a path below :data:`FOLDER` belongs to; empty if it is no such path."""
    if not path.startswith(FOLDER):
        return ""
    package, slash, rest = path.removeprefix(FOLDER).partition("/")
    return unquote(package) if slash and rest else ""


def listed(found: Iterable[NodeScripts]) -> list[str]:
    """Return all scripts: those of the first node, then those of packages that only later ones have."""
    seen: set[str] = set()
    paths: list[str] = []
    for one in found:
        new = {name: its for name, its in one.packages.items() if name not in seen}
        if seen:  # the frontend is the first node's, whatever another version calls its parts
            new.pop(FRONTEND, None)
        paths += (path for its in new.values() for path in its)
        seen |= one.packages.keys()
    return paths[:MOST_SCRIPTS]


def lacking(found: Iterable[NodeScripts], node: str) -> dict[str, list[str]]:
    """Return the packages with scripts that a node lacks, by name, each with the nodes that have it."""
    known = list(found)
    own = next((one.packages for one in known if one.node == node), {})
    others: dict[str, list[str]] = {}
    for one in known:
        for name in one.packages:
            if name not in own and name != FRONTEND:
                others.setdefault(name, []).append(one.node)
    return {name: sorted(nodes) for name, nodes in sorted(others.items())}
