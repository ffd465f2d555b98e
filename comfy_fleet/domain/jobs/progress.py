"""A run's progress: frames about single nodes become one fraction.

Every node of the graph weighs one; a node with a whole number of ``steps`` (a sampler) weighs that much
more, because its steps are where the time goes. Cached nodes weigh nothing. The fraction never falls.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_fleet.domain.jobs.job import Progress

MAX_STEPS = 1000
MOST = 2**53
"""Larger step numbers make no sense; every JSON reader takes integers up to here."""


def weight(node: Mapping[str, Any]) -> float:
    """Return what a node of an API-format graph weighs: 1, plus its ``steps`` if it states them."""
    inputs = node.get("inputs")
    steps = inputs.get("steps") if isinstance(inputs, Mapping) else None
    if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
        return 1.0 + min(steps, MAX_STEPS)
    return 1.0


class Meter:
    """Adds up what frames say about a graph's nodes."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._classes = {id_: str(node.get("class_type", "")) for id_, node in graph.items()}
        self._weights = {id_: weight(node) for id_, node in graph.items()}
        self._fractions: dict[str, float] = {}
        self._done: set[str] = set()
        self._cached: set[str] = set()
        self._current: str | None = None
        self._step: int | None = None
        self._steps: int | None = None
        self._value = 0.0
        self._counted = True

    @property
    def snapshot(self) -> Progress:
        """The whole state, as one progress report."""
        if not self._counted:
            self._count()
        return Progress(
            value=self._value,
            nodes_done=len(self._done),
            nodes_total=len(self._weights),
            current_node=self._current,
            current_node_class=self._classes.get(self._current) if self._current else None,
            step=self._step,
            steps=self._steps,
        )

    @property
    def all_cached(self) -> bool:
        """Whether every node of the graph came from the cache."""
        return self._cached >= self._weights.keys()

    @property
    def any_cached(self) -> bool:
        """Whether any node of the graph came from the cache."""
        return bool(self._cached)

    @property
    def mostly_cached(self) -> bool:
        """Whether more than half of the work came from the cache, by weight.

        A loader's result nearly always does on a node that has the models: that says nothing of the rest.
        """
        return 2 * sum(self._weights[node] for node in self._cached) > sum(self._weights.values())

    def cached(self, nodes: Iterable[str]) -> None:
        """Note nodes whose results are cached: they take no time."""
        known = {node for node in nodes if node in self._weights}
        self._cached |= known
        self._done |= known
        self._counted = False

    def start(self, node: str) -> None:
        """Note the node that computes now."""
        if node != self._current:
            self._current, self._step, self._steps = node, None, None

    def step(self, node: str, value: float, maximum: float) -> None:
        """Note how far a node is."""
        value, maximum = min(value, MOST), min(maximum, MOST)
        if not (maximum > 0 and value >= -MOST) or node in self._done:  # NaN is not a number, either
            return
        self.start(node)
        if node in self._weights:
            part = min(1.0, max(0.0, value / maximum))
            if part > self._fractions.get(node, 0.0):
                self._fractions[node] = part
                self._counted = False
        # Nodes without steps report 0/1, and some report seconds or bytes as fractions.
        if maximum > 1 and value % 1 == 0 and maximum % 1 == 0:
            self._step, self._steps = int(min(value, maximum)), int(maximum)

    def done(self, node: str) -> None:
        """Note that a node has finished."""
        if node in self._weights and node not in self._done:
            self._done.add(node)
            self._counted = False

    def finish(self) -> None:
        """Note that the whole graph has finished; nodes that did not run were not needed."""
        self._done = set(self._weights)
        self._current = self._step = self._steps = None
        self._value, self._counted = 1.0, True

    def _count(self) -> None:
        self._counted = True
        total = got = 0.0
        for node, weight_ in self._weights.items():
            if node in self._cached:
                continue
            total += weight_
            got += weight_ * (1.0 if node in self._done else self._fractions.get(node, 0.0))
        if total:
            self._value = max(self._value, min(1.0, got / total))
