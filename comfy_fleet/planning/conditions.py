"""What a simulation assumes besides trace and fleet."""

from dataclasses import dataclass, field

from comfy_fleet.planning.contenders import PolicySettings
from comfy_fleet.planning.estimates import Estimates


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a simulation assumes besides trace and fleet.

    Attributes:
        gap_s: Seconds between a run's end and the next start on a node.
        max_attempts: Runs of a job that may end with their node.
        mean_up_s: Mean time after which a node dies; None: none does.
        repair_s: How long it is down then.
        estimates: How wrong a policy's knowledge is.
        settings: What policies are told.
        seed: Decides when nodes die.
        estimate_ends: Whether each job's end is estimated at its submit, under the fleet's own policy, and
            compared with what happens.
    """

    gap_s: float = 0.005
    max_attempts: int = 3
    mean_up_s: float | None = None
    repair_s: float = 120.0
    estimates: Estimates = field(default_factory=Estimates)
    settings: PolicySettings = field(default_factory=PolicySettings)
    seed: int = 0
    estimate_ends: bool = False
