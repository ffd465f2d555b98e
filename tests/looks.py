"""How often a test looks whether what it waits for has come."""

import time
from collections.abc import Iterator


def pauses(first_s: float = 0.01, most_s: float = 0.1) -> Iterator[float]:
    """Yield how long to wait before the next look, in seconds: a twentieth of the time so far.

    Each look takes processor time from what is waited for, on a machine that others load as well.
    """
    began = time.monotonic()
    while True:
        yield min(most_s, first_s + (time.monotonic() - began) / 20)
