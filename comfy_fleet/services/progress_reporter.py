"""Reports a run's latest progress and preview now and then.

Previews are published while somebody follows the job. Until then the latest one is kept here.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace

from comfy_fleet.domain.errors import LeaseLost, StoreDown
from comfy_fleet.domain.jobs.job import Progress
from comfy_fleet.domain.jobs.run_messages import ShowPreview
from comfy_fleet.domain.jobs.run_results import MAX_NAME
from comfy_fleet.domain.text import clip
from comfy_fleet.ports.runs import Claim, RunStore

logger = logging.getLogger(__name__)

EVERY_S = 0.5  # the APIs promise twice a second
MAX_PREVIEW_BYTES = 256 * 1024
"""Larger pictures are left out. ComfyUI's own previews have about 50 KiB."""


class ProgressReporter:
    """Writes the latest progress and preview at most twice a second, and nothing for short runs.

    Attributes:
        last: The latest progress, written or not.
    """

    def __init__(self, runs: RunStore, claim: Claim, now: Callable[[], float]) -> None:
        self._runs = runs
        self._claim = claim
        self._progress: Progress | None = None
        self.last: Progress | None = None
        self._preview: ShowPreview | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def progress(self, progress: Progress) -> None:
        """Note a snapshot; an older one that was not written yet is dropped."""
        # Ids come from the node and can have any length.
        node = progress.current_node
        told = clip(node, MAX_NAME) if node else node
        self._progress = progress if told is node else replace(progress, current_node=told)
        self.last = self._progress
        self._kick()

    def preview(self, preview: ShowPreview) -> None:
        """Note a preview; only the latest is written, and none that is too large."""
        if len(preview.data) > MAX_PREVIEW_BYTES:
            return
        self._preview = preview
        self._kick()

    def close(self) -> None:
        """Stop writing."""
        self._closed = True
        if self._task:
            self._task.cancel()

    def _kick(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while not self._closed:
            await asyncio.sleep(EVERY_S)
            try:
                await self._write_latest()
            except LeaseLost:
                return
            except StoreDown:
                continue  # the next snapshot is complete
            except Exception:
                logger.exception("progress not written", extra={"job_id": self._claim.job.id})

    async def _write_latest(self) -> None:
        progress, self._progress = self._progress, None
        if progress:
            await self._runs.progress(self._claim, progress)
        if self._preview and await self._runs.followed(self._claim):
            preview, self._preview = self._preview, None
            data = {
                "node_id": clip(preview.node_id or "", MAX_NAME),
                "content_type": preview.content_type,
                "data_base64": b64encode(preview.data).decode(),
            }
            await self._runs.preview(self._claim, data)
