"""``fleet up --detach``: a fleet that starts in the foreground and goes on in the background."""

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up.holder import FolderHolder
from comfy_fleet.domain.nodes.process_end import end_of

_READY = b"1"


def into_background() -> Callable[[Path], None]:
    """Continue in a new process that is detached from the terminal and Ctrl-C.

    Only the new process returns. It uses the terminal until it calls the returned function, with the file
    that gets its stderr from then on. So the user sees how it starts, or why it does not. This process waits
    for that call, passes on signals to stop, and ends.

    Raises:
        Exit: In this process, once the other one is ready or has failed; with its exit code.
        Fail: The other one was killed.
    """
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid:
        os.close(mouth)
        raise typer.Exit(_outcome(pid, ear))
    os.close(ear)
    os.setsid()
    _put(os.open(os.devnull, os.O_RDONLY), 0)
    return partial(_leave, mouth)


def _outcome(pid: int, ear: int) -> int:
    """Wait until a child is ready or has ended; return the exit code for that."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        child.ask_to_end()

    with FolderHolder(pid) as child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, ask)
        if os.read(ear, 1) == _READY:
            return Exit.OK
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if asked and status in (Exit.OK, -signal.SIGTERM):
        return Exit.INTERRUPTED
    if status < 0:
        raise Fail(f"the fleet was ended by {end_of(status)} while it started")
    return status


def _leave(mouth: int, log: Path) -> None:
    """Release the terminal, and signal that the fleet is ready."""
    _put(os.open(os.devnull, os.O_WRONLY), 1)
    _put(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    with contextlib.suppress(BrokenPipeError):  # the waiting process was killed; the fleet goes on
        os.write(mouth, _READY)
    os.close(mouth)


def _put(opened: int, as_: int) -> None:
    if opened != as_:
        os.dup2(opened, as_)
        os.close(opened)
