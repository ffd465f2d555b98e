"""The policies that can be simulated."""

from collections.abc import Mapping

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.planning.contenders import AfterOom, Contender
from comfy_fleet.planning.policies.pushed import LeastConnections, RoundRobin
from comfy_fleet.planning.policies.ranked import EarliestDeadline, Fifo
from comfy_fleet.planning.policies.swarmui import SwarmUi

_ALL = (
    Contender(
        name="fair",
        about="the fleet's own: fair shares, models where they are, nobody passed over for long",
        make=lambda settings: FairChooser(
            patience_s=settings.patience_s,
            weights=settings.weights,
            tenant_weights=settings.tenant_weights,
        ),
        predicted=True,
    ),
    Contender(name="fifo", about="one queue by rank, whichever node is free", make=lambda _: Fifo()),
    Contender(
        name="leastconn",
        about="pushed to the node with the fewest jobs, at once",
        make=lambda _: LeastConnections(),
        after_oom=AfterOom.OTHER,
    ),
    Contender(
        name="round-robin",
        about="pushed to each node in turn, at once",
        make=lambda _: RoundRobin(),
        after_oom=AfterOom.OTHER,
    ),
    Contender(
        name="swarmui",
        about="SwarmUI's rule: a backend with the model, else the model with the most pressure",
        make=lambda _: SwarmUi(),
        after_oom=AfterOom.OTHER,
    ),
    Contender(
        name="edf",
        about="earliest deadline first, with true run times: an oracle",
        make=lambda _: EarliestDeadline(),
        predicted=True,
        oracle=True,
    ),
)
CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}


def contenders(text: str) -> list[Contender]:
    """Return the policies of a list with commas between them, each once.

    Raises:
        BadInput: One is unknown, or there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in CONTENDERS:
            raise BadInput(
                f"--policy: {name[:80]!r} is unknown; there are {', '.join(CONTENDERS)}",
                details={"field": "policy"},
            )
    if not names:
        raise BadInput(f"--policy names no policy; there are {', '.join(CONTENDERS)}")
    return [CONTENDERS[name] for name in names]
