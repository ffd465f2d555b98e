"""A dispatcher's life: look for nodes, keep its runs' leases, take over expired runs, clean up.

No run starts without HAProxy's 101, and no job is claimed without a node. Any number of dispatchers work on
the same queues without talking to each other.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from comfy_fleet.domain.errors import ConfigError, Outdated, StoreDown, StoreRefuses
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.jobs.run import RunLimits
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.nodes.node_order import ByShare
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.ports.ahead import AheadStore
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import Lease, Leases, NodeApi
from comfy_fleet.ports.life_line import LifeLine
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry, PoolStore
from comfy_fleet.ports.ready_leases import ReadyLeaseStore
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.claimer import Claimer
from comfy_fleet.services.collector import OutputLimits, Sharing
from comfy_fleet.services.execution import Execution
from comfy_fleet.services.failure_policy import FailureLimits, FailurePolicy
from comfy_fleet.services.frame_publisher import FramePublisher
from comfy_fleet.services.lease_holder import LeaseHolder
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.merged_prompt import MergedPrompt, PromptMember, TakenOverFirst
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.ready_leases import ReadyLeases
from comfy_fleet.services.run_deps import RunDeps
from comfy_fleet.services.run_metrics import Measure
from comfy_fleet.services.seekers import Seekers
from comfy_fleet.services.staging_ahead import StagingAhead
from comfy_fleet.tasks import forever, start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

TAKE_OVER_LIMIT = 32
MARGIN = 0.25  # the part of a lease's time in which it is not relied on any more
GONE_BEATS = 1.5  # a dispatcher whose life line is closed, and that has not beaten for so many beats, is gone
UPKEEP_LIMIT = 200
TRANSFERS = 64  # transfers of outputs, for all runs of the process
WAITING = 32  # once this many runs wait for room on the disk, no more are begun: they hold results in memory
HELD_S = 60.0  # until the next try to forget a job
WAITS_EVERY_S = 60.0  # while it waits for its runs, it says so this often
NAMED = 20  # most runs that it names then


@dataclass(frozen=True, kw_only=True)
class DispatchLimits:
    """Times in seconds, and most leases held ready; see :class:`comfy_fleet.settings.Settings`."""

    lease_ttl_s: float
    beat_s: float
    stop_wait_s: float
    stage_ahead_bytes: int = 0
    ready_leases: int = 0


@dataclass(frozen=True, kw_only=True)
class DispatcherSnapshot:
    """What a dispatcher does at one moment.

    Attributes:
        runs: Runs in flight.
        done: Runs that are over.
        seekers: Searches for a node in progress.
        idle: Whether it has looked at the queues and waits for news.
        waiting_for_room: Runs whose outputs wait for room on the fleet's disk.
        nodes: The nodes as last read.
        ready: Idle nodes whose leases it holds ready.
    """

    runs: int
    done: int
    seekers: int
    idle: bool
    waiting_for_room: int
    nodes: Sequence[NodeState]
    ready: frozenset[str]


class StoreTime(Protocol):
    """The store's clock, which processes tell how time passes by their own."""

    async def begin(self) -> None:
        """Return once the fleet's time is known. Raises StoreDown."""

    async def keep(self) -> None:
        """Tell how time passes, until canceled."""


