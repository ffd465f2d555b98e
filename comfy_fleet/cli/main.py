"""The entry point of ``fleet``: every expected error becomes one line."""

import errno
import gc
import io
import os
import sys
from typing import NoReturn

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.errors import BadInput, Busy, Conflict, FleetError, NotFound
from comfy_fleet.memory import COLLECT_AFTER

_BY_ERROR: tuple[tuple[type[FleetError], Exit], ...] = (
    (BadInput, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (Conflict, Exit.REFUSED),
    (Busy, Exit.REFUSED),
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> NoReturn:
    """Run ``fleet`` with the process's arguments and exit."""
    _open_standard_streams()
    _start_quickly()

    from comfy_fleet.cli.app import build
    from comfy_fleet.cli.variables import is_service, warn_on_terminal

    if not is_service(sys.argv[1:]):
        warn_on_terminal()
    try:
        build(sys.argv[1:])(prog_name="fleet")
    except Fail as error:
        _end(error.message, error.hint, error.exit)
    except FleetError as error:
        _end(str(error), None, exit_for(error))
    except KeyboardInterrupt:
        _end("interrupted", None, Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.exit(Exit.OK)  # the reader (`| head`) has left: not an error
    except OSError as error:
        # Files have their error and hint where they are written; standard streams have neither.
        if error.errno not in _NO_ROOM:
            raise
        _end(f"can't write {error.filename or 'the output'}: {error.strerror}", None, Exit.FAILED)
    finally:
        _drop_unwritten()
        gc.freeze()  # Python would look through all modules for garbage before it ends
    sys.exit(Exit.OK)


def exit_for(error: FleetError) -> Exit:
    """Return the exit code for one of the project's errors."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)


def _open_standard_streams() -> None:
    """Open the null device for standard streams that the caller has closed, and let output take any text.

    Otherwise the next file that is opened, a lock or a socket, would become one of them, and a prompt with
    characters that the terminal's encoding lacks would end the command that lists it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _start_quickly() -> None:
    """Collect garbage less often, for imports leave hardly any, and spare one that no command needs."""
    gc.set_threshold(*COLLECT_AFTER)
    # httpx imports a command line of its own, if what it needs for that is there: as long as all else of it.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # this is how Python lets an import fail


def _drop_unwritten() -> None:
    """Drop unwritten output of stdout; Python would complain about it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, hint: str | None, code: Exit) -> NoReturn:
    from comfy_fleet.cli.console import stderr

    console = stderr()
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False)
    if hint:
        console.print("[dim]hint:[/]", end="  ")
        console.print(hint, markup=False)
    sys.exit(code)
