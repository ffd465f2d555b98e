"""Which parts of a graph no node has together."""

import pytest

from comfy_fleet.domain.nodes.no_common_node import GraphPart, apart, told, with_inputs


def lacking(**by_node: str) -> dict[str, list[GraphPart]]:
    return {
        node: [GraphPart(node_id=what, class_type="C", field="f", what=what) for what in whats]
        for node, whats in by_node.items()
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lacking(g1="b", g5="a"), "no GPU has both b (g5) and a (g1)"),
        (lacking(g1="b", g2="b", g5="a"), "no GPU has both b (g5) and a (g1, g2)"),
        (lacking(g1="ab", g2="bc", g3="ca"), "no GPU has both a (g2) and b (g3)"),
        (lacking(g1="bc", g2="ac", g3="ab", g4="c"), "no GPU has both c (g3) and b (g2, g4)"),
        (
            lacking(g1="a", g2="b", g3="c"),
            "no GPU has all of a (g2, g3), b (g1, g3) and c (g1, g2)",
        ),
        (
            lacking(g1="a", **{f"h{i}": "b" for i in range(5)}),
            "no GPU has both b (g1) and a (h0, h1, h2 and 2 more)",
        ),
    ],
)
def test_as_few_things_as_possible_are_named(found: dict[str, list[GraphPart]], words: str) -> None:
    assert told(found, apart(found)) == words


def test_what_every_node_lacks_is_no_question_of_nodes() -> None:
    assert apart(lacking(g1="ab", g2="a")) == []
    assert apart(lacking(g1="a")) == []


def part(node_id: str, what: str, field: str = "") -> GraphPart:
    return GraphPart(node_id=node_id, class_type="C", field=field, what=what)


def test_a_node_without_a_class_takes_none_of_its_inputs() -> None:
    wrong, small = part("1", "width is not between 1 and 8", "width"), part("", "8 GB")
    lacks, other = part("1", "the class `C`"), part("2", "`y` is not one of x", "name")
    found = with_inputs({"g1": [wrong, other], "g5": [lacks, small]})
    assert found == {"g1": [wrong, other], "g5": [lacks, small, wrong]}
    assert apart({"g1": [wrong], "g5": [lacks, wrong]}) == []
    assert apart(found) == []
