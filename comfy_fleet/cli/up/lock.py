"""One ``fleet up`` per data folder: a lock that ends with its process, and a note about the holder."""

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
_KEPT = ("instead", "console", "ports", "node_ports", "sim_args", "comfyui")  # facts for the next start


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
            Fail: Another process has it, or the folder can't be written to.
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
        # The holder must be found to be us, never a process that has reused the last one's pid.
        last = read_note(self._data)
        try:
            self.note({name: last[name] for name in _KEPT if name in last})
        except Fail:
            self.__exit__(None, None, None)
            raise
        return self

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write the note about the holder, for ``fleet down`` and for the next start.

        Raises:
            Fail: The disk is full.
        """
        if self._file is None:
            raise RuntimeError("the lock is not held")
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        new = self.path.with_name(f"{self.path.name}.new")
        try:  # written under another name first, so that readers always find a complete note
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
        """Release it. The note stays: the next start reads the ports from it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def lock_path(data: Path) -> Path:
    """Return the lock file."""
    return data / "run" / "up.lock"


def note_path(data: Path) -> Path:
    """Return the file of the note."""
    return data / "run" / "up.json"


def read_note(data: Path) -> dict[str, Any]:
    """Return the note of the folder's last holder, or an empty one."""
    try:
        with note_path(data).open("rb") as file:
            value = json.loads(file.read(_MOST))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def running(data: Path) -> dict[str, Any]:
    """Return the note of the fleet that runs in the folder now, or an empty one if none runs."""
    note = read_note(data)
    pid = note.get("pid")
    # The lock is tested last, and briefly: a fleet that starts at this moment must not find it taken.
    return note if isinstance(pid, int) and procfs.alive(pid) and held(data) else {}


def held(data: Path) -> bool:
    """Return whether a process holds the folder now."""
    return is_locked(lock_path(data))
