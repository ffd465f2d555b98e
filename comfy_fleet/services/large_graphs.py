"""Work on large graphs is done in a thread: whatever else the process does goes on meanwhile."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from comfy_fleet.domain.graphs.graph import Graph

T = TypeVar("T")

LARGE_BYTES = 256 * 1024
"""A graph of more bytes of JSON is large."""
LARGE_INPUTS = 5000
"""A graph of more inputs, all nodes together, is large as well."""


def has_many_inputs(graph: Graph) -> bool:
    """Return whether a checked graph is large by its inputs."""
    return sum(len(node["inputs"]) for node in graph.values()) > LARGE_INPUTS


async def worked(large: bool, work: Callable[[], T]) -> T:
    """Do some work on a graph, in a thread if the graph is large."""
    return await asyncio.to_thread(work) if large else work()
