"""Signatures of graphs that the editors of both versions saved and ran.

Some are plain, some have a promoted seed inside a subgraph; the seed was drawn anew after the run.
"""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.editor_graph import MAX_EDITOR_LINKS, MAX_EDITOR_NODES, signature

GRAPHS: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "editor_graphs.json.gz").read_bytes())
)
VERSIONS = ("0.3.64", "0.33.0")


def changed(graph: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(graph), **changes}


def node(graph: dict[str, Any], type_: str) -> dict[str, Any]:
    levels = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
    found: dict[str, Any] = next(one for level in levels for one in level["nodes"] if one["type"] == type_)
    return found


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_what_is_saved_before_a_run_and_after_it_is_what_ran(name: str) -> None:
    found = GRAPHS[name]
    assert found["saved"] != found["saved_after"]  # a seed was drawn in between, or a node has moved
    assert len({signature(found[each]) for each in ("saved", "run", "saved_after")}) == 1


def test_the_recorded_graphs_differ_from_each_other_but_for_the_same_one_of_both_versions() -> None:
    plain = {signature(GRAPHS[f"plain {version}"]["saved"]) for version in VERSIONS}
    assert len(plain) == 1
    others = {signature(GRAPHS[f"subgraph {version}"]["saved"]) for version in VERSIONS}  # each has an id
    assert len(plain | others) == 3


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_how_a_graph_looks_does_not_count(name: str) -> None:
    saved = GRAPHS[name]["saved"]
    looks = changed(saved, groups=[{"title": "x"}], extra={"ds": {"scale": 9}}, revision=7, id="other")
    looks["nodes"].reverse()
    looks["links"].reverse()
    for number, one in enumerate(looks["nodes"]):
        one.update(
            pos=[number, 1], size=[9, 9], color="#fff", bgcolor="#000", flags={"collapsed": True}, order=9
        )
        one["properties"] = {"ver": "9.9"}
    node(looks, "Note")["widgets_values"] = ["another comment"]
    assert signature(looks) == signature(saved)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_ids_of_links_do_not_count_and_neither_does_the_form_of_a_link(name: str) -> None:
    saved = GRAPHS[name]["saved"]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    objects = [{**dict(zip(names, link, strict=True)), "id": link[0] + 100} for link in saved["links"]]
    assert signature(changed(saved, links=objects)) == signature(saved)


@pytest.mark.parametrize("name", sorted(GRAPHS))
@pytest.mark.parametrize("change", ["value", "mode", "type", "title", "id", "link", "gone", "fixed"])
def test_what_a_graph_does_counts(name: str, change: str) -> None:
    saved = GRAPHS[name]["saved"]
    other = copy.deepcopy(saved)
    image = node(other, "SaveImage")
    match change:
        case "value":
            image["widgets_values"] = ["elsewhere"]
        case "mode":
            image["mode"] = 4
        case "type":
            image["type"] = "PreviewImage"
        case "title":
            image["title"] = "$name.filename_prefix"
        case "id":
            image["id"] = 99
        case "link":
            other["links"].pop()
        case "gone":
            other["nodes"].remove(image)
        case _:
            node(other, "PrimitiveInt")["widgets_values"][1] = "fixed"
    assert signature(other) != signature(saved)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_inside_a_subgraph_counts_and_an_unused_one_does_not(version: str) -> None:
    saved = GRAPHS[f"subgraph {version}"]["saved"]
    inside = copy.deepcopy(saved)
    node(inside, "EmptyImage")["widgets_values"][1] = 128
    assert signature(inside) != signature(saved)
    unused = copy.deepcopy(saved)
    first = unused["definitions"]["subgraphs"][0]
    unused["definitions"]["subgraphs"].append({**first, "id": "unused"})
    assert signature(unused) == signature(saved)


