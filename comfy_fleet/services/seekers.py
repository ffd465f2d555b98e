"""Seek nodes for waiting jobs: ask HAProxy for a node, then claim the best job for it.

A *seeker* is a task that takes node after node for one placement class. Several run for each class while its
jobs wait and nodes are granted. Otherwise there is only a look at the queues now and then.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from comfy_fleet.domain.errors import Outdated
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node_order import NodeOrder, Nodes
from comfy_fleet.ports.comfyui import Lease, Leases, NoLease
from comfy_fleet.ports.runs import Claim, Refused, RunStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

MAX_PREFERRED = 64  # most names in X-Fleet-Nodes; more cost HAProxy milliseconds
PARALLEL = 4  # most lease requests of one placement class at a time
RECLAIM_S = 0.05  # how long a slot may take to become free after we gave it back
HOT_GAP_S = 0.001
BETTER_TIMEOUT_S = 0.25  # time to ask about better nodes: one of them may be frozen
BETTER_GAPS_S = (0.001, 0.002, 0.004, *[0.008] * 7)  # a granted node is claimed for within these
UNAVAILABLE_S = 0.5  # how long a node that could not be had is not waited for again
LOOK_AGAIN_S = (0.1, 0.3)  # pause while jobs wait and every node is busy
AWAITED_LOOK_S = 0.25  # pause while the only jobs of a class wait for a node with their results
EDITED_S = 300.0  # how long after its last run for an editor a node goes to others last
IDLE_LOOK_S = 2.0  # so that a lost wake-up does not matter


class Seekers:
    """The seekers of one dispatcher.

    Attributes:
        idle: Whether the queues were looked at and there is no reason yet to look again.

    Args:
        directory: Which nodes can run what.
        runs: Where jobs wait and are claimed.
        leases: Where nodes are granted.
        order: The order in which able nodes are asked for.
        name: The dispatcher's.
        lease_ttl_s: How long a claim holds without a beat.
        now: Monotonic seconds.
        new_id: Makes run ids and fencing tokens.
        chance: Random numbers from 0 to 1; they spread load.
        spawn: Starts a task that ends with the dispatcher.
        on_claim: Called with a claim, the lease that holds its node, and when the claim was asked for.
        on_taken: Called with a lease on a node that another run has already, and with that run.
        may: Returns True if jobs may be claimed now; call :meth:`look_again` when that changes.
        telemetry: Is told of claims, and of nodes that were not granted.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        runs: RunStore,
        leases: Leases,
        *,
        order: NodeOrder,
        name: str,
        lease_ttl_s: float,
        now: Callable[[], float],
        new_id: Callable[[], str],
        chance: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_claim: Callable[[Claim, Lease, float], None],
        on_taken: Callable[[Lease, str], None],
        may: Callable[[], bool],
        telemetry: Telemetry,
    ) -> None:
        self._directory = directory
        self._runs = runs
        self._leases = leases
        self._order = order
        self._name = name
        self._lease_ttl_s = lease_ttl_s
        self._now = now
        self._new_id = new_id
        self._chance = chance
        self._spawn = spawn
        self._on_claim = on_claim
        self._on_taken = on_taken
        self._may = may
        self._telemetry = telemetry
        self.idle = False
        self._stopped = False
        self._seekers: Counter[Placement] = Counter()
        self._known: set[Placement] = set()  # classes with waiting jobs, as far as we know
        self._busy_until: dict[Placement, float] = {}
        self._vain_until: dict[str, float] = {}
        self._awaiting: set[Placement] = set()  # their only jobs wait for nodes with their results
        self._edited_until: dict[str, float] = {}  # nodes whose last run of ours was an editor's
        self._look = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    # -- when to seek ---------------------------------------------------------------------------------

    async def seek(self) -> None:
        """Look at the queues, now and whenever there is a reason, and seek nodes for the waiting jobs."""
        while True:
            waiting = await self._runs.waiting() if self._claiming else []
            self._known = {head.placement for head in waiting}
            self._awaiting &= self._known
            self._directory.forget({*self._known, *self._seekers})
            await self._directory.learn(self._known)
            for head in waiting:
                self._start(head.placement)
            if waiting:
                soonest, latest = LOOK_AGAIN_S
                self._look_in(soonest + (latest - soonest) * self._chance())
            self.idle = True
            with contextlib.suppress(TimeoutError):
                async with Timeout(IDLE_LOOK_S):
                    await self._look.wait()
            self.idle = False
            self._look.clear()

    @property
    def count(self) -> int:
        """How many seekers are at work."""
        return self._seekers.total()

    def stop(self) -> None:
        """Stop claiming."""
        self._stopped = True

    @property
    def _claiming(self) -> bool:
        return not self._stopped and self._may()

    def wanted(self, placement: Placement) -> None:
        """Note that a job of a class waits."""
        if placement in self._awaiting:  # the new one may run anywhere
            self._awaiting.discard(placement)
            self._busy_until.pop(placement, None)
        if not self._start(placement):
            self._look_in(LOOK_AGAIN_S[0])  # present seekers may have looked before it was there

    def freed(self, node: str) -> None:
        """Note that a node of ours can take another job: ask for exactly this node at once.

        One that an editor has just used is not taken ahead of other nodes that may be free.
        """
        if self._now() < self._edited_until.get(node, 0.0):
            self.look_again()
            return
        placement = next((p for p in self._known if self._able(p, node)), None)
        if self._claiming and placement is not None:
            self._spawn(self._seek_again(node, placement))

    def look_again(self) -> None:
        """Note that nodes have changed, or that another dispatcher let one go: none counts as busy now."""
        self._busy_until.clear()
        self._look.set()

    def _look_in(self, seconds: float) -> None:
        """Look at the queues again after at most this time."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if loop.time() < self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._look.set)

    def _start(self, placement: Placement) -> bool:
        """Start a seeker unless there are enough or all nodes were busy just now; return True if started."""
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
        """Take node after node for one placement class, until no node is free or no job waits."""
        try:
            while self._claiming and await self._seek_one(placement):
                self._start(placement)  # more nodes may be free: ask for several at a time
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})
        finally:
            self._seekers[placement] -= 1
            if not self._seekers[placement]:
                del self._seekers[placement]

    async def _seek_again(self, node: str, placement: Placement) -> None:
        """Take a node that a run of ours has just left; HAProxy needs a moment to notice."""
        try:
            pool = self._directory.states[node].node.pool
            until = self._now() + RECLAIM_S
            while self._now() < until:
                run = self._new_id()
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

    # -- asking for nodes -----------------------------------------------------------------------------

    async def _seek_one(self, placement: Placement) -> bool:
        """Take one node, of the first pool that has a free one; return True to go on seeking."""
        await self._directory.learn([placement])
        directory = self._directory
        if any(
            directory.pools.get(pool, frozenset()) & directory.unread
            and not directory.able_in(placement, pool)
            for pool in directory.pools_of(placement)
        ):
            await directory.look()  # before a pool is skipped: its nodes may have been read just now
        pools = [pool for pool in directory.pools_of(placement) if directory.able_in(placement, pool)]
        if not pools:
            return False
        for at, pool in enumerate(pools, start=1):  # a later pool only if the earlier ones have no free node
            if granted := await self._ask(placement, pool):
                granted = await self._prefer_better(placement, pools[:at], granted)
                return await self._claim(*granted, placement, seekers=1)
        self._busy_until[placement] = self._now() + LOOK_AGAIN_S[0]
        self._look_in(LOOK_AGAIN_S[1])
        return False

    def _able_nodes(self, placement: Placement, pool: str) -> Nodes:
        """Return the able nodes of a pool."""
        states = self._directory.states
        return {name: states[name] for name in self._directory.able_in(placement, pool) if name in states}

    async def _prefer_better(
        self, placement: Placement, pools: Sequence[str], granted: tuple[Lease, str]
    ) -> tuple[Lease, str]:
        """Return one of the better nodes if one is free by now; else the granted one.

        If HAProxy refuses a better node that no run has, it was granted a moment ago to another seeker or
        dispatcher, perhaps for the same job. Then this returns once that one has made its claim.

        Args:
            placement: Whose job is to get it.
            pools: The pools that were asked, the granted node's last.
            granted: A lease, and its run's id.
        """
        lease, _ = granted
        try:
            asked = [(pool, self._able_nodes(placement, pool)) for pool in pools]
            better = self._order.better(placement, lease.node, asked)
            pool, nodes = asked[-1]
            if lease.node in (edited := self._edited(nodes)):  # another may have become free meanwhile
                spared = [name for name in nodes if name not in edited and name not in better.get(pool, ())]
                better = {**better, pool: [*better.get(pool, ()), *spared[:MAX_PREFERRED]]}
            found = await self._await_better(better)
        except BaseException:
            lease.release()
            raise
        if found is None:
            return granted
        lease.release()
        self.look_again()  # other seekers may have been told that it is busy
        return found

    async def _await_better(self, better: Mapping[str, Sequence[str]]) -> tuple[Lease, str] | None:
        """Return one of the nodes, or None once all are at work or it takes too long."""
        states, now = self._directory.states, self._now()
        self._vain_until = {name: until for name, until in self._vain_until.items() if now < until}
        left = {
            pool: [n for n in names if states[n].verdict == "up" and n not in self._vain_until]
            for pool, names in better.items()
        }
        with contextlib.suppress(TimeoutError):
            async with Timeout(BETTER_TIMEOUT_S):
                for gap in BETTER_GAPS_S:
                    occupied = await self._runs.occupied(list(chain.from_iterable(left.values())))
                    for pool, names in left.items():
                        left[pool] = [name for name in names if name not in occupied]
                    if not any(left.values()):
                        return None
                    for pool, names in left.items():
                        if names and (found := await self._ask_for(pool, names)):
                            return found
                    await asyncio.sleep(gap)
        # No run has them, and HAProxy does not grant them: they or their dispatcher may have frozen.
        self._vain_until |= dict.fromkeys(chain.from_iterable(left.values()), self._now() + UNAVAILABLE_S)
        return None

    async def _ask(self, placement: Placement, pool: str) -> tuple[Lease, str] | None:
        """Ask a pool for an able node; return the lease and its run's id."""
        able = self._able_nodes(placement, pool)
        if not able:
            return None
        # A proxy in front of a node is sent the node's name, so the node must be chosen before HAProxy does.
        named = any(state.node.proxied for state in able.values())
        everyone = len(able) == len(self._directory.pools[pool])
        edited = self._edited(able)
        if self._order.as_haproxy and everyone and not named and not edited:
            return await self._ask_for(pool, ())
        preferred = self._order.preferred(placement, able)
        return await self._ask_for(pool, sorted(preferred, key=lambda node: node in edited))

    def _edited(self, able: Nodes) -> frozenset[str]:
        """Return the nodes that have results of an editor's, who will come back to them."""
        now = self._now()
        self._edited_until = {node: until for node, until in self._edited_until.items() if now < until}
        return frozenset(self._edited_until.keys() & able.keys())

    def _spare(self, node: str, placement: Placement) -> bool:
        """Whether a node has results of an editor's, and the class's jobs have another one to wait for."""
        able = self._able_nodes(placement, self._directory.pool_of(node))
        up = [name for name, state in able.items() if state.verdict == "up"]
        return node in self._edited(able) and len(up) > 1

    async def _ask_for(self, pool: str, preferred: Sequence[str]) -> tuple[Lease, str] | None:
        """Ask a pool for the first free one of some nodes, or for any; return the lease and its run's id."""
        run = self._new_id()
        lease = await self._leases.lease(run=run, pool=pool, nodes=preferred[:MAX_PREFERRED])
        if not isinstance(lease, NoLease):
            return lease, run
        self._telemetry.lease_refused(lease.why, detail=lease.detail)
        return None

    # -- claiming -------------------------------------------------------------------------------------

    async def _claim(
        self,
        lease: Lease,
        run: str,
        placement: Placement,
        *,
        seekers: int,
        unawaited: frozenset[str] = frozenset(),
    ) -> bool:
        """Take the best job for a leased node.

        Args:
            lease: Holds the node.
            run: Its run's id.
            placement: The class whose job was sought; the node may get a better job of another class.
            seekers: How many of the placement's seekers are this dispatcher's.
            unawaited: Nodes that no job is to wait for, because they can't be had.

        Returns:
            True if more jobs wait than other seekers are seeking nodes for.
        """
        if not self._claiming:
            lease.release()
            return False
        asked = self._now()
        placements = self._fitting(lease.node, placement)
        try:
            got = await self._runs.claim(
                node=lease.node,
                placements=placements,
                run=run,
                token=self._new_id(),
                dispatcher=self._name,
                ttl_s=self._lease_ttl_s,
                unawaited=sorted(unawaited),
                spare=self._spare(lease.node, placement),
            )
        except Outdated:  # for good; the dispatcher reports it
            lease.release()
            self.stop()
            return False
        except BaseException:
            lease.release()
            raise
        if isinstance(got, Claim):
            if not got.jobs_behind:
                self._known.difference_update(placements)
            sought = sum(self._seekers[one] for one in placements) - seekers
            pool = self._directory.pool_of(got.node)
            got = replace(got, jobs_behind=max(0, got.jobs_behind - sought), pool=pool)
            self._edited_until.pop(got.node, None)
            if got.job.editor:
                self._edited_until[got.node] = self._now() + EDITED_S
            self._telemetry.claimed(got)
            self._on_claim(got, lease, asked)
            return got.jobs_behind > 0
        if got.why == "leased" and got.run is not None:
            self._on_taken(lease, got.run)
            return True
        if got.why == "waits":
            return await self._await_results(got, lease, run, placement, seekers=seekers, unawaited=unawaited)
        lease.release()
        if got.why == "broken":
            return True
        if got.why == "empty":
            self._known.difference_update(placements)
        elif got.why == "spared":
            self._busy_until[placement] = self._now() + got.left_s
            self._look_in(got.left_s + HOT_GAP_S)
        else:
            self._telemetry.lease_refused(got.why, node=lease.node)
            self._busy_until[placement] = self._now() + LOOK_AGAIN_S[0]
        return False

    async def _await_results(
        self,
        wait: Refused,
        lease: Lease,
        run: str,
        placement: Placement,
        *,
        seekers: int,
        unawaited: frozenset[str],
    ) -> bool:
        """Take the node that has the results of the only jobs that were there for a leased one.

        If it can't be had, the jobs are left alone for as long as they wait for it, and get the leased node
        otherwise. Returns as :meth:`_claim`.
        """
        state = self._directory.states.get(wait.node)
        able = state is not None and any(
            self._able(one, wait.node) for one in self._fitting(lease.node, placement)
        )
        found = None
        try:
            with contextlib.suppress(TimeoutError):
                async with Timeout(BETTER_TIMEOUT_S):
                    if able:
                        found = await self._ask_for(self._directory.pool_of(wait.node), (wait.node,))
        except BaseException:
            lease.release()
            raise
        if found is not None:
            lease.release()
            self.look_again()  # other seekers may have been told that it is busy
            return await self._claim(*found, placement, seekers=seekers, unawaited=unawaited | {wait.node})
        if able and wait.left_s > 0:
            lease.release()
            self._awaiting.add(placement)
            pause_s = min(wait.left_s, AWAITED_LOOK_S)
            self._busy_until[placement] = self._now() + pause_s
            self._look_in(pause_s + HOT_GAP_S)
            return False
        return await self._claim(lease, run, placement, seekers=seekers, unawaited=unawaited | {wait.node})

    def _fitting(self, node: str, wanted: Placement) -> list[Placement]:
        """Return the placement classes that may use the node, the sought one first.

        Jobs that prefer another pool are left out while that pool is still being asked for them.
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
        """Whether a node is in the first of a class's pools with any able node."""
        pools = (self._directory.able_in(placement, pool) for pool in self._directory.pools_of(placement))
        return node in next(filter(None, pools), frozenset())

    def _able(self, placement: Placement, node: str) -> bool:
        return node in self._directory.able(placement)
