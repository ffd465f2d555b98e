"""Small graphs in the form that ComfyUI's editor saves: no model, a few seconds at most."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

GREEN = 0x20C060


@dataclass
class EditorGraph:
    """A graph with its places on the canvas, built node by node from left to right."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: str(uuid4()))

    def add(
        self,
        type_: str,
        *values: Any,
        source: int | None = None,
        into: str = "",
        gives: str = "",
        title: str = "",
    ) -> int:
        """Add a node.

        Args:
            type_: Its class.
            values: Its widgets' values, in order.
            source: The node whose first output it takes.
            into: The name of the input that takes it.
            gives: The type of its only output; none if empty.
            title: Its title, if not the usual one.

        Returns:
            Its id.
        """
        number = len(self.nodes) + 1
        inputs: list[dict[str, Any]] = []
        if source is not None:
            kind = self.nodes[source - 1]["outputs"][0]["type"]
            link = len(self.links) + 1
            self.links.append([link, source, 0, number, 0, kind])
            self.nodes[source - 1]["outputs"][0]["links"].append(link)
            inputs = [{"name": into, "type": kind, "link": link}]
        self.nodes.append(
            {
                "id": number,
                "type": type_,
                "pos": [80 + 300 * (number - 1), 160],
                "size": [240, 200],
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": inputs,
                "outputs": [{"name": gives, "type": gives, "links": []}] if gives else [],
                "properties": {"Node name for S&R": type_},
                "widgets_values": list(values),
            }
            | ({"title": title} if title else {})
        )
        return number

    def document(self) -> dict[str, Any]:
        """Return the graph as the editor saves it."""
        return {
            "id": self.id,
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.8, "offset": [0, 60]}},
            "version": 0.4,
        }

    def write(self, path: Path) -> Path:
        """Write it to a file."""
        path.write_text(json.dumps(self.document()))
        return path


def picture(prefix: str = "shown", *, color: int = GREEN, size: int = 64) -> EditorGraph:
    """EmptyImage -> SaveImage."""
    graph = EditorGraph()
    made = graph.add("EmptyImage", size, size, 1, color, gives="IMAGE")
    graph.add("SaveImage", prefix, source=made, into="images")
    return graph


def preview(*, color: int = GREEN) -> EditorGraph:
    """EmptyImage -> PreviewImage."""
    graph = EditorGraph()
    made = graph.add("EmptyImage", 64, 64, 1, color, gives="IMAGE")
    graph.add("PreviewImage", source=made, into="images")
    return graph


def steps(
    prefix: str = "steps", *, steps: int = 10, seconds: float = 1.0, seed: int = 0, control: str = "randomize"
) -> EditorGraph:
    """EmptyImage -> FleetSteps (progress and previews; another seed each time) -> SaveImage."""
    graph = EditorGraph()
    made = graph.add("EmptyImage", 64, 64, 1, GREEN, gives="IMAGE")
    taken = graph.add("FleetSteps", steps, seconds, seed, control, source=made, into="image", gives="IMAGE")
    graph.add("SaveImage", prefix, source=taken, into="images")
    return graph
