"""Where a run's time went: when it reached each of its steps, and when its graph's nodes computed.

A job's record keeps this for each of its attempts, as a text of at most a few kilobytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from comfy_fleet.domain.text import clip

MOST_NODES: Final = 16
"""Nodes of the graph that are kept, those that took longest."""
MOST_CLASS: Final = 60
"""Characters of a node's class and of its id."""
STEPS: Final = ("ready", "accepted", "executing", "left", "collected")
"""In their order: the prompt is made and its inputs are on the node; the node has taken it; it executes it;
it has executed it; its outputs are stored."""


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """When a node of the graph computed.

    Attributes:
        node_id: Its id.
        class_type: Its class.
        start_s: Seconds from the run's begin.
        seconds: For how long.
    """

    node_id: str
    class_type: str
    start_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """Where a run's time went.

    Attributes:
        steps: Seconds from the run's begin until each of :data:`STEPS` that it has reached.
        nodes: The graph's nodes that took longest, in the order in which they computed.
        cached: How many nodes' results came from the node's cache.
        others: How many more nodes computed.
    """

    steps: Mapping[str, float]
    nodes: tuple[NodeTime, ...] = ()
    cached: int = 0
    others: int = 0

    def dump(self) -> str:
        """Return it as text."""
        nodes = [[one.node_id, one.class_type, one.start_s, one.seconds] for one in self.nodes]
        record = {"steps": dict(self.steps), "nodes": nodes, "cached": self.cached, "others": self.others}
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> "RunTimes":
        """Read :meth:`dump` back.

        Raises:
            Exception: One of :data:`comfy_fleet.domain.records.UNREADABLE`.
        """
        record = json.loads(text)
        return cls(
            steps={step: float(record["steps"][step]) for step in STEPS if step in record["steps"]},
            nodes=tuple(
                NodeTime(node_id=str(id_), class_type=str(kind), start_s=float(start), seconds=float(seconds))
                for id_, kind, start, seconds in record["nodes"][:MOST_NODES]
            ),
            cached=int(record["cached"]),
            others=int(record["others"]),
        )


class StopWatch:
    """Notes the times of one run.

    Args:
        began_at: When the run began, in the seconds of the clock that the other methods are told.
        run: Its id, which is the prompt's.
    """

    def __init__(self, began_at: float, run: str) -> None:
        self._began_at = began_at
        self._run = run
        self._steps: dict[str, float] = {}
        self._classes: dict[str, str] = {}
        self._nodes: dict[str, tuple[float, float]] = {}
        self._current: str | None = None
        self._since = 0.0
        self._cached = 0

    def step(self, name: str, now: float) -> None:
        """Note the first time at which it reached one of :data:`STEPS`."""
        self._steps.setdefault(name, round(now - self._began_at, 3))

    def graph(self, graph: Mapping[str, Any]) -> None:
        """Note the graph: nothing is kept of nodes that are not in it."""
        self._classes = {id_: str(node.get("class_type", "")) for id_, node in graph.items()}

    def frame(self, kind: str, data: Mapping[str, Any], now: float) -> None:
        """Note a frame of the node's websocket; those of other prompts change nothing."""
        if kind not in ("executing", "execution_cached", "execution_start"):
            return
        if data.get("prompt_id", self._run) != self._run:
            return
        if kind == "execution_start":
            self.step("executing", now)
        elif kind == "execution_cached":
            nodes = data.get("nodes")
            if isinstance(nodes, list):
                self._cached = len({one for one in nodes if isinstance(one, str)} & self._classes.keys())
        else:
            node = data.get("node")
            self._enter(node if isinstance(node, str) and node in self._classes else None, now)

    def _enter(self, node: str | None, now: float) -> None:
        if self._current is not None:
            start, seconds = self._nodes.get(self._current, (self._since - self._began_at, 0.0))
            self._nodes[self._current] = start, seconds + now - self._since
        self._current, self._since = node, now

    def leave(self, now: float) -> None:
        """Note that no node of the graph computes any more."""
        self._enter(None, now)

    def times(self) -> RunTimes:
        """Return what was noted."""
        longest = sorted(self._nodes.items(), key=lambda item: -item[1][1])[:MOST_NODES]
        return RunTimes(
            steps=dict(self._steps),
            nodes=tuple(
                NodeTime(
                    node_id=clip(id_, MOST_CLASS),
                    class_type=clip(self._classes[id_], MOST_CLASS),
                    start_s=round(start, 3),
                    seconds=round(seconds, 3),
                )
                for id_, (start, seconds) in sorted(longest, key=lambda item: item[1][0])
            ),
            cached=self._cached,
            others=max(0, len(self._nodes) - MOST_NODES),
        )
