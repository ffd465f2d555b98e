"""A pool: a group of nodes, and what an operator has set for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import check_name

LONGEST_S = 10 * 365 * 86400.0
PATIENCE_S = 60.0
"""For how long a job is passed over at most beyond its turn, so that nodes keep the models that they have."""
LONGEST_PATIENCE_S = 86400.0
LEAST_SILENCE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool. A field that is None is not set: :class:`PoolDefaults` applies.

    Attributes:
        name: The name that nodes and jobs use.
        slot: Number of its backend in HAProxy, from 1; None: none yet, or there are more pools than slots.
        free_idle_s: Idle seconds after which a node unloads its models; 0: never.
        free_on_oom: Whether a node on which a job ran out of memory unloads its models.
        patience_s: For how many seconds a job may be passed over beyond its turn; 0: never.
        silence_s: After how many seconds without a sign of progress a run is interrupted.
    """

    name: str
    slot: int | None = None
    free_idle_s: float | None = None
    free_on_oom: bool | None = None
    patience_s: float | None = None
    silence_s: float | None = None

    def __post_init__(self) -> None:
        check_name("pool", self.name)
        if self.free_idle_s is not None and not 0 <= self.free_idle_s <= LONGEST_S:
            raise BadInput(
                f"free_idle_s {self.free_idle_s:g} must be seconds, from 0 (never) to {LONGEST_S:.0f}",
                details={"field": "free_idle_s"},
            )
        if self.patience_s is not None and not 0 <= self.patience_s <= LONGEST_PATIENCE_S:
            raise BadInput(
                f"patience_s {self.patience_s:g} must be seconds, from 0 to {LONGEST_PATIENCE_S:.0f}",
                details={"field": "patience_s"},
            )
        if self.silence_s is not None and not LEAST_SILENCE_S <= self.silence_s <= LONGEST_S:
            raise BadInput(
                f"silence_s {self.silence_s:g} must be seconds, from {LEAST_SILENCE_S:g} to {LONGEST_S:.0f}",
                details={"field": "silence_s"},
            )

    @property
    def is_set(self) -> bool:
        """Whether an operator has set anything."""
        own = (self.free_idle_s, self.free_on_oom, self.patience_s, self.silence_s)
        return any(value is not None for value in own)


@dataclass(frozen=True, kw_only=True)
class PoolDefaults:
    """The values for pools that have not set their own.

    Attributes:
        free_idle_s: See :class:`Pool`.
        free_on_oom: See :class:`Pool`.
        patience_s: See :class:`Pool`.
        former: Values for single pools from settings in their former form; a pool's own values come first.
    """

    free_idle_s: float = 0.0
    free_on_oom: bool = True
    patience_s: float = PATIENCE_S
    former: Mapping[str, Pool] = field(default_factory=dict)

    def idle_s(self, name: str, own: float | None) -> float:
        """Return after how many idle seconds a pool's nodes unload their models; 0: never.

        Args:
            name: The pool.
            own: The pool's own ``free_idle_s``.
        """
        return _first(own, self.former.get(name, Pool(name=name)).free_idle_s, self.free_idle_s)

    def on_oom(self, pool: Pool) -> bool:
        """Return whether a pool's nodes unload their models after a job ran out of memory."""
        former = self.former.get(pool.name, pool)
        return bool(_first(pool.free_on_oom, former.free_on_oom, self.free_on_oom))

    def patience_of(self, pool: Pool) -> float:
        """Return for how many seconds a job may be passed over on a pool's nodes."""
        return _first(pool.patience_s, self.patience_s)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
