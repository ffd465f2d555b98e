"""Graphs in the API format: links, cache keys and the order in which nodes run."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

#: ``{node id: {"class_type": ..., "inputs": {...}}}``.
Graph = Mapping[str, Mapping[str, Any]]


def is_link(value: object) -> TypeGuard[list[Any]]:
    """Return whether an input's value is ``[node id, output index]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def sources(graph: Graph, node_id: str) -> list[str]:
    """Return the ids that a node's inputs are linked to, in the order of its inputs."""
    return [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]


def cache_keys(graph: Graph, extra: Callable[[str], object]) -> dict[str, str]:
    """Return a key per node: equal keys mean equal results.

    A key covers the class, **every** input (also one that the class does not know) and all that lies
    upstream; titles and other ``_meta`` do not count.

    Args:
        graph: A checked graph, so without cycles.
        extra: What else a node's result depends on (a file's content, its own id, the time).
    """
    keys: dict[str, str] = {}
    for start in graph:
        stack = [start]
        while stack:
            node_id = stack[-1]
            if node_id in keys:
                stack.pop()
                continue
            inputs = graph[node_id].get("inputs", {})
            waiting = [
                value[0]
                for value in inputs.values()
                if is_link(value) and value[0] in graph and value[0] not in keys
            ]
            if waiting and len(stack) <= len(graph):
                stack.extend(waiting)
                continue
            parts = [
                [name, ["link", keys.get(value[0]), value[1]] if is_link(value) else value]
                for name, value in sorted(inputs.items())
            ]
            text = json.dumps([graph[node_id]["class_type"], extra(node_id), parts], sort_keys=True)
            keys[node_id] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            stack.pop()
    return keys


class Schedule:
    """The order in which ComfyUI runs a graph's nodes.

    Among the nodes that are ready it prefers an output node or one that works in a coroutine, then one
    that an output node waits for, then one two links before an output node, then the first.

    Args:
        graph: A checked graph.
        outputs: Ids to reach; they take part even when they are cached.
        is_output: Tells output nodes by id.
        is_coroutine: Tells nodes that work in a coroutine by id.
        is_cached: Tells nodes whose result is known.
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Iterable[str],
        *,
        is_output: Callable[[str], bool],
        is_coroutine: Callable[[str], bool],
        is_cached: Callable[[str], bool],
    ) -> None:
        self._is_output = is_output
        self._is_coroutine = is_coroutine
        self._waits: dict[str, int] = {}  # in the order in which ComfyUI finds them
        self._blocks: dict[str, dict[str, None]] = {}
        for output in outputs:
            found = [output]
            links: list[tuple[str, str]] = []
            while found:
                node_id = found.pop()
                if node_id in self._waits:
                    continue
                self._waits[node_id] = 0
                self._blocks[node_id] = {}
                for source in sources(graph, node_id):
                    if not is_cached(source):
                        found.append(source)
                        links.append((source, node_id))
            for source, node_id in links:
                if node_id not in self._blocks[source]:
                    self._blocks[source][node_id] = None
                    self._waits[node_id] += 1

    def __len__(self) -> int:
        return len(self._waits)

    def next(self) -> str | None:
        """Return the node to run now; None when all are done."""
        ready = [node_id for node_id, count in self._waits.items() if count == 0]
        if not ready:
            return None
        for node_id in ready:
            if self._is_output(node_id) or self._is_coroutine(node_id):
                return node_id
        for node_id in ready:
            if any(self._is_output(after) for after in self._blocks[node_id]):
                return node_id
        for node_id in ready:
            if any(self._is_output(last) for after in self._blocks[node_id] for last in self._blocks[after]):
                return node_id
        return ready[0]

    def done(self, node_id: str) -> None:
        """Note that a node has run."""
        del self._waits[node_id]
        for after in self._blocks.pop(node_id):
            self._waits[after] -= 1
