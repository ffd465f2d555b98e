"""What App mode marks, in the forms that editors have written it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.graphs.app_mode import MAX_MARKED, marked_inputs
from comfy_fleet.domain.graphs.stored import MarkedInput

ID = "f2e1c6f0-96f1-4c5c-a5e6-2b4d3f7a8b9c"
SUB = "0a1b2c3d-0000-4000-8000-123456789abc"
GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "model": ["4", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "12:1": {"class_type": "CLIPTextEncode", "inputs": {"text": "in"}},
    "12:2": {"class_type": "CLIPTextEncode", "inputs": {"text": "in"}},
    "12:5:8": {"class_type": "KSampler", "inputs": {"seed": 5}},
    "13:1": {"class_type": "CLIPTextEncode", "inputs": {"text": "other"}},
}


def ui(*marks: Any, **more: Any) -> dict[str, Any]:
    inner = "9a1b2c3d-0000-4000-8000-123456789abc"
    text = {"name": "text", "widget": {"name": "text"}}
    return {
        "id": ID,
        "nodes": [
            {"id": 3, "type": "KSampler"},
            {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "text", "label": "Motif"}]},
            {"id": 7, "type": "CLIPTextEncode"},
            {"id": 12, "type": SUB},
            {"id": 13, "type": "b" + SUB[1:], "properties": {"proxyWidgets": [["1", "text"]]}},
            {"id": 20, "type": "PrimitiveNode", "outputs": [{"links": [4, 5]}]},
        ],
        "links": [
            [4, 20, 0, 3, 0, "INT"],
            [5, 99, 0, 3, 0, "INT"],
        ],
        "definitions": {
            "subgraphs": [
                {
                    "id": SUB,
                    "inputs": [{"name": "style"}, {"name": "seed"}],
                    "nodes": [
                        {"id": 1, "type": "CLIPTextEncode", "inputs": [{"name": "clip"}, text]},
                        {"id": 2, "type": "CLIPTextEncode", "inputs": [text]},
                        {"id": 5, "type": inner, "inputs": [{"name": "inner_seed"}]},
                    ],
                    "links": [
                        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 1},
                        {"id": 2, "origin_id": -10, "origin_slot": 0, "target_id": 2, "target_slot": 0},
                        {"id": 3, "origin_id": -10, "origin_slot": 1, "target_id": 5, "target_slot": 0},
                    ],
                },
                {
                    "id": inner,
                    "inputs": [{"name": "inner_seed"}],
                    "nodes": [{"id": 8, "type": "KSampler", "inputs": [{"name": "seed"}]}],
                    "links": [[1, -10, 0, 8, 0, "INT"]],
                },
                {"id": "b" + SUB[1:], "inputs": [], "nodes": [{"id": 1, "type": "CLIPTextEncode"}]},
            ]
        },
        "extra": {"linearData": {"inputs": list(marks), "outputs": [9]}},
        **more,
    }


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ([f"{ID}:3:steps", "steps"], MarkedInput(name="steps", targets=(("3", "steps"),))),
        ([f"{ID}:6:text", "text", {"height": 3}], MarkedInput(name="Motif", targets=(("6", "text"),))),
        (
            [f"{ID}:3:steps", "steps", {"description": "How long"}],
            MarkedInput(name="steps", targets=(("3", "steps"),), description="How long"),
        ),
        ([3, "seed"], MarkedInput(name="seed", targets=(("3", "seed"),))),
        (["3", "seed"], MarkedInput(name="seed", targets=(("3", "seed"),))),
        ([f"{ID}:3:seed%231", "seed"], MarkedInput(name="seed", targets=(("3", "seed"),))),
        (
            [f"{ID}:12:style", "style"],
            MarkedInput(name="style", targets=(("12:1", "text"), ("12:2", "text"))),
        ),
        ([f"{ID}:12:seed", "seed"], MarkedInput(name="seed", targets=(("12:5:8", "seed"),))),
        ([f"{ID}:13:text", "text"], MarkedInput(name="text", targets=(("13:1", "text"),))),
        ([f"{SUB}:2", "text"], MarkedInput(name="text", targets=(("12:2", "text"),))),
        (["12:5:8", "seed"], MarkedInput(name="seed", targets=(("12:5:8", "seed"),))),
        ([2, "text"], MarkedInput(name="text", targets=(("12:2", "text"),))),
    ],
)
def test_each_form_is_found(mark: Any, expected: MarkedInput) -> None:
    assert marked_inputs(ui(mark), GRAPH) == (expected,)


def test_a_primitive_sets_what_it_is_linked_to() -> None:
    graph = ui([20, "value"])
    graph["nodes"][0]["inputs"] = [{"name": "steps"}]
    assert marked_inputs(graph, GRAPH) == (MarkedInput(name="value", targets=(("3", "steps"),)),)


@pytest.mark.parametrize(
    "mark",
    [
        [f"{ID}:7:text", "text"],  # a link sets it
        [f"{ID}:3:nothing", "nothing"],
        [f"{ID}:99:text", "text"],
        [99, "text"],
        [1, "text"],  # of two subgraphs
        ["77:1", "text"],
        [True, "text"],
        [None, "text"],
        [3],
        "3",
        {"3": "seed"},
        [3, 4],
    ],
)
def test_what_is_not_there_is_no_mark(mark: Any) -> None:
    assert marked_inputs(ui(mark), GRAPH) == ()


def test_each_input_is_marked_once_and_not_too_many_are() -> None:
    assert len(marked_inputs(ui([3, "seed"], ["3", "seed"], [f"{ID}:3:seed", "seed"]), GRAPH)) == 1
    many = [["3", f"i{number}"] for number in range(MAX_MARKED + 50)]
    graph = {"3": {"class_type": "X", "inputs": {name: 1 for _, name in many}}}
    assert len(marked_inputs(ui(*many), graph)) == MAX_MARKED


@pytest.mark.parametrize("extra", [None, 5, {}, {"linearData": 1}, {"linearData": {"inputs": {}}}])
def test_without_marks_there_are_none(extra: Any) -> None:
    assert marked_inputs(ui(extra=extra), GRAPH) == ()
    assert marked_inputs(None, GRAPH) == ()


def test_subgraphs_in_themselves_end() -> None:
    inner = {
        "id": SUB,
        "inputs": [{"name": "x"}],
        "nodes": [{"id": n, "type": SUB, "inputs": [{"name": "x"}]} for n in range(30)],
        "links": [[n, -10, 0, n, 0, "INT"] for n in range(30)],
    }
    graph = {
        "nodes": [{"id": n, "type": SUB} for n in range(30)],
        "definitions": {"subgraphs": [inner]},
        "extra": {"linearData": {"inputs": [[f"{ID}:{n}:x", "x"] for n in range(30)] + [[f"{SUB}:3", "x"]]}},
    }
    assert marked_inputs(graph, GRAPH) == ()


nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([SUB, "3", "text", -10]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                ["id", "type", "nodes", "links", "inputs", "name", "origin_id", "properties", "proxyWidgets"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(nonsense, nonsense, nonsense, nonsense)
def test_nonsense_marks_nothing_that_is_not_there(nodes: Any, links: Any, subgraphs: Any, marks: Any) -> None:
    graph = {
        "nodes": nodes,
        "links": links,
        "definitions": {"subgraphs": subgraphs},
        "extra": {"linearData": {"inputs": marks}},
    }
    for one in marked_inputs(graph, GRAPH):
        assert all(isinstance(GRAPH[node]["inputs"][name], str | int) for node, name in one.targets)
