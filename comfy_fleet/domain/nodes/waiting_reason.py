"""What a queued job waits for, in words."""

import math
from collections.abc import Collection, Mapping, Sequence

from comfy_fleet.domain.nodes.node import NodeState

_SHOWN = 3


def waiting_for(
    able: Collection[str], states: Sequence[NodeState], reasons: Mapping[str, Sequence[str]]
) -> str | None:
    """Return why a job is still queued, or None if a node is free for it.

    Args:
        able: Nodes that can run it.
        states: All nodes.
        reasons: Why the other nodes of its pools can't run it.
    """
    mine = [state for state in states if state.node.name in able]
    if not mine:
        return lacking(reasons)
    up = [state for state in mine if takes_jobs(state)]
    if not up:
        return _joined([_out(state) for state in mine])
    if any(state.run is None for state in up):
        return None
    busy = f"node {up[0].node.name} is busy" if len(up) == 1 else f"all {len(up)} able nodes are busy"
    out = [state for state in mine if state not in up]
    return f"{busy}; {_joined([_out(state) for state in out])}" if out else busy


def takes_jobs(state: NodeState) -> bool:
    """Return whether a node takes jobs now, or once it is free."""
    return state.verdict == "up" and not state.node.cordoned


def for_results(node: str, left_s: float) -> str:
    """Say that a job waits for the node that has its graph's results."""
    return f"{node} has this graph's results: at most {math.ceil(left_s)} s more"


def for_others(left_s: float) -> str:
    """Say that a job waits for others of its workflow, with which it could share a prompt."""
    return f"others of its workflow may share its prompt: at most {math.ceil(left_s)} s more"


def lacking(reasons: Mapping[str, Sequence[str]]) -> str:
    """Say why no node can run a job, node by node."""
    if not reasons:
        return "no node is in its pools"
    words = told(reasons)
    return f"no node can run it: {words}" if words else "no other node may run it"


def told(reasons: Mapping[str, Sequence[str]]) -> str:
    """Return ``gpu-3: has no class `A`; gpu-4: `vae/b` missing``; if there are many nodes, only the first."""
    return _joined([f"{name}: {', '.join(why[:_SHOWN])}" for name, why in sorted(reasons.items()) if why])


def _out(state: NodeState) -> str:
    node, reasons = state.node, []
    if node.cordoned:  # it would keep jobs away even once the node is back, so it comes first
        reasons.append(f"drained: {node.cordon_reason}" if node.cordon_reason else "drained")
    if state.verdict == "down" or not node.cordoned:
        word = {"drain": "drained", "new": "new"}.get(state.verdict, state.verdict)
        reasons.append(f"{word}: {state.why}" if state.why else word)
    return f"node {node.name} is {', and '.join(reasons)}"


def _joined(parts: Sequence[str]) -> str:
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more