class Dispatcher:
    """One dispatcher process.

    Args:
        name: Unique; RQ's worker name.
        beats: The same store as ``runs`` over a separate connection, so that leases are renewed in time even
            while much is written.
        ahead: Peeks at the choices for busy nodes.
        line: Shows others that it lives.
        wakes: Yields wake-up messages (``job PLACEMENT``, ``job@NODE PLACEMENT`` if an idle node has the
            models, ``free``, ``nodes``, ``cancel RUN``, ``frames JOB``).
        forget_files: Deletes a forgotten job's files.
        files: Which files graphs may name.
        telemetry: Is told what happens to jobs and runs.
        now: Monotonic seconds.
        new_id: Makes run ids and fencing tokens.
        chance: Random numbers from 0 to 1; they spread load.
        clock: Is told how time passes here.
        moderation: Judges files before they are given out.
    """

    def __init__(
        self,
        *,
        name: str,
        runs: RunStore,
        beats: RunStore,
        ahead: AheadStore,
        registry: NodeRegistry,
        inventories: InventoryStore,
        memory: MemoryPrediction,
        pools: PoolStore,
        leases: Leases,
        ready_leases: ReadyLeaseStore,
        nodes: NodeApi,
        assets: AssetStore,
        open_secret: Callable[[bytes], Mapping[str, Any]],
        line: LifeLine,
        wakes: Callable[[], AsyncIterator[str]],
        run_limits: RunLimits,
        output_limits: OutputLimits,
        limits: DispatchLimits,
        failure_limits: FailureLimits,
        files: FilePolicy,
        telemetry: Telemetry,
        now: Callable[[], float],
        new_id: Callable[[], str],
        chance: Callable[[], float],
        clock: StoreTime | None = None,
        moderation: Moderation | None = None,
    ) -> None:
        self.name = name
        self._runs = runs
        self._beats = beats
        self._registry = registry
        self._pools = pools
        self._pool_defaults = failure_limits.pools
        self._patience: Mapping[str, float] = {}
        self._silence: Mapping[str, float] = {}
        self._assets = assets
        self._line = line
        self._wakes = wakes
        self._limits = limits
        self._now = now
        self._chance = chance
        self._clock = clock
        self._directory = NodeDirectory(registry, inventories)
        self._sharing = Sharing(TRANSFERS, on_room=self.look_again)
        self._ahead = StagingAhead(
            ahead,
            nodes,
            assets,
            self._directory,
            most_bytes=limits.stage_ahead_bytes,
            waiting=lambda: self._seekers.known,
            patience=self._patience_of,
            spawn=self._spawn,
            telemetry=telemetry,
            now=now,
        )
        self._tools = RunDeps(
            runs=runs,
            frames=FramePublisher(runs, spawn=self._spawn),
            nodes=nodes,
            assets=assets,
            limits=run_limits,
            output_limits=output_limits,
            sharing=self._sharing,
            open_secret=open_secret,
            telemetry=telemetry,
            measure=Measure(self._directory),
            failure_policy=FailurePolicy(
                registry, inventories, nodes, self._directory, pools, memory, failure_limits
            ),
            memory=memory,
            ahead=self._ahead,
            files=files,
            now=now,
            moderation=moderation,
            elsewhere=lambda claim: self._directory.free(claim.job.placement, besides=claim.node),
            safe=self._safe,
        )
        self.flying: dict[str, Execution] = {}
        self._confirmed: dict[str, float] = {}
        # After an outage, or if we were frozen, every other dispatcher gets some time to renew its leases.
        self._beaten = self._regular = self._healthy = float("-inf")
        self._gone_s = GONE_BEATS * limits.beat_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._stopping = False
        self._hurried = False
        self._retired = asyncio.Event()  # a newer version works on this Redis
        self._lease_holder = LeaseHolder(runs, spawn=self._spawn, on_free=self._freed)
        self._seekers = Seekers(
            self._directory,
            runs,
            leases,
            Claimer(
                self._directory,
                runs,
                name=name,
                line=line.id,
                lease_ttl_s=limits.lease_ttl_s,
                new_id=new_id,
                patience=self._patience_of,
            ),
            ReadyLeases(
                ready_leases,
                self._directory,
                runs,
                leases,
                name=name,
                most=limits.ready_leases,
                new_id=new_id,
            ),
            order=ByShare(chance),
            now=now,
            new_id=new_id,
            chance=chance,
            spawn=self._spawn,
            on_claim=self._start,
            on_taken=self._lease_holder.park,
            may=lambda: self._sharing.waiting < WAITING,
            telemetry=telemetry,
        )
        self.done = 0

    # -- life -----------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then finish the runs in flight, or hand them over if that takes long.

        Raises:
            ConfigError: A newer version works on this Redis, and the runs that were in flight here are over.
        """
        async with self._line.held():
            await self._work(stop)

    async def _work(self, stop: asyncio.Event) -> None:
        loops = [] if self._clock is None else [self._clock.keep]
        if self._clock is not None:
            await self._clock.begin()
        await self._directory.look()
        await self._read_patience()
        background = [
            asyncio.create_task(forever(loop, name=loop.__qualname__, pause_s=self._pause_s))
            for loop in (
                self._listen,
                self._beat,
                self._watch_others,
                self._watch_nodes,
                self._upkeep,
                self._seekers.seek,
                self._ahead.watch,
                self._seekers.ready.keep,
                *loops,
            )
        ]
        logger.info("dispatcher started", extra={"dispatcher": self.name})
        try:
            await self._until_told(stop)
            self._stopping = True
            self._seekers.stop()
            await self._land()
            if not stop.is_set():
                raise ConfigError("a newer version works on this Redis: start that version's dispatcher")
        finally:
            self._seekers.stop()  # a run that ends now frees its node, and that must begin nothing more
            while left := [task for task in (*background, *self._tasks) if not task.done()]:
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
            logger.info("dispatcher stopped", extra={"dispatcher": self.name})

    async def _until_told(self, stop: asyncio.Event) -> None:
        """Return once ``stop`` is set, or once the last run is over after a newer version has come."""
        ways = [asyncio.create_task(stop.wait()), asyncio.create_task(self._until_retired())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _until_retired(self) -> None:
        await self._retired.wait()
        await self._until_over()

    async def _until_over(self) -> None:
        """Return once no run is left, or at once when told to hurry; log now and then which are left."""
        while self.flying and not self._hurried:
            now = self.snapshot()
            jobs = [f"{one.claim.job.id} on {one.claim.node}" for one in self.flying.values()]
            logger.info(
                "dispatcher waits for its runs",
                extra={
                    "dispatcher": self.name,
                    "runs": now.runs,
                    "waiting_for_room": now.waiting_for_room,
                    "jobs": jobs[:NAMED],
                },
            )
            with contextlib.suppress(TimeoutError):
                async with Timeout(WAITS_EVERY_S):
                    while self.flying and not self._hurried:
                        self._over.clear()
                        await self._over.wait()

    async def _check_schema(self) -> None:
        """Stop claiming for good once a newer version works on this Redis."""
        if self._retired.is_set():
            return
        try:
            await self._runs.check_schema()
        except Outdated as error:
            if self._retired.is_set():  # a wake-up and a look of its own came at once
                return
            self._retired.set()
            self._seekers.stop()
            logger.error(
                "dispatcher takes no more jobs; it ends its runs, then stops: start the newer version",
                extra={"dispatcher": self.name, "runs": len(self.flying), "reason": error.message},
            )

    def hurry(self) -> None:
        """Stop waiting for runs: hand them over."""
        self._hurried = True
        self._over.set()

    async def _land(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with Timeout(self._limits.stop_wait_s):
                await self._until_over()
        claims = [execution.claim for execution in self.flying.values()]
        if not claims:
            return
        logger.warning("runs handed over", extra={"dispatcher": self.name, "count": len(claims)})
        try:
            await self._runs.hand_over(claims)
        except StoreDown as error:  # their leases run out a little later, with the same effect
            logger.warning("hand-over not written", extra={"dispatcher": self.name, "error": str(error)})

    def _pause_s(self) -> float:
        return 0.2 + 0.8 * self._chance()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = start(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who may write --------------------------------------------------------------------------------

    def _safe(self, run: str) -> bool:
        """Whether the run's lease certainly still holds, so that nobody can have taken the run over."""
        confirmed = self._confirmed.get(run, float("-inf"))
        unbroken_since = self._line.unbroken_since()
        shown = unbroken_since is not None and unbroken_since <= confirmed
        holds_s = self._limits.lease_ttl_s if shown else self._gone_s
        return self._now() - confirmed < holds_s * (1 - MARGIN)

    async def _beat(self) -> None:
        self._beaten = self._regular = self._healthy = self._now()
        while True:
            started = self._now()
            claims = [execution.claim for execution in self.flying.values()]
            try:
                beat = await self._beats.beat(self.name, claims, ttl_s=self._limits.lease_ttl_s)
            except StoreDown:
                if self._stopping:
                    self.hurry()  # stopping, and nothing can be written: there is no point in waiting
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
            for run in beat.heard:
                if execution := self.flying.get(run):
                    execution.listen()
            now = self._now()
            if now - self._beaten > self._gone_s:
                self._regular = now
            if now - self._beaten > self._limits.lease_ttl_s / 2:
                self._healthy = now
            self._beaten = now
            await asyncio.sleep(self._limits.beat_s)

    async def _watch_others(self) -> None:
        """Take over runs of dispatchers that have died, or have been silent for too long."""
        while True:
            await asyncio.sleep(self._limits.beat_s / 2)
            now = self._now()
            if self._stopping or now - self._beaten > self._gone_s:
                continue  # Redis is away, or we have just been frozen
            gone = now - self._regular >= 2 * self._gone_s
            expired = now - self._healthy >= self._limits.lease_ttl_s
            while (gone or expired) and await self._take_over(gone, expired) == TAKE_OVER_LIMIT:
                pass

    def _drop(self, run: str) -> None:
        if (execution := self.flying.get(run)) and execution.abandon():
            logger.warning("lease lost", extra={"job_id": execution.claim.job.id, "run_id": run})

    def _cancel(self, run: str) -> None:
        if execution := self.flying.get(run):
            execution.cancel()

    def _release(self, run: str) -> None:
        if execution := self.flying.get(run):
            execution.release()

    async def _take_over(self, gone: bool, expired: bool) -> int:
        """Take over some of the runs that nobody holds any more; return how many."""
        asked = self._now()
        found = await self._runs.take_over(
            dispatcher=self.name,
            line=self._line.id,
            ttl_s=self._limits.lease_ttl_s,
            gone_s=self._gone_s if gone else None,
            expired=expired,
            limit=TAKE_OVER_LIMIT,
        )
        for held in found:
            claim = replace(held.claim, pool=self._directory.pool_of(held.claim.node))
            execution = self._execution(claim, None)
            self._fly(execution, execution.resume(held), asked=asked)
        return len(found)

    def _execution(self, claim: Claim, lease: Lease | None, member: PromptMember | None = None) -> Execution:
        tools = self._tools
        job, (silence_s, of) = claim.job, (self._silence.get(claim.pool), f"pool {claim.pool}")
        if job.silence_s is not None:
            silence_s, of = job.silence_s, f"workflow {job.workflow}"
        if silence_s is not None:
            tools = replace(tools, limits=replace(tools.limits, silence_s=silence_s, silence_of=of))
        if member is not None:
            tools = replace(tools, nodes=member)
        elif claim.merged is not None:
            tools = replace(tools, nodes=TakenOverFirst(claim, tools.nodes))
        if member is not None and not member.first:  # it never had the node
            lease = None
        on_free, on_rest = self._freed, self._lease_holder.rest
        return Execution(tools, claim, lease, member=member, on_free=on_free, on_rest=on_rest)

    def look_again(self) -> None:
        """Look for jobs and nodes now."""
        self._seekers.look_again()

    def snapshot(self) -> DispatcherSnapshot:
        """Return its present activity."""
        return DispatcherSnapshot(
            runs=len(self.flying),
            done=self.done,
            seekers=self._seekers.count,
            idle=self._seekers.idle,
            waiting_for_room=self._sharing.waiting,
            nodes=tuple(self._directory.states.values()),
            ready=frozenset(self._seekers.ready.nodes),
        )

    def _freed(self, node: str) -> None:
        self._seekers.freed(node)

    def _start(self, claim: Claim, lease: Lease, asked: float) -> None:
        if claim.others:
            self._start_merged(claim, lease, asked)
            return
        execution = self._execution(claim, lease)
        self._fly(execution, execution.run(), asked=asked)

    def _start_merged(self, claim: Claim, lease: Lease, asked: float) -> None:
        prompt = MergedPrompt(claim, lease, self._tools.nodes, safe=self._safe)
        for member in prompt.members:
            execution = self._execution(member.claim, member, member)
            self._fly(execution, execution.run(), asked=asked)
        self._spawn(prompt.pump())

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
        # Not ended: its lease runs out, and the dispatcher that takes it over asks the node about it.
        except StoreDown as error:
            extra = {"job_id": claim.job.id, "run_id": claim.run, "error": str(error)}
            refused = isinstance(error, StoreRefuses)
            logger.warning(
                "run broke off: Redis refuses" if refused else "run broke off: Redis does not answer",
                extra=extra,
            )
        except Exception:
            logger.exception("run broke off", extra={"job_id": claim.job.id, "run_id": claim.run})
        finally:
            self.flying.pop(claim.run, None)
            self._confirmed.pop(claim.run, None)
            self._over.set()

    # -- wake-ups -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._wakes():
            kind, _, rest = message.partition(" ")
            kind, _, node = kind.partition("@")
            if kind == "job":
                with contextlib.suppress(*UNREADABLE):  # from a newer version, and for it
                    wanted = Placement.parse(rest)
                    self._seekers.wanted(wanted, node)
                    self._ahead.wanted(wanted)
            elif kind == "cancel":
                self._cancel(rest)
            elif kind == "release":
                self._release(rest)
            elif kind == "frames":
                for execution in tuple(self.flying.values()):
                    if execution.claim.job.id == rest:
                        execution.listen(anew=True)
            elif kind == "free":
                self._seekers.look_again()
            elif kind == "schema":
                await self._check_schema()

    async def _watch_nodes(self) -> None:
        async for _ in self._registry.changes():
            await self._directory.look()
            for execution in tuple(self.flying.values()):
                node = execution.claim.node
                # A node that was granted to us during this look is not missing.
                if node not in self._directory.states and await self._registry.get(node) is None:
                    execution.evict()
            self._seekers.look_again()

    # -- upkeep ---------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        while True:
            await self._check_schema()
            await self._read_patience()
            if not self._retired.is_set():  # else a newer version cleans up: only it can read the data
                await self._clean_up()
            await asyncio.sleep(max(1.0, self._limits.beat_s))

    async def _read_patience(self) -> None:
        """Read for how long pools' nodes may pass over jobs, and compute without a sign of progress."""
        pools, defaults = await self._pools.pools(), self._pool_defaults
        self._patience = {one.name: defaults.patience_of(one) for one in pools}
        self._silence = {one.name: one.silence_s for one in pools if one.silence_s is not None}

    def _patience_of(self, pool: str) -> float:
        return self._patience.get(pool, self._pool_defaults.patience_s)

    async def _clean_up(self) -> None:
        await self._runs.tend()
        await self._runs.overdue(UPKEEP_LIMIT)
        for job_id in await self._runs.forgettable(UPKEEP_LIMIT):
            if not await self._assets.forget_job(job_id):
                # A live job still needs one of its outputs. The jobs behind it must not wait for that.
                await self._runs.postpone(job_id, seconds=HELD_S)
                continue
            await self._runs.forget(job_id)  # files first: a crash in between repeats both
            logger.info("job forgotten", extra={"job_id": job_id})
