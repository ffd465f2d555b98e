"""Publishes the frames of all runs of a dispatcher, as many as there are in one call.

A call costs about as much as ten frames. So one is under way at a time, and what comes meanwhile goes with
the next: the more frames there are, the less each of them costs.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

GAP_S = 0.002
"""Between the beginnings of two calls."""
MOST_BYTES = 1024 * 1024
"""Of one call, so that it does not keep Redis for long; one frame may be larger."""


class FrameSource(Protocol):
    """A run that has frames to publish."""

    @property
    def claim(self) -> Claim:
        """The run."""

    def ready(self, most_bytes: int) -> Sequence[RawFrame]:
        """Return frames to publish now, at least one if there is any; it asks again if some are left."""

    def published(self, frames: Sequence[RawFrame], heard: int | None) -> None:
        """Note that frames were published.

        Args:
            frames: As :meth:`ready` has returned them.
            heard: As the store says it; None if they could not be published.
        """


class FramePublisher:
    """All frames of one dispatcher.

    Args:
        runs: Where they are published.
        spawn: Starts a task, and keeps it.
    """

    def __init__(self, runs: RunStore, *, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._runs = runs
        self._spawn = spawn
        self._asked: dict[FrameSource, None] = {}  # in their order
        self._working = False
        self._hurry = asyncio.Event()

    def ask(self, source: FrameSource, *, hurry: bool = False) -> None:
        """Publish soon what a run has.

        Args:
            source: The run.
            hurry: Whether its end waits for that.
        """
        self._asked[source] = None
        if hurry:
            self._hurry.set()
        if not self._working:
            self._working = True
            self._spawn(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                began = loop.time()
                self._hurry.clear()
                if batch := self._batch():
                    await self._publish(batch)
                    with contextlib.suppress(TimeoutError):
                        async with Timeout(max(0.0, began + GAP_S - loop.time())):
                            await self._hurry.wait()
        finally:
            self._working = False

    def _batch(self) -> list[tuple[FrameSource, Sequence[RawFrame]]]:
        batch = []
        room = MOST_BYTES
        for source in tuple(self._asked):
            if room <= 0:
                break
            del self._asked[source]
            if frames := source.ready(room):
                batch.append((source, frames))
                room -= sum(len(frame.data) for frame in frames)
        return batch

    async def _publish(self, batch: Sequence[tuple[FrameSource, Sequence[RawFrame]]]) -> None:
        heard: Sequence[int | None] = [None] * len(batch)
        try:
            heard = await self._runs.frames([(source.claim, frames) for source, frames in batch])
        except StoreDown:
            pass  # the next beat shows whether somebody listens then
        except Exception:
            logger.exception("frames not published", extra={"runs": len(batch)})
        finally:
            for (source, frames), one in zip(batch, heard, strict=True):
                source.published(frames, one)
