"""What differs between nodes."""

from dataclasses import replace
from typing import Any

from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.nodes.differences import by_pack, differences
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading


def state(name: str, **reading: Any) -> NodeState:
    return NodeState(node=Node(name=name, url="http://h:1"), reading=Reading(**reading))


def inventory(*vaes: str, **classes: Any) -> Inventory:
    return parse({"VAELoader": {"input": {"required": {"vae_name": [list(vaes)]}}}, **classes})


STATES = {
    "a": state("a", comfyui="0.3.64", gpu="cuda:0 NVIDIA L40S : native"),
    "b": state("b", comfyui="0.3.71", gpu="cuda:1 NVIDIA L40S : cudaMallocAsync"),
}


def test_nodes_that_are_alike_have_no_differences() -> None:
    alike = dict.fromkeys(("a", "b"), STATES["a"])
    assert differences(alike, {name: inventory("x.pt") for name in alike}) == []


def test_versions_classes_and_files() -> None:
    have = {"a": inventory("ae.safetensors", "both.pt"), "b": inventory("both.pt", Odd={})}
    rows = [(row.kind, row.what, dict(row.nodes)) for row in differences(STATES, have)]
    assert rows == [
        ("version", "ComfyUI", {"a": "0.3.64", "b": "0.3.71"}),
        ("class", "Odd", {"a": "", "b": "yes"}),
        ("file", "vae/ae.safetensors", {"a": "yes", "b": ""}),
    ]


def test_a_node_that_was_not_read_lacks_nothing() -> None:
    assert [row.kind for row in differences(STATES, {"a": inventory("x.pt")})] == ["version"]
    assert differences({}, {}) == []


def test_settings_differ_but_for_the_host() -> None:
    nodes = {name: Node(name=name, url="http://h:1", labels={"host": name, "k": "v"}) for name in "ab"}
    alike = {name: NodeState(node=node) for name, node in nodes.items()}
    assert differences(alike, {}) == []
    other = {**alike, "b": NodeState(node=replace(nodes["b"], pool="big", labels={"host": "b"}))}
    rows = [(row.kind, row.what, dict(row.nodes)) for row in differences(other, {})]
    assert rows == [
        ("setting", "pool", {"a": "default", "b": "big"}),
        ("setting", "labels", {"a": "k=v", "b": ""}),
    ]


def test_a_pack_s_classes_are_one_row_where_the_same_nodes_have_them() -> None:
    have = {"a": inventory("x.pt", One={}, Two={}, Own={}), "b": inventory("x.pt", Three={})}
    packs = {"One": "pack", "Two": "pack", "Three": "pack"}
    rows = by_pack(differences(dict.fromkeys("ab", STATES["a"]), have), packs)
    assert [(row.kind, row.what, row.classes, dict(row.nodes)) for row in rows] == [
        ("pack", "pack", ("One", "Two"), {"a": "yes", "b": ""}),
        ("pack", "pack", ("Three",), {"a": "", "b": "yes"}),
        ("class", "Own", (), {"a": "yes", "b": ""}),
    ]
