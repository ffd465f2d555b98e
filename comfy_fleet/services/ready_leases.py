"""Hold leases of idle nodes ready, so that a job which comes begins without asking HAProxy.

Each is a websocket that HAProxy has granted, for a run whose id is drawn already and used at most once. While
jobs wait that a node could run, its lease is not held ready: then HAProxy decides as ever.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from comfy_fleet.ports.comfyui import Lease, Leases, NoLease
from comfy_fleet.ports.ready_leases import ReadyLeaseStore
from comfy_fleet.ports.runs import RunStore
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

BEAT_S = 0.4  # a holder that is silent for 1.1 s loses its leases
SOON_S = 0.005  # after a run has left its node: what the client waits for goes first
ASK_S = 0.25
ANSWER_S = 0.25  # a node that does not answer a ping for so long would not have been granted now
VAIN_S = 2.0  # other dispatchers hold the nodes that are left; a change of either is noticed at once
GIVEN_S = 0.03  # how long a slot may take to become free, as a rule
MOST_COUNTED = 256  # of more nodes, so many are looked at: nobody holds more than a few

Held: TypeAlias = tuple[Lease, str]
"""A lease, and the id of its run."""


class ReadyLeases:
    """The leases that one dispatcher holds ready.

    Attributes:
        may: Returns True if a node may be held, because no job waits for it; set by who seeks nodes for jobs.
        on_wanted: Called when a lease is held of a node for which a job has come meanwhile; set likewise.

    Args:
        store: The record of all dispatchers' leases.
        directory: Which nodes there are.
        runs: Which nodes are at work.
        leases: Where nodes are granted.
        name: The dispatcher's.
        most: Most leases that are held at once; 0: none ever.
        new_id: Makes run ids.
    """

    def __init__(
        self,
        store: ReadyLeaseStore,
        directory: NodeDirectory,
        runs: RunStore,
        leases: Leases,
        *,
        name: str,
        most: int,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._directory = directory
        self._runs = runs
        self._leases = leases
        self._name = name
        self._most = most
        self._new_id = new_id
        self.may: Callable[[str], bool] = lambda _: False
        self.on_wanted: Callable[[str], None] = lambda _: None
        self._held: dict[str, Held] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._dropped: dict[str, str] = {}  # given back, and not told yet
        self._freed: set[str] = set()
        self._part = 0
        self._vain: tuple[int, frozenset[str]] = (0, frozenset())
        self._vain_until = float("-inf")
        self._given: dict[str, float] = {}  # nodes that were given back, and until when HAProxy may not know
        self._over = asyncio.Event()
        self._look = asyncio.Event()

    @property
    def nodes(self) -> Collection[str]:
        """The nodes whose leases can be used now."""
        return self._held.keys()

    # -- use ------------------------------------------------------------------------------------------

    def take(self, node: str) -> Held | None:
        """Return a node's lease, which is the caller's from now on; None if it is not held."""
        held = self._held.pop(node, None)
        if held is not None and (reader := self._readers.pop(node, None)):
            reader.cancel()
        return held

    async def use(self, node: str) -> Held | None:
        """Return a node's lease, which is the caller's from now on; None if it is not held, or can't be used.

        A prompt that is posted to a frozen node is waited for. HAProxy's grant shows that a node answers, but
        this one was granted long ago.
        """
        held = self.take(node)
        if held is None:
            return None
        try:
            answers = await held[0].answers(ANSWER_S)
        except BaseException:
            self.drop(held)
            raise
        if answers:
            return held
        logger.info("ready lease given back", extra={"node": node, "reason": "its node does not answer"})
        self.drop(held)
        return None

    def put_back(self, held: Held) -> None:
        """Hold a lease on that was taken and not used."""
        if self._over.is_set():
            self.drop(held)
        else:
            self._keep(held)

    def given_back(self, nodes: Collection[str]) -> bool:
        """Whether one of these was given back a moment ago, so that HAProxy may still count its slot."""
        now = asyncio.get_running_loop().time()
        self._given = {node: until for node, until in self._given.items() if now < until}
        return not self._given.keys().isdisjoint(nodes)

    def give_up(self, nodes: Iterable[str]) -> None:
        """Give leases back: HAProxy is to decide who gets these nodes."""
        for node in tuple(nodes):
            if (held := self.take(node)) is not None:
                self.drop(held)

    def drop(self, held: Held) -> None:
        """Give back a lease that was taken and can't be used."""
        lease, run = held
        self._dropped[lease.node] = run
        self._note_given(lease.node)
        lease.release()

    def freed(self, node: str) -> None:
        """Note that a node has become idle.

        While others are there for the next jobs, its lease waits for those of other nodes, or for the next
        beat: they are told to the store together, before the last one is gone.
        """
        self._note_given(node)
        if self._most and not self._over.is_set():
            self._freed.add(node)
            if len(self._held) <= 1:
                asyncio.get_running_loop().call_later(SOON_S, self._look.set)

    def _note_given(self, node: str) -> None:
        self._given[node] = asyncio.get_running_loop().time() + GIVEN_S

    def stop(self) -> None:
        """Give all leases back, for good."""
        self._over.set()
        self.give_up(self._held)
        self._look.set()

    # -- hold -----------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Hold leases of idle nodes ready, until canceled or stopped."""
        if not self._most or self._over.is_set():
            return
        clock = asyncio.get_running_loop().time
        try:
            while not self._over.is_set():
                self._freed.clear()  # it looks at all nodes
                await self._renew()
                due = clock() + BEAT_S
                while not self._over.is_set() and (left_s := due - clock()) > 0:
                    with contextlib.suppress(TimeoutError):
                        async with Timeout(left_s):
                            await self._look.wait()
                    self._look.clear()
                    freed, self._freed = self._freed, set()
                    await self._hold(freed)
            await self._tell({})
        finally:
            self.give_up(self._held)

    async def _renew(self) -> None:
        """Renew what is held, and take this dispatcher's part of the idle nodes."""
        self.give_up([node for node in self._held if not self.may(node)])
        holders = await self._tell({})
        idle = await self._idle()
        self._part = min(self._most, -(-len(idle) // max(1, holders)))
        here = [node for node in idle if node in self._held]
        self.give_up(here[self._part :])  # another dispatcher has come
        known, clock = (holders, frozenset(idle)), asyncio.get_running_loop().time
        if known == self._vain and clock() < self._vain_until:
            return
        await self._hold(idle)
        if len(self._held) < self._part:
            self._vain, self._vain_until = known, clock() + VAIN_S

    async def _hold(self, idle: Iterable[str]) -> None:
        """Ask for idle nodes, as far as this dispatcher's part goes."""
        pools: dict[str, list[str]] = {}
        for node in idle:
            if node not in self._held and self.may(node):
                pools.setdefault(self._directory.pool_of(node), []).append(node)
        granted: dict[str, Held] = {}
        for pool, names in pools.items():
            count = min(len(names), self._part - len(self._held) - len(granted))
            if count > 0 and not self._over.is_set():
                found = await asyncio.gather(*(self._ask(pool, names) for _ in range(count)))
                granted |= {held[0].node: held for held in found if held is not None}
        if granted:
            await self._tell(granted)

    async def _tell(self, new: dict[str, Held]) -> int:
        """Renew the record, with what was just granted; give back what is lost. Returns how many share."""
        dropped, self._dropped = self._dropped, {}
        held = {node: run for node, (_, run) in self._held.items()}
        try:
            beat = await self._store.beat(
                self._name, held, {node: run for node, (_, run) in new.items()}, dropped
            )
        except BaseException:
            for lease, _ in new.values():
                lease.release()
            raise
        for node in beat.lost & held.keys():
            if self._held.get(node, (None, ""))[1] == held[node]:
                self.give_up([node])
        for node, (lease, run) in new.items():
            if node in beat.lost:
                lease.release()
            elif self._over.is_set():
                self.drop((lease, run))
            else:
                self._keep((lease, run))
                if not self.may(node):  # whoever asked for it for that job meanwhile heard that it is busy
                    self.on_wanted(node)
        return beat.holders

    async def _ask(self, pool: str, nodes: Sequence[str]) -> Held | None:
        """Ask for one of some nodes; it may be frozen, so it has a moment to answer."""
        run = self._new_id()
        with contextlib.suppress(TimeoutError):
            async with Timeout(ASK_S):
                lease = await self._leases.lease(run=run, pool=pool, nodes=nodes)
                return None if isinstance(lease, NoLease) else (lease, run)
        return None

    async def _idle(self) -> list[str]:
        """Return nodes that no run has, as far as is known; each dispatcher in an order of its own."""
        up = [
            name
            for name, state in self._directory.states.items()
            if state.verdict == "up" and not state.node.cordoned
        ]
        up.sort(key=lambda node: hash((self._name, node)))  # drawn anew in each process
        del up[MOST_COUNTED:]
        occupied = await self._runs.occupied(up)
        return [name for name in up if name not in occupied]

    def _keep(self, held: Held) -> None:
        lease, run = held
        self._held[lease.node] = held
        self._readers[lease.node] = start(self._read(lease, run), name="ready lease")

    async def _read(self, lease: Lease, run: str) -> None:
        """Drop what a node says meanwhile, which is about others; forget the lease when it ends."""
        async for _ in lease.frames():
            pass
        held = self._held.get(lease.node)
        if held is not None and held[1] == run:
            self._readers.pop(lease.node, None)
            self.give_up([lease.node])
