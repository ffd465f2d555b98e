"""Pictures that were made of others, as files in a folder that the processes of a machine share."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.adapters.system.folders import private_folder
from comfy_fleet.domain.errors import NoRoom

KEPT_S = 86_400.0
"""How long one is kept at most: nothing of a picture that was deleted stays for longer."""
SWEEP_S = 3600.0
_LARGEST, _UNSEEN = 4, 16
"""One file may have such a part of all bytes; after such a part was written, the folder is read again."""
_LEAST = 4096
"""Bytes that the smallest file takes on a disk: else millions of tiny ones would be within any limit."""
_ROOM = 0.9


class MadePicturesFolder:
    """:class:`comfy_fleet.ports.pictures.MadePictures`. The access time of a file is its last use.

    Args:
        folder: Created with the first picture.
        most_bytes: Of all files; each process may exceed it by a sixteenth. 0: nothing is kept.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path, *, most_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._most = most_bytes
        self._clock = clock
        self._written = most_bytes  # what is there is not known yet

    async def size(self, name: str) -> int | None:
        """See the port."""
        return await asyncio.to_thread(self._size, name) if self._most else None

    async def get(self, name: str) -> bytes | None:
        """See the port."""
        return await asyncio.to_thread(self._get, name) if self._most else None

    async def put(self, name: str, data: bytes) -> None:
        """See the port."""
        if self._most and len(data) <= self._most // _LARGEST:
            with suppress(OSError, NoRoom):
                await asyncio.to_thread(self._put, name, data)

    async def sweep(self) -> None:
        """Delete what is too old, every hour."""
        while True:
            with suppress(OSError):
                await asyncio.to_thread(self._tidy)
            await asyncio.sleep(SWEEP_S)

    def _size(self, name: str) -> int | None:
        try:
            return (self._folder / name).stat().st_size
        except OSError:
            return None

    def _get(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                made = os.fstat(file.fileno()).st_mtime_ns
                if self._clock() - made / 1e9 > KEPT_S:
                    return None
                data = file.read()
            os.utime(path, ns=(int(self._clock() * 1e9), made))
        except OSError:
            return None
        return data

    def _put(self, name: str, data: bytes) -> None:
        private_folder(self._folder)
        if Disk(self._folder).room().full:
            return
        drawn = self._folder / f"{uuid4()}.tmp"
        try:
            drawn.write_bytes(data)
            now = int(self._clock() * 1e9)
            os.utime(drawn, ns=(now, now))
            drawn.replace(self._folder / name)
        finally:
            drawn.unlink(missing_ok=True)
        self._written += max(len(data), _LEAST)
        if self._written > self._most // _UNSEEN:
            self._tidy()

    def _tidy(self) -> None:
        """Delete what is too old, and what was used least lately, until there is room."""
        self._written = 0
        if not self._folder.is_dir():
            return
        found = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                if self._clock() - stat.st_mtime > KEPT_S:
                    os.unlink(entry.path)  # noqa: PTH108 - an entry of scandir is no Path
                else:
                    found.append((stat.st_atime_ns, max(stat.st_size, _LEAST), entry.path))
        left = sum(size for _, size, _ in found)
        if left <= self._most:
            return
        for _, size, path in sorted(found):
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - as above
            left -= size
            if left <= _ROOM * self._most:
                return
