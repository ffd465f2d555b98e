"""Publish one run's frames, while somebody listens to its job or to all jobs of its client.

Nothing is stored, no run waits for who reads, and what is too much is left out: what became of the job stands
in its record. Who listens to the job gets each frame unchanged. Who listens to the client gets ``executed``
only once its files are stored, with the names that the client knows.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from comfy_fleet.domain.jobs.frames import RawFrame, prompt_of
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.outputs import find_outputs
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.domain.jobs.shown_ui import shown_ui
from comfy_fleet.ports.runs import ANYBODY, Claim
from comfy_fleet.services.frame_publisher import FramePublisher
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Larger frames are left out; a picture of a megapixel takes half as much."""
BYTES_A_SECOND = 8 * 1024 * 1024
"""Long-term limit, and also the burst. Binary frames get half: another picture follows, but a text comes only
once."""
LAST_S = 0.25
"""How long the end of a run waits for its last frames."""
ORDER_S = 0.1
"""How long frames wait behind an ``executed`` whose files are not stored yet."""
_COST = 256  # bytes that even the shortest frame counts as
MOST_TOLD_BYTES = 512 * 1024
"""A larger ``executed`` is not told while the job runs; what the job's record keeps is told at the end."""
_STATE = ("execution_start", "execution_cached", "executing", "progress_state")
"""What tells somebody who comes late how far a run is, in this order."""
_FOR_ANYBODY = frozenset({"progress_state"})
_TEXT = b"\0\0\0\3"
"""Text frames that every websocket of an owner gets, even of jobs that are no client's."""


Committed: TypeAlias = Callable[[Iterable[tuple[str, str, int]]], Awaitable[Sequence[Output] | None]]


@dataclass(slots=True, eq=False)
class _Held:
    """An ``executed`` whose files are not stored yet.

    Attributes:
        cost: Its share of what may wait.
        frame: What its client is told, once that is known.
    """

    cost: int
    frame: RawFrame | None = None


async def _none_is(_: object) -> None:
    """Commit nothing: then no ``executed`` is told."""