def test_a_moved_value_does_not_count_and_a_fixed_one_does() -> None:
    def sampler(*values: Any, **more: Any) -> str:
        made = {"id": 1, "type": "KSampler", "widgets_values": list(values), **more}
        return signature({"nodes": [made], "links": []})

    assert sampler(1, "randomize", 20) == sampler(2, "randomize", 20)
    assert sampler(1, "increment", 20) == sampler(2, "increment", 20)
    assert sampler(1, "fixed", 20) != sampler(2, "fixed", 20)
    assert sampler(1, "randomize", 20) != sampler(1, "randomize", 21)
    # A text before such a word is no seed, unless the editor says so, or it is a primitive's choice.
    assert sampler("a", "randomize") != sampler("b", "randomize")
    named = [{"name": value, "control_after_generate": "randomize"} for value in "ab"]
    assert sampler("a", "randomize", widgets_values_named=named[0]) == sampler(
        "b", "randomize", widgets_values_named=named[1]
    )
    # A number before it is none if the editor gives the word another name.
    assert sampler(1, "randomize", widgets_values_named={"a": 1, "order": "randomize"}) != sampler(
        2, "randomize", widgets_values_named={"a": 2, "order": "randomize"}
    )
    primitive = [
        signature({"nodes": [{"id": 1, "type": "PrimitiveNode", "widgets_values": [value, "increment", ""]}]})
        for value in ("euler", "heun")
    ]
    assert primitive[0] == primitive[1]


def test_values_by_name_count_but_for_a_moved_seed() -> None:
    def named(**values: Any) -> str:
        return signature({"nodes": [{"id": 1, "type": "X", "widgets_values": values}]})

    assert named(seed=1, control_after_generate="randomize", a=1) == named(
        seed=2, control_after_generate="randomize", a=1
    )
    assert named(seed=1, a=1) != named(seed=2, a=1)


DEEP: Any = []
for _ in range(20_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (None, "no list of nodes"),
        ([], "no list of nodes"),
        ({}, "no list of nodes"),
        ({"nodes": {}}, "no list of nodes"),
        ({"1": {"class_type": "A", "inputs": {}}}, "no list of nodes"),
        ({"nodes": [1]}, "a node without an id"),
        ({"nodes": [{"id": True}]}, "a node without an id"),
        ({"nodes": [{"id": {}}]}, "a node without an id"),
        ({"nodes": [], "links": {"a": 1}}, "links that are no list"),
        ({"nodes": [], "definitions": {"subgraphs": {"a": 1}}}, "subgraphs that are no list"),
        ({"nodes": [], "definitions": {"subgraphs": [{"nodes": []}]}}, "a subgraph without an id"),
        ({"nodes": [], "definitions": {"subgraphs": [{"id": "a"}]}}, "a subgraph without a list of nodes"),
        ({"nodes": [{"id": 1}] * (MAX_EDITOR_NODES + 1)}, "at most"),
        ({"nodes": [], "links": [0] * (MAX_EDITOR_LINKS + 1)}, "at most"),
        ({"nodes": [{"id": 1, "type": "A", "widgets_values": [DEEP]}]}, "nested too deeply"),
    ],
)
def test_what_is_no_graph_of_the_editors_is_refused(graph: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        signature(graph)


def test_odd_parts_are_read_without_complaint() -> None:
    slots = [{"name": "a", "linkIds": {}}, {"name": "b", "linkIds": [{}, 1]}, 7]
    inner = {"id": 1, "type": "s", "inputs": [{"widget": 3, "link": 1}, 3], "widgets_values": [1]}
    signature({"nodes": [], "definitions": True})
    signature(
        {
            "nodes": [
                {"id": 1, "type": ["s"], "inputs": 3, "outputs": 4, "mode": {}, "title": 7},
                {"id": "1", "type": "s", "widgets_values": "x", "widgets_values_named": 3},
            ],
            "links": [None, [1], [1, 2, 3, 4, {}, 6], {"origin_id": 1}, [1, {}, 0, [], -1]],
            "definitions": {"subgraphs": [{"id": "s", "nodes": [inner], "inputs": slots, "links": None}]},
        }
    )
