"""A file that is being written: buffered, hashed, and corrected at its end."""

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from comfy_fleet.adapters.system.disk import Disk, reading
from comfy_fleet.domain.graphs.pictures.parsing import Edit, applied
from comfy_fleet.ports.blobs import Corrections

_READ = 1 << 20


class IncomingFile:
    """The bytes of one blob on their way to the disk.

    Attributes:
        path: Where they are; the caller moves the file away, or calls :meth:`drop`.
        size_bytes: Their number so far; what is stored, after :meth:`finish`.
        buffered: How many of them are still in memory.

    Args:
        path: A name of its own in a folder for unfinished files.
        disk: Knows how much room there is.
        durable: Whether the bytes must survive a power cut.
        corrections: What to change at the end.
    """

    def __init__(self, path: Path, *, disk: Disk, durable: bool, corrections: Corrections | None) -> None:
        self.path = path
        self.size_bytes = 0
        self.buffered = 0
        self._disk = disk
        self._durable = durable
        self._corrections = corrections
        self._hasher = blake3()
        self._buffer: list[bytes] = []
        self._fed = 0
        self._file: BinaryIO | None = None

    @property
    def digest(self) -> str:
        """The BLAKE3 hash of the bytes, in hex."""
        return self._hasher.hexdigest()

    def add(self, chunk: bytes) -> None:
        """Take the next bytes into memory."""
        self._buffer.append(chunk)
        self.buffered += len(chunk)
        self.size_bytes += len(chunk)

    def small(self, most: int) -> bool:
        """Return whether :meth:`finish` has no more to do than to write this many bytes."""
        if self._durable or self.buffered > most:
            return False
        if self._corrections is None:
            return True
        self._feed()
        return self._file is None and self._corrections.quick

    def flush(self) -> None:
        """Write what is in memory. Raises NoRoom."""
        self._feed()
        self._disk.check(self.buffered, output=not self._durable)
        with self._disk.writing():
            self._file = self._file or self.path.open("xb")
            for part in self._buffer:
                self._hasher.update(part)
                self._file.write(part)
            self._buffer.clear()
            self.buffered = self._fed = 0

    def finish(self) -> None:
        """Write the rest, correct the file, and close it. Raises NoRoom."""
        self._feed()
        edits = self._corrections.edits() if self._corrections else ()
        if edits and self._file is None:
            self._buffer = list(applied(edits, self._buffer))
            self._fed = len(self._buffer)
            self.buffered = self.size_bytes = sum(map(len, self._buffer))
            edits = ()
        self.flush()
        self._close()
        if edits:
            self._correct(edits)

    def drop(self) -> None:
        """Remove what was written and not moved away."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # it raises again if it could not write
                self._file.close()
        self.path.unlink(missing_ok=True)

    def _feed(self) -> None:
        if self._corrections is not None:
            for part in self._buffer[self._fed :]:
                self._corrections.feed(part)
        self._fed = len(self._buffer)

    def _close(self) -> None:
        assert self._file is not None  # noqa: S101 - flush() has opened it
        with self._disk.writing():
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())
            self._file.close()

    def _correct(self, edits: Sequence[Edit]) -> None:
        """Write a file that was too large for the memory anew, corrected."""
        came, self.path = self.path, self.path.with_name(f"{self.path.name}.new")
        self._corrections, self._hasher, self._file, self.size_bytes = None, blake3(), None, 0
        try:
            with reading(came), came.open("rb") as file:
                for chunk in applied(edits, iter(partial(file.read, _READ), b"")):
                    self.add(chunk)
                    self.flush()
            self._close()
        finally:
            came.unlink(missing_ok=True)
