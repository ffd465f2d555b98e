"""Claim a job for a granted node, with what the dispatcher knows of that node."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from comfy_fleet.domain.graphs.merging import MOST_MEMBERS
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.ports.runs import Claim, Refused, RunStore
from comfy_fleet.services.node_directory import NodeDirectory


class Claimer:
    """The claims of one dispatcher.

    Args:
        directory: What is known of nodes.
        runs: Where jobs are claimed.
        name: The dispatcher's.
        line: Its life line.
        lease_ttl_s: How long a claim holds without a beat.
        new_id: Makes fencing tokens, and ids of runs for merged jobs.
        patience: Returns for how many seconds a job may be passed over on a pool's nodes.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        runs: RunStore,
        *,
        name: str,
        line: str = "",
        lease_ttl_s: float,
        new_id: Callable[[], str],
        patience: Callable[[str], float],
    ) -> None:
        self._directory = directory
        self._runs = runs
        self._name = name
        self._line = line
        self._lease_ttl_s = lease_ttl_s
        self._new_id = new_id
        self._patience = patience

    async def claim(
        self,
        node: str,
        run: str,
        placements: Sequence[Placement],
        *,
        unawaited: Collection[str],
        spare: bool,
        ready: bool,
    ) -> Claim | Refused:
        """Claim the best job; see :meth:`comfy_fleet.ports.runs.RunStore.claim`.

        Args:
            node: The node that HAProxy has granted.
            run: The run's id.
            placements: Classes that may use the node, the sought one first.
            unawaited: Nodes that no job is to wait for.
            spare: Whether the node is kept for an editor for a moment.
            ready: Whether its lease was held ready.
        """
        directory = self._directory
        pool = directory.pool_of(node)
        got = await self._runs.claim(
            node=node,
            placements=placements,
            run=run,
            token=self._new_id(),
            dispatcher=self._name,
            line=self._line,
            ttl_s=self._lease_ttl_s,
            pool=pool,
            peers=max(1, len(directory.able(placements[0]))),
            speed=directory.speed(node),
            ram=directory.ram_bytes(node),
            patience_s=self._patience(pool),
            unawaited=sorted(unawaited),
            able=directory.able_names(placements),
            unable=directory.unable_names(placements),
            spare=spare,
            ready=ready,
            runs=[self._new_id() for _ in range(MOST_MEMBERS - 1)],
        )
        return replace(got, pool=pool) if isinstance(got, Claim) else got
