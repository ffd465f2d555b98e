"""The fleet's own way to choose: fair shares, models where they are, and nobody passed over for long."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from comfy_fleet.domain.nodes.pool import PATIENCE_S
from comfy_fleet.domain.schedule.backlog import (
    Backlog,
    FamilyQueue,
    OwnerQueue,
    TenantQueue,
    WaitingEntry,
    WaitingQueue,
)
from comfy_fleet.domain.schedule.choose import choose_first, choose_next
from comfy_fleet.domain.schedule.gather import Gatherer
from comfy_fleet.domain.schedule.known_nodes import KnownNode, KnownNodes
from comfy_fleet.domain.schedule.look import NodeLook
from comfy_fleet.domain.schedule.policy import JobChoice, Nothing
from comfy_fleet.domain.schedule.read_standing import read_standing
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.shares import Account, Shares
from comfy_fleet.domain.schedule.standing import Capacity, Standing
from comfy_fleet.domain.schedule.tenants import ROOT, holder_of, level_of
from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from comfy_fleet.domain.schedule.waiting_words import waiting_for
from comfy_fleet.domain.schedule.warmth import Missing

CALM_S = 1e-4
"""For how long a look in vain counts for other nodes, for each of those that serve the same queues."""
PROPOSED = 16
"""Most idle nodes that are compared for a job whose models none of them holds."""
LOOK_S = 1.0
"""How long a new job is left to the nodes that have its models, and the least time until an idle node looks
again."""


@dataclass(slots=True)
class _Run:
    """A job that was chosen, and what was expected of it."""

    accounts: Sequence[Account]
    node: str
    charged_s: float
    missing: Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How much a chooser remembers.

    Attributes:
        waiting: Jobs that wait.
        queues: Queues in which they wait.
        runs: Runs that have not ended.
        nodes: Nodes that take jobs.
        families: Model families that nodes hold.
        owners: Accounts of owners and tenants that wait, run or have left a short time ago, and their bases.
    """

    waiting: int
    queues: int
    runs: int
    nodes: int
    families: int
    owners: int


