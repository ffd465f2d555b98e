"""A batch's live events as Server-Sent Events: items in each state, and each item's new state."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.types import Send

from comfy_fleet.api.deps import ApiDeps
from comfy_fleet.api.events import HEADERS, LiveStream, wire_event
from comfy_fleet.domain.jobs.job_batch import BatchStatus, JobBatch
from comfy_fleet.timeouts import Timeout

TOLD_S = 0.5
"""Seconds between two looks at what is new."""
ALIVE_S = 15.0
LOOK_S = 5.0
"""News may get lost; the record is looked at so often anyway."""


class BatchStream(LiveStream):
    """Streams until the batch is completed, the client's disconnect or sign-out, or the server's end.

    Args:
        now: The batch as it is now.
        events: What happens to it from now on.
        shown: Returns it as the surface shows it.
    """

    def __init__(
        self,
        d: ApiDeps,
        who: str,
        subscription: contextlib.AsyncExitStack,
        *,
        now: JobBatch,
        events: AsyncIterator[Mapping[str, Any]],
        shown: Callable[[JobBatch], Mapping[str, Any]],
        session: str,
        key: str,
        seen: Callable[[], bool],
    ) -> None:
        super().__init__(d, who, subscription, session=session, key=key, seen=seen)
        self._now = now
        self._events = events
        self._shown = shown
        self._newest: dict[int, Mapping[str, Any]] = {}
        self._news = asyncio.Event()

    async def tell(self, send: Send) -> None:
        """Send frames until the end."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        reading = asyncio.ensure_future(self._read())
        try:
            async for frames, more in self._frames():
                await send({"type": "http.response.body", "body": frames, "more_body": more})
                if not more:
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _frames(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Yield what is to be sent, and whether more comes after it."""
        store, batch = self._deps.batches, self._now
        yield wire_event("batch", self._shown(batch)), batch.status is not BatchStatus.COMPLETED
        told_at = time.monotonic()
        while not self._deps.closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with Timeout(LOOK_S):
                    await self._news.wait()
            await asyncio.sleep(max(0.0, told_at + TOLD_S - time.monotonic()))
            self._news.clear()
            newest, self._newest = self._newest, {}
            found = await store.get(batch.id)
            if found is None:  # it was removed
                return
            frames = b""
            if newest:
                names = await store.names(batch.id, list(newest))
                frames += b"".join(
                    wire_event("item", {**one, "custom_id": names.get(number)})
                    for number, one in newest.items()
                )
            if found != batch:
                batch = found
                frames += wire_event("batch", self._shown(batch))
            elif time.monotonic() - told_at >= ALIVE_S:
                frames += b": still here\n\n"
            if frames:
                told_at = time.monotonic()
                yield frames, batch.status is not BatchStatus.COMPLETED

    async def _read(self) -> None:
        async for one in self._events:
            if isinstance(number := one.get("item"), int):
                self._newest[number] = {
                    "item": number,
                    "job_id": one.get("job"),
                    "status": one.get("status"),
                }
            self._news.set()
