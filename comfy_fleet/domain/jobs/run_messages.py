"""What goes into a run and what comes out of it.

*Events* are facts (a frame, an answer, the time); *actions* are what the machine of
:mod:`comfy_fleet.domain.jobs.run` wants to be done. Neither does anything itself.

Code that carries out actions must keep two promises:

- Every :class:`PostPrompt` is answered by exactly one :class:`PostAnswered` or :class:`PostUnknown`.
- Every :class:`AskQueue` and :class:`AskHistory` is answered by exactly one :class:`QueueAnswered`,
  :class:`HistoryAnswered` or :class:`AskFailed`, for a question asked *after* the action was given out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from comfy_fleet.domain.jobs.job import JobError, Progress
from comfy_fleet.domain.jobs.outputs import OutputItem

QueueState: TypeAlias = Literal["running", "pending", "absent"]
AskFailure: TypeAlias = Literal["unreachable", "node_down", "error", "unusable"]
VerdictKind: TypeAlias = Literal[
    "succeeded", "failed", "rejected", "canceled", "lost", "timeout"
]  # fmt: skip


# Events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The lease is held and the job is claimed: the prompt may be posted (or, adopted, asked for)."""


@dataclass(frozen=True, slots=True)
class PostAnswered:
    """``POST /prompt`` was answered.

    Attributes:
        status: HTTP status; 503 without a body means that the node was not reached.
        body: The JSON object, or None if the answer had none.
        text: The answer as text, for people; may be shortened.
    """

    status: int
    body: Mapping[str, Any] | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class PostUnknown:
    """The connection broke while posting: the node may or may not have the prompt."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A text frame of the websocket: ``{"type": ..., "data": {...}}``; ``raw`` is the JSON as it came."""

    type: str
    data: Mapping[str, Any]
    raw: bytes | bytearray = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary frame of the websocket, header included; it may be large, and is not copied."""

    data: bytes | bytearray


@dataclass(frozen=True, slots=True)
class SocketClosed:
    """The websocket is gone; no more frames will come.

    Attributes:
        reason: Why, for the log.
        limit: The limit that a frame broke, in words; empty if no frame broke one.
    """

    reason: str = ""
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """No frame is read now, because results from earlier frames are still being stored."""


@dataclass(frozen=True, slots=True)
class QueueAnswered:
    """Where ``GET /queue`` has the prompt."""

    state: QueueState


@dataclass(frozen=True, slots=True)
class HistoryAnswered:
    """What ``GET /history/RUN`` has about the prompt; None for ``{}``."""

    entry: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class AskFailed:
    """A question got no usable answer.

    Attributes:
        what: ``queue`` or ``history``.
        kind: ``unreachable``: HAProxy itself did not answer, which says nothing about the node;
            ``node_down``: a reachable HAProxy could not connect to the node;
            ``error``: the node took too long, or its answer made no sense;
            ``unusable``: its answer breaks a limit.
        why: In words, for ``unusable``.
    """

    what: str
    kind: AskFailure
    why: str = ""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the job canceled."""


@dataclass(frozen=True, slots=True)
class FreeElsewhere:
    """Another node that is able to run the job is free."""


@dataclass(frozen=True, slots=True)
class InterruptSent:
    """The last :class:`Interrupt` or :class:`DeletePending` was answered (``ok``) or failed."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at ``Run.next_tick()``, harmless at any other time."""


Event: TypeAlias = (
    Opened
    | PostAnswered
    | PostUnknown
    | Frame
    | Binary
    | SocketClosed
    | Unread
    | QueueAnswered
    | HistoryAnswered
    | AskFailed
    | CancelRequested
    | FreeElsewhere
    | InterruptSent
    | Tick
)


# Actions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PostPrompt:
    """Post the graph; given out at most once in a run."""


@dataclass(frozen=True, slots=True)
class AskQueue:
    """Ask ``GET /queue`` where the prompt is."""


@dataclass(frozen=True, slots=True)
class AskHistory:
    """Ask ``GET /history/RUN``."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Interrupt the prompt by its id: harmless if another one runs."""


@dataclass(frozen=True, slots=True)
class DeletePending:
    """Delete the prompt from the node's queue: harmless if it runs already."""


@dataclass(frozen=True, slots=True)
class LookElsewhere:
    """The prompt waits behind work that is not the fleet's: report another node that is free.

    Answered by :class:`FreeElsewhere`, or not at all; given out again for as long as it waits.
    """


@dataclass(frozen=True, slots=True)
class Report:
    """Progress changed."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class ShowPreview:
    """A preview picture came; only the latest matters."""

    node_id: str | None
    content_type: str
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Collect:
    """Outputs exist, all that are known by now: fetch them. The same item is never given out twice."""

    items: tuple[OutputItem, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """The prompt succeeded and has left the node, which is free: these are all outputs.

    Texts and pictures from frames that :class:`Collect` has given out are not repeated here.

    Given out once, directly before the ``Finish`` of a run that succeeded, and never otherwise.
    """

    items: tuple[OutputItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        kind: ``rejected``: the node refused the graph; ``lost``: the prompt's fate can no longer be found
            out; ``timeout``: it took too long and was interrupted.
        error: Why; None for ``succeeded`` and ``canceled``.
        counts: Whether this attempt counts towards the job's ``max_attempts``.
        exclude_node: Whether another node should be tried instead of this one.
        retryable: Whether a retry can help (a plain execution error would repeat itself).
        details: Facts for the log.
    """

    kind: VerdictKind
    error: JobError | None = None
    counts: bool = False
    exclude_node: bool = False
    retryable: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over; given out exactly once, as its last action."""

    verdict: RunResult


Action: TypeAlias = (
    PostPrompt
    | AskQueue
    | AskHistory
    | Interrupt
    | DeletePending
    | LookElsewhere
    | Report
    | ShowPreview
    | Collect
    | Left
    | Finish
)
