"""Which jobs may run as one prompt: those with the same key."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.merging import (
    MergeMode,
    MergeRule,
    batch_size,
    batch_source,
    has_member_ids,
    seed_place,
    without_seeds,
)


@dataclass(frozen=True, kw_only=True)
class MergeKey:
    """How a job may be merged with others.

    Attributes:
        text: ``MODE:HASH`` of all that must be equal; jobs of two owners never have the same.
        most: Most jobs of one prompt.
        window_s: For how long it waits for others, in seconds, if one like it came within this time.
        seed: For a batch: the seed that was drawn for it.
        count: For a batch: how many pictures it makes.
    """

    text: str
    most: int
    window_s: float
    seed: int = 0
    count: int = 0

    @property
    def mode(self) -> MergeMode:
        """How it is merged."""
        return mode_of(self.text)


def mode_of(text: str) -> MergeMode:
    """Return the mode in a key's text.

    Raises:
        ValueError: It has none that is known.
    """
    return MergeMode(text.partition(":")[0])


def merge_key(
    rule: MergeRule,
    graph: Graph,
    *,
    version: str,
    owner: str,
    drawn: Collection[tuple[str, str]],
    about: Mapping[str, Any],
) -> MergeKey | None:
    """Return the key of a job; None if it can't be merged.

    Args:
        rule: What its workflow's manifest says.
        graph: With the job's values in place.
        version: The workflow's.
        owner: Whose job it is.
        drawn: Node and input of the seeds that its client left open.
        about: What else must be equal, as JSON has it.
    """
    if has_member_ids(graph):
        return None
    equal: list[Any] = [version, owner, dict(about)]
    seed = count = 0
    if rule.mode is MergeMode.BATCH:
        try:
            batch_source(graph)
        except ValueError:
            return None
        node_id, name = place = seed_place(graph)
        if place not in drawn:
            return None
        seed, count = graph[node_id]["inputs"][name], batch_size(graph)
        equal.append(without_seeds(graph, drawn))
    digest = hashlib.sha256(json.dumps(equal, sort_keys=True).encode()).hexdigest()
    text = f"{rule.mode}:{digest[:32]}"
    return MergeKey(text=text, most=rule.most, window_s=rule.window_s, seed=seed, count=count)
