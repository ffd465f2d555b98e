"""What choosing needs to know of a job that waits."""

from dataclasses import dataclass

from comfy_fleet.domain.schedule.model_set import ModelSet

EDITOR, SINGLE, BATCH, WARMING = 0, 1, 2, 3
"""Tiers of one owner's jobs: an editor's run, a single submit, an item of a batch, a run that warms a node.

The last one gives way to all owners' jobs, see :attr:`comfy_fleet.domain.jobs.job.Placement.gives_way`."""
TIER_NAMES = ("editor", "single", "batch", "warming")
"""The tiers as clients know them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A job that waits for a node.

    Attributes:
        id: The job's.
        owner: Whose share it uses.
        tenant: The owner's tenant; empty: the default one.
        place: Its placement class; a node says which of them it can run.
        tier: Of one owner's jobs, lower tiers go first: :data:`EDITOR` to :data:`WARMING`.
        rank: Time of its submit, less its priority's worth in seconds. The lowest goes first.
        models: The model files that it loads.
        run_s: How long it probably computes on a node of speed 1, without loading, in seconds.
        memory: How many bytes it probably needs on the card at most; 0 = unknown.
        submitted: When it was submitted, in seconds.
        start_by: It is not started later than this; ``None`` = whenever.
        finish_by: A wish for the order, never a limit; ``None`` = none.
    """

    id: str
    owner: str
    place: str
    tier: int
    rank: float
    models: ModelSet
    run_s: float
    memory: int = 0
    submitted: float = 0.0
    start_by: float | None = None
    finish_by: float | None = None
    tenant: str = ""
