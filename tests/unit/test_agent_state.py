"""May a node get new jobs?"""

from dataclasses import replace

from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness, record_state
from comfy_fleet.domain.nodes.node import Node

NODE = Node(name="g1", url="http://h:1", weight=40)
FRESH, LAST, OLD = 0.0, 10.0, 10.1


def state(node: Node, age_s: float) -> AgentState:
    return record_state(node, age_s=age_s, grace_s=10.0)


def test_a_node_without_a_cordon_is_ready_with_its_weight() -> None:
    assert state(NODE, FRESH) == AgentState(readiness=Readiness.READY, weight=40)
    assert state(NODE, LAST).readiness is Readiness.READY


def test_a_cordon_drains_however_old_it_is() -> None:
    out = replace(NODE, cordoned=True, cordon_reason="fans")
    assert state(out, FRESH) == AgentState(readiness=Readiness.DRAIN, reason="fans")
    assert state(out, OLD).readiness is Readiness.DRAIN
    assert state(replace(out, cordon_reason=""), FRESH).reason == "cordoned"


def test_old_knowledge_neither_gives_nor_takes() -> None:
    held = state(NODE, OLD)
    assert held.readiness is Readiness.HOLD
    assert "10 s" in held.reason
