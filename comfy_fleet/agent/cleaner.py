"""Delete what finished jobs left in a node's folders: two of them by id, and copies by the names that
``Preview3D`` drew; nothing else.

Every step goes through the descriptor of the folder before and follows no link, so that nothing that a
custom node or a graph may have put there leads out of it. ``temp`` is never touched: ComfyUI's cache names
its files.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.domain.nodes.host import Trash

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


def delete(trash: Trash, folders: Folders) -> None:
    """Delete ``fleet/JOB/RUN`` in the output and input folders, and strays. What can't be deleted stays."""
    with _inside(folders.output) as output:
        for name in trash.strays if output is not None else ():
            with contextlib.suppress(OSError):  # a folder, or gone
                os.unlink(name, dir_fd=output)
    for folder in filter(None, (folders.output, folders.input)):
        with _inside(folder, "fleet", trash.job) as job:
            if job is not None:
                _remove(trash, trash.run, job)
                if folder == folders.input:
                    _remove_files(job)
        with _inside(folder, "fleet") as fleet:
            if fleet is not None:
                with contextlib.suppress(OSError):  # another run's files are still in it, or it is gone
                    os.rmdir(trash.job, dir_fd=fleet)


def _remove_files(folder: int) -> None:
    """Remove what lies beside the runs' folders: earlier versions staged a job's inputs there."""
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # a folder, or gone
            os.unlink(name, dir_fd=folder)


def _remove(trash: Trash, name: str, parent: int) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=parent)
    except OSError as error:
        logger.warning(
            "files can't be deleted",
            extra={"node": trash.node, "job_id": trash.job, "run": trash.run, "reason": str(error)},
        )


@contextlib.contextmanager
def _inside(folder: Path, *names: str) -> Iterator[int | None]:
    """Open a folder below another, step by step; None if it is not there or a link is on the way."""
    with contextlib.ExitStack() as stack:
        try:
            # The folder itself is the operator's word and may be a link.
            here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, here)
            for name in names:
                here = os.open(name, _FOLDER, dir_fd=here)
                stack.callback(os.close, here)
        except OSError:
            yield None
            return
        yield here
