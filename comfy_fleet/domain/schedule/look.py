"""What one node sees of the waiting jobs."""

from collections.abc import Sequence

from comfy_fleet.domain.schedule.backlog import WaitingEntry, WaitingQueue
from comfy_fleet.domain.schedule.choose import Head
from comfy_fleet.domain.schedule.known_nodes import KnownNode


class NodeLook:
    """What one node sees.

    Attributes:
        node: The node.
        queues: The queues that are read.
        turn: The job whose turn it is.
        least: Its owner's tag, the lowest of its tenant's.
        tenant_least: Its tenant's tag, the lowest.
        floors: By tenant, the lowest tag of its owners.
        window_s: How far ahead of it an owner may be: some loads and runs of the job whose turn it is.
        heads: Jobs to choose from.
    """

    __slots__ = ("_seen", "floors", "heads", "least", "node", "queues", "tenant_least", "turn", "window_s")

    def __init__(self, node: KnownNode, queues: Sequence[WaitingQueue], turn: WaitingEntry) -> None:
        self.node = node
        self.queues = queues
        self.turn = turn
        self.least = turn.owner.tag
        self.tenant_least = turn.owner.tenant.tag
        self.floors = {turn.owner.tenant.name: self.least}
        self.window_s = 0.0
        self.heads: list[Head] = []
        self._seen: dict[str, Head] = {}

    def seen(self, job_id: str) -> Head | None:
        """Return a job that was looked at before."""
        return self._seen.get(job_id)

    def add(self, head: Head) -> None:
        """Add a job to choose from."""
        self._seen[head.waiting.job.id] = head
        self.heads.append(head)
