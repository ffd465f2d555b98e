"""Stage the files of the job that a busy node will probably run next, while it computes.

The choice is only looked at: nothing is claimed or posted before the node is free, so a wrong guess costs an
upload and nothing else. Whatever was staged in vain is deleted by the node's agent.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Any

from comfy_fleet.domain.errors import FleetError, Outdated
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.ports.ahead import AheadStore, Peek
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import NodeApi
from comfy_fleet.ports.runs import MAX_PLACEMENTS, Claim, StagedInput
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.staging import StagingError, send
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

LEAD_S = 0.25
"""A run is looked at this long after its prompt was posted: what is shorter is not worth it."""
LOOK_S, RENEW_S = 2.0, 10.0
"""Between two looks at a node: if nothing was staged, and if something was."""
SOON_S = 1.0
"""Between two looks at a node if something has changed."""
GAPS_S = (0.1, 1.0)
"""Between two looks of this dispatcher; the second once a few in turn have found nothing to stage."""
KEEP_S, SEND_S = 120.0, 60.0
"""How long a file waits for its run, and how long sending a job's files may take: clearly less."""
SENDERS = 4
"""Nodes to which files are sent at a time."""


@dataclass
class _Busy:
    """A node that computes."""

    run: str
    due: float
    looked_at: float = -inf


@dataclass
class _Sending:
    """Files that are sent to a node, or soon will be."""

    asset_ids: frozenset[str]
    begun: bool = False
    wanted: bool = True
    done: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[Any] | None" = None


