"""A node's relative speed, measured by how long the same work takes.

A run's time on its node is multiplied by the weight of the node's GPU model: if the weights are right, the
product is the same on all nodes. The standard of a kind of work is the geometric mean of the nodes' medians
over its last runs, with one value for each node. The standard divided by a run's own product is the node's
*speed* in this run: 1.0 means that the node is as fast, compared with the others, as its GPU's model
promises, 0.5 that it takes twice as long.

A node's speed is the geometric mean over its runs, in which each new run counts a fifth: a slow card is found
quickly, and one odd run changes little. Runs that had to load a model, that were answered from the cache, or
that another dispatcher began say nothing about the GPU and are left out.
"""

import math
from collections import OrderedDict, deque
from statistics import fmean, median

WINDOW = 50
"""How many runs of a kind the standard is made of."""
OTHERS = 5
"""How many of them must be from other nodes: a node is not compared with itself."""
LIMIT = 4.0
"""A single run counts as at most four times faster or slower."""
ENOUGH = 5
"""How many runs a node needs before its speed is used."""
SHARE = 0.2
"""The share of a new run in a node's mean."""
_KINDS = 200


class Speeds:
    """The standards, by kind of work; one for each dispatcher."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, deque[tuple[str, float]]] = OrderedDict()

    def compare(self, kind: str, node: str, *, took_s: float, weight: int) -> float | None:
        """Compare a run with others of its kind, and add it to the standard.

        Args:
            kind: The job's profile.
            node: Where it ran.
            took_s: Seconds that it took.
            weight: The weight of the node's GPU by its model.

        Returns:
            The natural logarithm of its speed; None if there is too little to compare it with.
        """
        if took_s <= 0:
            return None
        runs = self._runs.setdefault(kind, deque(maxlen=WINDOW))
        self._runs.move_to_end(kind)
        if len(self._runs) > _KINDS:
            self._runs.popitem(last=False)
        own = took_s * weight
        runs.append((node, own))
        if sum(name != node for name, _ in runs) < OTHERS:
            return None
        by_node: dict[str, list[float]] = {}
        for name, took in runs:
            by_node.setdefault(name, []).append(took)
        standard = fmean(math.log(median(took)) for took in by_node.values())
        most = math.log(LIMIT)
        return max(-most, min(most, standard - math.log(own)))


def speed_of(mean_log: float, runs: int) -> float | None:
    """Return a node's speed from the mean of its runs' logarithms; None if there are too few."""
    if runs < ENOUGH:
        return None
    return round(min(LIMIT, max(1 / LIMIT, math.exp(mean_log))), 2)
