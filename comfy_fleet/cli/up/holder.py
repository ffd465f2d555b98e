"""Finds the process that holds a data folder, and never mistakes another one for it."""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up.lock import held, lock_path, read_note

NOTED_S = 2.0  # how long a holder may take to write its note
_LOOK_S = 0.05


class FolderHolder:
    """A process identified by more than its pid, which may be reused.

    Use it as a context manager.
    """

    def __init__(self, pid: int) -> None:
        """Open a process. Raises ProcessLookupError if it does not exist."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        os.close(self._fd)

    def ask_to_end(self) -> None:
        """Send it SIGTERM, if it has not ended yet."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGTERM)

    def ended(self, timeout_s: float) -> bool:
        """Wait for its end; False if the time is up first."""
        return bool(select.select([self._fd], [], [], max(0.0, timeout_s))[0])


def holder_of(data: Path) -> FolderHolder | None:
    """Return the process that holds a data folder, or None if none does.

    Raises:
        Fail: One does, but it is another user's, or is hidden from here.
    """
    deadline = time.monotonic() + NOTED_S
    while held(data):
        if (found := _noted(data)) is not None:
            return found
        if time.monotonic() > deadline:
            raise Fail(
                f"a fleet runs on {data}, but its process can't be seen from here",
                hint="stop it where it was started: on that machine, in that container",
                code=Exit.REFUSED,
            )
        time.sleep(_LOOK_S)
    return None


def _noted(data: Path) -> FolderHolder | None:
    """Return the process that the note names, if it has the lock's file open."""
    pid = read_note(data).get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        found = FolderHolder(pid)  # first: from here on it is this process, even if its pid is reused
    except ProcessLookupError:
        return None
    try:
        if _has_open(pid, lock_path(data)):
            return found
    except PermissionError:
        found.__exit__(None, None, None)
        raise Fail(f"pid {pid} belongs to another user", code=Exit.REFUSED) from None
    found.__exit__(None, None, None)
    return None


def _has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open. Raises PermissionError if it is another user's."""
    try:
        wanted, files = path.stat(), list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
    for file in files:
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(wanted, file.stat()):
                return True
    return False
