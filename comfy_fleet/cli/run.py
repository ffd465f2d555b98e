"""Run the command line: what ``fleet`` calls, and where every expected error becomes one line."""

import os
import sys
from typing import NoReturn

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.errors import BadInput, Busy, Conflict, FleetError, NotFound

_BY_ERROR: tuple[tuple[type[FleetError], Exit], ...] = (
    (BadInput, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (Conflict, Exit.REFUSED),
    (Busy, Exit.REFUSED),
)


def main() -> NoReturn:
    """Run ``fleet`` with the process's arguments and exit."""
    from comfy_fleet.cli.app import build
    from comfy_fleet.cli.variables import is_service, warn_on_terminal

    if not is_service(sys.argv[1:]):
        warn_on_terminal()
    try:
        build()(prog_name="fleet")
    except Fail as error:
        _end(error.message, error.hint, error.exit)
    except FleetError as error:
        _end(str(error), None, exit_for(error))
    except KeyboardInterrupt:
        _end("interrupted", None, Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) left: that is no error, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    sys.exit(Exit.OK)


def exit_for(error: FleetError) -> Exit:
    """Return the exit code for one of the project's errors."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)


def _end(message: str, hint: str | None, code: Exit) -> NoReturn:
    from comfy_fleet.cli.console import stderr

    console = stderr()
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False)
    if hint:
        console.print("[dim]hint:[/]", end="  ")
        console.print(hint, markup=False)
    sys.exit(code)
