"""One attempt on one node, as a pure state machine: events in, actions out.

    OPEN ─▶ POSTING ─▶ ACCEPTED ─▶ RUNNING ─▶ LEFT ─▶ DONE

The rules, from ComfyUI's observed behaviour:

- A prompt has left the node with ``executing {node: null}``, or when it is absent first from ``/queue`` and
  then looked up in ``/history``. The other order would miss a prompt that ends in between.
- After a success the frames are enough if none can be missing; otherwise the history entry completes them.
- HAProxy's silence says nothing about a node. Its 503, twice, says that the node is gone.
- A prompt that must leave its node is interrupted until it has left: the node is not free before.
- A node has one job of the fleet's at a time. A prompt that waits there waits behind somebody else's, or for
  a dead prompt thread. It is deleted and runs elsewhere, unless it begins before that.

This module is longer than others because the rules only make sense next to each other.
:mod:`comfy_fleet.domain.jobs.run_results` says what answers and errors mean,
:mod:`comfy_fleet.domain.jobs.run_transcript` what frames mean.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from comfy_fleet.domain.jobs import run_results as verdicts
from comfy_fleet.domain.jobs.frames import Picture
from comfy_fleet.domain.jobs.job import Progress
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
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Left,
    LookElsewhere,
    Opened,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
    QueueState,
    Report,
    RunResult,
    ShowPreview,
    SocketClosed,
    Unread,
)
from comfy_fleet.domain.jobs.run_story import RunStory
from comfy_fleet.domain.jobs.run_transcript import RunTranscript

FRAME_OUTPUTS = frozenset({"SaveImageWebsocket"})

Abort: TypeAlias = Literal["cancel", "timeout", "rejected", "frames", "behind", "limit"]


class RunPhase(StrEnum):
    """Where the prompt is, as far as the machine knows."""

    OPEN = "open"
    POSTING = "posting"
    ACCEPTED = "accepted"
    RUNNING = "running"
    LEFT = "left"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class RunLimits:
    """Time limits in seconds, and counts of questions.

    Attributes:
        silence_s: Longest time without a sign of progress. On an open websocket only frames (and waiting in
            the node's queue) are signs; without one, the node's answer that the prompt runs is one, too.
        silence_of: Who sets that, for people, such as ``workflow postcard``.
        run_s: Longest run, from the moment the prompt started.
        pending_s: Longest time in the node's own queue before the prompt is taken back.
        poll_s: Pause between two questions while there is no websocket, or while the prompt has not begun.
        probe_s: Time without a frame on an open websocket before the queue is asked.
        settle_s: Longest time between a final frame and the last ``executing {node: null}``.
        nag_s: Pause between two interrupts of a prompt that does not stop.
        abort_s: Time for an interrupted prompt to leave the node after a timeout.
        down_s: Time between two answers that the node is down before it counts as lost.
        gone_polls: How often a prompt must be absent if its POST got no answer: it may still arrive.
        history_tries: How often to ask for a history entry that must exist.
        history_gap_s: Pause between these questions.
        unusable_tries: Answers that break a limit, or can't be read, before the machine stops asking.
        outputs: How many outputs are looked at, one more than a job may have; None: all.
    """

    silence_s: float
    run_s: float
    pending_s: float = 10.0
    poll_s: float = 1.0
    probe_s: float = 15.0
    settle_s: float = 1.0
    nag_s: float = 2.0
    abort_s: float = 30.0
    down_s: float = 0.5
    gone_polls: int = 2
    silence_of: str = "FLEET_SILENCE_S"
    history_tries: int = 5
    history_gap_s: float = 0.1
    unusable_tries: int = 3
    outputs: int | None = None


class Run:
    """One attempt on one node.

    Attributes:
        phase: Where the prompt is.
        sockets_only: Whether some output exists only as websocket frames.
        misread: The last exception that something from the node raised; empty if all was understood.
        story: The latest events, and what each led to.
    """

    phase: RunPhase
    sockets_only: bool
    misread: str
    story: RunStory

    def __init__(
        self,
        *,
        run_id: str,
        graph: Mapping[str, Any],
        limits: RunLimits,
        now: float,
        adopted: bool = False,
        accepted: bool = False,
        frame_output_classes: frozenset[str] = FRAME_OUTPUTS,
    ) -> None:
        """Begin.

        Args:
            run_id: ComfyUI's ``prompt_id`` and ``clientId``.
            graph: The API-format graph as it is posted.
            limits: How long things may take.
            now: Monotonic time; the same clock is used everywhere below.
            adopted: Another dispatcher began this run: there is no websocket, and the prompt may have been
                posted. :class:`Opened` or :class:`Tick` starts the questions.
            accepted: With ``adopted``: the node is known to have taken the prompt.
            frame_output_classes: Node classes whose pictures come as binary frames.
        """
        self._id = run_id
        self._limits = limits
        self._now = now
        self._out: list[Action] = []
        self._seen = RunTranscript(run_id, graph, frame_output_classes, most_items=limits.outputs)
        self._reported: Progress | None = None
        self.sockets_only = bool(self._seen.frame_nodes)
        self.misread = ""
        self.story = RunStory(now)

        self.phase = RunPhase.OPEN
        self._answered = adopted  # whether the POST's outcome is known, or never will be
        self._absent = 0
        self._rejection: RunResult | None = None

        self._socket = not adopted
        self._broken = adopted  # whether frames before the end may have been missed
        self._broker_gone = False
        self._given: set[tuple[str, str, int]] = set()

        self._pending_since: float | None = None
        self._elsewhere = False  # whether another node was free while the prompt waited
        self._deleted = False  # whether the node has confirmed that it took the prompt out of its queue

        self._abort: Abort | None = None
        self._abort_until = math.inf
        self._overdue = ""
        self._over_limit = ""
        self._unusable = 0
        self._asking: str | None = None
        self._ask_what = "queue"
        self._ask_at: float | None = None
        self._lazy = False
        self._tries = 0
        self._down_since: float | None = None
        self._sign_at = now
        self._since = now
        if adopted:
            self.phase = RunPhase.ACCEPTED if accepted else RunPhase.POSTING
            self._schedule("queue", 0)

    @property
    def progress(self) -> Progress:
        """Its progress, as far as the node has reported it."""
        return self._seen.meter.snapshot

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle an event at monotonic time ``now``; return what to do, in this order."""
        if self.phase is RunPhase.DONE:
            return []
        self._now, self._out = now, []
        misread = ""
        try:
            self._take(event)
        except Exception as error:  # noqa: BLE001 - nothing that a node sends may end the run's task
            misread = self.misread = f"{type(event).__name__}: {type(error).__name__}: {str(error)[:200]}"
            self._on_misread(event)
        self._clock()
        out, self._out = self._out, []  # a preview may be large
        self.story.note(event, now, self.phase, out, misread)
        return out

    def _take(self, event: Event) -> None:
        match event:
            case Frame():
                self._on_frame(event)
            case Binary():
                self._on_binary(event.data)
            case Opened():
                if self.phase is RunPhase.OPEN:
                    self.phase = RunPhase.POSTING
                    self._out.append(PostPrompt())
            case PostAnswered():
                self._on_answer(event)
            case PostUnknown():
                self._on_unknown()
            case SocketClosed():
                self._on_closed(event.reason, event.limit)
            case QueueAnswered():
                if self._asking == "queue":
                    self._on_queue(event.state)
            case HistoryAnswered():
                if self._asking == "history":
                    self._on_history(event.entry)
            case AskFailed():
                if self._asking == event.what:
                    self._on_failure(event.what, event.kind, event.why)
            case CancelRequested():
                self._on_cancel()
            case FreeElsewhere():
                self._on_free_elsewhere()
            case InterruptSent():
                self._on_interrupt_sent(event.ok)
            case Unread():
                self._sign_at = self._now
            # Nothing for a Tick: the clock is looked at after every event.

    def _on_misread(self, event: Event) -> None:
        """Go on after something that can't be understood: a frame is ignored, an answer counts as missing."""
        match event:
            case PostAnswered():
                self._answered = True
                self._resume()
            case HistoryAnswered():
                self._on_failure("history", "unusable", "the prompt's history can't be read")

    @property
    def held_bytes(self) -> int:
        """Memory of the results that were not given out yet."""
        return sum(item.held_bytes for id_, item in self._seen.items.items() if id_ not in self._given)

    @property
    def pictured(self) -> tuple[str, int] | None:
        """Node and place of the last binary frame, if it is an output of the run."""
        return self._seen.pictured

    @property
    def ui(self) -> str:
        """What the graph's nodes have returned so far, as JSON by node id; empty if nothing."""
        return self._seen.ui.dump()

    @property
    def ui_nodes(self) -> Collection[str]:
        """The nodes that :attr:`ui` is of."""
        return self._seen.ui.nodes

    @property
    def computed(self) -> bool:
        """Whether the node computed anything: not everything came from its cache, as far as is known."""
        return not self._seen.meter.all_cached

    @property
    def warm(self) -> bool:
        """Whether the node had any of the graph's results in its cache, as far as is known."""
        return self._seen.meter.any_cached

    @property
    def reused(self) -> bool:
        """Whether most of the work came from the node's cache, as far as is known."""
        return self._seen.meter.mostly_cached

    def next_tick(self) -> float | None:
        """Return the monotonic time of the next :class:`Tick`, or None."""
        times = [at for at in (self._ask_due(), self._deadline()) if at is not None and at < math.inf]
        return min(times, default=None)

    def validate(self) -> None:
        """Check the invariants that hold after each event; for tests.

        Raises:
            AssertionError: One does not hold; the message names it.
        """
        phase, now, limits = self.phase, self._now, self._limits
        if phase is RunPhase.DONE:
            return
        unposted = phase in (RunPhase.OPEN, RunPhase.POSTING)
        asked = self._asking is not None or self._ask_at is not None
        rules = {
            "nothing is asked, wanted or given out before the prompt is posted": phase is not RunPhase.OPEN
            or not (self._answered or asked or self._abort or self._given or self._seen.ended),
            "a run is there with a websocket only": phase is not RunPhase.OPEN or self._socket,
            "a run whose POST was answered waits for an answer": not self._answered or asked,
            "no question is planned while one is under way": self._asking is None or self._ask_at is None,
            "nothing is asked before the POST was answered": self._asking is None or self._answered,
            "without a websocket frames may be missing": self._socket or self._broken or self._seen.success,
            "outputs are given out once the POST's answer allows it": not self._given
            or (self._answered and self._rejection is None),
            "what was given out is known": self._given <= self._seen.items.keys(),
            "a rejected prompt is to leave the node": self._rejection is None
            or (self._answered and self._abort is not None),
            "whoever wants the prompt off its node gives up some day": self._abort is None
            or not self._answered
            or self._abort_until < math.inf,
            "only a prompt that waits is taken back": self._abort != "behind" or phase is RunPhase.ACCEPTED,
            "only a prompt that began can take too long": self._abort != "timeout"
            or phase in (RunPhase.RUNNING, RunPhase.LEFT),
            "what took too long is said": bool(self._overdue) == (self._abort == "timeout")
            or self._abort == "cancel",
            "only what the node has is deleted there": not self._deleted or not unposted,
            "only what the node has waits there": not unposted
            or (self._pending_since is None and not self._elsewhere),
            "only what was begun was seen to end": not self._seen.idle or not unposted,
            "a limit that is reached ends the run": self._absent < limits.gone_polls
            and self._tries < limits.history_tries
            and self._unusable < limits.unusable_tries,
            "nothing happened in the future": max(self._sign_at, self._since, self._down_since or now) <= now,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise AssertionError(f"{phase}: {'; '.join(broken)}: {vars(self)}")

    # Posting ----------------------------------------------------------------------------------------------

    def _on_answer(self, answer: PostAnswered) -> None:
        if self._answered or self.phase is RunPhase.OPEN:
            return
        if 200 <= answer.status < 300 and answer.body is None:
            self._on_unknown()
            return
        self._answered = True
        if 200 <= answer.status < 300:
            self._accept()
            if (answer.body or {}).get("node_errors"):
                self._rejection = verdicts.rejected(answer)
                self._abort = self._abort or "rejected"
            self._resume()
        elif self.phase is not RunPhase.POSTING:
            self._resume()  # frames have told that it runs
        elif self._abort == "cancel":
            self._finish(RunResult(kind="canceled"))
        elif answer.status == 503:
            self._finish(verdicts.lost("the node went away before it got the prompt", counts=False))
        else:
            self._finish(verdicts.rejected(answer))

    def _on_unknown(self) -> None:
        if self._answered or self.phase is RunPhase.OPEN:
            return
        self._answered = True
        self._sign()
        self._resume()

    def _resume(self) -> None:
        """Go on after the POST: much may have happened while it was in progress."""
        self._give()
        if self._abort is None and (self._over_limit or self._frames_lost):
            self._decide_abort("limit" if self._over_limit else "frames")
        if self.phase is RunPhase.LEFT:
            self._conclude()
        elif self._abort is not None and self.phase is not RunPhase.POSTING:
            self._begin_abort(self._abort)
        elif self.phase is RunPhase.POSTING or not self._socket:
            self._schedule("queue", 0)
            self._abort_until = self._now + self._limits.silence_s
        else:
            self._watch()

    def _accept(self) -> None:
        if self.phase is RunPhase.POSTING:
            self.phase = RunPhase.ACCEPTED
            self._since = self._now
            self._sign()

    def _running(self) -> None:
        self._accept()
        if self.phase is RunPhase.ACCEPTED:
            self.phase = RunPhase.RUNNING
            self._since = self._now  # time in the node's queue is not the job's fault
            self._sign()
            if self._abort == "behind":  # it began before it was taken back
                self._abort = None
            self._watch()

    # Frames -----------------------------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        seen = self._seen
        if self.phase is RunPhase.OPEN or not seen.mine(frame):
            return
        self._sign()
        ended = seen.ended
        if not seen.take(frame):
            return
        self._running()
        self._give()
        if seen.idle and self.phase is RunPhase.RUNNING:
            self.phase = RunPhase.LEFT
            self._conclude()
        elif seen.ended and not ended:
            self._watch()
        if self.phase is RunPhase.RUNNING:
            self._report()

    def _on_binary(self, data: bytes | bytearray) -> None:
        if self.phase is RunPhase.OPEN or self._seen.idle:
            return
        self._sign()
        picture = self._seen.take_binary(data)
        if isinstance(picture, Picture):
            self._out.append(ShowPreview(picture.node_id, picture.content_type, picture.data))
        else:
            self._give()

    def _on_closed(self, reason: str, limit: str = "") -> None:
        self._socket = self._deleted = False
        self._over_limit = limit
        # What came before `execution_success` is all there is: frames are in order.
        self._broken = self._broken or not self._seen.success
        if self.phase is RunPhase.OPEN and limit:
            self._finish(verdicts.over_limit(limit))
        elif self.phase is RunPhase.OPEN:
            self._finish(
                verdicts.lost(
                    f"the lease ended before the prompt was posted: {reason or 'closed'}", counts=False
                )
            )
        elif self.phase in (RunPhase.ACCEPTED, RunPhase.RUNNING):
            if self._abort is None and limit:
                self._begin_abort("limit")
            elif self._abort is None and self._frames_lost:
                self._begin_abort("frames")
            self._schedule("queue", 0)

    # Questions --------------------------------------------------------------------------------------------

    def _on_queue(self, state: QueueState) -> None:
        self._asking, self._down_since = None, None
        if self.phase is RunPhase.LEFT:
            self._conclude()
        elif state == "absent":
            self._schedule("history", 0)
        else:
            self._absent = 0
            if state == "running":
                self._running()
            else:
                self._accept()
            if state == "pending" or not self._socket:
                self._sign()
            if self._frames_lost and self._abort is None:
                self._begin_abort("frames")
            elif self._abort is not None:
                self._push_out(pending=state == "pending")
            elif self.phase is RunPhase.ACCEPTED:  # not if a frame has shown meanwhile that it runs
                self._wait_behind()
            else:
                self._watch()

    def _on_history(self, entry: Mapping[str, Any] | None) -> None:
        self._asking, self._down_since = None, None
        if entry is not None:
            self._running()
            self.phase = RunPhase.LEFT
            self._seen.take_ui(entry.get("outputs"))
            self._judge(verdicts.read_history(entry, self._id, self._limits.outputs))
        elif self._seen.idle or self._seen.ended:
            # The entry is written before the last frame is sent; if it is missing, the server is in trouble.
            self._tries += 1
            if self._tries < self._limits.history_tries:
                self._schedule("history", self._limits.history_gap_s)
            else:
                self._judge_by_frames()
        elif self.phase is RunPhase.POSTING:
            self._absent += 1
            if self._absent < self._limits.gone_polls:
                self._schedule("queue", self._limits.poll_s)
            else:
                self._give_up("the node never got the prompt")
        elif self._abort == "behind" and self._unbegun:
            self._finish(verdicts.withdrawn(self._now - self._since))
        else:
            self._give_up("the node does not know the prompt any more")

    def _on_failure(self, what: str, kind: str, why: str = "") -> None:
        self._asking = None
        if kind == "unusable":
            self._unusable += 1
            if self._unusable >= self._limits.unusable_tries:
                if self._seen.ended:
                    self._judge_by_frames()
                else:
                    self._give_up(f"the node's answers can't be used: {why}")
                return
        if kind == "node_down":
            self._deleted = False
            if self._down_since is None:
                self._down_since = self._now
            if self._now - self._down_since >= self._limits.down_s:
                self._give_up("the node went down")
            else:
                self._schedule(what, self._down_since + self._limits.down_s - self._now)
            return
        self._down_since = None
        if kind == "unreachable":
            # Without HAProxy nothing can be known or done: no time limit runs.
            self._broker_gone = True
            self._sign()
            if self._abort is not None:
                self._abort_until = max(self._abort_until, self._now + self._limits.abort_s)
        self._schedule(what, self._limits.poll_s)

    def _schedule(self, what: str, in_s: float, *, lazy: bool = False) -> None:
        """Plan the next question; a question in progress is awaited first."""
        if self._asking is None:
            self._ask_what, self._ask_at, self._lazy = what, self._now + in_s, lazy

    def _watch(self) -> None:
        """Plan the next look at the queue for a prompt that is on the node."""
        if self.phase not in (RunPhase.ACCEPTED, RunPhase.RUNNING):
            return
        if not self._socket:
            self._schedule("queue", self._limits.poll_s)
        elif self._seen.ended:
            self._schedule("queue", self._limits.settle_s)
        elif self.phase is RunPhase.ACCEPTED:
            self._schedule("queue", self._limits.poll_s)
        else:
            self._schedule("queue", self._limits.probe_s, lazy=True)

    def _ask_due(self) -> float | None:
        if (
            self.phase is RunPhase.DONE
            or self._ask_at is None
            or self._asking is not None
            or not self._answered
        ):
            return None
        return max(self._ask_at, self._sign_at + self._limits.probe_s) if self._lazy else self._ask_at

    def _clock(self) -> None:
        deadline = self._deadline()
        if deadline is not None and self._now >= deadline:
            self._on_deadline()
        due = self._ask_due()
        if due is not None and self._now >= due:
            self._asking, self._ask_at = self._ask_what, None
            self._out.append(AskQueue() if self._asking == "queue" else AskHistory())

    def _deadline(self) -> float | None:
        if self.phase in (RunPhase.OPEN, RunPhase.DONE) or not self._answered:
            return None
        silent = self._sign_at + self._limits.silence_s
        if self._abort == "behind":
            return max(silent, self._abort_until)
        if self._abort is not None:
            return self._abort_until
        if self.phase is RunPhase.RUNNING:
            return min(silent, self._since + self._limits.run_s)
        return silent

    def _on_deadline(self) -> None:
        limits = self._limits
        if self.phase is RunPhase.LEFT:
            self._judge_by_frames()
        elif self._abort is not None or self.phase is RunPhase.POSTING:
            self._give_up("the node gave no usable answer")
        elif self.phase is RunPhase.ACCEPTED:
            self._take_back()
        else:
            silent = self._now >= self._sign_at + limits.silence_s
            self._overdue = (
                f"no sign of progress for {limits.silence_s:g} s, the limit of {limits.silence_of}"
                if silent
                else f"still running after {limits.run_s:g} s"
            )
            self._begin_abort("timeout")

    def _sign(self) -> None:
        self._sign_at = self._now
        self._down_since = None

    # Waiting for others' work -----------------------------------------------------------------------------

    def _wait_behind(self) -> None:
        """Go on with a prompt that waits in the node's queue, behind work that is not ours."""
        if self._pending_since is None:
            self._pending_since = self._now
        if self._elsewhere or self._now - self._pending_since >= self._limits.pending_s:
            self._take_back()
        else:
            self._out.append(LookElsewhere())
            self._watch()

    def _on_free_elsewhere(self) -> None:
        # It is deleted only right after the node said that it waits, so a prompt that begins is nearly always
        # left alone.
        if self.phase is RunPhase.ACCEPTED and self._abort is None:
            self._elsewhere = True
            self._schedule("queue", 0)

    def _take_back(self) -> None:
        """Begin to delete the prompt from the node's queue; if it starts anyway, it goes on."""
        self._abort, self._abort_until = "behind", self._now + self._limits.abort_s
        self._push_out(pending=True)

    # Getting a prompt off the node ------------------------------------------------------------------------

    def _on_cancel(self) -> None:
        if self.phase is RunPhase.OPEN:
            self._finish(RunResult(kind="canceled"))
        elif self._abort != "cancel":
            self._begin_abort("cancel")

    def _decide_abort(self, why: Abort) -> None:
        self._abort = why
        patience = self._limits.silence_s if why == "cancel" else self._limits.abort_s
        self._abort_until = self._now + patience

    def _begin_abort(self, why: Abort) -> None:
        self._decide_abort(why)
        if not self._answered:
            return  # the POST is in progress: its answer leads back here
        if self.phase is RunPhase.RUNNING:
            self._push_out(pending=False)
        elif self.phase is RunPhase.ACCEPTED:
            # It may start at this very moment. Each of the two is harmless if it does not apply.
            self._out += (DeletePending(), Interrupt())
            self._schedule("queue", self._limits.poll_s)

    def _push_out(self, *, pending: bool) -> None:
        self._out.append(DeletePending() if pending else Interrupt())
        polls = pending or not self._socket
        # ComfyUI forgets an interrupt that comes while it starts a prompt: ask again, and repeat the
        # interrupt.
        self._schedule("queue", self._limits.poll_s if polls else self._limits.nag_s)

    def _on_interrupt_sent(self, ok: bool) -> None:
        if self._abort is None or self.phase not in (RunPhase.ACCEPTED, RunPhase.RUNNING):
            return
        if self.phase is RunPhase.ACCEPTED and ok:
            self._deleted = self._deleted or self._abort == "behind"
            self._schedule("queue", 0)
        elif not ok:
            self._schedule("queue", self._limits.poll_s)

    # The end ----------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Judge a prompt that has left the node, by its frames if they are complete."""
        seen = self._seen
        if not self._answered:
            return  # the POST's answer may still say that a part of the graph was dropped
        failed = seen.error is not None or seen.interrupted
        if self._rejection is not None or (failed and not seen.success):
            self._judge_by_frames()
        elif seen.complete and not failed:
            self._succeed()
        else:
            self._schedule("history", 0)

    def _judge(self, past: verdicts.Past) -> None:
        """Judge by the history entry, which is authoritative."""
        seen = self._seen
        if past.success is False or (seen.error is not None and not past.told):
            if past.error is None and (past.interrupted or seen.interrupted):
                self._stopped()
            else:
                self._fail(past.error or seen.error or {})
        else:
            seen.add(past.items)
            self._succeed()

    def _judge_by_frames(self) -> None:
        seen = self._seen
        if self._rejection is not None or seen.interrupted:
            self._stopped()
        elif seen.success:
            self._succeed()
        elif seen.error is not None:
            self._fail(seen.error)
        else:
            self._give_up("the prompt has left the node, and nothing shows how it ended")

    def _succeed(self) -> None:
        if self._rejection is not None or self._over_limit or self._frames_lost:
            self._stopped()
            return
        self._give()
        self._seen.meter.finish()
        self._report()
        self._out.append(Left(tuple(self._seen.items.values())))
        self._finish(RunResult(kind="succeeded"))

    def _fail(self, data: Mapping[str, Any]) -> None:
        if self._rejection is not None:
            self._stopped()
        else:
            self._finish(verdicts.failed(data))

    def _stopped(self) -> None:
        """End a prompt that has left the node without a usable result."""
        if self._abort is None and self._over_limit:
            self._abort = "limit"
        if self._abort is None and self._frames_lost:
            self._abort = "frames"
        if self._abort is None:
            self._finish(verdicts.lost("somebody interrupted the prompt on its node", counts=False))
        else:
            self._give_up("its pictures travel by websocket only, and the websocket broke")

    def _give_up(self, why: str) -> None:
        """End a run whose prompt is gone, or as good as gone, for the reason known so far."""
        accepted = self.phase in (RunPhase.ACCEPTED, RunPhase.RUNNING, RunPhase.LEFT)
        match self._abort:
            case "cancel":
                self._finish(RunResult(kind="canceled"))
            case "timeout":
                self._finish(verdicts.timed_out(self._overdue))
            case "limit":
                self._finish(verdicts.over_limit(self._over_limit))
            case "rejected" if self._rejection is not None:
                self._finish(self._rejection)
            case "frames":
                self._finish(verdicts.lost(why, counts=accepted and not self._broker_gone))
            case _:
                self._finish(verdicts.lost(why, counts=accepted))

    @property
    def _unbegun(self) -> bool:
        """Whether a prompt that is no longer on the node has certainly not started there.

        Either the node has confirmed the deletion and was reachable since, or the websocket would have shown
        it.
        """
        return self._deleted or not self._broken

    @property
    def _frames_lost(self) -> bool:
        return self.sockets_only and self._broken

    def _finish(self, verdict: RunResult) -> None:
        self.phase = RunPhase.DONE
        self._out.append(Finish(verdict))

    def _give(self) -> None:
        """Give out the outputs found, once it is known that the POST's answer dropped no part of the
        graph."""
        if not self._answered or self._rejection is not None:
            return
        new = {id_: item for id_, item in self._seen.items.items() if id_ not in self._given}
        if new:
            self._given |= new.keys()
            self._out.append(Collect(tuple(new.values())))
            self._seen.items |= {id_: item.emptied() for id_, item in new.items()}  # the collector has them

    def _report(self) -> None:
        progress = self.progress
        if progress != self._reported:
            self._reported = progress
            self._out.append(Report(progress))
