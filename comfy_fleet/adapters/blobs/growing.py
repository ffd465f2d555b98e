"""Files in which uploads gather that come in parts.

    ROOT/uploads/UUID          the bytes so far; whoever writes them holds the file's lock

The lock is the kernel's, so it ends with its process, and one that only sleeps keeps it: it will never write
into a file that somebody else has gone on with.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from comfy_fleet.adapters.system.disk import Disk, reading
from comfy_fleet.adapters.system.folders import private_folder, sync_folder
from comfy_fleet.tasks import undisturbed

FOLDER = "uploads"


class LockedFile:
    """:class:`comfy_fleet.ports.uploads.GrowingFile`."""

    def __init__(self, descriptor: int, disk: Disk, size: int) -> None:
        self._descriptor = descriptor
        self._disk = disk
        self.size = size

    def cut(self, size: int) -> None:
        """See the port."""
        if self.size > size:
            with self._disk.writing():
                os.ftruncate(self._descriptor, size)
            self.size = size

    def write(self, parts: Sequence[bytes]) -> None:
        """See the port."""
        self._disk.check(sum(map(len, parts)))
        with self._disk.writing():
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[os.pwrite(self._descriptor, left, self.size + len(part) - len(left)) :]
                self.size += len(part)

    def sync(self) -> None:
        """See the port."""
        with self._disk.writing():
            os.fdatasync(self._descriptor)


class GrowingFolder:
    """:class:`comfy_fleet.ports.uploads.GrowingFiles`.

    Args:
        root: The folder of all files.
        disk: Knows how much room there is.
    """

    def __init__(self, root: Path, *, disk: Disk) -> None:
        self._folder = private_folder(root / FOLDER)
        self._disk = disk

    async def create(self, upload_id: str) -> None:
        """See the port."""

        def make() -> None:
            with self._disk.writing():
                os.close(os.open(self._folder / upload_id, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                sync_folder(self._folder)

        await asyncio.to_thread(make)

    @contextlib.asynccontextmanager
    async def open(self, upload_id: str) -> AsyncIterator[LockedFile | None]:
        """See the port."""

        held: list[int] = []

        def take() -> LockedFile | None:
            path = self._folder / upload_id
            with reading(path):
                held.append(descriptor := os.open(path, os.O_RDWR | os.O_CLOEXEC))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return LockedFile(descriptor, self._disk, os.fstat(descriptor).st_size)

        try:
            yield await undisturbed(take)
        finally:
            for descriptor in held:
                os.close(descriptor)

    async def remove(self, upload_id: str) -> None:
        """See the port."""

        def unlink() -> None:
            with self._disk.writing():
                (self._folder / upload_id).unlink(missing_ok=True)

        await asyncio.to_thread(unlink)

    async def tidy(self, *, age_s: float) -> int:
        """See the port."""

        def look() -> int:
            count, before = 0, time.time() - age_s
            for path in self._folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        path.unlink()
                        count += 1
            return count

        return await asyncio.to_thread(look)
