"""The policies that can be simulated, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from comfy_fleet.domain.schedule.policy import SchedulingPolicy


class AfterOom(Enum):
    """Where a job goes that has run out of memory."""

    LARGER = "larger"
    """To a node with a larger card; there is none: it has failed. The policy is told what the job needs."""
    OTHER = "other"
    """To any node on which it has not failed yet."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What policies may be told.

    Attributes:
        patience_s: For how long a job may be passed over beyond its turn.
        weights: Owners' weights; everybody else has 1.
        tenant_weights: The same of tenants.
    """

    patience_s: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)
    tenant_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A policy, and what it gets to know.

    Attributes:
        name: On the command line.
        about: One line about it.
        make: Makes a new one.
        predicted: Whether jobs' memory is predicted for it.
        after_oom: Where jobs go that ran out of memory.
        oracle: Whether it knows true run times and memory.
    """

    name: str
    about: str
    make: Callable[[PolicySettings], SchedulingPolicy]
    predicted: bool = False
    after_oom: AfterOom = AfterOom.LARGER
    oracle: bool = False
