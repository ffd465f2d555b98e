"""What a successful run shows about its node: its speed, and the models in its memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.nodes.eligibility import file_place
from comfy_fleet.domain.nodes.speed import Speeds
from comfy_fleet.domain.nodes.weights import default_weight
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.node_directory import NodeDirectory


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements that are written with a run's end.

    Attributes:
        speed: Natural logarithm of the node's speed in this run; None if the run says nothing about it.
        models: The model files that it used, as ``FOLDER/FILE``.
        ran_s: How long the node had the prompt, in seconds; None if that is not known.
        warm: Whether it had any of the graph's results in its cache.
        reused: Whether most of the work came from its cache: then its time says nothing of other runs.
    """

    speed: float | None = None
    models: Sequence[str] = ()
    ran_s: float | None = None
    warm: bool = False
    reused: bool = False


class Measure:
    """Measures for one dispatcher.

    Args:
        directory: The nodes and their inventories.
    """

    def __init__(self, directory: NodeDirectory) -> None:
        self._directory = directory
        self._speeds = Speeds()
        self._used: dict[str, tuple[int, frozenset[str]]] = {}

    def card(self, node: str) -> int:
        """Return the bytes of a node's card; 0: unknown."""
        return self._directory.vram_bytes(node)

    def succeeded(self, claim: Claim, *, took_s: float | None) -> Measured:
        """Measure a successful run.

        Args:
            claim: The run.
            took_s: Seconds from the POST to its end; None if they say nothing about the node.
        """
        node = claim.node
        state, known = self._directory.states.get(node), self._directory.inventory(node)
        if state is None or known is None:
            return Measured()
        graph = orjson.loads(claim.graph)
        models = sorted({file_place(*found) for found in inventory.requirements(graph, known).files})
        starts, used = state.reading.starts, frozenset(models)
        before = self._used.get(node)
        warm = before is not None and before[0] == starts and used <= before[1]
        if len(self._used) > len(self._directory.states):
            self._used = {name: seen for name, seen in self._used.items() if name in self._directory.states}
        self._used[node] = starts, used if before is None or before[0] != starts else before[1] | used
        speed = None
        if took_s is not None and warm and claim.load_s <= 0:
            weight = default_weight(state.reading.gpu, state.reading.device)
            speed = self._speeds.compare(claim.job.profile, node, took_s=took_s, weight=weight)
        return Measured(speed=speed, models=models)
