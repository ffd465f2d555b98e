"""Whose editor a person gets, and what nodes list about their extensions."""

import pytest

from comfy_fleet.domain.nodes.editor_choice import editor_order, may_serve
from comfy_fleet.domain.nodes.extension_lists import lacking, listed, package_of, scripts
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading


def node(
    name: str, comfyui: str = "0.3.64", *, verdict: str = "up", editor: bool | None = None, sim: bool = False
) -> NodeState:
    cordoned = verdict == "drain"
    made = Node(name=name, url=f"http://{name}:8188", editor=editor, simulated=sim, cordoned=cordoned)
    return NodeState(node=made, verdict=verdict, reading=Reading(comfyui=comfyui))


def names(*states: NodeState, kept: str | None = None) -> list[str]:
    return [state.node.name for state in editor_order(states, kept)]


def test_the_newest_comfyui_goes_first_then_the_first_name() -> None:
    states = (node("c", "0.33.0"), node("a", "0.4.1"), node("b", "0.33.0"), node("d", ""))
    assert names(*states) == names(*reversed(states)) == ["b", "c", "a", "d"]


def test_a_node_that_is_named_for_the_editor_goes_before_newer_ones() -> None:
    states = (node("a", "0.33.0"), node("b", editor=True), node("c", "0.3.65", editor=True))
    assert names(*states) == ["c", "b", "a"]


def test_what_a_person_has_is_kept_as_long_as_it_answers() -> None:
    states = (node("a", "0.33.0", editor=True), node("b"), node("c", verdict="down"))
    assert names(*states, kept="b") == ["b", "a"]
    assert names(*states, kept="c") == names(*states, kept="gone") == ["a", "b"]


def test_a_drained_node_serves_and_others_that_may_not_never_do() -> None:
    drained, never, sim = node("a", verdict="drain"), node("b", editor=False), node("c", sim=True)
    told = node("d", "sim-0.33.0", editor=True)
    assert names(drained, never, sim, told, node("e", verdict="new"), kept="b") == ["a", "e"]
    assert [may_serve(one) for one in (drained, never, sim, told)] == [True, False, False, False]


def test_scripts_of_packages_that_only_others_have_are_added() -> None:
    found = scripts(
        [
            ("new", ["/extensions/core/a.js", "/extensions/Pack%20A/a.js", "/extensions/Pack%20A/a.js"]),
            ("old", ["/extensions/core/old.js", "/extensions/Pack A/old.js", "/extensions/b/b.js"]),
            ("third", ["/extensions/b/other.js"]),
        ]
    )
    assert listed(found) == ["/extensions/core/a.js", "/extensions/Pack%20A/a.js", "/extensions/b/b.js"]
    assert lacking(found, "new") == {"b": ["old", "third"]}
    assert lacking(found, "old") == {}
    assert lacking(found, "third") == {"Pack A": ["new", "old"]}


@pytest.mark.parametrize(
    "answer",
    [None, {}, "x", [1, None, [], {}], ["/etc/passwd", "/extensions/", "/extensions/x", "//evil/x.js"],
     ["/extensions/comfy_fleet/publish.js"], ["/extensions/a/" + "x" * 1000], ["https://evil/extensions/a/b.js"]],
)  # fmt: skip
def test_what_makes_no_sense_is_left_out(answer: object) -> None:
    assert listed(scripts([("n", answer)])) == []


def test_a_node_lists_at_most_ten_thousand_scripts() -> None:
    answer = [f"/extensions/p/{number}.js" for number in range(20_000)]
    assert len(listed(scripts([("n", answer)]))) == 10_000


@pytest.mark.parametrize(
    ("path", "package"),
    [("/extensions/a/b.js", "a"), ("/extensions/Pack%20A/js/b.js", "Pack A"), ("/extensions/a", ""),
     ("/extensions/a/", ""), ("/scripts/a/b.js", "")],
)  # fmt: skip
def test_a_path_belongs_to_a_package(path: str, package: str) -> None:
    assert package_of(path) == package
