"""How long to wait before trying again after a failure."""

from dataclasses import dataclass

_DOUBLED_UP_TO = 20  # failures; what comes after them makes no difference, and no number too large


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses that double with every failure in a row.

    Attributes:
        first_s: Pause after the first failure.
        longest_s: Longest pause.
    """

    first_s: float
    longest_s: float

    def pause_s(self, failures: int) -> float:
        """Return the pause after the n-th failure in a row (1-based)."""
        return float(min(self.longest_s, self.first_s * 2 ** (min(failures, _DOUBLED_UP_TO) - 1)))
