"""The words by which a person knows a job again."""

from typing import Any

import pytest

from comfy_fleet.domain.graphs.excerpt import of_graph, of_job
from comfy_fleet.domain.graphs.reseed import editor_graph_with, reseeded
from comfy_fleet.domain.graphs.workflow import Parameter, ParameterType, Workflow
from tests.factories import picture, sampled


def with_texts(positive: object, negative: object = "ugly") -> dict[str, Any]:
    graph = sampled()
    graph = {"0": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": negative}}, **graph}
    graph["4"]["inputs"]["negative"] = ["0", 0]
    graph["3"]["inputs"]["text"] = positive
    return graph


def test_the_text_that_the_sampler_wants_counts_not_the_first_one() -> None:
    assert of_graph(with_texts("a  red\nfox")) == "a red fox"
    far = with_texts(["9", 0])
    far["9"] = {"class_type": "PrimitiveString", "inputs": {"value": "from afar"}}
    assert of_graph(far) == "from afar"


@pytest.mark.parametrize("graph", [picture(1), {"1": {"class_type": "A", "inputs": {"text": 7}}}, {}])
def test_a_graph_without_a_text_has_no_excerpt(graph: dict[str, Any]) -> None:
    assert of_graph(graph) == ""


def test_graphs_that_make_no_sense_are_looked_at_all_the_same() -> None:
    circle = {
        "1": {"class_type": "A", "inputs": {"positive": ["2", 0]}},
        "2": {"class_type": "B", "inputs": {"x": ["1", 0], "y": ["nowhere", 0], "text": "  "}},
        "3": {"class_type": "C", "inputs": {"text": "at last"}},
    }
    assert of_graph(circle) == "at last"
    assert len(of_graph({"1": {"class_type": "A", "inputs": {"text": "x" * 10**6}}})) == 120


def test_a_stored_workflows_prompt_is_the_parameter_with_that_role() -> None:
    texts = [
        Parameter(name="negative", type=ParameterType.STRING),
        Parameter(name="subject", type=ParameterType.STRING, role="prompt"),
    ]
    workflow = Workflow(name="w", graph={}, version="v", parameters=tuple(texts))
    values = {"negative": "ugly", "subject": "a fox"}
    assert of_job({}, workflow, values) == "a fox"
    assert of_job({}, workflow, {"negative": "ugly"}) == "ugly"
    assert of_job(with_texts("in the graph"), workflow, {}) == "in the graph"


def test_new_seeds_replace_seeds_alone() -> None:
    inputs = {"seed": 5, "noise_seed": 6, "steps": 5, "my_seed": True, "other_seed": ["1", 0], "seeds": 5}
    drawn = iter(range(100, 200))
    made = reseeded({"1": {"class_type": "A", "inputs": inputs}}, lambda: next(drawn))
    assert made is not None
    assert made.graph["1"]["inputs"] == {**inputs, "seed": 100, "noise_seed": 101}
    assert inputs["seed"] == 5
    assert made.seeds == {("1", "seed"): (5, 100), ("1", "noise_seed"): (6, 101)}
    assert reseeded(picture(1), lambda: 1) is None


@pytest.mark.parametrize(
    ("widgets", "expected"),
    [
        ([5, "randomize", 5, "euler"], [9, "randomize", 5, "euler"]),
        ([5, 5], [5, 5]),
        ({"seed": 5, "steps": 5}, {"seed": 9, "steps": 5}),
        (None, None),
        ([True, "fixed"], [True, "fixed"]),
    ],
)
def test_the_editors_graph_shows_the_new_seed(widgets: object, expected: object) -> None:
    nodes = [{"id": 3, "widgets_values": widgets}, {"id": 4, "widgets_values": [5, "fixed"]}, "no node"]
    made: Any = editor_graph_with({"nodes": nodes}, {("3", "seed"): (5, 9)})
    assert made["nodes"][0]["widgets_values"] == expected
    assert made["nodes"][1:] == nodes[1:]
    others: tuple[Any, ...] = (None, [], {}, {"nodes": 3})
    for other in others:
        assert editor_graph_with(other, {("3", "seed"): (5, 9)}) == other
