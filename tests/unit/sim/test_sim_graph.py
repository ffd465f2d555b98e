from collections.abc import Set as AbstractSet
from typing import Any

import pytest

from comfy_fleet.sim.graph import Schedule, cache_keys, is_link
from tests.unit.sim.graphs import Graph, node


def keys(graph: Graph) -> dict[str, str]:
    return cache_keys(graph, lambda _: "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(["1", 0], True), (["1"], False), ([1, 0], False), (["1", "0"], False), ("1", False)],
)
def test_links_are_pairs_of_an_id_and_a_number(value: Any, expected: bool) -> None:
    assert is_link(value) is expected


def test_equal_graphs_have_equal_keys_whatever_their_ids_and_titles() -> None:
    first = {"1": node("A", x=1), "2": node("B", a=["1", 0])}
    second = {"7": node("A", x=1), "9": {**node("B", a=["7", 0]), "_meta": {"title": "other"}}}
    assert list(keys(first).values()) == list(keys(second).values())


@pytest.mark.parametrize(
    "changed",
    [
        {"1": node("A", x=2), "2": node("B", a=["1", 0])},
        {"1": node("A", x=1, unknown=0), "2": node("B", a=["1", 0])},
        {"1": node("C", x=1), "2": node("B", a=["1", 0])},
        {"1": node("A", x=1), "2": node("B", a=["1", 1])},
    ],
)
def test_a_change_upstream_changes_the_key(changed: Graph) -> None:
    before = keys({"1": node("A", x=1), "2": node("B", a=["1", 0])})
    assert keys(changed)["2"] != before["2"]


def test_what_else_counts_is_part_of_the_key_downstream() -> None:
    graph = {"1": node("A"), "2": node("B", a=["1", 0])}
    assert cache_keys(graph, lambda _: "x")["2"] != cache_keys(graph, lambda _: "y")["2"]


def test_a_long_chain_and_a_wide_one_get_keys() -> None:
    chain: Graph = {"0": node("A")}
    for index in range(1, 3000):
        chain[str(index)] = node("A", a=[str(index - 1), 0], b=[str(index - 1), 0])
    assert len(set(keys(dict(reversed(chain.items()))).values())) == 3000


def order(graph: Graph, outputs: list[str], cached: AbstractSet[str] = frozenset()) -> list[str]:
    schedule = Schedule(
        graph,
        outputs,
        is_output=lambda node_id: graph[node_id]["class_type"] == "Out",
        is_coroutine=lambda node_id: graph[node_id]["class_type"] == "Sleep",
        is_cached=lambda node_id: node_id in cached,
    )
    done = []
    while (node_id := schedule.next()) is not None:
        done.append(node_id)
        schedule.done(node_id)
    return done


def test_an_output_runs_as_soon_as_it_can() -> None:
    graph = {
        "a": node("N"),
        "b": node("N", x=["a", 0]),
        "p": node("Out", x=["a", 0]),
        "s": node("Out", x=["b", 0]),
    }
    assert order(graph, ["s", "p"]) == ["a", "p", "b", "s"]


def test_coroutines_go_before_other_nodes() -> None:
    graph = {"a": node("N"), "z": node("Sleep"), "s": node("Out", x=["a", 0], y=["z", 0])}
    assert order(graph, ["s"]) == ["z", "a", "s"]


def test_cached_nodes_do_not_run_but_cached_outputs_take_part() -> None:
    graph = {"a": node("N"), "b": node("N", x=["a", 0]), "s": node("Out", x=["b", 0])}
    assert order(graph, ["s"], {"a", "b"}) == ["s"]
    assert order(graph, ["s"], {"a", "b", "s"}) == ["s"]


def test_nodes_that_no_output_needs_do_not_run() -> None:
    graph = {"a": node("N"), "lonely": node("N"), "s": node("Out", x=["a", 0])}
    assert order(graph, ["s"]) == ["a", "s"]


def test_a_cycle_ends_the_schedule() -> None:
    graph = {"a": node("N", x=["b", 0]), "b": node("N", x=["a", 0]), "s": node("Out", x=["a", 0])}
    assert order(graph, ["s"]) == []
