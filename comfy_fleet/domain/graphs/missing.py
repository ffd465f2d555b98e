"""The classes and files of a graph that nodes lack, and how to get them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.errors import InvalidWorkflow
from comfy_fleet.domain.graphs.graph_problems import Problem, ProblemKind
from comfy_fleet.domain.graphs.part_sources import CORE, NO_SOURCE, PartSource, PartSources
from comfy_fleet.domain.text import clip, natural

MOST_PARTS = 20
"""Parts that a refusal explains."""
MOST_NODES = 20
"""Nodes that are named for each."""
MOST_NAME = 300
"""Characters of a name."""
_SHOWN = 3
CLASS_FIELD = "class_type"
"""What the class itself is called among the inputs of a node of a graph."""


class PartKind(StrEnum):
    """What is missing."""

    CLASS = "class"
    FILE = "file"


@dataclass(frozen=True, kw_only=True)
class MissingPart:
    """A class or a file that a graph needs and some nodes lack.

    Attributes:
        kind: Which of both.
        name: The class, or the file as the graph names it.
        class_type: The class; of a file, the one that loads it.
        input: The input that names the file; empty for a class.
        node_ids: Where it is in the graph.
        lacked_by: The nodes that lack it.
        source: Where it can be got.
    """

    kind: PartKind
    name: str
    class_type: str
    input: str = ""
    node_ids: tuple[str, ...] = ()
    lacked_by: tuple[str, ...] = ()
    source: PartSource = field(default=NO_SOURCE)

    def to_json(self) -> dict[str, Any]:
        """Return it as an error's details have it."""
        return {
            "kind": self.kind.value,
            "name": clip(self.name, MOST_NAME),
            "class_type": clip(self.class_type, MOST_NAME),
            "input": clip(self.input, MOST_NAME),
            "node_ids": [clip(one, MOST_NAME) for one in self.node_ids[:MOST_NODES]],
            "lacked_by": list(self.lacked_by[:MOST_NODES]),
            "package": self.source.package,
            "version": self.source.version,
            "url": self.source.url,
            "folder": self.source.folder,
        }

    @property
    def hint(self) -> str:
        """How to get it, and who lacks it, as a part of a sentence."""
        nodes = f"missing on {_names(self.lacked_by)}" if self.lacked_by else ""
        return "; ".join(filter(None, (self.way, nodes)))

    @property
    def way(self) -> str:
        """How to get it, as a part of a sentence; empty if that is not known."""
        found = []
        if self.kind is PartKind.CLASS:
            if self.source.package == CORE:
                version = f", in {self.source.version} for example" if self.source.version else ""
                found.append(f"ComfyUI itself has it{version}")
            elif self.source.package:
                found.append(f"it is in the package {self.source.package} {self.source.version}".rstrip())
        else:
            if self.source.folder:
                found.append(f"it belongs into models/{self.source.folder}")
            if self.source.url:
                found.append(f"the workflow says where it is from: {self.source.url}")
        return "; ".join(found)


class LackingNodes(InvalidWorkflow):
    """No node can run a graph, and it is known what they lack.

    Attributes:
        parts: The classes and files.
    """

    def __init__(self, message: str, *, details: Mapping[str, Any], parts: Sequence[MissingPart]) -> None:
        super().__init__(message, details=details)
        self.parts = tuple(parts)


def missing_parts(
    problems: Mapping[str, Iterable[Problem]], explained: Collection[tuple[str, str]]
) -> list[MissingPart]:
    """Return the classes and files that are missing, each once.

    Args:
        problems: What keeps each node from running the graph.
        explained: The places that a refusal is about: an id in the graph, and an input or
            :data:`CLASS_FIELD`.
    """
    found: dict[tuple[PartKind, str, str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for node in sorted(problems, key=natural):
        for problem in problems[node]:
            if problem.kind is ProblemKind.UNKNOWN_CLASS:
                key = PartKind.CLASS, problem.class_type, problem.class_type, ""
            elif problem.kind is ProblemKind.FILE_MISSING and isinstance(problem.value, str):
                key = PartKind.FILE, problem.value, problem.class_type, problem.field
            else:
                continue
            if (problem.node_id, problem.field or CLASS_FIELD) in explained:
                node_ids, nodes = found.setdefault(key, ({}, {}))
                node_ids[problem.node_id], nodes[node] = None, None
    return [
        MissingPart(
            kind=kind,
            name=name,
            class_type=class_type,
            input=input_,
            node_ids=tuple(node_ids),
            lacked_by=tuple(nodes),
        )
        for (kind, name, class_type, input_), (node_ids, nodes) in list(found.items())[:MOST_PARTS]
    ]


def sourced(parts: Iterable[MissingPart], *known: PartSources) -> list[MissingPart]:
    """Return parts with what is known of where they come from; who comes first counts more.

    A folder that a part has already is the fleet's own knowledge, and stays.
    """
    return [replace(part, source=_joined(part, known)) for part in parts]


def _joined(part: MissingPart, known: Sequence[PartSources]) -> PartSource:
    told = [
        one.of_class(part.class_type)
        if part.kind is PartKind.CLASS
        else one.of_file(part.class_type, part.name)
        for one in known
    ]
    of_package = next((source for source in told if source.package), NO_SOURCE)
    return replace(
        of_package,
        url=next((source.url for source in told if source.url), ""),
        folder=next((source.folder for source in (part.source, *told) if source.folder), ""),
    )


def _names(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more
