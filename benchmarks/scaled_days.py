"""A day of bursty load, and pools of several kinds under it."""

import math
import random
from collections.abc import Sequence

from comfy_fleet.planning.trace import TraceJob

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
SHORT_S, LONG_S = 3.0, 40.0


def bursty_day(*, seed: int, day_s: float = DAY_S) -> list[TraceJob]:
    """Return jobs of 3 s (four of five) and of 40 s.

    People come by day, up to one job in three seconds in the afternoon; on top, about once in 40 minutes,
    somebody submits 20 to 200 jobs at once.

    Args:
        seed: Decides everything.
        day_s: How long the day is, in seconds.
    """
    chance = random.Random(f"day {seed}")
    moments: list[float] = []
    at = 0.0
    while True:  # a Poisson process that is thinned by the hour
        at += chance.expovariate(1 / 3.0)
        if at >= day_s:
            break
        if chance.random() < 0.5 - 0.5 * math.cos(2 * math.pi * at / day_s):
            moments.append(at)
    at = 0.0
    while True:
        at += chance.expovariate(1 / (40 * 60.0))
        if at >= day_s:
            break
        moments += [at] * chance.randint(20, 200)
    return [
        TraceJob(
            id=str(number),
            submitted=moment,
            run_s=SHORT_S if chance.random() < 0.8 else LONG_S,
        )
        for number, moment in enumerate(sorted(moments), 1)
    ]


def mean_load(jobs: Sequence[TraceJob], day_s: float = DAY_S) -> float:
    """Return how many nodes the jobs keep at work on average."""
    return math.fsum(job.run_s for job in jobs) / day_s
