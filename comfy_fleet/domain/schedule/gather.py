"""Look at a few of the waiting jobs for a node: never more heads than :data:`MAX_HEADS`.

A head is a job, or an owner whose tag is compared and mended if an index has an earlier one.
"""

from collections.abc import Sequence
from math import inf

from comfy_fleet.domain.schedule.backlog import (
    MAX_HEADS,
    UNHELD,
    Backlog,
    FamilyQueue,
    OwnerQueue,
    WaitingEntry,
    WaitingQueue,
    stronger,
)
from comfy_fleet.domain.schedule.choose import Head
from comfy_fleet.domain.schedule.costs import Costs
from comfy_fleet.domain.schedule.known_nodes import KnownNode, KnownNodes
from comfy_fleet.domain.schedule.look import NodeLook
from comfy_fleet.domain.schedule.ordered_index import OrderedIndex
from comfy_fleet.domain.schedule.tenants import ROOT, level_of

MAX_QUEUES = 8
"""Most queues that one look reads; of more, each gets its turn."""
MAX_CACHED = 4
"""Most families that one look reads because the node has them in memory; those on its card are few enough."""
MAX_OTHERS = 8
"""Most families, of all queues together, that one look reads because much waits for them."""
MAX_OVERDUE = 4
"""Most owners with overdue jobs in a queue, and jobs of each, that one look reads."""
MAX_UNFIT = 8
"""Most jobs that don't fit that are skipped to find one of the same index that fits."""
KEPT = 2 * MAX_QUEUES
"""Heads that are left to note whose turn has come."""
BEHIND = 2
"""How many loads and runs an owner may be ahead of another, if there are as many nodes."""
POSTPONED = 0.25
"""Part of the patience after which an owner that has used its share is looked at again."""


