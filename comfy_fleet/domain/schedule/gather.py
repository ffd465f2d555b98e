"""Look at a few of the waiting jobs for a node: never more heads than :data:`MAX_HEADS`."""

from collections.abc import Iterator, Sequence
from math import inf

from comfy_fleet.domain.schedule.backlog import MAX_HEADS, Backlog, OwnerQueue, Queue, Waiting, stronger
from comfy_fleet.domain.schedule.choose import Head
from comfy_fleet.domain.schedule.known_nodes import IDLE, KnownNode, KnownNodes
from comfy_fleet.domain.schedule.ordered_index import OrderedIndex

MAX_QUEUES = 8
"""Most queues that one look reads; of more, each gets its turn."""
MAX_WARM = 8
"""Most families that one look reads because the node has them."""
MAX_OTHERS = 6
"""Most families of a queue that one look reads because much waits for them."""
MAX_OVERDUE = 4
"""Most owners with overdue jobs in a queue, and jobs of each, that one look reads."""
MAX_UNFIT = 8
"""Most jobs that don't fit that are skipped to find one of the same index that fits."""
POSTPONED = 0.25
"""Part of the patience after which an owner that has used its share is looked at again."""
WARM = 0.25
"""A set is warm if loading takes at most this part of what it takes from the disk."""


class Look:
    """What one node sees.

    Attributes:
        node: The node.
        queues: The queues that are read.
        least: The lowest tag there.
        window_s: How far ahead of it an owner may be: one load and one run of the job whose turn it is.
        turn: The job whose turn it is.
        heads: Other jobs to choose from, and this one.
    """

    __slots__ = ("heads", "least", "node", "queues", "seen", "turn", "turn_queue", "window_s")

    def __init__(self, node: KnownNode, queues: Sequence[Queue]) -> None:
        self.node = node
        self.queues = queues
        self.least = inf
        self.window_s = 0.0
        self.turn: Waiting | None = None
        self.heads: list[Head] = []
        self.seen: dict[str, Head] = {}


