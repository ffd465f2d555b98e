"""Publish one run's frames, while somebody listens to its job or to all jobs of its client.

Nothing is stored, no run waits for who reads, and what is too much is left out: what became of the job stands
in its record. Who listens to the job gets each frame unchanged. Who listens to the client gets ``executed``
only once its files are stored, with the names that the client knows.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.jobs.frames import RawFrame, prompt_of
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.outputs import find_outputs
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.domain.jobs.shown_ui import shown_ui
from comfy_fleet.ports.runs import ANYBODY, Claim, RunStore
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

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


_Told: TypeAlias = "asyncio.Task[RawFrame | None]"
Committed: TypeAlias = Callable[[Iterable[tuple[str, str, int]]], Awaitable[Sequence[Output] | None]]


async def _none_is(_: object) -> None:
    """Commit nothing: then no ``executed`` is told."""


class FrameRelay:
    """The frames of one run.

    Args:
        runs: Where they are published.
        claim: The run.
        now: Monotonic seconds.
        heard: Whether somebody listens already.
        committed: Waits until outputs are committed, and returns them; None if that fails for one.
    """

    def __init__(
        self,
        runs: RunStore,
        claim: Claim,
        now: Callable[[], float],
        *,
        heard: bool = True,
        committed: Committed = _none_is,
    ) -> None:
        self._runs = runs
        self._claim = claim
        self._now = now
        self._committed = committed
        self._held: set[_Told] = set()
        self._heard, self._listeners = heard, 0
        self._only_anybody = False
        self._state: dict[str, bytes | bytearray] = {}
        self._waiting: deque[RawFrame | _Told] = deque()
        self._unsent = 0
        self._room, self._counted_at = float(BYTES_A_SECOND), now()
        self._task: asyncio.Task[None] | None = None

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
                    self._add(RawFrame(run=self._claim.run, data=raw, text=True, only="clients"))

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
        if prompt != self._claim.run and (prompt is not None or not running):
            return
        text = isinstance(frame, Frame)
        data = frame.raw if isinstance(frame, Frame) else frame.data
        anybodys = frame.type in _FOR_ANYBODY if isinstance(frame, Frame) else data.startswith(_TEXT)
        only: Literal["", "job"] = ""
        if self._claim.job.client_id is None and not anybodys:
            if self._only_anybody:
                return
            only = "job"
        elif isinstance(frame, Frame) and frame.type == "executed":
            only = "job"
        self._add(RawFrame(run=self._claim.run, data=data, text=text, place=place, only=only))
        if isinstance(frame, Frame) and frame.type == "executed" and self._claim.job.client_id is not None:
            self._hold(frame)

    def _hold(self, frame: Frame) -> None:
        """Tell the client of a node's outputs once they are stored and have their names.

        What comes behind it waits for a moment, so that the order stays if that is quick.
        """
        if len(frame.raw) <= MOST_TOLD_BYTES and isinstance(frame.data.get("node"), str):
            self._held.add(task := start(self._told(frame)))
            task.add_done_callback(self._held.discard)
            self._wait(task)

    async def _told(self, frame: Frame) -> RawFrame | None:
        node, output, run = frame.data["node"], frame.data.get("output"), self._claim.run
        outputs = await self._committed(item.id for item in find_outputs(node, output, run=run))
        if outputs is None:
            return None
        shown = shown_ui({node: output}, outputs).get(node) if isinstance(output, Mapping) else output
        data = json.dumps({"type": "executed", "data": {**frame.data, "output": shown}}).encode()
        return RawFrame(run=run, data=data, text=True, only="clients")

    def _late(self, task: "_Told") -> None:
        if self._heard and (frame := _result(task)) is not None:
            self._add(frame)

    def _note(self, frame: Frame) -> None:
        """Remember how far the run is."""
        if frame.data.get("prompt_id") != self._claim.run:
            return
        if frame.type == "executing" and frame.data.get("node") is None:
            self._state.clear()
        elif len(frame.raw) <= MAX_FRAME_BYTES:
            self._state[frame.type] = frame.raw

    def _add(self, frame: RawFrame) -> None:
        """Publish a frame soon, if it is within the limits. An output does not wait for room in the rate."""
        size = len(frame.data)
        cost = size + _COST
        now = self._now()
        self._room = min(BYTES_A_SECOND, self._room + (now - self._counted_at) * BYTES_A_SECOND)
        self._counted_at = now
        left = self._room - cost - (0 if frame.text else BYTES_A_SECOND / 2)
        too_much = (left < 0 and frame.place is None) or self._unsent + cost > BYTES_A_SECOND
        if too_much or size > MAX_FRAME_BYTES:
            return  # Redis is slow, or the node sends too much
        self._room -= cost
        self._unsent += cost
        self._wait(frame)

    def _wait(self, one: "RawFrame | _Told") -> None:
        self._waiting.append(one)
        if self._task is None:
            self._task = asyncio.create_task(self._send())

    async def _ready(self) -> list[RawFrame]:
        """Return what may be sent now."""
        frames: list[RawFrame] = []
        while self._waiting:
            one = self._waiting[0]
            if isinstance(one, RawFrame):
                frames.append(one)
            elif not one.done() and frames:
                break
            else:
                await asyncio.wait({one}, timeout=ORDER_S)
                if not one.done():
                    one.add_done_callback(self._late)
                elif (told := _result(one)) is not None:
                    self._unsent += len(told.data) + _COST
                    frames.append(told)
            self._waiting.popleft()
        return frames

    async def drain(self) -> None:
        """Wait a moment until the accepted frames are published; all outputs have been committed."""
        if self._held:
            await asyncio.wait(self._held, timeout=LAST_S)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_S)

    def close(self) -> None:
        """Stop publishing."""
        self._heard = False
        for task in (*self._held, *([] if self._task is None else [self._task])):
            task.cancel()

    async def _send(self) -> None:
        try:
            while self._waiting:
                if not (frames := await self._ready()):
                    continue
                known = self._listeners
                heard = await self._runs.frames(self._claim, frames)
                if not heard and known == self._listeners:
                    self._heard = False
                    return
                self._only_anybody = heard == ANYBODY and known == self._listeners
                self._unsent -= sum(len(frame.data) + _COST for frame in frames)
        except (LeaseLost, StoreDown):
            self._heard = False  # the next beat shows it whether somebody listens then
        except Exception:
            self._heard = False
            logger.exception("frames not published", extra=self._claim.log_fields)
        finally:
            self._waiting, self._unsent, self._task = deque(), 0, None


def _result(task: "_Told") -> RawFrame | None:
    return None if task.cancelled() or task.exception() is not None else task.result()
