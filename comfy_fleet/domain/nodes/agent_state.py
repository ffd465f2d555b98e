"""May a node get new jobs? The agent's answer to HAProxy, as a pure rule.

Only ``ready`` undoes a drain or activates a new server. ``drain`` stops new jobs, and so does ``down``: the
GPU is gone. ``hold`` changes nothing: an agent says it when its knowledge is too old. An agent that has lost
the API must not undo a cordon that it can't see. But an API that restarts, or is away for an hour, must not
stop the fleet: cordons are also checked where jobs are claimed and by HAProxy's controller.
"""

from dataclasses import dataclass
from enum import StrEnum

from comfy_fleet.domain.nodes.node import Node

HEAVIEST = 256
"""HAProxy's largest weight."""


class Readiness(StrEnum):
    """What an agent can say."""

    READY = "ready"
    DRAIN = "drain"
    HOLD = "hold"
    DOWN = "down"


@dataclass(frozen=True, kw_only=True)
class AgentState:
    """An agent's answer for one node.

    Attributes:
        readiness: Whether the node gets jobs, gets none, or stays as it is.
        weight: HAProxy's weight for the node, 1 to 256; only with ``ready``.
        reason: The reason in words, empty with ``ready``.
    """

    readiness: Readiness
    weight: int = 0
    reason: str = ""


def record_state(node: Node, *, age_s: float, grace_s: float) -> AgentState:
    """Decide, by a node's record alone, if it may get new jobs.

    Args:
        node: Its record.
        age_s: Seconds since the API last confirmed the record.
        grace_s: How old a record may be; an older one is not acted upon.
    """
    if node.cordoned:  # even if old: stopping new jobs is the safe side
        return AgentState(readiness=Readiness.DRAIN, reason=node.cordon_reason or "cordoned")
    if age_s > grace_s:
        return AgentState(readiness=Readiness.HOLD, reason=f"nothing heard from the API for {age_s:.0f} s")
    return AgentState(readiness=Readiness.READY, weight=node.weight)


def both(record: AgentState, gpu: AgentState) -> AgentState:
    """Combine what a node's record says with what its GPU says: the stricter readiness counts.

    Args:
        record: From :func:`record_state`; its weight is the node's own.
        gpu: From the GPU's assessment; its weight is a percentage of that.
    """
    for readiness in (Readiness.DOWN, Readiness.DRAIN, Readiness.HOLD):
        for one in (record, gpu):  # both reasons are shown, the operator's own first
            if one.readiness is readiness:
                return one
    return AgentState(readiness=Readiness.READY, weight=max(1, round(record.weight * gpu.weight / 100)))
