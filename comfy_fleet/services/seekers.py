"""Seek nodes for waiting jobs: ask HAProxy for a node, then claim the best job for it.

A *seeker* is a task that takes node after node for one placement class. Several run for each class while its
jobs wait and nodes are granted. Otherwise there is only a look at the queues now and then.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from comfy_fleet.domain.errors import Outdated, StoreDown
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node_order import NodeOrder
from comfy_fleet.ports.comfyui import Lease, Leases, NoLease
from comfy_fleet.ports.runs import MAX_PLACEMENTS, Claim, Refused, RunStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.claimer import Claimer
from comfy_fleet.services.node_asker import NodeAsker
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.ready_leases import ReadyLeases
from comfy_fleet.services.vain_looks import VainLooks
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

PARALLEL = 4  # most lease requests of one placement class at a time
RECLAIM_S = 0.3  # how long a slot may take to become free after we gave it back, on a busy machine
TAKEN_S = 0.01  # after this long, it is asked whether a run has taken the node meanwhile
HOT_GAP_S = 0.001
LOOK_AGAIN_S = (0.1, 0.3)  # pause while jobs wait and every node is busy
AWAITED_LOOK_S = 0.25  # pause while the only jobs of a class wait for a node with their results
IDLE_LOOK_S = 2.0  # so that a lost wake-up does not matter


class Seekers:
    """The seekers of one dispatcher.

    Attributes:
        idle: Whether the queues were looked at and there is no reason yet to look again.

    Args:
        directory: Which nodes can run what.
        runs: Where jobs wait and are claimed.
        leases: Where nodes are granted.
        claimer: Claims a job for a granted node.
        ready: Leases held ready.
        order: The order in which able nodes are asked for.
        now: Monotonic seconds.
        new_id: Makes run ids.
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
        claimer: Claimer,
        ready: ReadyLeases,
        *,
        order: NodeOrder,
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
        self._claimer = claimer
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
        self._known: dict[Placement, None] = {}  # classes with waiting jobs, as far as we know
        self._busy_until: dict[Placement, float] = {}
        self._awaiting: set[Placement] = set()  # their only jobs wait for nodes with their results
        self._vain = VainLooks(now, chance)
        self._asker = NodeAsker(
            directory,
            runs,
            leases,
            order=order,
            now=now,
            new_id=new_id,
            resting=self._vain.resting,
            telemetry=telemetry,
        )
        self.ready, ready.may, ready.on_wanted = ready, self._may_be_ready, self._use_ready
        self._called: set[str] = set()  # nodes that are asked for because they have the models of a new job
        self._turn = 0  # of more classes than fit into a claim, each gets its turn
        self._look = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0

    # -- when to seek ---------------------------------------------------------------------------------

    async def seek(self) -> None:
        """Look at the queues, now and whenever there is a reason, and seek nodes for the waiting jobs."""
        while True:
            waiting = await self._runs.waiting() if self._claiming else []
            self._known = dict.fromkeys(head.placement for head in waiting)
            self._awaiting &= self._known.keys()
            self._vain.forget(self._known)
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
    def known(self) -> tuple[Placement, ...]:
        """The placement classes with waiting jobs, as far as is known."""
        return tuple(self._known)

    @property
    def count(self) -> int:
        """How many seekers are at work."""
        return self._seekers.total()

    def stop(self) -> None:
        """Stop claiming."""
        self._stopped = True
        self.ready.stop()

    @property
    def _claiming(self) -> bool:
        return not self._stopped and self._may()

    def wanted(self, placement: Placement, node: str = "") -> None:
        """Note that a job of a class waits.

        Args:
            placement: The class.
            node: An idle node that has the job's models; it is asked for first. Empty: there is none.
        """
        if placement in self._awaiting:  # the new one may run anywhere
            self._awaiting.discard(placement)
            self._busy_until.pop(placement, None)
        self._vain.wake(placement)
        if self._claiming and self.ready.nodes:
            self._known[placement] = None
            self._spawn(self._seek_ready(placement, node))
        else:
            self._seek(placement, node)

    def _seek(self, placement: Placement, node: str) -> None:
        """Ask HAProxy for a node, for a job that waits; see :meth:`wanted`."""
        if node and self._claiming and node not in self._called and not self._asker.is_edited(node):
            self._known[placement] = None
            self._called.add(node)
            self._spawn(self._seek_called(node, placement))
        elif not self._start(placement):
            # Present seekers may have looked before it was there.
            self._look_in(self._vain.left_s(placement) or LOOK_AGAIN_S[0])

    def freed(self, node: str) -> None:
        """Note that a node of ours can take another job: ask for exactly this node at once.

        One that an editor has just used is not taken ahead of other nodes that may be free.
        """
        if self._asker.is_edited(node):
            self.look_again()
            return
        placement = next((p for p in self._known if self._able(p, node)), None)
        if self._claiming and placement is not None:
            self._spawn(self._seek_again(node, placement))
        else:
            self.ready.freed(node)

    def look_again(self) -> None:
        """Note that nodes have changed, or that another dispatcher let one go: none counts as busy now."""
        self._vain.wake()
        self._ask_anew()

    def _ask_anew(self) -> None:
        """Look now; no node counts as busy any more."""
        self._busy_until.clear()
        self._look.set()

    def _look_in(self, seconds: float) -> None:
        """Look at the queues again after at most this time."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if loop.time() < self._look_at <= due:
                return
            self._timer.cancel()
        # Which uvloop's timers do not tell: one of less than half a millisecond is none.
        self._look_at = due
        self._timer = loop.call_at(due, self._look.set)

    def _start(self, placement: Placement) -> bool:
        """Start a seeker unless there are enough or all nodes were busy just now; return True if started."""
        self._known[placement] = None
        if (
            not self._claiming
            or self._seekers[placement] >= PARALLEL
            or self._now() < self._busy_until.get(placement, 0.0)
            or self._vain.left_s(placement)
        ):
            return False
        self._seekers[placement] += 1
        self._spawn(self._seek_nodes(placement))
        return True

    async def _seek_nodes(self, placement: Placement) -> None:
        """Take node after node for one placement class, until no node is free or no job waits."""
        try:
            while self._claiming and await self._seek_one(placement):
                if self._vain.left_s(placement):
                    break
                self._start(placement)  # more nodes may be free: ask for several at a time
        except StoreDown as error:
            _put_off(placement, error)
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
            since = self._now()
            while (waited_s := self._now() - since) < RECLAIM_S:
                run = self._new_id()
                lease = await self._leases.lease(run=run, pool=pool, nodes=(node,))
                if not isinstance(lease, NoLease):
                    await self._claim(lease, run, placement, seekers=0)
                    return
                if lease.why != "busy" or (waited_s >= TAKEN_S and await self._runs.occupied((node,))):
                    break
                await asyncio.sleep(max(HOT_GAP_S, waited_s / 4))
        except StoreDown as error:
            _put_off(placement, error)
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})
        self._look.set()

    async def _seek_ready(self, placement: Placement, node: str) -> None:
        """Take a node held ready for a new job, or give back all that it could use and ask HAProxy."""
        try:
            await self._directory.learn([placement])
            more, ready = True, self.ready
            while more and (held_ready := node or self._asker.suited(placement, ready.nodes)) in ready.nodes:
                if held := await ready.use(held_ready):
                    more = await self._claim(*held, placement, seekers=0, ready=True)
                node = ""
            if more and not node:
                ready.give_up(self._directory.able(placement))
            if more:
                self._seek(placement, node)
        except StoreDown as error:
            _put_off(placement, error)
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})

    def _may_be_ready(self, node: str) -> bool:
        """Whether no job waits for a node, nor somebody who edits there."""
        waited_for = any(self._able(placement, node) for placement in self._known)
        return self._claiming and not waited_for and not self._asker.is_edited(node)

    def _use_ready(self, node: str) -> None:
        """Claim for a node that was being taken when a job came.

        If HAProxy might grant the job a better one, or none can use it, it is let go, and whoever has heard
        that it is busy asks again.
        """
        placement = next((one for one in self._known if self._asker.suited(one, [node])), None)
        if placement is None or not self._claiming:
            self.ready.give_up([node])
            self._ask_anew()
        else:
            self._spawn(self._seek_ready(placement, node))

    async def _seek_called(self, node: str, placement: Placement) -> None:
        """Take an idle node that has the models of a job that has just come."""
        try:
            await self._directory.learn([placement])
            found = await self._asker.ask_for_one(node) if self._able(placement, node) else None
            if found is None:  # whoever has it claims now; if that is not for this job, a look follows
                self._look_in(LOOK_AGAIN_S[0])
            elif await self._claim(*found, placement, seekers=0):
                self._start(placement)
        except StoreDown as error:
            _put_off(placement, error)
        except Exception:
            logger.exception("seeking a node failed", extra={"placement": placement.key})
        finally:
            self._called.discard(node)

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
            if granted := await self._asker.ask(placement, pool):
                found = await self._asker.prefer_better(placement, pools[:at], granted)
                if found is not granted:
                    self._ask_anew()
                return await self._claim(*found, placement, seekers=1)
        given_back = self.ready.given_back(directory.able(placement))
        soonest, latest = (HOT_GAP_S, 2 * HOT_GAP_S) if given_back else LOOK_AGAIN_S
        self._busy_until[placement] = self._now() + soonest
        self._look_in(latest)
        return False

    # -- claiming -------------------------------------------------------------------------------------

    async def _claim(
        self,
        lease: Lease,
        run: str,
        placement: Placement,
        *,
        seekers: int,
        unawaited: frozenset[str] = frozenset(),
        sent: bool = False,
        ready: bool = False,
    ) -> bool:
        """Take the best job for a leased node.

        Args:
            lease: Holds the node.
            run: Its run's id.
            placement: The class whose job was sought; the node may get a better job of another class.
            seekers: How many of the placement's seekers are this dispatcher's.
            unawaited: Nodes that no job is to wait for, because they can't be had.
            sent: Whether a claim for another node has named this one.
            ready: Whether the lease was held ready.

        Returns:
            True if more jobs wait than other seekers are seeking nodes for.
        """
        if not self._claiming:
            lease.release()
            return False
        asked, node = self._now(), lease.node
        placements = self._fitting(node, placement)
        try:
            spare = self._asker.spared(node, placement)
            got = await self._claimer.claim(
                node, run, placements, unawaited=unawaited, spare=spare, ready=ready
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
                self._all_claimed(placements)
            sought = sum(self._seekers[one] for one in placements) - seekers
            got = replace(got, jobs_behind=max(0, got.jobs_behind - sought))
            models = got.job.workload is not None
            self._asker.claimed(got.node, editor=bool(got.job.editor), models=models)
            self._telemetry.claimed(got)
            self._on_claim(got, lease, asked)
            return got.jobs_behind > 0
        if ready and got.why in ("empty", "failover"):
            if got.why == "empty":
                self._all_claimed(placements)
            else:
                self._pause(placement, got.left_s)
            self.ready.put_back((lease, run))
            return False
        if ready:  # HAProxy decides
            self.ready.drop((lease, run))
            self.ready.give_up(self._directory.able(placement))
            return True
        if got.why == "leased" and got.run is not None:
            self._on_taken(lease, got.run)
            return True
        if got.why == "waits":
            return await self._await_results(got, lease, run, placement, seekers=seekers, unawaited=unawaited)
        lease.release()
        if got.why == "broken":
            return True
        if got.why == "nothing":
            return await self._seek_holder(got, node, placement, placements, seekers=seekers, sent=sent)
        if got.why == "empty":
            self._all_claimed(placements)
        elif got.why in ("gathers", "failover"):
            self._pause(placement, got.left_s)
        elif got.why == "spared":
            self._busy_until[placement] = self._now() + got.left_s
            self._look_in(got.left_s + HOT_GAP_S)
        else:
            self._telemetry.lease_refused(got.why, node=node)
            self._busy_until[placement] = self._now() + LOOK_AGAIN_S[0]
        return False

    async def _seek_holder(
        self,
        nothing: Refused,
        node: str,
        placement: Placement,
        placements: Sequence[Placement],
        *,
        seekers: int,
        sent: bool,
    ) -> bool:
        """Take the idle node that has the models of a job which was not worth its load on another.

        Without such a node, or if it can't be had, the classes are left alone for a moment. Returns as
        :meth:`_claim`.

        Args:
            nothing: What the claim said.
            node: For which node.
            placement: The class whose job was sought.
            placements: The classes that were offered.
            seekers: How many of the placement's seekers are this dispatcher's.
            sent: Whether that node was named by a claim itself: then this ends here.
        """
        self._telemetry.lease_refused(nothing.why, node=node)
        self._vain.note(node, placements)
        holder = nothing.node
        sought = next((one for one in placements if self._able(one, holder)), None) if holder else None
        if sought is not None and not sent and (found := await self._asker.ask_for_one(holder)):
            return await self._claim(*found, sought, seekers=seekers, sent=True)
        able = self._directory.able(placement)
        alike = [one for one in placements if one == placement or self._directory.able(one) == able]
        self._look_in(self._vain.pause(alike, nothing.left_s) + HOT_GAP_S)
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
        offered = self._fitting(lease.node, placement) if wait.node in self._directory.states else []
        able = next((one for one in offered if self._able(one, wait.node)), None)
        try:
            found = None if able is None else await self._asker.ask_for_one(wait.node)
        except BaseException:
            lease.release()
            raise
        if able is not None and found is not None:
            lease.release()
            self._ask_anew()  # other seekers may have been told that it is busy
            return await self._claim(*found, able, seekers=seekers, unawaited=unawaited | {wait.node})
        if able is not None and wait.left_s > 0:
            lease.release()
            self._pause(placement, wait.left_s)
            return False
        return await self._claim(lease, run, placement, seekers=seekers, unawaited=unawaited | {wait.node})

    def _pause(self, placement: Placement, seconds: float) -> None:
        """Leave a class alone for a moment in which its jobs wait for something; a new job may not."""
        self._awaiting.add(placement)
        pause_s = min(seconds, AWAITED_LOOK_S)
        self._busy_until[placement] = self._now() + pause_s
        self._look_in(pause_s + HOT_GAP_S)

    def _fitting(self, node: str, wanted: Placement) -> list[Placement]:
        """Return the placement classes that may use the node, the sought one first; not too many.

        Jobs that prefer another pool are left out while that pool is still being asked for them. Classes that
        give way are left out while any other job waits for the node.
        """
        others = [
            placement
            for placement in self._known
            if placement != wanted
            and self._able(placement, node)
            and (not self._seekers[placement] or node in self._directory.first_choice(placement)[1])
        ]
        first = [one for one in others if not one.gives_way]
        if wanted.gives_way and first:
            wanted, others = first[0], first[1:]
        elif not wanted.gives_way:
            others = first
        most = MAX_PLACEMENTS - 1
        if len(others) > most:
            at = self._turn % len(others)
            self._turn += most
            others = [*others[at:], *others[:at]][:most]
        return [wanted, *others]

    def _all_claimed(self, placements: Sequence[Placement]) -> None:
        """Note that no job of these classes waits any more."""
        for placement in placements:
            self._known.pop(placement, None)

    def _able(self, placement: Placement, node: str) -> bool:
        return node in self._directory.able(placement)


def _put_off(placement: Placement, error: StoreDown) -> None:
    """Note that Redis has gone away meanwhile; a later look seeks again."""
    logger.warning("node not sought", extra={"placement": placement.key, "error": str(error)})