class StagingAhead:
    """What one dispatcher stages ahead.

    Args:
        store: Peeks at choices, and keeps the records.
        nodes: Gets the files.
        assets: Has them.
        directory: Which nodes can run what.
        most_bytes: How much may be on one node for a job that has not started; 0: nothing is staged ahead.
        waiting: Returns the placement classes with waiting jobs.
        patience: Returns for how many seconds a job may be passed over on a pool's nodes.
        spawn: Starts a task that ends with the dispatcher.
        telemetry: Is told which files were sent and used.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        store: AheadStore,
        nodes: NodeApi,
        assets: AssetStore,
        directory: NodeDirectory,
        *,
        most_bytes: int,
        waiting: Callable[[], Iterable[Placement]],
        patience: Callable[[str], float],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        telemetry: Telemetry,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._assets = assets
        self._directory = directory
        self._most_bytes = most_bytes
        self._waiting = waiting
        self._patience = patience
        self._spawn = spawn
        self._telemetry = telemetry
        self._now = now
        self._busy: dict[str, _Busy] = {}
        self._staged: dict[str, str] = {}  # node -> the job for which something is there
        self._sending: dict[str, _Sending] = {}
        self._sent: dict[
            str, set[str]
        ] = {}  # node -> files that were sent there and are still kept for a job
        self._senders = asyncio.Semaphore(SENDERS)
        self._gap_s = GAPS_S[0]
        self._look = asyncio.Event()
        self._looks_at = inf

    # -- what happens to runs and jobs ----------------------------------------------------------------

    def begin(self, claim: Claim) -> None:
        """Note that a node has a run's prompt, and computes for a while."""
        if not self._most_bytes:
            return
        for node, job_id in self._staged.items():
            if job_id == claim.job.id and node != claim.node:
                self._hasten(node)  # it went elsewhere
        self._busy[claim.node] = _Busy(claim.run, self._now() + LEAD_S)
        self._awake(self._busy[claim.node])

    def end(self, claim: Claim) -> None:
        """Note that a run has left its node; safe to call for any run."""
        busy = self._busy.get(claim.node)
        if busy is not None and busy.run == claim.run:
            del self._busy[claim.node]

    def wanted(self, placement: Placement) -> None:
        """Note that a job of a class has come: it may be the next one somewhere."""
        if self._busy:
            for node in self._busy.keys() & self._directory.able(placement):
                self._hasten(node)

    async def arrived(self, claim: Claim) -> None:
        """Wait until a run's files that are on their way to its node are there; any others are not sent."""
        sending = self._sending.get(claim.node)
        if sending is not None:
            if sending.begun and not sending.asset_ids.isdisjoint(claim.job.uploads.values()):
                await sending.done.wait()
            else:  # the run does not wait for what other nodes are sent
                sending.wanted = False
                if sending.task is not None:
                    sending.task.cancel()
        sent = self._sent.get(claim.node, set())
        if used := sent.intersection(claim.job.uploads.values()):
            sent -= used  # the run's own from now on
            self._telemetry.staged_ahead(used=len(used))

    def _hasten(self, node: str) -> None:
        if busy := self._busy.get(node):
            busy.due = min(busy.due, max(self._now(), busy.looked_at + SOON_S))
            self._awake(busy)

    def _awake(self, busy: _Busy) -> None:
        if busy.due < self._looks_at:
            self._look.set()

    # -- looking --------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look ahead for the nodes that compute, one after the other."""
        while True:
            self._look.clear()
            ready = (node for node in self._busy if node not in self._sending)
            node = min(ready, key=lambda name: self._busy[name].due, default=None)
            self._looks_at = inf if node is None else self._busy[node].due
            if node is None or self._looks_at > self._now():
                with contextlib.suppress(TimeoutError):
                    async with Timeout(min(LOOK_S, self._looks_at - self._now())):
                        await self._look.wait()
                continue
            found = await self._look_ahead(node, self._busy[node])
            self._gap_s = GAPS_S[0] if found else min(GAPS_S[1], 2 * self._gap_s)
            await asyncio.sleep(self._gap_s)

    async def _look_ahead(self, node: str, busy: _Busy) -> bool:
        """Stage what a node will need next; return whether that is any file."""
        busy.looked_at = self._now()
        busy.due = busy.looked_at + LOOK_S
        peek = await self._peek(node)
        job = peek.next if peek.next is not None and peek.next.asset_ids else None
        if job is None and not peek.ahead and node not in self._staged:
            return False
        self._staged.pop(node, None)
        try:
            files = await self._store.stage_ahead(node, job, keep_s=KEEP_S, most_bytes=self._most_bytes)
        except Outdated:  # for good; the dispatcher reports it
            self._most_bytes = 0
            self._busy.clear()
            return False
        if sent := self._sent.pop(node, set()).intersection(files):
            self._sent[node] = sent
        if job is not None and files:
            self._staged[node] = job.id
            busy.due = busy.looked_at + RENEW_S
            if new := [one for one in files.values() if one.new]:
                self._sending[node] = sending = _Sending(frozenset(files))
                self._spawn(self._send(node, sending, new))
        return bool(files)

    async def _peek(self, node: str) -> Peek:
        directory = self._directory
        placements = [
            *islice((one for one in self._waiting() if node in directory.able(one)), MAX_PLACEMENTS)
        ]
        if not placements:
            return Peek(next=None)
        pool = directory.pool_of(node)
        return await self._store.peek(
            node=node,
            placements=placements,
            pool=pool,
            peers=max(1, len(directory.able(placements[0]))),
            speed=directory.speed(node),
            ram=directory.ram_bytes(node),
            patience_s=self._patience(pool),
            able=directory.able_names(placements),
            unable=directory.unable_names(placements),
        )

    # -- sending --------------------------------------------------------------------------------------

    async def _send(self, node: str, sending: _Sending, files: Sequence[StagedInput]) -> None:
        sending.task = asyncio.current_task()
        try:
            async with Timeout(SEND_S), self._senders:
                sending.begun = True
                for one in files if sending.wanted else ():
                    await send(one, node, nodes=self._nodes, assets=self._assets)
                    await self._store.staged_ahead(node, one, keep_s=KEEP_S)
                    self._sent.setdefault(node, set()).add(one.asset.id)
                    self._telemetry.staged_ahead(sent=1)
        except (StagingError, FleetError, TimeoutError) as error:  # then the run sends them
            logger.info("not staged ahead", extra={"node": node, "error": str(error)})
        finally:
            sending.done.set()
            if self._sending.get(node) is sending:
                del self._sending[node]
            self._look.set()
