"""Blobs as files in a folder that all processes of the fleet share.

    ROOT/tmp/UUID              being written
    ROOT/uploads/UUID          uploads that come in parts, see growing.py
    ROOT/blobs/ab/DRAWN/HASH   complete; DRAWN is a new random name for each write
    ROOT/blobs/ab/HASH         of earlier versions
    ROOT/jobs/JOB/HASH         outputs of earlier versions
    ROOT/records               identifies the store of records to which all this belongs
    ROOT/id                    identifies this folder to the store of records, wherever it is moved

No name is made from a user's input. A file appears under its name by a rename, complete or not at all.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from comfy_fleet.adapters.blobs.growing import FOLDER as GROWING
from comfy_fleet.adapters.blobs.incoming import IncomingFile
from comfy_fleet.adapters.system.disk import Disk, reading
from comfy_fleet.adapters.system.folders import private_folder, sync_folder
from comfy_fleet.domain.errors import NoRoom
from comfy_fleet.ports.blobs import Blob, Corrections
from comfy_fleet.tasks import undisturbed

_BUFFER = 1 << 20  # bytes written and hashed per hop to a thread
_SMALL = 1 << 18  # takes 0.2 ms, which is faster than waking a thread
_SHORT = 1 << 16  # read from the kernel's memory in 10 µs, a sixth of the CPU time of a hop to a thread
_FIRST = 1 << 20  # read together with opening the file: one hop to a thread is the fastest way for a picture
_CHUNK = 1 << 18
_LISTED = 500  # names in one batch


class DiskBlobs:
    """:class:`comfy_fleet.ports.blobs.BlobStore` on a file system.

    Args:
        root: The folder; created if missing.
        new_id: Draws a UUID.
        disk: Knows how much room there is; None: the root's own disk with the usual floor.
    """

    def __init__(self, root: Path, *, new_id: Callable[[], str], disk: Disk | None = None) -> None:
        self._root = root
        self._new_id = new_id
        for folder in ("tmp", "blobs"):
            private_folder(root / folder)
        self._disk = disk or Disk(root)

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.check_room`."""
        self._disk.check(size_bytes, output=output)

    def is_full(self) -> bool:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.is_full`."""
        try:
            return self._disk.room().full
        except NoRoom:  # it can't be read
            return False

    async def put(
        self, chunks: AsyncIterator[bytes], *, durable: bool, corrections: Corrections | None = None
    ) -> Blob:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.put`."""
        drawn = self._new_id()
        incoming = IncomingFile(
            self._root / "tmp" / drawn, disk=self._disk, durable=durable, corrections=corrections
        )

        def finish() -> str:
            incoming.finish()
            key = _key(drawn, incoming.digest)
            with self._disk.writing():
                _move(incoming.path, self._root / key)
                if durable:
                    sync_folder((self._root / key).parent)
            return key

        try:
            async for chunk in chunks:
                incoming.add(chunk)
                if incoming.buffered >= _BUFFER:
                    await asyncio.to_thread(incoming.flush)
            key = finish() if incoming.small(_SMALL) else await asyncio.to_thread(finish)
            return Blob(key=key, hash=f"blake3:{incoming.digest}", size_bytes=incoming.size_bytes)
        finally:
            incoming.drop()

    async def adopt(self, name: str) -> Blob:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.adopt`."""
        drawn = self._new_id()

        def link() -> Blob:
            path, hasher, size = self._root / GROWING / name, blake3(), 0
            with reading(path), path.open("rb") as file:
                while chunk := file.read(_BUFFER):
                    hasher.update(chunk)
                    size += len(chunk)
            key = _key(drawn, digest := hasher.hexdigest())
            with self._disk.writing():
                (self._root / key).parent.mkdir(parents=True, exist_ok=True)
                (self._root / key).hardlink_to(path)
                sync_folder((self._root / key).parent)
            return Blob(key=key, hash=f"blake3:{digest}", size_bytes=size)

        return await undisturbed(link)

    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.open`."""
        path = self._root / key
        if length is not None and length <= _SHORT and (read := _in_memory(path, start, length)) is not None:
            return _rest(path, None, read, 0)
        file, first, left = await asyncio.to_thread(_begin, path, start, length)
        return _rest(path, file, first, left)

    async def replace(self, key: str, *, by: str) -> None:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.replace`."""

        def move() -> None:
            with self._disk.writing():
                _move(self._root / by, self._root / key)
                sync_folder((self._root / key).parent)
            _leave(self._root / by)

        await asyncio.to_thread(move)

    async def delete(self, key: str) -> None:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.delete`."""

        def unlink() -> None:
            path = self._root / key
            with self._disk.writing():
                path.unlink(missing_ok=True)
            _leave(path)

        await asyncio.to_thread(unlink)

    async def url(self, key: str) -> str | None:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.url`: files have none."""
        return None

    async def file(self, key: str) -> Path | None:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.file`."""
        path = self._root / key
        return path if await asyncio.to_thread(path.is_file) else None

    async def store_id(self) -> str:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.store_id`."""

        def look() -> str:
            path, temp = self._root / "id", self._root / "tmp" / self._new_id()
            with self._disk.writing():
                if not path.exists():
                    try:
                        with temp.open("x") as file:
                            file.write(self._new_id())
                            file.flush()
                            os.fsync(file.fileno())
                        with contextlib.suppress(FileExistsError):  # another process was faster
                            path.hardlink_to(temp)
                        sync_folder(self._root)
                    finally:
                        temp.unlink(missing_ok=True)
                return path.read_text().strip()  # an operator may have written it

        return await asyncio.to_thread(look)

    async def belongs_to(self, records: str) -> bool:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.belongs_to`."""

        def look() -> bool:
            path = self._root / "records"
            with self._disk.writing():
                with contextlib.suppress(FileExistsError), path.open("x") as file:
                    file.write(records)
                if not (found := path.read_text()):  # its writer died, or had no room
                    path.write_text(records)
            return found in ("", records)

        return await asyncio.to_thread(look)

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.sizes`."""
        return await asyncio.to_thread(lambda: [_size(self._root / key) for key in keys])

    async def keys(self, *, age_s: float) -> AsyncGenerator[list[str], None]:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.keys`."""
        found = self._walk(time.time() - age_s)
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(found, _LISTED))):
            yield batch

    async def tidy(self, *, age_s: float) -> int:
        """See :meth:`comfy_fleet.ports.blobs.BlobStore.tidy`."""
        return await asyncio.to_thread(_remove_older, self._root / "tmp", time.time() - age_s)

    def _walk(self, before: float) -> Iterator[str]:
        for top in ("blobs", "jobs"):
            for place, _, names in os.walk(self._root / top, topdown=False):
                folder = Path(place)
                yield from (
                    str((folder / name).relative_to(self._root))
                    for name in names
                    if _is_older(folder / name, before)
                )
                if not names and folder.name != top and _changed_at(folder) < before:
                    _leave(folder / "-")  # its writer has died


