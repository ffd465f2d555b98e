"""Publish one run's frames, while somebody listens to its job or to all jobs of its client.

Nothing is stored, no run waits for who reads, and what is too much is left out: what became of the job stands
in its record. Who listens to the job gets each frame unchanged. Who listens to the client gets ``executed``
only once its files are stored, with the names that the client knows.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from comfy_fleet.domain.jobs.frames import NOT_THE_CLIENTS, RawFrame, prompt_of
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.outputs import find_outputs
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.domain.jobs.shown_ui import shown_ui
from comfy_fleet.ports.runs import ONLY_CLIENTS, Claim
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
        node: Of the graph.
        cost: Its share of what may wait.
        frame: What its client is told, once that is known.
    """

    node: str
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
        self._only_clients = False
        self._state: dict[str, bytes | bytearray] = {}
        self._recorded: frozenset[str] = frozenset()
        self._ending = False
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
        self._heard, self._only_clients = True, False
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
        told = _is_told(frame) if isinstance(frame, Frame) else True
        told = told and (anybodys or self.claim.job.client_id is not None)
        if told or not self._only_clients:
            only: Literal["", "job"] = "" if told else "job"
            self._add(RawFrame(run=self.claim.run, data=data, text=text, place=place, only=only))
        if isinstance(frame, Frame) and frame.type == "executed" and self.claim.job.client_id is not None:
            self._hold(frame)

    def _hold(self, frame: Frame) -> None:
        """Tell the client of a node's outputs once they are stored and have their names.

        What comes behind it waits for a moment, so that the order stays if that is quick. What is too much is
        told from the record at the job's end.
        """
        node = frame.data.get("node")
        if len(frame.raw) > MOST_TOLD_BYTES or not isinstance(node, str):
            return
        cost = len(frame.raw) + _COST
        if not self._fits(cost):
            return
        held = _Held(node, cost)
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

    def leave(self, recorded: Collection[str]) -> None:
        """Note that the run has left its node: soon its end will be told, and with it the results.

        Those that would only be told at the same moment are left to it, so that it waits for nothing. If
        outputs take longer to be stored, the others are told as before.

        Args:
            recorded: The nodes of the graph whose results the record will have.
        """
        self._recorded = frozenset(recorded)
        asyncio.get_running_loop().call_later(ORDER_S, self._go_on)

    def _go_on(self) -> None:
        self._recorded = frozenset()
        self._ask()

    def _stored(self, held: _Held, told: RawFrame | None) -> None:
        """Publish an ``executed`` in its place, if that is still kept, or else now; None: not at all."""
        self._unsent -= held.cost
        kept = held in self._waiting
        if told is None or not self._heard:
            if kept:
                self._waiting.remove(held)
        else:
            held.frame, held.cost = told, _cost(told)
            self._unsent += held.cost
            if not kept:
                self._waiting.append(held)
        self._ask()

    def _pass(self, held: _Held) -> None:
        """Let what is behind an ``executed`` go first."""
        if held.frame is None and held in self._waiting:
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
            if self._next() is not None:
                self._publisher.ask(self, hurry=self._ending)
        elif not self._sending:
            self._quiet.set()

    def _next(self) -> RawFrame | None:
        """Return the frame that may be published next, if there is one."""
        if not self._waiting:
            return None
        one = self._waiting[0]
        if isinstance(one, RawFrame):
            return one
        return None if one.node in self._recorded else one.frame

    def ready(self, most_bytes: int) -> list[RawFrame]:
        """Return frames to publish now; see :class:`~comfy_fleet.services.frame_publisher.FrameSource`."""
        frames: list[RawFrame] = []
        while most_bytes > 0 and (one := self._next()) is not None:
            frames.append(one)
            most_bytes -= len(one.data)
            self._waiting.popleft()
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
            self._only_clients = heard == ONLY_CLIENTS and self._known == self._listeners
        self._ask()

    def _stop(self) -> None:
        self._heard = False
        self._unsent -= sum(_cost(one) for one in self._waiting if isinstance(one, RawFrame))
        self._unsent -= sum(one.cost for one in self._waiting if isinstance(one, _Held) and one.frame)
        self._waiting.clear()

    async def drain(self) -> None:
        """Wait a moment until the accepted frames are published; all outputs have been committed."""
        self._ending = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_S)
        for one in [one for one in self._waiting if isinstance(one, _Held) and one.node in self._recorded]:
            self._waiting.remove(one)
            self._unsent -= one.cost if one.frame else 0
        self._ask()
        with contextlib.suppress(TimeoutError):
            async with Timeout(LAST_S):
                await self._quiet.wait()

    def close(self) -> None:
        """Stop publishing."""
        self._stop()
        for task in self._tasks:
            task.cancel()


def _is_told(frame: Frame) -> bool:
    """Return whether a client gets a message as it comes; others it gets in another form, or never."""
    if frame.type == "executing":
        return frame.data.get("node", "") is not None
    return frame.type != "executed" and frame.type not in NOT_THE_CLIENTS


def _cost(frame: RawFrame) -> int:
    return len(frame.data) + _COST