class Gatherer:
    """Reads heads of queues for nodes.

    Args:
        backlog: What waits.
        nodes: The nodes.
        patience_s: For how long a job may be passed over.
    """

    def __init__(self, backlog: Backlog, nodes: KnownNodes, patience_s: float) -> None:
        self._backlog = backlog
        self._costs = Costs(nodes)
        self._patience_s = patience_s

    def turn(self, node: KnownNode, now: float) -> NodeLook | None:
        """Find the job whose turn it is, or None if the node can run none that waits."""
        kind = node.kind
        queues = kind.queues
        if len(queues) > MAX_QUEUES:
            at = kind.turn % len(queues)
            kind.turn += MAX_QUEUES
            queues = (queues + queues)[at : at + MAX_QUEUES]
        # Equal tags are one owner's as a rule, and its order holds in all queues.
        found = [first for queue in queues if (first := self._least(queue, node, now)) is not None]
        turn = min(found, key=lambda one: (*self._tags(one.owner), one.order), default=None)
        if turn is None:
            return None
        tenant = turn.owner.tenant
        kind.saw(level_of(tenant.name), turn.owner.tag)
        if self._backlog.tenanted:
            kind.saw(ROOT, tenant.tag)
        return NodeLook(node, queues, turn)

    def overdue(self, look: NodeLook, now: float) -> bool:
        """Whether a job may be overdue."""
        first = look.turn.owner.passed.first()
        if first is not None and first[0] <= now:
            return True
        for queue in look.queues:
            first = queue.passed.first()
            if first is not None and first[0] <= now:
                return True
        return False

    def warm_turn(self, look: NodeLook, now: float) -> WaitingEntry | None:
        """Return the job whose turn it is, or an earlier one of its owner and family, if it is warm here."""
        turn, warmth = look.turn, look.node.warmth
        models = turn.job.models
        if models.files and warmth.load_s(models) > 0.0:
            return None
        owner = turn.owner
        first = self._first_fit(owner.families[models.family], look.node, now) or turn
        if first is not turn and warmth.load_s(first.job.models) > 0.0:
            first = turn
        return first if self._ahead(first, owner) is None else None

    def gather_first(self, look: NodeLook, now: float, *, overdue: bool) -> WaitingEntry | None:
        """Read heads of overdue jobs, and of families that the node has on its card.

        Returns:
            The job that :func:`choose_first` would choose of them, if that is clear without it.
        """
        node, turn = look.node, look.turn
        cost_s = node.warmth.load_s(turn.job.models) + turn.job.run_s / node.facts.speed
        look.window_s = min(BEHIND, node.kind.nodes) * cost_s
        if overdue:
            self._gather_overdue(look, turn.owner, now)
            for queue in look.queues:
                self._gather_passed(look, queue, now)
        found = self._on_card(look, now)
        if not overdue and (best := self._best_warm(look, found)) is not None:
            return best
        for owner, waiting in found:
            self._consider(look, waiting, self._lag(look, owner, waiting.queue), now)
        return None

    def _best_warm(
        self, look: NodeLook, found: Sequence[tuple[OwnerQueue, WaitingEntry]]
    ) -> WaitingEntry | None:
        """Return the best warm job of owners within the window, if it passes no job that it must not pass."""
        warmth = look.node.warmth
        best, least, of = None, (inf, inf), None
        for owner, waiting in found:
            lag = self._lag(look, owner, waiting.queue)
            if lag <= look.window_s:
                load_s = warmth.load_s(waiting.job.models)
                key = (lag + load_s, waiting.order)
                if key < least and self._costs.warm(look.node, waiting, load_s):
                    best, least, of = waiting, key, owner
        return best if best is not None and of is not None and self._ahead(best, of) is None else None

    def _on_card(self, look: NodeLook, now: float) -> list[tuple[OwnerQueue, WaitingEntry]]:
        """Return the first job of each family on the card, and of those that load nothing."""
        backlog, node = self._backlog, look.node
        held = ("", *reversed(node.held))
        found = []
        for queue in look.queues:
            by_family = queue.by_family
            for family in held:
                waiting = by_family.get(family)
                if waiting is not None:
                    owner = backlog.least(waiting.owners, queue, MAX_HEADS - KEPT)
                    if owner is not None:
                        first = self._first_fit(owner.families[family], node, now)
                        if first is not None:
                            found.append((owner, first))
        return found

    def gather_others(self, look: NodeLook, now: float) -> None:
        """Read heads of families that the node has in memory, and of those for which much waits."""
        node, held = look.node, look.node.held
        self._consider(look, look.turn, 0.0, now)
        files = [file for file in reversed(node.warmth.memory) if file not in held][:MAX_CACHED]
        others = -(-MAX_OTHERS // len(look.queues))
        for queue in look.queues:
            families = [file for file in files if file in queue.by_family]
            families += [name for _, name in queue.pressure.head(others) if name not in held]
            for family in families:
                waiting = queue.by_family[family]
                if self._costs.worth_a_look(waiting, family, queue, node, now):
                    self._gather_family(look, queue, family, waiting, now)

    def calm(self, look: NodeLook, now: float) -> bool:
        """Whether a node that serves the same queues has found nothing a moment ago.

        Then it is not worth looking for each of a thousand nodes, unless no node holds some family.
        """
        if now >= look.node.kind.calm_until:
            return False
        firsts = (queue.pressure.first() for queue in look.queues)
        return all(first is None or first[0] > -UNHELD for first in firsts)

    def unpassed(self, look: NodeLook, now: float) -> WaitingEntry | None:
        """Return the job whose turn it is of those that were never passed over."""
        best, found = None, None
        for queue in look.queues:
            owner = self._backlog.least(queue.unpassed, queue, MAX_HEADS)
            if owner is not None and (best is None or self._tags(owner) < best):
                first = owner.unpassed.first()
                if first is not None:
                    best, found = self._tags(owner), self._backlog.waiting[first[1]]
        return found if found is not None and self._may(found, look.node, now) else None

    # -- the parts --------------------------------------------------------------------------------------

    def _tags(self, owner: OwnerQueue) -> tuple[float, float]:
        """Return the tags by which owners are compared, the tenant's first."""
        return (owner.tenant.tag if self._backlog.tenanted else 0.0), owner.tag

    def _lag(self, look: NodeLook, owner: OwnerQueue, queue: WaitingQueue) -> float:
        """Return how far an owner's tenant is ahead of that whose turn it is, and it in its tenant."""
        if not self._backlog.tenanted:
            return owner.tag - look.least
        tenant = owner.tenant
        floor = look.floors.get(tenant.name)
        if floor is None:
            first = self._backlog.least_of(tenant, queue, MAX_HEADS - KEPT)
            floor = look.floors[tenant.name] = first.tag if first is not None else owner.tag
        return max(0.0, tenant.tag - look.tenant_least) + max(0.0, owner.tag - floor)

    def _least(self, queue: WaitingQueue, node: KnownNode, now: float) -> WaitingEntry | None:
        """Return a job that fits the node, of the owner with the lowest tag that has one."""
        backlog = self._backlog
        owner = backlog.least(queue.owners, queue, MAX_HEADS - KEPT)
        if owner is None:
            return None
        first = self._first_fit(owner.unpassed if len(owner.unpassed) else owner.jobs, node, now)
        if first is not None:
            return first
        others = [name for _, name in queue.owners.of(owner.tenant.name).head(MAX_UNFIT)[1:]]
        for _, tenant in queue.owners.tenants.head(MAX_UNFIT)[1:]:
            others += [name for _, name in queue.owners.of(tenant).head(1)]
        for name in others:
            backlog.reads += 1
            first = self._first_fit(queue.by_owner[name].jobs, node, now)
            if first is not None:
                return first
        return None

    def _first_fit(self, index: OrderedIndex, node: KnownNode, now: float) -> WaitingEntry | None:
        """Return the first job of an index that the node may start now."""
        backlog = self._backlog
        while backlog.reads < MAX_HEADS - KEPT and (entry := index.first()) is not None:
            found = backlog.waiting[entry[1]]
            job = found.job
            backlog.reads += 1
            if (
                job.finish_by is not None
                and not found.late
                and now + job.run_s / node.facts.speed > job.finish_by
            ):
                backlog.be_late(found)
                continue
            if self._may(found, node, now):
                return found
            for _, job_id in index.head(MAX_UNFIT)[1:]:
                if backlog.reads >= MAX_HEADS - KEPT:
                    break
                found = backlog.waiting[job_id]
                backlog.reads += 1
                if self._may(found, node, now):
                    return found
            break
        return None

    @staticmethod
    def _may(waiting: WaitingEntry, node: KnownNode, now: float) -> bool:
        """Whether a node may start a job: it has the memory, and it is not too late."""
        job = waiting.job
        return job.memory <= node.facts.vram_bytes and (job.start_by is None or now <= job.start_by)

    def _ahead(self, waiting: WaitingEntry, owner: OwnerQueue) -> WaitingEntry | None:
        """Return the owner's first job if this one must not pass it for the sake of models."""
        ahead = owner.jobs.first()
        if ahead is None or ahead[1] == waiting.job.id:
            return None
        first = self._backlog.waiting[ahead[1]]
        self._backlog.reads += 1
        return first if stronger(first.job, waiting.job) else None

    def _gather_passed(self, look: NodeLook, queue: WaitingQueue, now: float) -> None:
        """Read overdue jobs of the owners that have them longest; one that has used its share waits on."""
        for at, name in queue.passed.head(MAX_OVERDUE):
            if at > now or self._backlog.reads >= MAX_HEADS // 2:
                break
            self._backlog.reads += 1
            if not self._gather_overdue(look, queue.by_owner[name], now):
                self._backlog.postpone(queue, name, now + POSTPONED * self._patience_s)

    def _gather_overdue(self, look: NodeLook, owner: OwnerQueue, now: float) -> bool:
        """Read an owner's overdue jobs; return whether it has a right to one of them."""
        backlog, entitled = self._backlog, False
        for at, job_id in owner.passed.head(MAX_OVERDUE):
            if at > now or backlog.reads >= MAX_HEADS // 2:
                break
            waiting = backlog.waiting[job_id]
            backlog.reads += 1
            if self._may(waiting, look.node, now):
                head = self._consider(look, waiting, self._lag(look, owner, waiting.queue), now)
                entitled |= head is None or head.lag <= max(look.window_s, head.cost_s)
            else:
                entitled = True  # on another node it may have
        return entitled

    def _gather_family(
        self, look: NodeLook, queue: WaitingQueue, family: str, waiting: FamilyQueue, now: float
    ) -> None:
        """Read the job of a family whose owner has had least."""
        owner = self._backlog.least(waiting.owners, queue, MAX_HEADS - KEPT)
        if owner is not None:
            first = self._first_fit(owner.families[family], look.node, now)
            if first is not None:
                self._consider(look, first, self._lag(look, owner, queue), now)

    def _consider(self, look: NodeLook, waiting: WaitingEntry, lag: float, now: float) -> Head | None:
        """Add a job to choose from."""
        if (seen := look.seen(waiting.job.id)) is not None:
            return seen
        if self._backlog.reads >= MAX_HEADS - KEPT:
            return None
        head = self._costs.head(look.node, waiting, lag, now)
        look.add(head)
        ahead = self._ahead(waiting, waiting.owner)
        if ahead is not None and self._may(ahead, look.node, now):
            head.first = self._consider(look, ahead, lag, now)
        return head
