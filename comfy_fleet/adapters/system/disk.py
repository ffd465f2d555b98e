"""The disk of the data folder: its free space, and its errors."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comfy_fleet.domain.disk_room import Room, floor_of
from comfy_fleet.domain.errors import NoRoom

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the disk's errors about our files into NoRoom: they are the fleet's trouble, not the caller's.

    Raises:
        FileNotFoundError: There is no such file; that is not the disk's fault.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise NoRoom(f"the fleet's disk can't be read: {path}: {why}") from error


class Disk:
    """The disk of a folder.

    Args:
        folder: Must exist.
        floor_bytes: Free space below which nothing new is taken; None: as :func:`floor_of` says.
        shown: The folder's name in messages.
    """

    def __init__(self, folder: Path, *, floor_bytes: int | None = None, shown: str = "") -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._shown = shown or str(folder)

    def room(self) -> Room:
        """Read the disk's state. Raises NoRoom if that fails."""
        with self.writing():
            found = os.statvfs(self._folder)
        total = found.f_blocks * found.f_frsize
        # Free bytes are of no use if no more files fit.
        spent = found.f_files > 0 and found.f_favail == 0
        return Room(
            path=self._shown,
            free_bytes=0 if spent else found.f_bavail * found.f_frsize,
            total_bytes=total,
            floor_bytes=floor_of(total, self._floor_bytes),
        )

    def check(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """Raise NoRoom if this many more bytes would leave too little free space.

        Args:
            size_bytes: How much is about to be written.
            output: Whether it is an output of a running job, which may use a part of the floor.
        """
        room = self.room()
        kept = room.reserve_bytes if output else room.floor_bytes
        if why := room.lacks(size_bytes + kept):
            raise NoRoom(why)

    def probe(self) -> None:
        """Write a file and remove it. Raises NoRoom: quotas and broken disks show only in this way."""
        self.check()
        path = self._folder / f".probe.{os.getpid()}.{threading.get_ident()}"
        with self.writing():
            try:
                path.write_bytes(b"1")
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the disk's errors into NoRoom: they are the fleet's trouble, wherever the bytes come from."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise NoRoom(f"the fleet's disk is full: no room left at {self._shown}") from error
            why = error.strerror or type(error).__name__
            raise NoRoom(f"the fleet's disk can't be written: {self._shown}: {why}") from error
