"""Dispatch queued jobs: ask HAProxy for a node, claim the best job for it, see it through.

Nothing starts without HAProxy's 101, and no job is claimed without a node. Any number of dispatchers work on
the same queues without talking to each other.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.job import Placement
from comfy_fleet.domain.run import RunLimits
from comfy_fleet.ports import (
    AssetStore,
    Claim,
    InventoryStore,
    Lease,
    Leases,
    NodeApi,
    NodeRegistry,
    NoLease,
    RunStore,
)
from comfy_fleet.services.atlas import Atlas
from comfy_fleet.services.care import Care, CareLimits
from comfy_fleet.services.execute import Execution, Tools
from comfy_fleet.services.measure import Measure

logger = logging.getLogger(__name__)

MAX_WISH = 64  # names in X-Fleet-Nodes; more cost HAProxy milliseconds
PARALLEL = 4  # lease requests of one placement class at a time
HOT_S = 0.05  # how long a slot that we gave back may take to be free again
HOT_GAP_S = 0.001
SPILL_S = 0.02  # what another dispatcher may need from its lease to its claim
LOOK_AGAIN_S = (0.1, 0.3)  # while jobs wait and every node is busy
IDLE_LOOK_S = 2.0  # a lost wake-up must not matter
PARK_LOOK_S = 0.25
TAKE_OVER_LIMIT = 32
UPKEEP_LIMIT = 200


@dataclass(frozen=True, kw_only=True)
class DispatchLimits:
    """Times in seconds; see :class:`comfy_fleet.settings.Settings`."""

    lease_ttl_s: float
    beat_s: float
    stop_wait_s: float


class Dispatcher:
    """One dispatcher process.

    Args:
        name: Unique; RQ's worker name.
        wakes: Yields wake-up messages (``job PLACEMENT``, ``free``, ``nodes``, ``cancel RUN``).
        forget_files: Deletes a forgotten job's files.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        name: str,
        runs: RunStore,
        registry: NodeRegistry,
        inventories: InventoryStore,
        leases: Leases,
        nodes: NodeApi,
        assets: AssetStore,
        open_secret: Callable[[bytes], Mapping[str, Any]],
        wakes: Callable[[], AsyncIterator[str]],
        run_limits: RunLimits,
        limits: DispatchLimits,
        care: CareLimits,
        now: Callable[[], float],
    ) -> None:
        self.name = name
        self._runs = runs
        self._registry = registry
        self._leases = leases
        self._assets = assets
        self._wakes = wakes
        self._limits = limits
        self._now = now
        self._atlas = Atlas(registry, inventories)
        self._tools = Tools(
            runs=runs,
            nodes=nodes,
            assets=assets,
            limits=run_limits,
            open_secret=open_secret,
            measure=Measure(self._atlas),
            care=Care(registry, inventories, nodes, self._atlas, care),
            now=now,
            safe=self._safe,
        )
        self.flying: dict[str, Execution] = {}
        self._confirmed: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seekers: Counter[Placement] = Counter()
        self._known: set[Placement] = set()
        self._first: dict[object, Placement] = {}  # who asks its first pool, or claims for a node of it
        self._busy_until: dict[Placement, float] = {}
        self._look = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._claiming = True
        self._hurried = False
        self._parked: set[str] = set()
        self.done = 0

    # -- life -----------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then land what is in flight, or hand it over if that takes long."""
        await self._atlas.look()
        background = [
            asyncio.create_task(self._forever(self._listen)),
            asyncio.create_task(self._forever(self._beat)),
            asyncio.create_task(self._forever(self._watch_nodes)),
            asyncio.create_task(self._forever(self._upkeep)),
            asyncio.create_task(self._forever(self._seek)),
        ]
        logger.info("dispatcher started", extra={"dispatcher": self.name})
        try:
            await stop.wait()
            self._claiming = False
            await self._land()
        finally:
            for task in (*background, *self._tasks):
                task.cancel()
            await asyncio.gather(*background, *self._tasks, return_exceptions=True)
            logger.info("dispatcher stopped", extra={"dispatcher": self.name})

    def hurry(self) -> None:
        """Don't wait for runs any more: hand them over."""
        self._hurried = True
        self._over.set()

    async def _land(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.stop_wait_s):
                while self.flying and not self._hurried:
                    self._over.clear()
                    await self._over.wait()
        claims = [execution.claim for execution in self.flying.values()]
        if not claims:
            return
        logger.warning("runs handed over", extra={"dispatcher": self.name, "count": len(claims)})
        try:
            await self._runs.hand_over(claims)
        except StoreDown as error:  # their leases run out, which says the same a little later
            logger.warning("hand-over not written", extra={"dispatcher": self.name, "error": str(error)})

    async def _forever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a loop again whatever it raises: Redis and HAProxy come back."""
        while True:
            try:
                await work()
            except Exception:
                logger.exception("dispatcher loop failed", extra={"loop": work.__name__})
                await asyncio.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - spreads load, guards nothing

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who may write --------------------------------------------------------------------------------

    def _safe(self, run: str) -> bool:
        """Whether the run's lease certainly holds: nobody else can have taken it over yet."""
        margin = self._limits.lease_ttl_s / 4
        return self._now() - self._confirmed.get(run, float("-inf")) < self._limits.lease_ttl_s - margin

    async def _beat(self) -> None:
        healthy = self._now()
        last = healthy
        while True:
            started = self._now()
            claims = [execution.claim for execution in self.flying.values()]
            try:
                beat = await self._runs.beat(self.name, claims, ttl_s=self._limits.lease_ttl_s)
            except StoreDown:
                if not self._claiming:
                    self.hurry()  # stopping, and nothing can be written: waiting would gain nothing
                raise
            for claim in claims:
                if claim.run not in beat.lost:
                    self._confirmed[claim.run] = started
            for run in beat.lost:
                self._drop(run)
            for run in beat.cancel:
                self._cancel(run)
            for run in beat.release:
                self._release(run)
            # After an outage or a freeze of ours every other dispatcher gets one TTL to renew its leases.
            if self._now() - last > self._limits.lease_ttl_s / 2:
                healthy = self._now()
            last = self._now()
            if self._claiming and last - healthy >= self._limits.lease_ttl_s:
                await self._take_over()
            await asyncio.sleep(self._limits.beat_s)

    def _drop(self, run: str) -> None:
        if execution := self.flying.get(run):
            logger.warning("lease lost", extra={"job_id": execution.claim.job.id, "run": run})
            execution.abandon()

    def _cancel(self, run: str) -> None:
        if execution := self.flying.get(run):
            execution.cancel()

    def _release(self, run: str) -> None:
        if execution := self.flying.get(run):
            execution.release()

    async def _take_over(self) -> None:
        asked = self._now()
        for held in await self._runs.take_over(
            dispatcher=self.name, ttl_s=self._limits.lease_ttl_s, limit=TAKE_OVER_LIMIT
        ):
            execution = self._execution(held.claim, None)
            self._fly(execution, execution.resume(held), asked=asked)

    def _execution(self, claim: Claim, lease: Lease | None) -> Execution:
        return Execution(self._tools, claim, lease, on_free=self._freed, on_rest=self._rest)

    def _fly(self, execution: Execution, work: Coroutine[Any, Any, None], *, asked: float) -> None:
        run = execution.claim.run
        self.flying[run] = execution
        self._confirmed[run] = asked
        self._spawn(self._landed(execution, work))

    async def _landed(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        claim = execution.claim
        try:
            await work
            self.done += 1
        except Exception:
            # Not ended: its lease runs out, and whoever takes it over asks the node what became of it.
            logger.exception("run broke off", extra={"job_id": claim.job.id, "run": claim.run})
        finally:
            self.flying.pop(claim.run, None)
            self._confirmed.pop(claim.run, None)
            self._over.set()

    # -- wake-ups -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._wakes():
            kind, _, rest = message.partition(" ")
            if kind == "job":
                if not self._start_seeker(Placement.parse(rest)):
                    self._look_in(LOOK_AGAIN_S[0])  # whoever seeks now may have looked before it was there
            elif kind == "cancel":
                self._cancel(rest)
            elif kind == "release":
                self._release(rest)
            elif kind == "free":
                self._busy_until.clear()
                self._look.set()

    async def _watch_nodes(self) -> None:
        async for _ in self._registry.changes():
            await self._atlas.look()
            for execution in tuple(self.flying.values()):
                node = execution.claim.node
                # A node that was granted to us while we looked is not missing.
                if node not in self._atlas.states and await self._registry.get(node) is None:
                    execution.evict()
            self._busy_until.clear()
            self._look.set()

    def _freed(self, node: str) -> None:
        """Take note that a node of ours can take another job: ask for just this one at once."""
        placement = next((p for p in self._known if self._able(p, node)), None)
        if self._claiming and placement is not None:
            self._spawn(self._seek_again(node, placement))

    def _rest(self, lease: Lease, seconds: float) -> None:
        """Keep a node that no run has any more from new jobs for a while."""
        self._spawn(self._hold(lease, seconds))

    async def _hold(self, lease: Lease, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            lease.release()
        self._freed(lease.node)

    # -- asking for nodes -----------------------------------------------------------------------------

    async def _seek(self) -> None:
        while True:
            waiting = await self._runs.waiting() if self._claiming else []
            self._known = {head.placement for head in waiting}
            self._atlas.forget({*self._known, *self._seekers})
            await self._atlas.learn(self._known)
            for head in waiting:
                self._start_seeker(head.placement)
            if waiting:
                self._look_in(random.uniform(*LOOK_AGAIN_S))  # noqa: S311 - spreads load, guards nothing
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_LOOK_S):
                    await self._look.wait()
            self._look.clear()

    def _look_in(self, seconds: float) -> None:
        """Look at the queues again, at the latest after this time."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if loop.time() < self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._look.set)

    def _start_seeker(self, placement: Placement) -> bool:
        self._known.add(placement)
        if (
            not self._claiming
            or self._seekers[placement] >= PARALLEL
            or self._now() < self._busy_until.get(placement, 0.0)
        ):
            return False
        self._seekers[placement] += 1
        self._spawn(self._seek_nodes(placement))
        return True

    async def _seek_nodes(self, placement: Placement) -> None:
        """Take node after node for one placement class, until none is free or nothing waits."""
        try:
            while self._claiming and await self._seek_one(placement):
                self._start_seeker(placement)  # more nodes may be free: ask for several at a time
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})
        finally:
            self._seekers[placement] -= 1
            if not self._seekers[placement]:
                del self._seekers[placement]

    async def _seek_again(self, node: str, placement: Placement) -> None:
        """Take a node that a run of ours has just left; HAProxy needs a moment to see that it is free."""
        try:
            pool = self._atlas.states[node].node.pool
            until = self._now() + HOT_S
            while self._now() < until:
                run = str(uuid4())
                lease = await self._leases.lease(run=run, pool=pool, nodes=(node,))
                if not isinstance(lease, NoLease):
                    await self._claim(lease, run, placement, seekers=0)
                    return
                if lease.why != "busy":
                    break
                await asyncio.sleep(HOT_GAP_S)
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})
        self._look.set()

    def _by_weight(self, names: frozenset[str]) -> Sequence[str]:
        """Return nodes in an order to ask for: at random, the heavier the sooner, as HAProxy would share."""

        def lot(name: str) -> float:
            state = self._atlas.states.get(name)
            # The lots of a weighted draw without repetition (Efraimidis and Spirakis, 2006).
            share = state.node.share if state else 1.0
            return float(random.random() ** (1 / share))  # noqa: S311 - spreads load, guards nothing

        return sorted(names, key=lot, reverse=True)[:MAX_WISH]

    async def _seek_one(self, placement: Placement) -> bool:
        await self._atlas.learn([placement])
        atlas = self._atlas
        if any(
            atlas.pools.get(pool, frozenset()) & atlas.unread and not atlas.able_in(placement, pool)
            for pool in atlas.pools_of(placement)
        ):
            await atlas.look()  # before a pool is passed over: its nodes may have been read just now
        pools = [pool for pool in atlas.pools_of(placement) if atlas.able_in(placement, pool)]
        if not pools:
            return False
        turn = object()
        self._first[turn] = placement
        try:
            if granted := await self._ask(placement, pools[0]):
                return await self._claim(*granted, placement, seekers=1)
        finally:
            del self._first[turn]
        for at, pool in enumerate(pools[1:], 1):  # the next one only if the ones before have no free node
            await asyncio.sleep(SPILL_S)
            if granted := await self._ask(placement, pool):
                granted = await self._rather(placement, pools[:at], granted)
                return await self._claim(*granted, placement, seekers=1)
        self._busy_until[placement] = self._now() + LOOK_AGAIN_S[0]
        self._look_in(LOOK_AGAIN_S[1])
        return False

    async def _rather(
        self, placement: Placement, pools: Sequence[str], granted: tuple[Lease, str]
    ) -> tuple[Lease, str]:
        """Return a node of the pools that refused before, if one is free by now; else what was granted.

        Returns once those who asked the first pool at the same time have claimed what they came for.
        """
        lease, _ = granted
        try:
            for pool in pools:
                if better := await self._ask(placement, pool):
                    lease.release()
                    return better
            turns = {turn for turn, theirs in self._first.items() if theirs == placement}
            while turns & self._first.keys():  # noqa: ASYNC110 - a few milliseconds
                await asyncio.sleep(HOT_GAP_S)
        except BaseException:
            lease.release()
            raise
        return granted

    async def _ask(self, placement: Placement, pool: str) -> tuple[Lease, str] | None:
        """Ask a pool for a node that is able; returns the lease and its run's id."""
        able = self._atlas.able_in(placement, pool)
        if not able:
            return None
        wish: Sequence[str] = ()
        if len(able) < len(self._atlas.pools[pool]):
            wish = self._by_weight(able)
        run = str(uuid4())
        lease = await self._leases.lease(run=run, pool=pool, nodes=wish)
        if not isinstance(lease, NoLease):
            return lease, run
        if lease.why != "busy":
            logger.warning("no lease", extra={"why": lease.why, "detail": lease.detail})
        return None

    async def _claim(self, lease: Lease, run: str, placement: Placement, *, seekers: int) -> bool:
        """Take the best job for a leased node.

        Args:
            lease: Holds the node.
            run: Its run's id.
            placement: Whose job was sought; another one that is able may be better.
            seekers: How many of the placement's seekers we are ourselves.

        Returns:
            Whether more jobs wait than others are seeking nodes for.
        """
        asked = self._now()
        placements = self._fitting(lease.node, placement)
        try:
            got = await self._runs.claim(
                node=lease.node,
                placements=placements,
                run=run,
                token=uuid4().hex,
                dispatcher=self.name,
                ttl_s=self._limits.lease_ttl_s,
            )
        except BaseException:
            lease.release()
            raise
        if isinstance(got, Claim):
            logger.info(
                "job claimed",
                extra={"job_id": got.job.id, "run": run, "node": got.node, "attempt": got.attempt},
            )
            if not got.behind:
                self._known.difference_update(placements)
            sought = sum(self._seekers[one] for one in placements) - seekers
            got = replace(got, behind=max(0, got.behind - sought))
            execution = self._execution(got, lease)
            self._fly(execution, execution.run(), asked=asked)
            return got.behind > 0
        if got.why == "leased" and got.run is not None:
            # HAProxy forgot a tunnel (a reload, a restart): keep this one open in its stead, so that the slot
            # counts as taken until the run that really has the node is over.
            self._park(lease, got.run)
            return True
        lease.release()
        if got.why == "empty":
            self._known.difference_update(placements)
        else:
            logger.info("node refused", extra={"node": lease.node, "why": got.why})
            self._busy_until[placement] = self._now() + LOOK_AGAIN_S[0]
        return False

    def _fitting(self, node: str, wanted: Placement) -> list[Placement]:
        """Return the placement classes that may use the node; the wanted one is first.

        Jobs that would rather run in another pool stay out while that one is still asked for them.
        """
        others = [
            placement
            for placement in self._known
            if placement != wanted
            and self._able(placement, node)
            and (not self._seekers[placement] or self._first_choice(placement, node))
        ]
        return [wanted, *others]

    def _first_choice(self, placement: Placement, node: str) -> bool:
        pools = (self._atlas.able_in(placement, pool) for pool in self._atlas.pools_of(placement))
        return node in next(filter(None, pools), frozenset())

    def _able(self, placement: Placement, node: str) -> bool:
        return node in self._atlas.able(placement)

    def _park(self, lease: Lease, run: str) -> None:
        if lease.node in self._parked:
            lease.release()
            return
        logger.warning("duplicate lease parked", extra={"node": lease.node, "run": run})
        self._parked.add(lease.node)
        self._spawn(self._wait_parked(lease, run))

    async def _wait_parked(self, lease: Lease, run: str) -> None:
        try:
            closed = asyncio.create_task(_drain(lease))
            while not closed.done() and await self._runs.lease_of(lease.node) == run:
                await asyncio.wait({closed}, timeout=PARK_LOOK_S)
            closed.cancel()
        finally:
            self._parked.discard(lease.node)
            lease.release()
            self._freed(lease.node)

    # -- upkeep ---------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        while True:
            if expired := await self._runs.overdue(UPKEEP_LIMIT):
                logger.info("jobs expired in the queue", extra={"count": expired})
            for job_id in await self._runs.forgettable(UPKEEP_LIMIT):
                if not await self._assets.forget_job(job_id):
                    continue  # a live job still needs one of its outputs
                await self._runs.forget(job_id)  # files first: a crash in between repeats both
                logger.info("job forgotten", extra={"job_id": job_id})
            await asyncio.sleep(max(1.0, self._limits.beat_s))


async def _drain(lease: Lease) -> None:
    async for _ in lease.frames():
        pass
