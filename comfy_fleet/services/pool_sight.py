"""What an autoscaler sees of nodes."""

from collections.abc import Sequence

from comfy_fleet.domain.nodes.host import HOST_LABEL
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.scaling.looks import PoolLook
from comfy_fleet.domain.scaling.orders import ScalingOrder
from comfy_fleet.ports.figures import PoolQueue


def belongs(state: NodeState, order: ScalingOrder) -> bool:
    """Return whether a node is an order's, by its name or its host's."""
    return order.name in (state.node.name, state.node.labels.get(HOST_LABEL))


def is_open(state: NodeState) -> bool:
    """Return whether it can take jobs."""
    return state.verdict == "up" and not state.node.cordoned


def is_busy(state: NodeState) -> bool:
    """Return whether a job needs it, if only for its outputs."""
    return bool(state.run or state.work)


def seen(pool: str, states: Sequence[NodeState], queue: PoolQueue | None, now: float) -> PoolLook:
    """Return a pool as it is now.

    Args:
        pool: Its name.
        states: All nodes.
        queue: What waits for it; None: nothing.
        now: Unix seconds.
    """
    nodes = [one for one in states if one.node.pool == pool]
    able = [one for one in nodes if is_open(one)]
    return PoolLook(
        at=now,
        waiting=queue.waiting if queue else 0,
        oldest_s=queue.oldest_s if queue else 0.0,
        nodes=len(able),
        busy=sum(1 for one in able if one.run),
        ended=sum(one.done + one.failed for one in nodes),
    )
