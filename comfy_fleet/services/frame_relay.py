"""Publish one run's frames unchanged, while somebody listens to its job.

Nothing is stored, no run waits for who reads, and what is too much is left out: what became of the job stands
in its record.
"""

import asyncio
import logging
from collections.abc import Callable

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.jobs.frames import RawFrame, prompt_of
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.ports.runs import Claim, RunStore

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Larger frames are left out; a picture of a megapixel takes half as much."""
BYTES_A_SECOND = 8 * 1024 * 1024
"""Long-term limit, and also the burst. Binary frames get half: another picture follows, but a text comes only
once."""
LAST_S = 0.25
"""How long the end of a run waits for its last frames."""
_COST = 256  # bytes that even the shortest frame counts as


class FrameRelay:
    """The frames of one run.

    Args:
        runs: Where they are published.
        claim: The run.
        now: Monotonic seconds.
    """

    def __init__(self, runs: RunStore, claim: Claim, now: Callable[[], float]) -> None:
        self._runs = runs
        self._claim = claim
        self._now = now
        self._heard, self._listeners = True, 0
        self._waiting: list[RawFrame] = []
        self._unsent = 0
        self._room, self._counted_at = float(BYTES_A_SECOND), now()
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Note that somebody listens; each publish shows if that is still so."""
        self._heard = True
        self._listeners += 1

    def take(self, frame: Frame | Binary, *, running: bool) -> None:
        """Publish a frame soon, if it is the run's and within the limits.

        Args:
            frame: As it came.
            running: Whether its node is computing the run; frames without a prompt are about that.
        """
        if not self._heard:
            return
        prompt = prompt_of(frame)
        if prompt != self._claim.run and (prompt is not None or not running):
            return
        text = isinstance(frame, Frame)
        data = frame.raw if isinstance(frame, Frame) else frame.data
        cost = len(data) + _COST
        now = self._now()
        self._room = min(BYTES_A_SECOND, self._room + (now - self._counted_at) * BYTES_A_SECOND)
        self._counted_at = now
        left = self._room - cost - (0 if text else BYTES_A_SECOND / 2)
        if left < 0 or len(data) > MAX_FRAME_BYTES or self._unsent + cost > BYTES_A_SECOND:
            return  # Redis is slow, or the node sends too much
        self._room -= cost
        self._unsent += cost
        self._waiting.append(RawFrame(run=self._claim.run, data=data, text=text))
        if self._task is None:
            self._task = asyncio.create_task(self._send())

    async def drain(self) -> None:
        """Wait a moment until the accepted frames are published."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_S)

    def close(self) -> None:
        """Stop publishing."""
        self._heard = False
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        try:
            while self._waiting:
                frames, self._waiting = self._waiting, []
                known = self._listeners
                if not await self._runs.frames(self._claim, frames) and known == self._listeners:
                    self._heard = False
                    return
                self._unsent -= sum(len(frame.data) + _COST for frame in frames)
        except (LeaseLost, StoreDown):
            self._heard = False  # the next beat shows it whether somebody listens then
        except Exception:
            self._heard = False
            logger.exception("frames not published", extra=self._claim.log_fields)
        finally:
            self._waiting, self._unsent, self._task = [], 0, None
