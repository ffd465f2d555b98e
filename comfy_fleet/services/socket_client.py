"""A client of ComfyUI's own interface, as an API process follows it."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.shown_prompt import ShownPrompt
from comfy_fleet.services.job_frames import JobFrames

MOST_STATUS, STATUS_S = 5, 1.0
"""So many ``status`` a websocket gets within so many seconds."""
MOST_UNTOLD = 10_000
"""Jobs of one client that are remembered until it is told their ends: ten times what may wait in the whole
queue by default."""


class Receiver(Protocol):
    """A websocket's end towards its client.

    Attributes:
        metadata: Whether its client wants pictures with metadata.
        on_told: To be called with jobs whose ends its client has certainly got.
    """

    metadata: bool
    on_told: Callable[[Sequence[str]], None]

    def send(self, messages: Sequence[ClientMessage]) -> None:
        """Send messages soon and in this order."""

    def untold(self) -> Sequence[str]:
        """Return the jobs whose ends were to be told and, as far as is known, were not."""


@dataclass(slots=True)
class LiveJob:
    """A job that is not final."""

    prompt_id: str
    client_id: str | None
    status: JobStatus
    run: str | None


@dataclass(slots=True)
class SocketClient:
    """A client, with or without a websocket at this process.

    Attributes:
        socket: The id of its websocket.
        newest: Whether all processes know that it is the client's newest.
        since: When it was opened, in Unix seconds.
        receiver: Its end, while it is open.
        jobs: The client's jobs that are not final, in the order in which they came.
        view: What it is told.
        frames: What was heard of its jobs.
        ending: Jobs whose end is being read.
        missed: Jobs whose end was not told: there was no websocket, or it broke.
        told: When in monotonic seconds its last ends were certainly told, and whose.
        told_live: The last ``status``.
        told_begun: How many times a job had begun, or had gone back to its queue, by then.
        told_live_at: When the last ones were sent, in monotonic seconds.
        risen: Whether it has submitted something since.
        leaving: Ends this if it does not come again.
    """

    client_id: str
    socket: str = ""
    newest: bool = False
    since: float = 0.0
    receiver: Receiver | None = None
    jobs: dict[str, None] = field(default_factory=dict)
    view: ShownPrompt = field(default_factory=ShownPrompt)
    frames: dict[str, JobFrames] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)
    missed: list[str] = field(default_factory=list)
    told: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=MOST_UNTOLD))
    told_live: int | None = None
    told_begun: int = 0
    told_live_at: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_STATUS))
    risen: bool = False
    leaving: asyncio.TimerHandle | None = None

    def send(self, messages: Sequence[ClientMessage]) -> None:
        """Send messages, if there is a websocket."""
        if self.receiver is not None and messages:
            self.receiver.send(messages)

    @property
    def metadata(self) -> bool:
        """Whether it wants pictures with metadata."""
        return self.receiver is not None and self.receiver.metadata
