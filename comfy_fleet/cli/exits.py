"""Exit codes, and the error that ends a command with one.

Scripts may rely on these numbers; ``fleet --help`` and docs/reference/cli.md list them.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes of ``fleet``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    JOB_FAILED = 4
    CANCELED = 5
    TIMEOUT = 6
    NOT_FOUND = 7
    REFUSED = 8
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "failed; stderr says why",
    Exit.USAGE: "wrong arguments, parameters or files",
    Exit.UNREACHABLE: "no answer at the API's address",
    Exit.JOB_FAILED: "the job ended failed or expired",
    Exit.CANCELED: "the job was canceled",
    Exit.TIMEOUT: "the time given with --timeout is up",
    Exit.NOT_FOUND: "no such job, node or workflow",
    Exit.REFUSED: "refused for now: no nodes, queue full, not allowed, or in conflict with the present state",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}


class Fail(Exception):
    """Ends the command with one line on stderr, a hint, and an exit code; never a traceback.

    Attributes:
        message: What went wrong.
        hint: What to do about it, or None.
        exit: The exit code.
        passing: Whether the same call may succeed in a moment, because the API is starting or busy.
        answer: The API's error, with ``code`` and ``details``; empty if it did not come from there.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: Exit = Exit.FAILED,
        passing: bool = False,
        answer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit = code
        self.passing = passing
        self.answer: Mapping[str, Any] = answer or {}
