"""Reads all GPUs from an event loop, without blocking it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from comfy_fleet.adapters.nvml.reader import NvmlReader
from comfy_fleet.domain.nodes.gpu import Gpus, Nvml
from comfy_fleet.timeouts import Timeout

_MOMENT_S = 0.05


class NvmlProbe:
    """Reads from an event loop, one thread at a time."""

    def __init__(self, reader: NvmlReader | None = None, *, timeout_s: float = 2.0) -> None:
        """Set up; nothing is opened before the first look.

        Args:
            reader: The reader; only the probe may use it from now on.
            timeout_s: After this time the driver counts as silent. If a look hangs, later calls wait for the
                same look, each only for a moment: a thread inside the driver can't be ended, but there is
                never a second one.
        """
        self._reader = reader or NvmlReader()
        self._timeout_s = timeout_s
        self._looking: asyncio.Future[Gpus] | None = None
        self._silent = False

    async def look(self) -> Gpus:
        """Read all GPUs. Never raises."""
        if self._looking is None:
            self._looking = self._in_thread(self._reader.read)
        looking = self._looking
        try:
            # A canceled caller must not cancel the look: a second one would start beside it.
            patience_s = _MOMENT_S if self._silent else self._timeout_s
            async with Timeout(patience_s):
                found = await asyncio.shield(looking)
        except TimeoutError:
            self._silent = True
            words = f"no answer in {self._timeout_s:g} s"
            return Gpus(why=Nvml.SILENT, error=words, took_s=self._timeout_s)
        self._silent = False
        if self._looking is looking:
            self._looking = None
        return found

    async def close(self) -> None:
        """Release the driver, unless it hangs."""
        looking, self._looking = self._looking, None
        if looking is not None:
            done, _ = await asyncio.wait({looking}, timeout=self._timeout_s)
            if not done:
                return
        self._reader.close()

    def _in_thread(self, work: Callable[[], Gpus]) -> "asyncio.Future[Gpus]":
        # Not the loop's executor: Python waits for its threads at exit, and this one may never return.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Gpus] = loop.create_future()

        def deliver(found: Gpus) -> None:
            if not future.done():
                future.set_result(found)

        def run() -> None:
            found = work()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(deliver, found)

        threading.Thread(target=run, name="nvml", daemon=True).start()
        return future
