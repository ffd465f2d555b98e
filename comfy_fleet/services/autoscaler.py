"""Makes pools grow and shrink: looks, decides by :mod:`comfy_fleet.domain.scaling`, and sees orders through.

Whatever it is about to do is stored first. One that is killed, at any moment, leaves to the next one what was
asked for: nothing is asked for twice, and nothing is forgotten.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

from comfy_fleet.domain.errors import ConfigError, Conflict, FleetError, NotFound, StoreDown
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.scaling.decide import PoolStrength, ScalingDecision, decide
from comfy_fleet.domain.scaling.looks import PoolLook, with_look
from comfy_fleet.domain.scaling.orders import (
    OrderedNode,
    OrderPhase,
    PoolBook,
    ScalingOrder,
    Step,
    followed,
    leaving,
)
from comfy_fleet.domain.scaling.scaling_file import ScaledPoolSpec, ScalingFile
from comfy_fleet.ports.audit import AuditEntry, AuditTrail
from comfy_fleet.ports.figures import Figures, PoolQueue
from comfy_fleet.ports.nodes import Hosts, NodeRegistry
from comfy_fleet.ports.scaling import NodeProvider, ScalingState, ScalingStore
from comfy_fleet.services.pool_sight import belongs, is_busy, is_open, seen
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

BY = "fleet autoscale"
"""Who it is in the audit trail."""
CORDON = "autoscale: is removed once it has no work"
STOP_S = 5.0
"""How long the end of the process waits for providers; what they were told is remembered anyway."""
RETRY_S = 30.0
"""Between two attempts to remove a node."""
_MOST_GAP = 4.0
"""Looks that are further apart than this many intervals say nothing about what was between them."""


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """What was seen of a pool, and what was decided.

    Attributes:
        pool: The pool.
        spec: Its part of the file.
        look: What was seen.
        strength: Its nodes.
        decision: What was decided.
        book: What is remembered.
    """

    pool: str
    spec: ScaledPoolSpec
    look: PoolLook
    strength: PoolStrength
    decision: ScalingDecision
    book: PoolBook

    @property
    def words(self) -> str:
        """It, in a line."""
        change = self.decision.change
        does = f"{change:+d} " if change else ""
        return (
            f"{self.pool}: {does}({self.strength.ready} ready, {self.strength.booting} boot, "
            f"{self.strength.others} others; {self.look.busy} busy, {self.look.waiting} wait): "
            f"{self.decision.why}"
        )


class NotActive(Exception):
    """Another autoscaler has taken over; nothing may be done any more."""


class Autoscaler:
    """One autoscaler; of several, one is active.

    Args:
        file: The pools and their rules.
        providers: Where their nodes come from, by pool.
        store: What is remembered.
        nodes: The nodes.
        hosts: What their agents say.
        figures: What waits.
        audit: Told what is done.
        clock: The fleet's time, Unix seconds.
        holder: This one's name, unlike any other's.
        dry: Whether it only says what it would do.
    """

    def __init__(
        self,
        file: ScalingFile,
        providers: Mapping[str, NodeProvider],
        *,
        store: ScalingStore,
        nodes: NodeRegistry,
        hosts: Hosts,
        figures: Figures,
        audit: AuditTrail,
        clock: Callable[[], Awaitable[float]],
        holder: str,
        dry: bool = False,
    ) -> None:
        self.active = False
        self.reports: Sequence[PoolReport] = ()
        self._file = file
        self._providers = providers
        self._store = store
        self._nodes = nodes
        self._hosts = hosts
        self._figures = figures
        self._audit = audit
        self._clock = clock
        self._holder = holder
        self._dry = dry
        self._seen: dict[str, tuple[PoolLook, ...]] = {}
        self._down_since: dict[str, float] = {}
        self._calls: dict[str, asyncio.Task[str]] = {}
        self._added: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._told: set[str] = set()

    @property
    def _ttl_s(self) -> float:
        return max(5.0, 3 * self._file.every_s)

    def counted(self) -> Mapping[str, tuple[PoolStrength, PoolBook]]:
        """Return the pools that it has looked at, while it is active."""
        return {report.pool: (report.strength, report.book) for report in self.reports}

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again, until ``stop`` is set."""
        waits = False
        while not stop.is_set():
            try:
                if not await self.look() and not waits:
                    waits = True
                    logger.info("another autoscaler is active")
                waits = waits and not self.active
            except StoreDown as error:
                self.active, self.reports = False, ()
                logger.warning("fleet can't be read", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with Timeout(self._file.every_s):
                    await stop.wait()

    async def close(self, *, patience_s: float | None = STOP_S) -> None:
        """Let another one be active.

        Args:
            patience_s: For how long to wait for providers; None: until they have done what they were told.
        """
        if self._calls:
            await asyncio.wait(self._calls.values(), timeout=patience_s)
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
        if self.active:
            try:
                await self._store.release(self._holder)
            except StoreDown as error:
                logger.warning("autoscaler not released", extra={"error": str(error)})

    async def look(self) -> bool:
        """Look once, decide and act; return False if another one is active.

        Raises:
            StoreDown: Redis does not answer.
        """
        if not self._dry:
            was, self.active = self.active, await self._store.hold(self._holder, ttl_s=self._ttl_s)
            if not self.active:
                self.reports = ()
                return False
            if not was:
                logger.info("autoscaler is active", extra={"pools": sorted(self._file.pools)})
        state = await self._store.state()
        states = await self._nodes.states()
        figures = await self._figures.read()
        now = await self._clock()
        self._note_away(states, now)
        self._tell_strangers(state)
        reports = []
        try:
            for pool, spec in self._file.pools.items():
                if pool in state.unreadable:
                    if self._first(f"unreadable {pool}"):
                        logger.error("autoscale record can't be read", extra={"pool": pool})
                    continue
                queue = next((one for one in figures.queues if one.pool == pool), None)
                reports.append(
                    await self._tend(
                        pool, spec, state, states, queue, readable=figures.dispatchers > 0, now=now
                    )
                )
        except NotActive:
            self.active = False
            self.reports = ()
            return False
        self.reports = reports
        return True

    def _note_away(self, states: Sequence[NodeState], now: float) -> None:
        away = {one.node.name for one in states if one.verdict != "up"}
        self._down_since = {name: self._down_since.get(name, now) for name in away}

    def _tell_strangers(self, state: ScalingState) -> None:
        for pool, book in state.books.items():
            if pool not in self._file.pools and book.orders and self._first(f"stranger {pool}"):
                logger.error("pool is no longer in the file, and has nodes", extra={"pool": pool})

    def _first(self, what: str) -> bool:
        """Return whether something was not told yet."""
        new = what not in self._told
        self._told.add(what)
        return new

    async def _tend(
        self,
        pool: str,
        spec: ScaledPoolSpec,
        state: ScalingState,
        states: Sequence[NodeState],
        queue: PoolQueue | None,
        *,
        readable: bool,
        now: float,
    ) -> PoolReport:
        book = state.books.get(pool, PoolBook())
        known = {order.name: await self._known(order, pool, states) for order in book.orders}
        steps: list[tuple[ScalingOrder, Step]] = []
        if not self._dry:
            book, steps = self._followed(pool, book, spec, known, now)
        look = seen(pool, states, queue, now)
        looks = self._looks(pool, state, look, spec)
        strength = self._strength(pool, spec, book, known, states, now)
        decision = decide(
            spec.rules, looks if readable else (), strength, now=now, changed_at=book.changed_at
        )
        if decision.change > 0 and (pause_s := book.pause_s(now)):
            why = f"{decision.why}, but pauses for {pause_s:.0f} s after {book.failures} failures"
            decision = ScalingDecision(change=0, why=why)
        if not self._dry:
            book, more = self._apply(pool, book, decision, known, now)
            if decision.change:
                logger.info(
                    "pool changes",
                    extra={"pool": pool, "change": decision.change, "reason": decision.why},
                )
            book = replace(book, told=decision.why, told_at=now)
            if not await self._store.save(self._holder, pool, book, looks):
                raise NotActive
            for order, step in [*steps, *more]:
                await self._do(pool, order, step, states, now)
        return PoolReport(pool=pool, spec=spec, look=look, strength=strength, decision=decision, book=book)

    def _looks(
        self, pool: str, state: ScalingState, look: PoolLook, spec: ScaledPoolSpec
    ) -> tuple[PoolLook, ...]:
        before = self._seen.get(pool, ()) if self._dry else tuple(state.looks.get(pool, ()))
        if self._dry and not before:
            before = tuple(state.looks.get(pool, ()))
        self._seen[pool] = with_look(
            before, look, keep_s=spec.rules.longest_s, most_gap_s=max(15.0, _MOST_GAP * self._file.every_s)
        )
        return self._seen[pool]

    async def _known(self, order: ScalingOrder, pool: str, states: Sequence[NodeState]) -> OrderedNode:
        ours = [one for one in states if belongs(one, order)]
        answered = False
        if order.phase is OrderPhase.GONE:
            for one in ours:
                if one.node.agent is not None and await self._hosts.report(one.node.name) is not None:
                    answered = True
        return OrderedNode(
            count=len(ours),
            open=sum(1 for one in ours if is_open(one) and one.node.pool == pool),
            cordoned=bool(ours) and all(one.node.cordoned for one in ours),
            quarantined=any(one.quarantined for one in ours),
            busy=any(is_busy(one) for one in ours),
            answered=answered,
        )

    def _followed(
        self, pool: str, book: PoolBook, spec: ScaledPoolSpec, known: Mapping[str, OrderedNode], now: float
    ) -> tuple[PoolBook, list[tuple[ScalingOrder, Step]]]:
        """Follow all orders; return the book as it is then, and what they need."""
        steps: list[tuple[ScalingOrder, Step]] = []
        for before in book.orders:
            order, failure = self._called(before, now)
            if failure:
                order = before.at(OrderPhase.DRAINING, now, failed=failure)
            after, step = followed(order, known[before.name], now=now, boot_s=spec.boot_s)
            if after.phase is OrderPhase.ASKED and self._may_tell_again(pool, after):
                step = Step.ADD
            facts = {"pool": pool, "node": after.name}
            if after.failed and not before.failed:
                book = book.failing(now)
                logger.error("ordered node failed", extra={**facts, "reason": after.failed})
            if after.phase is OrderPhase.READY and before.phase is OrderPhase.ASKED:
                book = replace(book, failures=0, changed_at=now)
                took_s = round(now - after.asked_at, 1)
                logger.info("ordered node is ready", extra={**facts, "after_s": took_s})
            if step is Step.DROP:
                book = book.without(after.name)
                self._added.discard(after.name)
                if not after.failed:
                    book = replace(book, removed=book.removed + 1)
                logger.info("node removed", extra=facts)
            else:
                book = book.with_order(after)
                steps.append((after, step))
        return book, steps

    def _may_tell_again(self, pool: str, order: ScalingOrder) -> bool:
        """Return whether an earlier process has ordered it, and may not have come to telling the provider."""
        return order.name not in self._added and self._providers[pool].again

    def _called(self, order: ScalingOrder, now: float) -> tuple[ScalingOrder, str]:
        """Return an order after what its provider has done, and why it failed."""
        task = self._calls.get(order.name)
        if task is None or not task.done():
            return order, ""
        del self._calls[order.name]
        failure = task.result() if task.exception() is None else "the provider has a fault: see the log"
        if order.phase is not OrderPhase.ENDING:
            return order, failure
        if not failure:
            return order.at(OrderPhase.GONE, now), ""
        self._not_before[order.name] = now + RETRY_S
        logger.error("node not removed, is tried again", extra={"node": order.name, "error": failure})
        return order, ""

    def _strength(
        self,
        pool: str,
        spec: ScaledPoolSpec,
        book: PoolBook,
        known: Mapping[str, OrderedNode],
        states: Sequence[NodeState],
        now: float,
    ) -> PoolStrength:
        unready = [order for order in book.orders if order.phase is not OrderPhase.READY]
        counted = [
            one
            for one in states
            if one.node.pool == pool and not any(belongs(one, order) for order in unready)
        ]
        ready = [one for one in counted if self._is_there(one, spec, now)]
        booting = sum(1 for order in unready if order.phase is OrderPhase.ASKED)
        lost = sum(
            1
            for order in book.orders
            if order.phase is OrderPhase.READY and not any(belongs(one, order) for one in counted)
        )
        return PoolStrength(
            ready=len(ready),
            booting=booting,
            others=len(counted) - len(ready) + len(unready) - booting + lost,
            draining=len(_resumable(book)),
            removable=len(leaving(book.orders, known, len(book.orders))),
        )

    def _is_there(self, state: NodeState, spec: ScaledPoolSpec, now: float) -> bool:
        """Return whether a node can take jobs, or is away for less than a boot."""
        if state.node.cordoned:
            return False
        return state.verdict == "up" or now - self._down_since.get(state.node.name, now) < spec.boot_s

    def _apply(
        self,
        pool: str,
        book: PoolBook,
        decision: ScalingDecision,
        known: Mapping[str, OrderedNode],
        now: float,
    ) -> tuple[PoolBook, list[tuple[ScalingOrder, Step]]]:
        """Turn a decision into orders; return the book with them, and what they need."""
        steps: list[tuple[ScalingOrder, Step]] = []
        wanted = decision.change
        for order in leaving(book.orders, known, -wanted) if wanted < 0 else ():
            leaves = order.at(OrderPhase.DRAINING, now)
            book = book.with_order(leaves)
            steps.append((leaves, Step.DRAIN))
        for order in _resumable(book)[: max(0, wanted)]:  # sooner than a new one
            stays = order.at(OrderPhase.READY, now)
            book = book.with_order(stays)
            steps.append((stays, Step.RESUME))
            wanted -= 1
        for _ in range(wanted):
            drawn = self._providers[pool].draw(book.orders)
            if drawn is None:
                if self._first(f"room {pool}"):
                    logger.error("provider has no room for another node", extra={"pool": pool})
                break
            name, facts = drawn
            order = ScalingOrder(name=name, asked_at=now, since=now, facts=facts)
            book = replace(book.with_order(order), added=book.added + 1)
            steps.append((order, Step.ADD))
        return replace(book, changed_at=now) if steps else book, steps

    async def _do(
        self, pool: str, order: ScalingOrder, step: Step, states: Sequence[NodeState], now: float
    ) -> None:
        """Do what an order needs; it is stored that it is done."""
        names = [one.node.name for one in states if belongs(one, order)]
        if step is Step.ADD:
            self._added.add(order.name)
            self._calls[order.name] = start(_failure(self._add(pool, order)), name=f"add {order.name}")
        elif step is Step.REMOVE:
            if order.name not in self._calls and now >= self._not_before.get(order.name, 0.0):
                removal = self._providers[pool].remove(order)
                self._calls[order.name] = start(_failure(removal), name=f"remove {order.name}")
        elif step in (Step.DRAIN, Step.RESUME):
            for name in names:
                await self._cordon(name, order, drain=step is Step.DRAIN)
        elif step is Step.FORGET:
            for name in names:
                await self._forget(name, order)

    async def _add(self, pool: str, order: ScalingOrder) -> None:
        logger.info("node ordered", extra={"pool": pool, "node": order.name})
        await self._note("node.ordered", node=order.name, pool=pool)
        node = await self._providers[pool].add(order)
        if node is not None:
            try:
                await self._nodes.add(replace(node, added_at=order.asked_at))
            except Conflict as error:
                known = await self._nodes.get(node.name)
                if known is None or known.url != node.url:
                    raise ConfigError(error.message) from error

    async def _cordon(self, name: str, order: ScalingOrder, *, drain: bool) -> None:
        reason = f"{CORDON}: {order.failed}" if order.failed else CORDON
        try:
            if drain:
                await self._nodes.cordon(name, reason=reason)
                await self._note("node.drained", node=name, reason=reason)
            else:
                await self._nodes.uncordon(name)
                await self._note("node.resumed", node=name)
        except NotFound:
            return
        logger.info("node drains" if drain else "node stays after all", extra={"node": name})

    async def _forget(self, name: str, order: ScalingOrder) -> None:
        try:
            await self._nodes.remove(name)
        except NotFound:
            return
        except Conflict:  # a job has come while nobody looked: it is given back when the node is found gone
            return
        await self._note("node.removed", node=name, reason=order.failed or "too little work")

    async def _note(self, event: str, **about: object) -> None:
        logger.info("audit", extra={"event": event, "by": BY, "by_key": "", "address": "", "about": about})
        await self._audit.note(AuditEntry(event=event, by=BY, about=about))


async def _failure(call: Coroutine[None, None, None]) -> str:
    """Return why a call failed; empty if it did not."""
    try:
        await call
    except FleetError as error:
        return error.message
    return ""


def _resumable(book: PoolBook) -> list[ScalingOrder]:
    return [order for order in book.orders if order.phase is OrderPhase.DRAINING and not order.failed]