class Gatherer:
    """Reads heads of queues for nodes.

    Args:
        backlog: What waits.
        nodes: The nodes.
        patience_s: For how long a job may be passed over.
    """

    def __init__(self, backlog: Backlog, nodes: KnownNodes, patience_s: float) -> None:
        self._backlog = backlog
        self._nodes = nodes
        self._patience_s = patience_s

    def turn(self, node: KnownNode, now: float) -> Look | None:
        """Find the job whose turn it is, or None if the node can run none that waits."""
        kind = node.kind
        queues = kind.queues
        if len(queues) > MAX_QUEUES:
            at = kind.turn % len(queues)
            kind.turn += MAX_QUEUES
            queues = (queues + queues)[at : at + MAX_QUEUES]
        look = Look(node, queues)
        for queue in queues:
            found = self._least(queue, node, now)
            if found is not None and found[0] < look.least:
                look.least, look.turn = found
        if look.turn is None:
            return None
        kind.clock = max(kind.clock, look.least)
        return look

    def overdue(self, look: Look, now: float) -> bool:
        """Whether a job may be overdue."""
        if look.turn is not None:
            first = look.turn.owner.passed.first()
            if first is not None and first[0] <= now:
                return True
        for queue in look.queues:
            first = queue.passed.first()
            if first is not None and first[0] <= now:
                return True
        return False

    def warm_turn(self, look: Look, now: float) -> Waiting | None:
        """Return the job whose turn it is, or an earlier one of its owner and family, if it is warm here."""
        turn, node = look.turn, look.node
        if turn is None:
            return None
        models = turn.job.models
        if models.files and node.warmth.load_s(models) > 0.0:
            return None
        owner = turn.owner
        first = self._first_fit(owner.families[models.family], turn.queue, node, now) or turn
        if first is not turn and node.warmth.load_s(first.job.models) > 0.0:
            first = turn
        ahead = owner.jobs.first()
        if (
            ahead is not None
            and ahead[1] != first.job.id
            and stronger(self._backlog.waiting[ahead[1]].job, first.job)
        ):
            return None
        return first

    def gather(self, look: Look, now: float) -> None:
        """Read heads: of overdue jobs, of families that the node has, of families for which much waits."""
        node, turn = look.node, look.turn
        if turn is None:
            return
        load_s = node.warmth.load_s(turn.job.models)
        look.window_s = load_s + turn.job.run_s / node.facts.speed
        self._consider(look, turn, look.least, now)
        self._gather_overdue(look, turn.owner, now)
        for queue in look.queues:
            self._gather_passed(look, queue, now)
        for queue in look.queues:
            for family in self._warm_families(node):
                self._gather_family(look, queue, family, now)
        for queue in look.queues:
            for _, family in queue.pressure.head(MAX_OTHERS):
                self._gather_family(look, queue, family, now)

    def unpassed(self, look: Look, now: float) -> Waiting | None:
        """Return the job whose turn it is of those that were never passed over."""
        best, found = inf, None
        for queue in look.queues:
            owner = self._backlog.least(queue.unpassed, queue)
            if owner is not None and owner.tag < best:
                first = owner.unpassed.first()
                if first is not None:
                    best, found = owner.tag, self._backlog.waiting[first[1]]
        return found if found is not None and self._may(found, look.node, now) else None

    # -- the parts --------------------------------------------------------------------------------------

    def _least(self, queue: Queue, node: KnownNode, now: float) -> tuple[float, Waiting] | None:
        """Return the lowest tag of a queue and a job of its owner that fits the node."""
        backlog = self._backlog
        owner = backlog.least(queue.owners, queue)
        if owner is None:
            return None
        first = self._first_fit(owner.unpassed if len(owner.unpassed) else owner.jobs, queue, node, now)
        if first is not None:
            return owner.tag, first
        for _, name in queue.owners.head(MAX_UNFIT)[1:]:
            other = queue.by_owner.get(name)
            if other is not None:
                backlog.reads += 1
                first = self._first_fit(other.jobs, queue, node, now)
                if first is not None:
                    return other.tag, first
        return None

    def _first_fit(self, index: OrderedIndex, queue: Queue, node: KnownNode, now: float) -> Waiting | None:
        """Return the first job of an index that the node may start now."""
        waiting = self._backlog.waiting
        for _ in range(MAX_UNFIT):
            entry = index.first()
            if entry is None:
                return None
            found = waiting[entry[1]]
            job = found.job
            finish_by = job.finish_by
            if finish_by is not None and not found.late and now + job.run_s / node.facts.speed > finish_by:
                self._backlog.reads += 1
                self._backlog.be_late(found)
                continue
            if self._may(found, node, now):
                return found
            break
        for _, job_id in index.head(MAX_UNFIT)[1:]:
            found = waiting[job_id]
            self._backlog.reads += 1
            if self._may(found, node, now):
                return found
        return None

    @staticmethod
    def _may(waiting: Waiting, node: KnownNode, now: float) -> bool:
        """Whether a node may start a job: it has the memory, and it is not too late."""
        job = waiting.job
        return job.memory <= node.facts.vram_bytes and (job.start_by is None or now <= job.start_by)

    def _gather_passed(self, look: Look, queue: Queue, now: float) -> None:
        """Read overdue jobs of the owners that have them longest; one that has used its share waits on."""
        for at, name in queue.passed.head(MAX_OVERDUE):
            if at > now:
                break
            if not self._gather_overdue(look, queue.by_owner[name], now):
                self._backlog.postpone(queue, name, now + POSTPONED * self._patience_s)

    def _gather_overdue(self, look: Look, owner: OwnerQueue, now: float) -> bool:
        """Read an owner's overdue jobs; return whether it has a right to one of them."""
        backlog, tag, entitled = self._backlog, owner.tag, False
        for at, job_id in owner.passed.head(MAX_OVERDUE):
            if at > now:
                break
            waiting = backlog.waiting[job_id]
            if self._may(waiting, look.node, now):
                head = self._consider(look, waiting, tag, now)
                entitled |= head is None or head.lag <= max(look.window_s, head.cost_s)
            else:
                entitled = True  # on another node it may have
        return entitled

    def _warm_families(self, node: KnownNode) -> Iterator[str]:
        """Name the families that a node has on its card, then those in its memory, the last used first."""
        yield ""
        left = MAX_WARM
        for family in reversed(node.held):
            yield family
            left -= 1
        for file in reversed(node.warmth.memory):
            if left <= 0:
                break
            if file not in node.held:
                yield file
                left -= 1

    def _gather_family(self, look: Look, queue: Queue, family: str, now: float) -> None:
        """Read the job of a family whose owner has had least."""
        backlog = self._backlog
        waiting = queue.by_family.get(family)
        if waiting is None or backlog.reads >= MAX_HEADS:
            return
        owner = backlog.least(waiting.owners, queue)
        if owner is None:
            return
        first = self._first_fit(owner.families[family], queue, look.node, now)
        if first is not None:
            self._consider(look, first, owner.tag, now)

    def _consider(self, look: Look, waiting: Waiting, tag: float, now: float) -> Head | None:
        """Add a job to choose from."""
        backlog, node = self._backlog, look.node
        job = waiting.job
        if (seen := look.seen.get(job.id)) is not None:
            return seen
        if backlog.reads >= MAX_HEADS:
            return None
        backlog.reads += 1
        head = self._head(look, waiting, tag, now)
        look.seen[job.id] = head
        look.heads.append(head)
        ahead = waiting.owner.jobs.first()
        if ahead is not None and ahead[1] != job.id:
            first = backlog.waiting[ahead[1]]
            if stronger(first.job, job) and self._may(first, node, now):
                head.first = self._consider(look, first, tag, now)
        return head

    def _head(self, look: Look, waiting: Waiting, tag: float, now: float) -> Head:
        """Work out what taking a job would cost here, and what waiting for other nodes would."""
        node, job = look.node, waiting.job
        models = job.models
        family = waiting.queue.by_family[models.family]
        load_s = node.warmth.load_s(models)
        warm = load_s <= 0.0 or (
            models.family in node.warmth.card and load_s <= WARM * node.warmth.cold_s(models)
        )
        holders = family.holders - (models.family in node.held)
        soonest_s = own_s = wait_s = inf
        if holders > 0 and not warm:
            for at, holder in self._nodes.holders(models.family):
                if holder is not node and holder.kind.serves(waiting.queue):
                    soonest_s = 0.0 if at == IDLE else abs(at - now)  # one that is late takes as long again
                    break
            later_s = max(0.0, soonest_s - load_s)
            own_s = later_s + len(waiting.owner.families[models.family]) * job.run_s / holders
            wait_s = later_s + family.backlog_s / holders
        return Head(
            waiting=waiting,
            lag=tag - look.least,
            load_s=load_s,
            cost_s=load_s + job.run_s / node.facts.speed,
            warm=warm,
            holders=holders,
            wait_s=wait_s,
            soonest_s=soonest_s,
            own_s=own_s,
            backlog_s=family.backlog_s,
        )
