"""May a node get new jobs?"""

from dataclasses import replace

from comfy_fleet.domain.nodes.agent_state import AgentState, Facts, Readiness, verdict
from comfy_fleet.domain.nodes.node import Node

NODE = Node(name="g1", url="http://h:1", weight=40)
FRESH = Facts(age_s=0.0, grace_s=10.0)
OLD = Facts(age_s=10.1, grace_s=10.0)


def test_a_node_without_a_cordon_is_ready_with_its_weight() -> None:
    assert verdict(NODE, FRESH) == AgentState(word=Readiness.READY, weight=40)
    assert verdict(NODE, replace(FRESH, age_s=10.0)).word is Readiness.READY


def test_a_cordon_drains_however_old_it_is() -> None:
    out = replace(NODE, cordoned=True, cordon_reason="fans")
    assert verdict(out, FRESH) == AgentState(word=Readiness.DRAIN, why="fans")
    assert verdict(out, OLD).word is Readiness.DRAIN
    assert verdict(replace(out, cordon_reason=""), FRESH).why == "cordoned"


def test_old_knowledge_neither_gives_nor_takes() -> None:
    told = verdict(NODE, OLD)
    assert told.word is Readiness.HOLD
    assert "10 s" in told.why
