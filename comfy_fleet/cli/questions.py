"""Questions that a command asks a person before it goes on."""

import sys

import typer

from comfy_fleet.cli.exits import Exit, Fail


def can_ask() -> bool:
    """Return whether a person can answer: both ends are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, else_: str, without: str) -> None:
    """Ask, and go on only if the answer is yes.

    Args:
        question: A sentence that ends with a question mark.
        else_: What is told if nobody can be asked.
        without: The option that makes the question unnecessary.

    Raises:
        Fail: The answer is no, or nobody can be asked.
    """
    if not can_ask():
        raise Fail(else_, hint=f"to do it all the same: {without}", code=Exit.REFUSED)
    if not typer.confirm(question, default=False, err=True):
        raise Fail("nothing was changed", code=Exit.REFUSED)
