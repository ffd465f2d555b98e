"""Delete what finished jobs left in a node's folders: one for each run, one for each file that they read, and
copies with names drawn by ``Preview3D``. Nothing else.

Every step uses the descriptor of the parent folder and follows no link, so that nothing a custom node or a
graph has put there can lead out of it. ``temp`` is never touched: ComfyUI's cache refers to its files.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.domain.nodes.host import Cleanup
from comfy_fleet.tasks import start

logger = logging.getLogger(__name__)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a node keeps its files.

    Attributes:
        output: Its output folder.
        input: Its input folder; None if it is not known.
    """

    output: Path
    input: Path | None = None


class Cleaner:
    """Deletes the files that the API orders to delete, in a thread, one run's files at a time.

    Attributes:
        deleted: What was deleted, until the API has certainly heard of it.
    """

    def __init__(self) -> None:
        self.deleted: list[Cleanup] = []
        self._task: asyncio.Task[None] | None = None

    def take(self, wanted: Sequence[Cleanup], folders: Mapping[str, Folders]) -> None:
        """Begin to delete, unless a deletion is in progress: the API repeats its orders.

        Args:
            wanted: All present orders of the API.
            folders: The nodes' folders, by node.
        """
        self.deleted = [cleanup for cleanup in self.deleted if cleanup in wanted]
        if wanted and (self._task is None or self._task.done()):
            self._task = start(self._delete(wanted, folders))

    async def stop(self) -> None:
        """Stop once the deletion in progress is finished."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _delete(self, wanted: Sequence[Cleanup], folders: Mapping[str, Folders]) -> None:
        for cleanup in wanted:
            if cleanup in self.deleted:
                continue
            if cleanup.node in folders:
                await asyncio.to_thread(delete, cleanup, folders[cleanup.node])
            self.deleted.append(cleanup)  # even if not deleted: a retry would not help


def delete(cleanup: Cleanup, folders: Folders) -> None:
    """Delete ``fleet/JOB/RUN`` in the output and input folders, and strays. Files that can't be deleted
    stay."""
    with _inside(folders.output) as output:
        for name in cleanup.strays if output is not None else ():
            with contextlib.suppress(OSError):  # a folder, or gone
                os.unlink(name, dir_fd=output)
    for folder in filter(None, (folders.output, folders.input)):
        with _inside(folder, "fleet", cleanup.job) as job:
            if job is not None:
                _remove(cleanup, cleanup.run, job)
                if folder == folders.input:
                    _remove_files(job)
        with _inside(folder, "fleet") as fleet:
            if fleet is not None:
                with contextlib.suppress(OSError):  # another run's files are still in it, or it is gone
                    os.rmdir(cleanup.job, dir_fd=fleet)


def _remove_files(folder: int) -> None:
    """Remove files beside the runs' folders: earlier versions staged a job's inputs there."""
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # a folder, or gone
            os.unlink(name, dir_fd=folder)


def _remove(cleanup: Cleanup, name: str, parent: int) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=parent)
    except OSError as error:
        logger.warning(
            "files can't be deleted",
            extra={"node": cleanup.node, "job_id": cleanup.job, "run_id": cleanup.run, "reason": str(error)},
        )


@contextlib.contextmanager
def _inside(folder: Path, *names: str) -> Iterator[int | None]:
    """Open a folder below another, step by step; None if it is not there or a link is on the way."""
    with contextlib.ExitStack() as stack:
        try:
            # The operator has named the folder itself; it may be a link.
            here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, here)
            for name in names:
                here = os.open(name, _FOLDER, dir_fd=here)
                stack.callback(os.close, here)
        except OSError:
            yield None
            return
        yield here
