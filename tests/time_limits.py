"""A limit by the clock for fixtures and their ends, where pytest-timeout looks at the test alone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Let the test fail if the body takes longer than this.

    Only the main thread may use it, and nothing else that needs SIGALRM inside it.

    Args:
        seconds: The limit.
        what: What the body does, for the message.
    """

    def over(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
