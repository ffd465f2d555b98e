"""The log files of a data folder, as `fleet up` and agents write them: read, merge by time, follow.

    DATA/logs/PART.log      what a part says
    DATA/logs/PART.log.1    what it said before that file was begun

Lines of one part keep their order, whatever their times are; a line without a time belongs to the one before
it.
"""

import heapq
import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.up.supervisor import own_fields

LOOK_S = 0.2  # how often followed files are read
_CHUNK = 1 << 20
_LONGEST = 1 << 20  # longest unfinished line, in bytes, whose end is waited for


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a log.

    Attributes:
        part: The part of the fleet that wrote it: the name of the log file.
        at: Unix seconds, for the order among parts; 0 if unknown.
        fields: Its fields; a line that is not our JSON has only ``msg``.
    """

    part: str
    at: float
    fields: Mapping[str, Any]


class PartLog:
    """One part's log, read forward even if its file is replaced or emptied.

    Args:
        path: The file; it may not exist yet.

    Raises:
        Fail: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.part = path.name.removesuffix(".log")
        self._path = path
        self._file = _open(path)
        self._rest = b""
        self._at = 0.0

    def history(self) -> Iterator[bytes]:
        """Yield the present lines, those of the older file first."""
        older = _open(self._path.with_name(f"{self._path.name}.1"))
        if older is not None:
            with io.BufferedReader(older) as lines:
                # The file may just have become the older one: read it only once.
                if self._file is None or not os.path.sameopenfile(lines.fileno(), self._file.fileno()):
                    for line in lines:
                        yield line.removesuffix(b"\n")
        yield from self.new()

    def new(self) -> Iterator[bytes]:
        """Yield new lines since the last call, even if the file was replaced in between."""
        while True:
            if self._file is None:
                self._file = _open(self._path)
            if self._file is None:
                return
            replaced = self._replaced(self._file)  # checked first: a replaced file gets no more lines
            yield from self._read(self._file)
            if not replaced:
                return
            yield from self.rest()
            self.close()

    def rest(self) -> Iterator[bytes]:
        """Yield an unfinished line."""
        if self._rest:
            yield self._rest
            self._rest = b""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def line(self, raw: bytes) -> LogLine | None:
        """Return a line with its fields, or None if it is blank. Call it in the order of the lines."""
        text = raw.decode(errors="replace").rstrip("\r")
        if not text.strip():
            return None
        fields = own_fields(text) or {"level": "info", "process": self.part, "msg": text}
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            at = datetime.fromisoformat(fields["ts"]).timestamp()
            if at <= time.time() + 60:  # a clock may be wrong, or the text may only look like our line
                self._at = max(self._at, at)
        return LogLine(part=self.part, at=self._at, fields=fields)

    def lines(self, raw: Iterable[bytes]) -> Iterator[LogLine]:
        """Yield lines with their fields."""
        return (line for one in raw if (line := self.line(one)) is not None)

    def _replaced(self, file: io.FileIO) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # its writer goes on with the file that it has open
        return not os.path.samestat(now, os.fstat(file.fileno()))

    def _read(self, file: io.FileIO) -> Iterator[bytes]:
        if os.fstat(file.fileno()).st_size < file.tell():  # somebody emptied it
            file.seek(0)
            self._rest = b""
        while chunk := file.read(_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield from lines
            if len(self._rest) >= _LONGEST:
                yield from self.rest()


def find(folder: Path) -> dict[str, Path]:
    """Return the log files of a folder by part, even if the newest file is missing."""
    names = {path.name.removesuffix(".1") for path in (*folder.glob("*.log"), *folder.glob("*.log.1"))}
    return {name.removesuffix(".log"): folder / name for name in sorted(names)}


class Logs:
    """The logs of a folder, by part. Use it as a context manager.

    Args:
        folder: Where the files are.
        parts: Only these; all if there are none.

    Raises:
        Fail: One can't be read.
    """

    def __init__(self, folder: Path, parts: Iterable[str] = ()) -> None:
        self._folder = folder
        self._wanted = frozenset(parts)
        self._logs: dict[str, PartLog] = {}

    def __enter__(self) -> Self:
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.close()

    def history(
        self, *, tail: int | None = None, about: str = "", goes_on: bool = False
    ) -> Iterator[LogLine]:
        """Yield the logs' lines in order of time.

        Args:
            tail: Only the last lines, this many.
            about: Only lines that contain this text.
            goes_on: Leave an unfinished line to :meth:`follow`.
        """
        wanted = about.encode()

        def of(log: PartLog) -> Iterator[LogLine]:
            found = chain(log.history(), () if goes_on else log.rest())
            raw: Iterable[bytes] = (one for one in found if wanted in one)
            return log.lines(raw if tail is None else deque(raw, tail))

        joined = heapq.merge(*(of(log) for log in self._logs.values()), key=_at)
        return joined if tail is None else iter(deque(joined, tail))

    def follow(self) -> Iterator[LogLine]:
        """Yield new lines for ever; logs of new parts are included as they appear."""
        while True:
            self._look()
            yield from sorted((line for log in self._logs.values() for line in log.lines(log.new())), key=_at)
            time.sleep(LOOK_S)

    def _look(self) -> None:
        for part, path in find(self._folder).items():
            if part not in self._logs and (not self._wanted or part in self._wanted):
                self._logs[part] = PartLog(path)


def _at(line: LogLine) -> float:
    return line.at


def _open(path: Path) -> io.FileIO | None:
    try:
        return io.FileIO(path, "rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}") from error
