"""Carry out one claimed run: does what the state machine in :mod:`comfy_fleet.domain.jobs.run` decides.

This module posts, asks, has outputs collected and the end written. Every write is fenced by the claim's
token: after :class:`LeaseLost` a run stops at once and no longer touches the node.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.graphs import graph as graphs
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement, Progress
from comfy_fleet.domain.jobs.outputs import OutputItem
from comfy_fleet.domain.jobs.run import Run, RunLimits, RunPhase
from comfy_fleet.domain.jobs.run_messages import (
    Action,
    AskFailed,
    AskHistory,
    AskQueue,
    Binary,
    CancelRequested,
    Collect,
    DeletePending,
    Event,
    Finish,
    Frame,
    FreeElsewhere,
    Interrupt,
    InterruptSent,
    Left,
    LookElsewhere,
    Opened,
    PostPrompt,
    PostUnknown,
    Report,
    RunResult,
    ShowPreview,
    SocketClosed,
    Tick,
    Unread,
)
from comfy_fleet.domain.jobs.run_results import NODE_BUSY
from comfy_fleet.domain.jobs.run_story import newest
from comfy_fleet.domain.jobs.run_times import StopWatch
from comfy_fleet.ports.comfyui import Lease
from comfy_fleet.ports.runs import Claim, Held
from comfy_fleet.services.collector import Collector
from comfy_fleet.services.frame_relay import FrameRelay
from comfy_fleet.services.merged_prompt import PromptMember
from comfy_fleet.services.progress_reporter import ProgressReporter
from comfy_fleet.services.prompt_preparation import PromptPreparation
from comfy_fleet.services.run_deps import RunDeps
from comfy_fleet.services.run_end import Ending, GivenBack, broken_off, node_lost, unready, withdraw
from comfy_fleet.services.run_metrics import Measured

logger = logging.getLogger(__name__)

NOTE_AFTER_S = 0.1
_TOLD = frozenset({"lost", "timeout", "rejected"})
"""Results about which the run's story says more than its error."""
READ_AHEAD_BYTES, READ_AHEAD_FRAMES = 64 * 1024, 256
"""How many frames may wait for the machine; reading pauses if the node sends faster."""
HELD_BYTES, HELD_GAP_S, HELD_SAY_S = 4 * 1024 * 1024, 0.02, 1.0
"""Bytes of results that may wait in memory to be stored; above it, reading of frames pauses."""


