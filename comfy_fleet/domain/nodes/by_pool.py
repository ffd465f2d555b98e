"""A figure that may be another one in some pools: ``600,big=120,small=0``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import check_name


@dataclass(frozen=True, kw_only=True)
class ByPool:
    """A figure for all pools, and other ones for some.

    Attributes:
        usual: For every pool that is not named.
        pools: By pool.
    """

    usual: float = 0.0
    pools: Mapping[str, float] = field(default_factory=dict)

    def of(self, pool: str) -> float:
        """Return a pool's figure."""
        return self.pools.get(pool, self.usual)

    @classmethod
    def parse(cls, text: str, *, most: float = float("inf")) -> "ByPool":
        """Read ``FIGURE[,POOL=FIGURE ...]``.

        Args:
            text: As an operator writes it.
            most: The largest figure that means anything.

        Raises:
            BadInput: It has another form, names a pool twice, or a figure is no number from 0 to ``most``.
        """
        usual, *rest = (part.strip() for part in text.split(","))
        pools: dict[str, float] = {}
        for part in rest:
            pool, equals, figure = (word.strip() for word in part.partition("="))
            if not equals:
                raise BadInput(
                    f"{part!r} must be POOL=FIGURE, as in `600,big=120`",
                    details={"field": "pool", "value": part},
                )
            if check_name("pool", pool) in pools:
                raise BadInput(f"pool {pool} is named twice", details={"field": "pool", "value": pool})
            pools[pool] = _figure(figure, most)
        return cls(usual=_figure(usual, most), pools=pools)


def _figure(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= most and value != float("inf"):
        return value
    limit = "of 0 or more" if most == float("inf") else f"from 0 to {most:g}"
    raise BadInput(
        f"{text!r} must be a number {limit}; a pool's own follows after a comma, as in `600,big=120`",
        details={"field": "figure", "value": text},
    )
