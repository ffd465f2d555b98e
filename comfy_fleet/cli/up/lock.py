"""One ``fleet up`` per data folder: a lock that dies with its process, and a note of who has it."""

import contextlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from comfy_fleet.adapters.system import procfs
from comfy_fleet.adapters.system.folders import is_locked, private_folder, take_lock
from comfy_fleet.cli.exits import Exit, Fail

MAKE_ROOM = "make room there, or name another folder: --data DIR"
_MOST = 1024 * 1024
_KEPT = ("instead", "ports", "node_ports")  # what the next start wants to know of the last one


class DataLock:
    """Holds a data folder for one process; use it as a context manager."""

    def __init__(self, data: Path) -> None:
        self.path = note_path(data)
        self._data = data
        self._lock = lock_path(data)
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            Fail: Another process has it, or the folder can't be written.
        """
        try:
            private_folder(self.path.parent)
            file = take_lock(self._lock)
        except OSError as error:
            raise Fail(
                f"can't write in {self.path.parent}: {error.strerror}", hint="name another folder: --data DIR"
            ) from error
        if file is None:
            note = read_note(self._data)
            raise Fail(
                f"a fleet runs on {self.path.parent.parent} already"
                + (f" (pid {note['pid']}, {note.get('url', 'no address yet')})" if "pid" in note else ""),
                hint="stop it with `fleet down`, or name another folder: --data DIR",
                code=Exit.REFUSED,
            )
        self._file = file
        # Whoever looks for the holder must find us, never the process that has the last one's number now.
        last = read_note(self._data)
        try:
            self.note({name: last[name] for name in _KEPT if name in last})
        except Fail:
            self.__exit__(None, None, None)
            raise
        return self

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write down who holds the folder, for ``fleet down`` and for the next start.

        Raises:
            Fail: The disk takes no more.
        """
        if self._file is None:
            raise RuntimeError("the lock is not held")
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        new = self.path.with_name(f"{self.path.name}.new")
        try:  # under another name first: who reads meanwhile finds the last note or this one, whole
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(text)
            new.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise Fail(f"can't write {self.path}: {error.strerror}", hint=MAKE_ROOM) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it. The note stays: it holds the ports for the next start."""
        if self._file is not None:
            self._file.close()
            self._file = None


def lock_path(data: Path) -> Path:
    """Return the file whose lock says that a process holds the folder."""
    return data / "run" / "up.lock"


def note_path(data: Path) -> Path:
    """Return the file that says which process that is."""
    return data / "run" / "up.json"


def read_note(data: Path) -> dict[str, Any]:
    """Return what the folder's last holder wrote, or nothing."""
    try:
        with note_path(data).open("rb") as file:
            value = json.loads(file.read(_MOST))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def running(data: Path) -> dict[str, Any]:
    """Return what the fleet that runs on the folder now has noted, or nothing if none does."""
    note = read_note(data)
    pid = note.get("pid")
    # The lock is looked at last: whoever starts at this moment must not find it held by a question.
    return note if isinstance(pid, int) and procfs.alive(pid) and held(data) else {}


def held(data: Path) -> bool:
    """Return whether a process holds the folder now."""
    return is_locked(lock_path(data))
