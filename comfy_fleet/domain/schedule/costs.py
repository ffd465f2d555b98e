"""What it costs that a node takes a job, and what waiting for other nodes does."""

from comfy_fleet.domain.schedule.backlog import FamilyQueue, WaitingEntry, WaitingQueue
from comfy_fleet.domain.schedule.choose import HYSTERESIS, Head
from comfy_fleet.domain.schedule.known_nodes import KnownNode, KnownNodes

WARM = 0.25
"""A set is warm if its family is on the card, and the rest takes at most this part of loading it all."""


class Costs:
    """Estimates of loads and waits.

    Args:
        nodes: All nodes.
    """

    def __init__(self, nodes: KnownNodes) -> None:
        self._nodes = nodes

    def head(self, node: KnownNode, waiting: WaitingEntry, lag: float, now: float) -> Head:
        """Work out what taking a job would cost here, and what waiting for other nodes would."""
        job = waiting.job
        models, warmth = job.models, node.warmth
        load_s = warmth.load_s(models)
        cost_s = load_s + job.run_s / node.facts.speed
        if self.warm(node, waiting, load_s):
            return Head(waiting, lag, load_s, cost_s, warm=True)
        queue = waiting.queue
        family = queue.by_family[models.family]
        head = Head(waiting, lag, load_s, cost_s, warm=False, backlog_s=family.backlog_s)
        holders = family.holders - (models.family in node.held)
        if holders > 0:
            head.holders = holders
            head.soonest_s = self._nodes.soonest_s(models.family, queue, node, now)
            later_s = max(0.0, head.soonest_s - load_s)
            head.own_s = later_s + len(waiting.owner.families[models.family]) * job.run_s / holders
            head.wait_s = later_s + family.backlog_s / holders
        return head

    @staticmethod
    def warm(node: KnownNode, waiting: WaitingEntry, load_s: float) -> bool:
        """Whether next to nothing is to be loaded for a job."""
        models = waiting.job.models
        return load_s <= 0.0 or (
            models.family in node.warmth.card and load_s <= WARM * node.warmth.cold_s(models)
        )

    def worth_a_look(
        self, waiting: FamilyQueue, family: str, queue: WaitingQueue, node: KnownNode, now: float
    ) -> bool:
        """Whether a node might load a family that it has not on its card: no rule asks for less."""
        if not waiting.holders:
            return True
        load_s = node.warmth.file_s(family, waiting.size)
        later_s = max(0.0, self._nodes.soonest_s(family, queue, node, now) - load_s)
        return later_s + waiting.backlog_s / waiting.holders > HYSTERESIS * load_s