def _key(drawn: str, digest: str) -> str:
    return f"blobs/{digest[:2]}/{drawn.replace('-', '')[:12]}/{digest}"


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _leave(path: Path) -> None:
    """Remove the folder of a file, or of one job's files, if it is empty now."""
    if len(path.parent.name) > 2:  # folders named by two digits are shared
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _in_memory(path: Path, start: int, length: int) -> bytes | None:
    """Return a range of a file if that needs no disk, because the kernel has it in memory; else None."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # whoever reads it properly says why
        return None
    data = bytearray(length)
    try:
        return bytes(data) if os.preadv(file, [data], start, os.RWF_NOWAIT) == length else None
    except (OSError, AttributeError):  # not in memory; or neither this file system nor this kernel can say
        return None
    finally:
        os.close(file)


def _begin(path: Path, start: int, length: int | None) -> tuple[BinaryIO | None, bytes, int]:
    """Open a file; return it with the first bytes of a range and how many follow, or None if none do."""
    with reading(path):
        file = path.open("rb")
        try:
            if length is None:
                length = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
            first = _exactly(path, file, min(length, _FIRST))
        except BaseException:
            file.close()
            raise
    if length > len(first):
        return file, first, length - len(first)
    file.close()
    return None, first, 0


async def _rest(path: Path, file: BinaryIO | None, first: bytes, left: int) -> AsyncGenerator[bytes, None]:
    try:
        yield first
        while file is not None and left > 0:
            chunk = await asyncio.to_thread(_exactly, path, file, min(_CHUNK, left))
            left -= len(chunk)
            yield chunk
    finally:
        if file is not None:
            file.close()


def _exactly(path: Path, file: BinaryIO, size: int) -> bytes:
    with reading(path):
        found = file.read(size)
    if len(found) < size:
        raise NoRoom(f"the fleet's disk can't be read: {path}: it is shorter than its record says")
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _is_older(path: Path, before: float) -> bool:
    return path.is_file() and _changed_at(path) < before


def _remove_older(folder: Path, before: float) -> int:
    count = 0
    for path in folder.iterdir():
        if _is_older(path, before):
            path.unlink(missing_ok=True)
            count += 1
    return count
