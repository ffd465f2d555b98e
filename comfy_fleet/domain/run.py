"""One attempt on one node, as a pure state machine: events in, actions out."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.run_messages import (
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
    HistoryAnswered,
    Interrupt,
    InterruptSent,
    Left,
    Opened,
    PostAnswered,
    PostPrompt,
    PostUnknown,
    QueueAnswered,
    Report,
    ShowPreview,
    SocketClosed,
    Tick,
    Verdict,
)

__all__ = [
    "FRAME_OUTPUTS",
    "Action",
    "AskFailed",
    "AskHistory",
    "AskQueue",
    "Binary",
    "CancelRequested",
    "Collect",
    "DeletePending",
    "Event",
    "Finish",
    "Frame",
    "HistoryAnswered",
    "Interrupt",
    "InterruptSent",
    "Left",
    "Opened",
    "Phase",
    "PostAnswered",
    "PostPrompt",
    "PostUnknown",
    "QueueAnswered",
    "Report",
    "Run",
    "RunLimits",
    "ShowPreview",
    "SocketClosed",
    "Tick",
    "Verdict",
]

FRAME_OUTPUTS = frozenset({"SaveImageWebsocket"})


class Phase(StrEnum):
    """Where the prompt is, as far as the machine knows."""

    OPEN = "open"
    POSTING = "posting"
    ACCEPTED = "accepted"
    RUNNING = "running"
    LEFT = "left"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class RunLimits:
    """How long things may take, in seconds.

    Attributes:
        silence_s: Without any sign of progress on an open websocket.
        run_s: In all, from the moment the node took the prompt.
        poll_s: Between two questions while there is no websocket.
        probe_s: Without a frame on an open websocket before the queue is asked.
        settle_s: Between a final frame and the last ``executing {node: null}``.
        nag_s: Between two interrupts of a prompt that does not stop.
        abort_s: For an interrupted prompt to leave the node after a timeout.
        down_s: Between two answers that the node is down before it counts as lost.
        history_tries: Questions for a history entry that must exist.
        history_gap_s: Between those.
    """

    silence_s: float
    run_s: float
    poll_s: float = 1.0
    probe_s: float = 15.0
    settle_s: float = 1.0
    nag_s: float = 2.0
    abort_s: float = 30.0
    down_s: float = 0.5
    history_tries: int = 5
    history_gap_s: float = 0.1


class Run:
    """One attempt on one node.

    Attributes:
        phase: Where the prompt is.
        sockets_only: Whether some output exists only as websocket frames.
    """

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
        self.phase = Phase.OPEN
        self.sockets_only = any(node.get("class_type") in frame_output_classes for node in graph.values())

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take a fact in, at monotonic time ``now``; return what to do, in this order."""
        return []

    def next_tick(self) -> float | None:
        """Return the monotonic time at which a :class:`Tick` is wanted, or None."""
        return None
