"""What a receiver's answer means, and when a message is sent again."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from comfy_fleet.domain.backoff import Backoff

SCHEDULE_S: tuple[float, ...] = (5, 300, 1800, 7200, 18_000, 36_000, 36_000)
"""Pauses before the tries after the first one, as Standard Webhooks advises: a little over a day in all."""
SPREAD = 0.1
"""A pause is longer by up to this part, by chance: what failed together does not come again together."""
_GONE = 410
_RECEIVERS_FAULT = frozenset({408, 425, 429})


class DeliveryOutcome(StrEnum):
    """What becomes of a message after a try."""

    DELIVERED = "delivered"
    AGAIN = "again"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class PostAnswer:
    """What came of posting a message.

    Attributes:
        status: The answer's status; None: there was none.
        error: Why there was none, in words.
        retry_after_s: What the answer asks for.
        never: Whether it may not be posted there at all, whenever it is tried.
        ours: Whether the fault is the fleet's own, and says nothing of the receiver.
    """

    status: int | None = None
    error: str = ""
    retry_after_s: float = 0.0
    never: bool = False
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What to note of a try.

    Attributes:
        error: Why it was not delivered; empty if it was.
        after_s: Seconds until the next try.
        pause_s: For how long its receiver gets nothing; None: the receiver is well.
    """

    outcome: DeliveryOutcome
    error: str = ""
    after_s: float = 0.0
    pause_s: float | None = None


def longest_s(schedule: Sequence[float]) -> float:
    """Return for how long a receiver has failed when messages as old are given up, tried or not."""
    return sum(schedule) * (1 + SPREAD)


def next_step(
    answer: PostAnswer,
    *,
    attempts: int,
    fails: int,
    chance: float,
    schedule: Sequence[float] = SCHEDULE_S,
) -> NextStep:
    """Return what to do after a try.

    Args:
        answer: What came of it.
        attempts: How many tries there were before it.
        fails: How many of its receiver's tries have failed in a row before it.
        chance: From 0 to 1, drawn anew for each try.
        schedule: Pauses before the tries after the first.
    """
    status = answer.status
    if status is not None and 200 <= status < 300:
        return NextStep(outcome=DeliveryOutcome.DELIVERED)
    error = answer.error or f"the receiver answered {status}"
    if status == _GONE:
        return NextStep(outcome=DeliveryOutcome.GONE, error="the receiver answered 410 Gone")
    # What it answers to one message says nothing about others to another path; silence and overload do.
    well = status is not None and status < 500 and status not in _RECEIVERS_FAULT
    pause_s = None if well or answer.never or answer.ours else _receiver_pause_s(schedule, fails + 1)
    if answer.never or attempts >= len(schedule):
        return NextStep(outcome=DeliveryOutcome.FAILED, error=error, pause_s=pause_s)
    after_s = schedule[attempts] * (1 + SPREAD * chance)
    # Not beyond its own next pause: a receiver can't make the fleet keep a message for ever.
    after_s = max(after_s, min(answer.retry_after_s, schedule[min(attempts + 1, len(schedule) - 1)]))
    return NextStep(outcome=DeliveryOutcome.AGAIN, error=error, after_s=after_s, pause_s=pause_s)


def _receiver_pause_s(schedule: Sequence[float], fails: int) -> float:
    """Return for how long a receiver that fails is left alone, whatever waits for it.

    Its pauses double, from a message's first pause to its second: soon after it is back, it gets everything.
    """
    return Backoff(first_s=schedule[0], longest_s=max(schedule[:2])).pause_s(fails)


def parse_schedule(text: str) -> tuple[float, ...]:
    """Read pauses with commas between them, in seconds.

    Raises:
        ValueError: They can't be read; 1 to 20 of at most 10 days each are taken.
    """
    refused = ValueError("it must be 1 to 20 pauses in seconds, of at most 10 days each: 5,300,1800")
    try:
        pauses = tuple(float(one) for one in text.split(","))
    except ValueError:
        raise refused from None
    if not 1 <= len(pauses) <= 20 or not all(0 <= one <= 864_000 for one in pauses):
        raise refused
    return pauses