class FairChooser:
    """Chooses jobs for nodes.

    Args:
        patience_s: For how long a job may be passed over beyond its turn, in seconds.
        weights: Owners' shares compared with 1, that of all others of their tenant.
        tenant_weights: The same of tenants; the default one's name is empty here.
    """

    def __init__(
        self,
        *,
        patience_s: float = PATIENCE_S,
        weights: Mapping[str, float] | None = None,
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        if patience_s < 0:
            raise ValueError(f"patience_s is {patience_s}: it must not be negative")
        self._patience_s = patience_s
        tenants = {holder_of(name): weight for name, weight in (tenant_weights or {}).items()}
        self._shares = Shares({**(weights or {}), **tenants})
        self._backlog = Backlog()
        self._nodes = KnownNodes()
        self._gatherer = Gatherer(self._backlog, self._nodes, patience_s)
        self._runs: dict[str, _Run] = {}

    @property
    def heads_read(self) -> int:
        """How many heads the last choice has read."""
        return self._backlog.reads

    def snapshot(self) -> Snapshot:
        """Return how much is remembered."""
        nodes, families = self._nodes.size
        return Snapshot(
            waiting=len(self._backlog.waiting),
            queues=len(self._backlog.queues),
            runs=len(self._runs),
            nodes=nodes,
            families=families,
            owners=self._shares.size,
        )

    # -- what happens -----------------------------------------------------------------------------------

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Note a job that waits from now on."""
        backlog = self._backlog
        if job.id in backlog.waiting:
            return
        queue, new = backlog.queue_of(job)
        if new:
            self._nodes.opened(queue)
        owner = queue.by_owner.get(job.owner)
        if owner is None:
            if job.tenant and not backlog.tenanted:
                self._begin_tenants()
            owner = self._enter(queue, job)
        name = job.models.family
        family = queue.by_family.get(name)
        if family is None:
            family = queue.by_family[name] = FamilyQueue(
                self._nodes.holder_count(name, queue), job.models.family_size
            )
        backlog.add(WaitingEntry(job, queue, owner, now), family)

    def withdrawn(self, job_id: str, now: float) -> None:
        """Note that a waiting job was canceled or has expired; unknown ids are ignored."""
        waiting = self._backlog.waiting.get(job_id)
        if waiting is not None:
            self._remove(waiting)

    def node_up(self, node: ScheduledNode, now: float) -> None:
        """Note a node with nothing loaded, or new facts about one that is known."""
        self._nodes.up(node, iter(self._backlog.queues.values()))

    def node_down(self, name: str, now: float) -> None:
        """Note that a node takes no jobs any more."""
        self._nodes.down(name)

    def ended(self, job_id: str, node: str, *, load_s: float, run_s: float, ok: bool, now: float) -> None:
        """Note that a run is over and its node idle."""
        run = self._runs.pop(job_id, None)
        if run is None:
            return
        for account in run.accounts:
            account.settle(run.charged_s, load_s + run_s)
            self._shares.ended(account)
        known = self._nodes.get(node)
        if known is not None and known.runs == job_id:
            known.runs = None
            if ok:
                known.warmth.measured(run.missing, load_s)

    # -- what is asked ----------------------------------------------------------------------------------

    def next_for(self, node: str, now: float) -> JobChoice | Nothing:
        """Choose the job that an idle node starts now."""
        self._backlog.reads = 0
        known = self._nodes.get(node)
        if known is None:
            return Nothing()
        gatherer = self._gatherer
        look = gatherer.turn(known, now)
        if look is None:
            self._nodes.idle(known)
            return Nothing()
        overdue = gatherer.overdue(look, now)
        if not overdue and (warm := gatherer.warm_turn(look, now)) is not None:
            return self._start(known, warm, "turn", now)
        best = gatherer.gather_first(look, now, overdue=overdue)
        if best is not None:
            if best.overdue_at is None:
                self._pass_over(look, now, best)
            return self._start(known, best, "warm", now)
        chosen = choose_first(look.heads, look.window_s, now) if look.heads else None
        calm = chosen is None and not look.heads and gatherer.calm(look, now)
        if chosen is None and not calm:
            gatherer.gather_others(look, now)
            chosen = choose_next(look.heads, look.window_s, now)
        if chosen is None:
            self._pass_over(look, now)
            self._nodes.idle(known)
            if calm:
                return Nothing(now + LOOK_S)
            known.kind.calm_until = now + CALM_S * known.kind.nodes
            return Nothing(self._look_again_at(look, now))
        head, rule = chosen
        if head.waiting.overdue_at is None:
            self._pass_over(look, now, head.waiting)
        return self._start(known, head.waiting, rule, now)

    def node_for(self, job: WaitingJob, idle: Collection[str], now: float) -> str | Nothing:
        """Choose the idle node that is asked first because a job was submitted."""
        waiting = self._backlog.waiting.get(job.id)
        if waiting is None:
            return Nothing()
        for _, holder in self._nodes.holders(job.models.family):
            if holder.runs is None and self._can(holder, waiting) and holder.facts.name in idle:
                return holder.facts.name
        family = waiting.queue.by_family[job.models.family]
        if family.holders and now < waiting.since + LOOK_S:
            return Nothing(waiting.since + LOOK_S)  # they may be free sooner than anything is loaded
        able = (
            node for name in idle if (node := self._nodes.get(name)) is not None and self._can(node, waiting)
        )
        best = min(islice(able, PROPOSED), key=lambda node: node.warmth.load_s(job.models), default=None)
        return best.facts.name if best is not None else Nothing()

    def waiting_for(self, job_id: str, now: float) -> str | None:
        """Return in words why a job waits, or None if it does not."""
        waiting = self._backlog.waiting.get(job_id)
        return waiting_for(waiting, self._nodes, now) if waiting is not None else None

    def standing(self, job_id: str, now: float) -> Standing | None:
        """Return where a job stands, or None if it does not wait."""
        waiting = self._backlog.waiting.get(job_id)
        return read_standing(waiting, self._backlog, self._nodes, now) if waiting is not None else None

    def capacity(self, job_id: str, now: float) -> Capacity | None:
        """Return the nodes that can run a waiting job, or None if it does not wait."""
        waiting = self._backlog.waiting.get(job_id)
        if waiting is None:
            return None
        serving = self._nodes.serving(waiting.queue)
        speed = sum(node.facts.speed for node in serving) / len(serving) if serving else 1.0
        return Capacity(
            free_in_s=sorted(node.free_in_s(now) for node in serving),
            speed=speed,
            first_speed=serving[0].facts.speed if serving else None,
        )

    # -- the parts --------------------------------------------------------------------------------------

    @staticmethod
    def _can(node: KnownNode, waiting: WaitingEntry) -> bool:
        return node.kind.serves(waiting.queue) and waiting.job.memory <= node.facts.vram_bytes

    def _begin_tenants(self) -> None:
        """Let tenants' shares count from now on."""
        self._backlog.tenanted = True
        for queue in self._backlog.queues.values():
            for tenant in queue.by_tenant.values():
                self._enter_tenant(queue, tenant)

    def _enter(self, queue: WaitingQueue, job: WaitingJob) -> OwnerQueue:
        """Note that an owner waits in a queue from now on, and its tenant if it has not done so before."""
        level = level_of(job.tenant)
        virtual = self._nodes.clock(queue, level, queue.owners.of(job.tenant))
        account, base = self._shares.enter(queue.name + level, job.owner, virtual)
        tenant = queue.by_tenant.get(job.tenant)
        if tenant is None:
            tenant = TenantQueue(job.tenant, Account(holder_of(job.tenant), 1.0), 0.0)
            if self._backlog.tenanted:
                self._enter_tenant(queue, tenant)
            queue.by_tenant[job.tenant] = tenant
        owner = queue.by_owner[job.owner] = OwnerQueue(account, base, tenant)
        return owner

    def _enter_tenant(self, queue: WaitingQueue, tenant: TenantQueue) -> None:
        virtual = self._nodes.clock(queue, ROOT, queue.owners.tenants)
        holder = holder_of(tenant.name)
        tenant.account, tenant.base = self._shares.enter(queue.name + ROOT, holder, virtual)

    def _remove(self, waiting: WaitingEntry) -> None:
        queue, owner = waiting.queue, waiting.owner
        if self._backlog.remove(waiting):
            tenant, owners = owner.tenant, queue.owners
            level = level_of(tenant.name)
            clock = self._nodes.clock(queue, level, owners.of(tenant.name))
            self._shares.leave(queue.name + level, owner.account, owner.base, clock)
            if self._backlog.tenanted and tenant.name not in queue.by_tenant:
                clock = self._nodes.clock(queue, ROOT, owners.tenants)
                self._shares.leave(queue.name + ROOT, tenant.account, tenant.base, clock)
            if not queue.by_owner:
                self._nodes.closed(queue)

    def _start(self, node: KnownNode, waiting: WaitingEntry, rule: str, now: float) -> JobChoice:
        """Take a job out of the backlog, and charge its owner, and its tenant where tenants count."""
        job, accounts = waiting.job, [waiting.owner.account]
        if self._backlog.tenanted:
            accounts.append(waiting.owner.tenant.account)
        missing = node.warmth.missing(job.models)
        load_s = node.warmth.load_s(job.models)
        cost_s = load_s + job.run_s / node.facts.speed
        for account in accounts:
            self._shares.began(account)
            account.charge(cost_s)
        self._remove(waiting)
        self._runs[job.id] = _Run(accounts, node.facts.name, cost_s, missing)
        self._nodes.started(node, job.id, job.models, now + cost_s)
        return JobChoice(job, rule, load_s)

    def _pass_over(self, look: NodeLook, now: float, chosen: WaitingEntry | None = None) -> None:
        """Note the job whose turn it is, unless it is the chosen one.

        Had the node taken it, it would be busy now, and no other job's turn would come here until it is done.
        """
        node = look.node
        if now < node.passes_until:
            return
        turn = self._gatherer.unpassed(look, now)
        if turn is None or turn is chosen:
            return
        job, patience_s = turn.job, self._patience_s
        load_s = node.warmth.load_s(job.models)
        node.passes_until = now + load_s + job.run_s / node.facts.speed
        if job.finish_by is not None and not turn.late:
            patience_s = min(patience_s, max(0.0, job.finish_by - job.run_s - load_s - now))
        self._backlog.pass_over(turn, now + patience_s)

    def _look_again_at(self, look: NodeLook, now: float) -> float | None:
        """Return when the next job is overdue, or soon if one is that is left to another node."""
        times = [first[0] for queue in look.queues if (first := queue.passed.first()) is not None]
        if look.node.passes_until > now:
            times.append(look.node.passes_until)
        return max(min(times), now + LOOK_S) if times else None