class Execution:
    """One run in flight.

    Args:
        tools: Shared by all runs.
        claim: The claimed job.
        lease: The websocket that holds the node; None for a run that was taken over.
        member: Its part in a merged prompt, which is its lease and its node, too; None: it is alone.
        on_free: Called once with the node's name, as soon as it can take another job.
        on_rest: Called instead with the lease and a time in seconds for which the node should get no job.
    """

    def __init__(
        self,
        tools: RunDeps,
        claim: Claim,
        lease: Lease | None,
        *,
        member: PromptMember | None = None,
        on_free: Callable[[str], None],
        on_rest: Callable[[Lease, float], None],
    ) -> None:
        self.claim = claim
        self._tools = tools
        self._lease = lease
        self._member = member
        self._on_free = on_free
        self._on_rest = on_rest
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reporter = ProgressReporter(tools.runs, claim, tools.now)
        self._outputs = Collector(
            claim,
            runs=tools.runs,
            nodes=tools.nodes,
            assets=tools.assets,
            limits=tools.output_limits,
            sharing=tools.sharing,
            telemetry=tools.telemetry,
            moderation=tools.moderation,
        )
        self._relay = FrameRelay(
            tools.frames, claim, tools.now, heard=claim.heard, committed=self._outputs.committed
        )
        self._ending = Ending(
            (claim,), runs=tools.runs, failure_policy=tools.failure_policy, telemetry=tools.telemetry
        )
        self._graph: graphs.Graph = {}
        self._preparation = PromptPreparation(tools, claim)
        self._extra_data: Mapping[str, Any] | None = None
        self._started = tools.now()
        # Of a run that was taken over, this dispatcher knows only the rest.
        self._watch: StopWatch | None = None
        self._posted_at: float | None = None
        self._took_s: float | None = None
        self._ran_s: float | None = None
        self._began = self._warm = self._reused = False
        self._ui = ""
        self._canceled = False
        self._released = False
        self._abandoned = self._misread = False
        self._settling = False
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = math.inf
        self._left = False
        self._extra = claim.log_fields
        if member is not None:
            member.on_stop = self._ask_to_stop

    def listen(self, *, anew: bool = False) -> None:
        """Note that somebody listens to the frames of the run's job; safe to call again.

        Args:
            anew: Whether a listener has just come, and has to be told how far the run is.
        """
        self._relay.listen(anew=anew)

    @property
    def heard(self) -> bool:
        """Whether it knows that somebody listens to its frames."""
        return self._relay.heard

    def cancel(self) -> None:
        """Cancel the run's job; safe to call again."""
        if not self._canceled:
            self._canceled = True
            if self._member is None or self._member.may_stop():
                self._ask_to_stop()
            if self._settling:  # the machine is done, but outputs may wait for room for hours
                self._outputs.cancel()

    def _ask_to_stop(self) -> None:
        self._events.put_nowait(CancelRequested())

    def release(self) -> None:
        """Take the run off its node, and give its job back to the queue; safe to call again."""
        if not self._released:
            self._released = True
            self._ask_to_stop()

    def evict(self) -> None:
        """Give the job back: its node was removed, and HAProxy keeps the node only until the lease ends."""
        self.release()
        self._free()

    def abandon(self) -> bool:
        """Stop at once: another dispatcher has taken the run over.

        Return False while the end is being written: that either has ended the lease, or finds out itself that
        it is lost.
        """
        if self._ending.writing:
            return False
        self._abandoned = True
        self._cancel_tasks()
        self._events.put_nowait(Tick())
        return True

    async def run(self) -> None:
        """Post the prompt and follow it to its end."""
        await self._guarded(self._fresh())

    async def resume(self, held: Held) -> None:
        """Go on with a run that another dispatcher left behind."""
        await self._guarded(self._taken_over(held))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LeaseLost:
            logger.warning("lease lost, run left alone", extra=self._extra)
            await self._watched(self._withdraw_unknown())
        finally:
            self._free()
            if self._member is not None:
                self._member.finish()
            if self._timer:
                self._timer.cancel()
            self._reporter.close()
            self._relay.close()
            self._cancel_tasks()

    async def _withdraw_unknown(self) -> None:
        """Take the prompt off its node if no record of the run is left: its job has ended, or waits anew.

        A failover to a replica that lacked the claim does this; nobody could take such a run over.
        """
        if self._left or (self._member is not None and not self._member.first):
            return
        with contextlib.suppress(StoreDown):
            if not await self._tools.runs.known(self.claim.run):
                await withdraw(self.claim, self._tools.nodes)

    def _cancel_tasks(self) -> None:
        self._outputs.cancel()
        for task in self._tasks:
            task.cancel()

    async def _fresh(self) -> None:
        self._watch = StopWatch(self._started, self.claim.run)
        try:
            graph = await self._made_ready()
        except (LeaseLost, StoreDown):
            raise
        except Exception as error:  # noqa: BLE001 - every further run of the job would fail in the same way
            await self._end(unready(error, extra=self._extra))
            return
        if graph is None:
            return
        self._watch.graph(graph)
        self._step("ready")
        machine = self._new_machine(graph, adopted=False, accepted=False)
        source = self._lease or self._member
        if source is not None:
            self._spawn(self._read_frames(source, machine))
        await self._drive(machine)

    async def _made_ready(self) -> graphs.Graph | None:
        """Make the prompt; None if the job belongs elsewhere and was given back."""
        prepared = await self._preparation.prepare()
        if isinstance(prepared, Placement):
            lacking = f"node {self.claim.node} lacks what it needs now"
            error = JobError(code="invalid_workflow", message=lacking)
            await self._give_back(GivenBack(error=error, counts=False, placement=prepared))
            return None
        self._graph, self._extra_data = prepared.posted, prepared.extra_data
        return prepared.graph

    async def _taken_over(self, held: Held) -> None:
        try:
            await self._adopted(held)
        except (LeaseLost, StoreDown):
            raise
        except Exception as error:  # noqa: BLE001 - a take-over would meet it, too
            self._cancel_tasks()
            if held.phase != "left" and self._tools.safe(self.claim.run):
                await self._watched(withdraw(self.claim, self._tools.nodes))
            await self._give_back(broken_off(error, extra=self._extra))

    async def _adopted(self, held: Held) -> None:
        logger.info("run taken over", extra={**self._extra, "phase": held.phase})
        if held.phase == "left":
            self._left = True  # as the dispatcher that wrote this has reported
            try:
                items = tuple(OutputItem.from_json(item) for item in held.manifest)
            except ValueError as error:
                await self._give_back(GivenBack(error=node_lost(str(error)), counts=False))
                return
            self._outputs.add(items)
            self._reporter.progress(Progress.complete(len(orjson.loads(self.claim.graph))))
            await self._end(RunResult(kind="succeeded"))
            return
        self._tools.ahead.begin(self.claim)
        graph = await self._preparation.graph_of_running()
        await self._drive(self._new_machine(graph, adopted=True, accepted=held.phase == "accepted"))

    def _new_machine(self, graph: graphs.Graph, *, adopted: bool, accepted: bool) -> Run:
        return Run(
            run_id=self.claim.run,
            graph=graph,
            limits=self._run_limits(),
            now=self._tools.now(),
            adopted=adopted,
            accepted=accepted,
        )

    def _run_limits(self) -> RunLimits:
        """Return the operator's limits, with the job's own for the length of its run if that is less.

        A merged prompt has the time of all its jobs.
        """
        limits, own_s = self._tools.limits, self.claim.job.timeout_s
        run_s = limits.run_s if own_s is None else min(limits.run_s, own_s)
        return replace(limits, run_s=run_s * (self._member.count if self._member else 1))

    async def _drive(self, machine: Run) -> None:
        if self.claim.job.cancel_requested:
            self.cancel()
        self._events.put_nowait(Opened())
        while True:
            self._set_timer(machine.next_tick())
            event = await self._events.get()
            if self._abandoned:
                raise LeaseLost(f"run {self.claim.run} was taken over")
            actions = machine.handle(event, self._tools.now())
            if self._watch is not None and isinstance(event, Frame):
                self._watch.frame(event.type, event.data, self._tools.now())
            if isinstance(event, Frame | Binary):
                place = machine.pictured if isinstance(event, Binary) else None
                # Nobody sees a picture that is not judged yet.
                if not (self.claim.job.moderation and isinstance(event, Binary)):
                    self._relay.take(event, running=machine.phase is RunPhase.RUNNING, place=place)
            self._began = self._began or machine.phase is RunPhase.RUNNING
            for action in actions:
                if isinstance(action, Left) or (isinstance(action, Finish) and self._began):
                    self._note_results(machine)
                if isinstance(action, Finish):
                    self._step("left")
                    self._ui = self._ui or machine.ui  # not again after a Left, which comes with this
                    await self._end(self._with_story(action.verdict, machine))
                    return
                if isinstance(action, Left):
                    self._step("left")
                    self._ui = machine.ui
                    self._relay.leave(machine.ui_nodes)
                    if self._posted_at is not None and machine.computed:
                        self._took_s = self._tools.now() - self._posted_at
                await self._act(action)
                del action  # like the event, this may hold a large frame
            if machine.misread and not self._misread:
                self._misread = True
                logger.warning("not understood", extra={**self._extra, "reason": machine.misread})
            del event
            self._events.task_done()

    def _step(self, name: str) -> None:
        """Note that the run has reached one of its steps."""
        if self._watch is not None:
            now = self._tools.now()
            self._watch.step(name, now)
            if name == "left":
                self._watch.leave(now)

    @property
    def _times(self) -> str:
        return self._watch.times().dump() if self._watch is not None else ""

    def _note_results(self, machine: Run) -> None:
        """Note what the prompt took, and whether the node had any of its results."""
        if self._ran_s is None and self._posted_at is not None:
            self._ran_s = self._tools.now() - self._posted_at
            self._warm, self._reused = machine.warm, machine.reused

    def _set_timer(self, at: float | None) -> None:
        if at is None or at >= self._tick_at:  # an early tick does no harm, and sets the next one
            return
        if self._timer:
            self._timer.cancel()
        delay = max(0.0, at - self._tools.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)
        self._tick_at = at

    def _tick(self) -> None:
        self._timer, self._tick_at = None, math.inf
        self._events.put_nowait(Tick())

    async def _act(self, action: Action) -> None:
        nodes, node, run = self._tools.nodes, self.claim.node, self.claim.run
        match action:
            case PostPrompt():
                self._spawn(self._post())
            case AskQueue():
                self._spawn(self._ask(lambda: nodes.queue_state(node, run)))
            case AskHistory():
                self._spawn(self._ask(lambda: nodes.history(node, run)))
            case Interrupt():
                self._spawn(self._tell(lambda: nodes.interrupt(node, run)))
            case DeletePending():
                self._spawn(self._tell(lambda: nodes.delete_pending(node, run)))
            case LookElsewhere():
                self._posted_at = None  # the time since then says nothing about the node's speed
                self._spawn(self._look_elsewhere())
            case Report():
                self._reporter.progress(action.progress)
            case ShowPreview():
                if not self.claim.job.moderation:
                    self._reporter.preview(action)
            case Collect():
                self._outputs.add(self._wanted(action.items))
                if self._outputs.over is not None:
                    self._ask_to_stop()  # nobody will get the rest
                await asyncio.sleep(0)  # ask now, not after all frames that came with this one
            case Left():
                items = self._wanted(action.items)
                holds = self._member is not None and self._member.first  # it waits for the others' ends
                if holds or self.claim.jobs_behind or not await self._outputs.stored(items):
                    manifest = [item.to_json() for item in self._outputs.unsafe(items)]
                    with contextlib.suppress(StoreDown):  # then nobody can claim it before the end
                        await self._leave(manifest)
                self._outputs.left(items)

    def _wanted(self, items: Sequence[OutputItem]) -> Sequence[OutputItem]:
        """Return the outputs to collect: none, if the prompt goes on for other jobs only."""
        return () if self._member is not None and self._canceled else items

    async def _leave(self, manifest: list[dict[str, Any]]) -> None:
        """Give the node back in Redis and in HAProxy; the next claim needs it free in both."""
        writing = asyncio.create_task(self._tools.runs.left(self.claim, manifest, ui=self._ui))
        await asyncio.sleep(0)  # Redis first: otherwise a claim could find the node still taken there
        self._free()
        await writing

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._watched(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LeaseLost:
            pass  # the main task's next fenced write sees it, too
        except StoreDown as error:  # what was to be noted helps others only
            logger.warning("not noted in Redis", extra={**self._extra, "error": str(error)})
        except Exception:
            logger.exception("run helper failed", extra=self._extra)

    def _free(self, rest_s: float = 0.0) -> None:
        """Release the node, now or after a rest; its lease in Redis must have ended."""
        if not self._left:
            self._left = True
            self._tools.ahead.end(self.claim)
            had_it = self._member is None or self._member.first
            busy_s = self._tools.now() - self._started if had_it else 0.0
            self._tools.telemetry.left(self.claim, busy_s=busy_s)
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        if rest_s:
            self._on_rest(lease, rest_s)
        else:
            lease.release()
            self._on_free(self.claim.node)

    # -- talking to the node --------------------------------------------------------------------------

    async def _post(self) -> None:
        try:
            await self._post_prompt()
        except LeaseLost:
            raise
        except Exception as error:
            # The machine waits for an answer in any case, and a second one changes nothing.
            self._events.put_nowait(PostUnknown(f"{type(error).__name__}: {error}"))
            raise

    async def _post_prompt(self) -> None:
        if not self._tools.safe(self.claim.run):
            # Posting now could start the job a second time, beside the run that took it over.
            logger.warning("lease too old to post", extra=self._extra)
            self._events.put_nowait(PostUnknown("the lease was too old to post safely"))
            return
        self._posted_at = self._tools.now()
        answer = await self._tools.nodes.post_prompt(
            self.claim.node,
            graph=self._graph,
            run=self.claim.run,
            job=self.claim.job.id,
            extra_data=self._extra_data,
            targets=self.claim.job.targets,
        )
        self._events.put_nowait(answer)
        if not isinstance(answer, PostUnknown) and answer.status == 200:
            self._step("accepted")
            self._tools.telemetry.posted(self.claim)
            if not self._left:
                self._tools.ahead.begin(self.claim)
            # This matters only for a take-over; most short runs are over by then.
            await asyncio.sleep(NOTE_AFTER_S)
            await self._tools.runs.accepted(self.claim)

    async def _read_frames(self, lease: Lease, machine: Run) -> None:
        ahead = 0
        async for frame in lease.frames():
            ahead += len(frame.data) if isinstance(frame, Binary) else len(frame.raw)
            self._events.put_nowait(frame)
            del frame
            if ahead >= READ_AHEAD_BYTES or self._events.qsize() >= READ_AHEAD_FRAMES:
                await self._events.join()  # reading goes on once this is handled
                await self._unburdened(machine)
                ahead = 0
        self._events.put_nowait(SocketClosed(lease.close_reason, lease.limit))

    async def _unburdened(self, machine: Run) -> None:
        """Wait until most results that exist only in memory are stored: there may be any number."""
        reported_at = self._tools.now()
        while machine.held_bytes + self._outputs.held_bytes > HELD_BYTES:
            await asyncio.sleep(HELD_GAP_S)
            if self._tools.now() - reported_at >= HELD_SAY_S:
                reported_at = self._tools.now()
                self._events.put_nowait(Unread())

    async def _ask(self, question: Callable[[], Awaitable[Event | AskFailed]]) -> None:
        self._events.put_nowait(await question())

    async def _tell(self, order: Callable[[], Awaitable[bool]]) -> None:
        self._events.put_nowait(InterruptSent(await order()))

    async def _look_elsewhere(self) -> None:
        with contextlib.suppress(StoreDown):
            if await self._tools.elsewhere(self.claim):
                self._events.put_nowait(FreeElsewhere())

    # -- the end --------------------------------------------------------------------------------------

    def _with_story(self, verdict: RunResult, machine: Run) -> RunResult:
        """Add its story to the result of a run that ended badly, and log it."""
        if verdict.error is None or verdict.kind not in _TOLD:
            return verdict
        if verdict.error.code == NODE_BUSY or self._released:  # nothing is wrong: it goes elsewhere
            return verdict
        story = machine.story.lines()
        logger.warning("run ended badly", extra={**self._extra, "kind": verdict.kind, "story": story})
        details = {**verdict.error.details, "story": newest(story)}
        return replace(verdict, error=replace(verdict.error, details=details))

    async def _end(self, verdict: RunResult) -> None:
        duration_s = self._tools.now() - self._started
        self._reporter.close()
        self._settling = True
        if self._canceled:
            self._outputs.cancel()
        broken = await self._outputs.settled()
        if len(self._outputs):
            self._step("collected")
        await self._relay.drain()  # nothing of the run is published after its end is written
        if self._abandoned:
            raise LeaseLost(f"run {self.claim.run} was taken over")
        if self._member is not None:
            await self._member.end(complete=verdict.kind == "succeeded")
        end = await self._ending.decide(
            verdict, broken=broken, released=self._released, canceled=self._canceled
        )
        if isinstance(end, GivenBack) or end.status is not JobStatus.SUCCEEDED:
            await self._outputs.commit_last()
        if isinstance(end, GivenBack):
            await self._give_back(end)
            return
        measured = Measured()
        if end.status is JobStatus.SUCCEEDED:
            took_s = self._took_s if self.claim.merged is None else None
            measured = self._tools.measure.succeeded(self.claim, took_s=took_s)
        measured = replace(measured, ran_s=self._ran_s, warm=self._warm, reused=self._reused)
        status = await self._ending.finish(
            end,
            measured=measured,
            duration_s=duration_s,
            progress=self._reporter.last,
            ui=self._ui,
            outputs=[made for made in (self._outputs.last,) if made is not None],
            times=self._times,
        )
        self._free()
        self._tools.telemetry.ended(
            self.claim,
            status,
            error=verdict.error or end.error,
            duration_s=duration_s,
            outputs=len(self._outputs),
        )
        if status is JobStatus.SUCCEEDED:
            card = self._tools.measure.card(self.claim.node)
            await self._tools.memory.succeeded(self.claim.job.workload, self.claim.job.owner, card)

    async def _give_back(self, back: GivenBack) -> None:
        if self._member is not None:
            await self._member.end(complete=False)
        rerun_nodes = frozenset(self._outputs.gone)
        status = await self._ending.give_back(
            back, rerun_nodes=rerun_nodes, progress=self._reporter.last, ui=self._ui, times=self._times
        )
        self._free(back.rest_s)
        self._tools.telemetry.given_back(self.claim, status, error=back.error, counts=back.counts)
