"""Traces that are made up: who submits what and when, decided by a seed."""

import math
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.planning.trace import ModelSets, Tier, TraceJob

GIB = 2**30
MAX_JOBS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a made-up trace is like.

    Attributes:
        jobs: How many; None: as many as come within ``duration_s``.
        rate: Jobs a second on average; 0: all at once.
        duration_s: For how long they come.
        burst: How many come at the same moment, on average (geometric); 1: each by itself (Poisson).
        owners: How many owners.
        owner_skew: Zipf's exponent of their shares of the jobs; 0: all alike.
        sets: How many model sets, each one file; 0: jobs load nothing.
        set_bytes: Least and largest size of a file; sizes in between are as likely.
        set_skew: Zipf's exponent of the sets' popularity.
        run_s: Median seconds of computing.
        run_spread: Standard deviation of the logarithm of run times; 0: all alike.
        beside: Median bytes that a run needs beside its models; 0: memory is unknown, and never runs out.
        beside_spread: Standard deviation of its logarithm.
        tiers: Shares of editors' runs, single submits and items of batches.
        finish_within: ``finish_by`` is this many run times after the submit; 0: no wish.
        ttl_s: Seconds within which jobs must start; None: whenever.
        pool: Their pool.
        seed: Decides everything.
    """

    jobs: int | None = None
    rate: float = 1.0
    duration_s: float = 3600.0
    burst: float = 1.0
    owners: int = 10
    owner_skew: float = 1.0
    sets: int = 8
    set_bytes: tuple[int, int] = (12 * GIB, 12 * GIB)
    set_skew: float = 1.0
    run_s: float = 6.0
    run_spread: float = 0.5
    beside: int = 2 * GIB
    beside_spread: float = 0.5
    tiers: tuple[float, float, float] = (0.0, 1.0, 0.0)
    finish_within: float = 0.0
    ttl_s: float | None = None
    pool: str = DEFAULT_POOL
    seed: int = 0

    def __post_init__(self) -> None:
        if self.jobs is None and self.rate <= 0:
            raise BadInput(
                "without a rate, --jobs must say how many jobs there are", details={"field": "jobs"}
            )
        if self.expected > MAX_JOBS:
            what = "--rate and --for make" if self.jobs is None else "--jobs asks for"
            raise BadInput(
                f"{what} {self.expected:.3g} jobs; at most {MAX_JOBS:g} are made up",
                details={"field": "rate" if self.jobs is None else "jobs"},
            )

    @property
    def expected(self) -> float:
        """About how many jobs there will be."""
        return self.jobs if self.jobs is not None else self.rate * self.duration_s


def generate(wanted: Generated) -> Iterator[TraceJob]:
    """Yield a made-up trace's jobs in the order of their submits: the same ones for the same wish."""
    chance = random.Random(wanted.seed)  # noqa: S311 - a simulation, no secret
    sets = ModelSets()
    models = [
        sets.of([(f"checkpoints/model-{number}.safetensors", chance.randint(*wanted.set_bytes))])
        for number in range(1, wanted.sets + 1)
    ] or [sets.of(())]
    owners = [f"owner-{number}" for number in range(1, wanted.owners + 1)]
    owner_shares, set_shares = _zipf(len(owners), wanted.owner_skew), _zipf(len(models), wanted.set_skew)
    tiers, tier_shares = list(Tier), _limits(wanted.tiers)
    mean_run, mean_beside = math.log(wanted.run_s), math.log(max(1, wanted.beside))
    draw = chance.random
    for number, at in enumerate(_moments(wanted, chance), 1):
        run_s = math.exp(chance.gauss(mean_run, wanted.run_spread)) if wanted.run_spread else wanted.run_s
        loaded = models[bisect(set_shares, draw())]
        memory = 0
        if wanted.beside:
            memory = loaded.size + round(math.exp(chance.gauss(mean_beside, wanted.beside_spread)))
        yield TraceJob(
            id=str(number),
            submitted=at,
            run_s=run_s,
            owner=owners[bisect(owner_shares, draw())],
            pool=wanted.pool,
            tier=tiers[bisect(tier_shares, draw())] if wanted.tiers[1] < 1 else Tier.SINGLE,
            models=loaded,
            memory=memory,
            ttl_s=wanted.ttl_s,
            finish_by=at + wanted.finish_within * run_s if wanted.finish_within else None,
        )


def _moments(wanted: Generated, chance: random.Random) -> Iterator[float]:
    """Yield when jobs come."""
    count, at = 0, 0.0
    burst = max(1.0, wanted.burst)
    while wanted.jobs is None or count < wanted.jobs:
        if wanted.rate > 0:
            at += chance.expovariate(wanted.rate / burst)
            if wanted.jobs is None and at > wanted.duration_s:
                return
        yield at
        count += 1
        # A geometric burst: one more with the same chance each time.
        while burst > 1 and chance.random() < 1 - 1 / burst and (wanted.jobs is None or count < wanted.jobs):
            yield at
            count += 1


def _zipf(count: int, exponent: float) -> list[float]:
    """Return where the share of each but the last ends, if shares are as 1/k**exponent."""
    return _limits([1 / k**exponent for k in range(1, count + 1)])


def _limits(weights: Sequence[float]) -> list[float]:
    """Return where each weight's share of 0 to 1 ends, but the last one's, which is all that is left."""
    total = math.fsum(weights)
    return [weight / total for weight in accumulate(weights)][:-1]
