"""What a queued job waits for."""

from typing import Any

from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.nodes.waiting_reason import told, waiting_for


def state(name: str, verdict: str = "up", *, why: str = "", run: str | None = None, **node: Any) -> NodeState:
    return NodeState(node=Node(name=name, url="http://h:1", **node), verdict=verdict, why=why, run=run)


def test_a_free_node_means_that_it_does_not_wait() -> None:
    assert waiting_for({"a", "b"}, [state("a"), state("b", run="r")], {}) is None


def test_busy_nodes() -> None:
    busy = [state(name, run="r") for name in "abc"]
    assert waiting_for(set("abc"), busy, {}) == "all 3 able nodes are busy"
    assert waiting_for({"a"}, busy, {}) == "node a is busy"
    mixed = [*busy, state("d", "down", why="connection refused")]
    assert waiting_for(set("abcd"), mixed, {}) == (
        "all 3 able nodes are busy; node d is down: connection refused"
    )


def test_drained_nodes_tell_why() -> None:
    drained = state("gpu-3", "drain", why="cordoned: maintenance", cordoned=True, cordon_reason="maintenance")
    assert waiting_for({"gpu-3"}, [drained], {}) == "node gpu-3 is drained: maintenance"
    by_agent = state("gpu-4", "drain", why="a foreign process holds 10 GiB")
    assert waiting_for({"gpu-4"}, [by_agent], {}) == ("node gpu-4 is drained: a foreign process holds 10 GiB")
    gone = state("gpu-6", "down", why="connection refused", cordoned=True, cordon_reason="new driver")
    assert waiting_for({"gpu-6"}, [gone], {}) == (
        "node gpu-6 is drained: new driver, and down: connection refused"
    )
    just_now = state("gpu-5", "up", cordoned=True)
    assert waiting_for({"gpu-5"}, [just_now], {}) == "node gpu-5 is drained"


def test_no_able_node_is_left() -> None:
    reasons = {"b": ["`vae/ae.safetensors` missing"], "a": ["has no class `X`"], "c": []}
    assert waiting_for(set(), [state("a"), state("b")], reasons) == (
        "no node can run it: a: has no class `X`; b: `vae/ae.safetensors` missing"
    )
    assert waiting_for(set(), [], {}) == "no node is in its pools"
    assert waiting_for(set(), [state("c")], {"c": []}) == "no other node may run it"


def test_many_nodes_are_told_in_short() -> None:
    assert told({f"n{i}": ["x"] for i in range(5)}) == "n0: x; n1: x; n2: x; and 2 more"
