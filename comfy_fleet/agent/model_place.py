"""The place of one model file that is fetched: locked, written under a temporary name, checked, renamed.

Agents whose nodes share a folder share the temporary file, too, and its lock lets one of them write: of
several on one machine, and of those on others with the same folder over NFS. Who is killed loses the lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from comfy_fleet.agent.model_folders import PART, SWEPT, leftovers, opened
from comfy_fleet.domain.errors import FleetError

_CHUNK = 4 * 2**20
_CHECK_FREE_EVERY = 64 * 2**20


class FetchFailed(FleetError):
    """A model file can't be put here; the message says why."""

    code = "model_fetch_failed"


class PlaceTaken(Exception):
    """Another agent writes this file just now."""


class FetchPlace:
    """One file in one folder. Everything here blocks: to be used in threads.

    Args:
        folder: Descriptor of its folder; stays open as long as this is used.
        name: The file's own name.
        sha256: What it must be.
        keep_free: Bytes that stay free on the disk.
        most: Most bytes of the file.
    """

    def __init__(self, folder: int, name: str, *, sha256: str, keep_free: int, most: int) -> None:
        self._folder = folder
        self._name = name
        self._sha256 = sha256
        self._keep_free = keep_free
        self._most = most
        self._temporary = f"{PART}{sha256[:40]}{SWEPT}"
        self._file: int | None = None
        self._hash = hashlib.sha256()
        self._next_look = 0
        self.size = 0

    def is_there(self) -> bool:
        """Return whether the file is there already.

        Raises:
            FetchFailed: Something else has its name.
        """
        try:
            found = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FetchFailed(f"{self._name} is there and is no file: {error.strerror}") from error
        with os.fdopen(found, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FetchFailed(f"{self._name} is there and is no file")
            if hashlib.file_digest(file, "sha256").hexdigest() == self._sha256:
                return True
        raise FetchFailed(f"another file called {self._name} is there: remove it first, or use another name")

    def lock(self) -> None:
        """Make this the only one that writes the file.

        Raises:
            PlaceTaken: Somebody else does.
            FetchFailed: It can't be written here, or this file system has no locks.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._temporary, flags, 0o644, dir_fd=self._folder)
        except OSError as error:
            raise FetchFailed(f"the folder can't be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise PlaceTaken from None
            raise FetchFailed(f"the folder's file system has no locks: {error.strerror}") from error
        try:
            now = os.stat(self._temporary, dir_fd=self._folder, follow_symlinks=False).st_ino
        except OSError:
            now = -1
        if now != os.fstat(file).st_ino:  # who had it has just put it into place
            os.close(file)
            raise PlaceTaken
        self._file = file

    def restart(self, total: int | None) -> None:
        """Begin with the first byte.

        Args:
            total: How many there will be; None: not known.

        Raises:
            FetchFailed: There is no room, or it is too large.
        """
        assert self._file is not None  # noqa: S101 - locked before
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash, self.size, self._next_look = hashlib.sha256(), 0, 0
        if total is not None and total > self._most:
            raise FetchFailed(f"it has {total} bytes, and FLEET_MODEL_BYTES allows {self._most}")
        self._check_room(total or 0)

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            FetchFailed: There is no room, or they are too many.
        """
        assert self._file is not None  # noqa: S101 - locked before
        self.size += len(data)
        if self.size > self._most:
            raise FetchFailed(f"it has more than the {self._most} bytes that FLEET_MODEL_BYTES allows")
        if self.size >= self._next_look:
            self._check_room(len(data))
            self._next_look = self.size + _CHECK_FREE_EVERY
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise FetchFailed(f"it can't be written: {error.strerror}") from error
        self._hash.update(data)

    @property
    def right(self) -> bool:
        """Whether what was written is the file that is wanted."""
        return self._hash.hexdigest() == self._sha256

    def put(self) -> None:
        """Give the file its name, once all of it is on the disk. Raises FetchFailed."""
        assert self._file is not None  # noqa: S101 - locked before
        if not self.right:
            raise FetchFailed(f"its SHA-256 is {self._hash.hexdigest()}, and not the one that was ordered")
        try:
            os.fchmod(self._file, 0o644)
            os.fsync(self._file)
            if self.is_there():  # somebody has copied it here meanwhile
                return
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise FetchFailed(f"it can't be put into place: {error.strerror}") from error
        os.close(self._file)
        self._file = None

    def close(self) -> None:
        """Remove the temporary file, and let others write."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, more: int) -> None:
        room = os.fstatvfs(self._folder)
        free = room.f_bavail * room.f_frsize - self._keep_free
        if more > free:
            raise FetchFailed(
                f"the disk has no room: {more} bytes more are needed, {max(0, free)} are free beside the "
                f"{self._keep_free} of FLEET_MODEL_FREE_BYTES"
            )


def chunks_of(root: Path, folder: str, name: str) -> Iterator[bytes]:
    """Yield a model file's bytes, its size in bytes first as decimal digits. Raises OSError."""
    *below, last = name.split("/")
    with opened(root, folder, below) as here:
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    with os.fdopen(file, "rb", buffering=0) as reader:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no file")
        yield str(found.st_size).encode()
        while data := reader.read(_CHUNK):
            yield data


def sweep(root: Path) -> int:
    """Remove temporary files that nobody writes; return how many."""
    swept = 0
    for path in leftovers(root):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.lstat().st_ino == os.fstat(file).st_ino:
                    path.unlink()
                    swept += 1
            finally:
                os.close(file)
    return swept
