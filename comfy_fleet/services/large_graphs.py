"""Work on large graphs is done in a thread, so that the event loop stays free."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from comfy_fleet.domain.graphs.graph import Graph

T = TypeVar("T")

LARGE_BYTES = 256 * 1024
"""A graph with more bytes of JSON is large."""
MANY_NODES = 1000
"""A graph with more nodes is large where neither is known."""
LARGE_INPUTS = 5000
"""A graph with more inputs, over all nodes, is large, too."""


def has_many_inputs(graph: Graph) -> bool:
    """Return whether a checked graph is large by its inputs."""
    return sum(len(node["inputs"]) for node in graph.values()) > LARGE_INPUTS


async def worked(large: bool, work: Callable[[], T]) -> T:
    """Do some work on a graph, in a thread if the graph is large."""
    return await asyncio.to_thread(work) if large else work()