class FrameRelay:
    """The frames of one run.

    Args:
        publisher: Publishes them.
        claim: The run.
        now: Monotonic seconds.
        heard: Whether somebody listens already.
        committed: Waits until outputs are committed, and returns them; None if that fails for one.
    """

    def __init__(
        self,
        publisher: FramePublisher,
        claim: Claim,
        now: Callable[[], float],
        *,
        heard: bool = True,
        committed: Committed = _none_is,
    ) -> None:
        self.claim = claim
        self._publisher = publisher
        self._now = now
        self._committed = committed
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard, self._listeners, self._known = heard, 0, 0
        self._only_anybody = False
        self._state: dict[str, bytes | bytearray] = {}
        self._waiting: deque[RawFrame | _Held] = deque()
        self._unsent = self._sending = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._room, self._counted_at = float(BYTES_A_SECOND), now()

    @property
    def heard(self) -> bool:
        """Whether it knows that somebody listens."""
        return self._heard

    def listen(self, *, anew: bool = False) -> None:
        """Note that somebody listens; each publish shows if that is still so.

        Args:
            anew: Whether a listener has just come, and has to be told how far the run is.
        """
        anew = anew or not self._heard
        self._heard, self._only_anybody = True, False
        self._listeners += 1
        if anew:
            for type_ in _STATE:
                if (raw := self._state.get(type_)) is not None:
                    self._add(RawFrame(run=self.claim.run, data=raw, text=True, only="clients"))

    def take(self, frame: Frame | Binary, *, running: bool, place: tuple[str, int] | None = None) -> None:
        """Publish a frame soon, if it is the run's and within the limits.

        Args:
            frame: As it came.
            running: Whether its node is computing the run; frames without a prompt are about that.
            place: For a picture that is an output: its node, and its place among those of that node.
        """
        if isinstance(frame, Frame) and frame.type in _STATE:
            self._note(frame)
        if not self._heard:
            return
        prompt = prompt_of(frame)
        if prompt != self.claim.run and (prompt is not None or not running):
            return
        text = isinstance(frame, Frame)
        data = frame.raw if isinstance(frame, Frame) else frame.data
        anybodys = frame.type in _FOR_ANYBODY if isinstance(frame, Frame) else data.startswith(_TEXT)
        only: Literal["", "job"] = ""
        if self.claim.job.client_id is None and not anybodys:
            if self._only_anybody:
                return
            only = "job"
        elif isinstance(frame, Frame) and frame.type == "executed":
            only = "job"
        self._add(RawFrame(run=self.claim.run, data=data, text=text, place=place, only=only))
        if isinstance(frame, Frame) and frame.type == "executed" and self.claim.job.client_id is not None:
            self._hold(frame)

    def _hold(self, frame: Frame) -> None:
        """Tell the client of a node's outputs once they are stored and have their names.

        What comes behind it waits for a moment, so that the order stays if that is quick. What is too much is
        told from the record at the job's end.
        """
        if len(frame.raw) > MOST_TOLD_BYTES or not isinstance(frame.data.get("node"), str):
            return
        cost = len(frame.raw) + _COST
        if not self._fits(cost):
            return
        held = _Held(cost)
        self._unsent += cost
        self._wait(held)
        self._tasks.add(task := start(self._tell(held, frame)))
        task.add_done_callback(self._tasks.discard)
        asyncio.get_running_loop().call_later(ORDER_S, self._pass, held)

    async def _tell(self, held: _Held, frame: Frame) -> None:
        try:
            told = await self._told(frame)
        except BaseException:
            self._stored(held, None)
            raise
        self._stored(held, told)

    async def _told(self, frame: Frame) -> RawFrame | None:
        node, output, run = frame.data["node"], frame.data.get("output"), self.claim.run
        outputs = await self._committed(item.id for item in find_outputs(node, output, run=run))
        if outputs is None:
            return None
        shown = shown_ui({node: output}, outputs).get(node) if isinstance(output, Mapping) else output
        data = json.dumps({"type": "executed", "data": {**frame.data, "output": shown}}).encode()
        return RawFrame(run=run, data=data, text=True, only="clients")

    def _stored(self, held: _Held, told: RawFrame | None) -> None:
        """Publish an ``executed`` in its place, if that is still kept, or else now; None: not at all."""
        self._unsent -= held.cost
        place = self._waiting.index(held) if held in self._waiting else None
        if told is None or not self._heard:
            if place is not None:
                del self._waiting[place]
        else:
            self._unsent += _cost(told)
            if place is None:
                self._waiting.append(told)
            else:
                self._waiting[place] = told
        self._ask()

    def _pass(self, held: _Held) -> None:
        """Let what is behind an ``executed`` go first."""
        if held in self._waiting:
            self._waiting.remove(held)
            self._ask()

    def _note(self, frame: Frame) -> None:
        """Remember how far the run is."""
        if frame.data.get("prompt_id") != self.claim.run:
            return
        if frame.type == "executing" and frame.data.get("node") is None:
            self._state.clear()
        elif len(frame.raw) <= MAX_FRAME_BYTES:
            self._state[frame.type] = frame.raw

    def _add(self, frame: RawFrame) -> None:
        """Publish a frame soon, if it is within the limits. An output does not wait for room in the rate."""
        cost = _cost(frame)
        result = frame.place is not None
        if len(frame.data) <= MAX_FRAME_BYTES and self._fits(cost, text=frame.text, result=result):
            self._unsent += cost
            self._wait(frame)

    def _fits(self, cost: int, *, text: bool = True, result: bool = False) -> bool:
        """Take room for a frame; return False if Redis is slow, or the node sends too much."""
        now = self._now()
        self._room = min(BYTES_A_SECOND, self._room + (now - self._counted_at) * BYTES_A_SECOND)
        self._counted_at = now
        left = self._room - cost - (0 if text else BYTES_A_SECOND / 2)
        if (left < 0 and not result) or self._unsent + cost > BYTES_A_SECOND:
            return False
        self._room -= cost
        return True

    def _wait(self, one: RawFrame | _Held) -> None:
        self._waiting.append(one)
        self._ask()

    def _ask(self) -> None:
        if self._waiting:
            self._quiet.clear()
            if isinstance(self._waiting[0], RawFrame):
                self._publisher.ask(self)
        elif not self._sending:
            self._quiet.set()

    def ready(self, most_bytes: int) -> list[RawFrame]:
        """Return frames to publish now; see :class:`~comfy_fleet.services.frame_publisher.FrameSource`."""
        frames: list[RawFrame] = []
        waiting = self._waiting
        while waiting and most_bytes > 0 and isinstance(one := waiting[0], RawFrame):
            frames.append(one)
            most_bytes -= len(one.data)
            waiting.popleft()
        self._sending += len(frames)
        self._known = self._listeners
        self._ask()
        return frames

    def published(self, frames: Sequence[RawFrame], heard: int | None) -> None:
        """Note that frames were published, or could not be."""
        self._sending -= len(frames)
        self._unsent -= sum(map(_cost, frames))
        if heard is None or (not heard and self._known == self._listeners):
            self._stop()  # the next beat shows it if somebody listens then
        else:
            self._only_anybody = heard == ANYBODY and self._known == self._listeners
        self._ask()

    def _stop(self) -> None:
        self._heard = False
        self._unsent -= sum(_cost(one) for one in self._waiting if isinstance(one, RawFrame))
        self._waiting.clear()

    async def drain(self) -> None:
        """Wait a moment until the accepted frames are published; all outputs have been committed."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_S)
        with contextlib.suppress(TimeoutError):
            async with Timeout(LAST_S):
                await self._quiet.wait()

    def close(self) -> None:
        """Stop publishing."""
        self._stop()
        for task in self._tasks:
            task.cancel()


def _cost(frame: RawFrame) -> int:
    return len(frame.data) + _COST
