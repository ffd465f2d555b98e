"""Binding: values into graphs, and every way in which a value can be wrong."""

import copy
import json
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs import xml_text
from comfy_fleet.domain.graphs.binding import Bound, bind, check_file
from comfy_fleet.domain.graphs.workflow import (
    Bypass,
    Choice,
    Effect,
    Parameter,
    ParameterTarget,
    ParameterType,
    TargetForm,
    Workflow,
)

GRAPH: dict[str, Any] = {
    "1": {"class_type": "Loader", "inputs": {"name": "m"}},
    "2": {"class_type": "Lora", "inputs": {"model": ["1", 0], "strength": 1.0}},
    "3": {
        "class_type": "Sampler",
        "inputs": {
            "model": ["2", 0],
            "seed": 7,
            "steps": 20,
            "cfg": 4.0,
            "text": "old",
            "tiled": False,
            "kept": [1, {}],
        },
        "_meta": {"title": "Sampler"},
    },
    "4": {"class_type": "LoadImage", "inputs": {"image": "artist.png"}},
}
UUID = "0b8ee9c4-1d1f-4f6a-9d3f-0123456789ab"


def target(input_: str, node_id: str = "3", form: TargetForm = TargetForm.VALUE) -> ParameterTarget:
    return ParameterTarget(node_id=node_id, input=input_, form=form)


def parameter(name: str, type_: str, **fields: Any) -> Parameter:
    return Parameter(**{"name": name, "type": ParameterType(type_), "targets": (target(name),), **fields})


def workflow(*parameters: Parameter) -> Workflow:
    return Workflow(name="w", graph=copy.deepcopy(GRAPH), version="v", parameters=parameters)


def put(
    value: Any, *parameters: Parameter, name: str | None = None, draw: Callable[[], int] = lambda: 11
) -> Bound:
    flow = workflow(*parameters)
    bound = bind(flow, {name or parameters[0].name: value}, draw_seed=draw)
    assert flow.graph == GRAPH, "the stored graph must never change"
    return bound


def refused(value: Any, *parameters: Parameter, name: str | None = None) -> dict[str, Any]:
    with pytest.raises(InvalidParameter) as caught:
        put(value, *parameters, name=name)
    details = caught.value.details
    assert details["errors"][0]["message"]
    json.dumps(details, allow_nan=False).encode()
    return details


def test_values_go_into_their_targets_and_nowhere_else() -> None:
    bound = put("new", parameter("text", "string"))
    assert bound.graph["3"]["inputs"] == {**GRAPH["3"]["inputs"], "text": "new"}
    assert {k: v for k, v in bound.graph.items() if k != "3"} == {k: v for k, v in GRAPH.items() if k != "3"}
    assert bound.graph["3"]["_meta"] == {"title": "Sampler"}
    bound.graph["3"]["inputs"]["kept"][1]["x"] = 1
    assert GRAPH["3"]["inputs"]["kept"] == [1, {}]


def test_one_parameter_may_have_several_targets_and_forms() -> None:
    both = parameter("text", "string", targets=(target("text"), target("seed", form=TargetForm.HASH)))
    first, second = put("a fox", both), put("a cat", both)
    assert first.graph["3"]["inputs"]["text"] == "a fox"
    assert first.graph["3"]["inputs"]["seed"] == put("a fox", both).graph["3"]["inputs"]["seed"]
    assert first.graph["3"]["inputs"]["seed"] != second.graph["3"]["inputs"]["seed"]
    assert 0 <= first.graph["3"]["inputs"]["seed"] < 2**32


def test_defaults_are_used_and_reported_and_absence_leaves_the_graph_alone() -> None:
    flow = workflow(parameter("steps", "integer", default=8), parameter("text", "string"))
    bound = bind(flow, {"text": None}, draw_seed=lambda: 0)
    assert bound.values == {"steps": 8}
    assert bound.graph["3"]["inputs"]["steps"] == 8
    assert bound.graph["3"]["inputs"]["text"] == "old"


@pytest.mark.parametrize("given_", [{}, {"seed": None}, {"seed": -1}, {"seed": -1.0}])
def test_a_seed_is_drawn_and_reported(given_: dict[str, Any]) -> None:
    bound = bind(workflow(parameter("seed", "seed")), given_, draw_seed=lambda: 2**53)
    assert bound.values == {"seed": 2**53}
    assert bound.graph["3"]["inputs"]["seed"] == 2**53


def test_a_drawn_seed_keeps_to_the_limits_and_a_given_one_must() -> None:
    small = parameter("seed", "seed", minimum=1, maximum=10)
    assert bind(workflow(small), {}, draw_seed=lambda: 27).values == {"seed": 8}
    assert put(10, small).values == {"seed": 10}
    assert refused(11, small)["limit"] == [1, 10]
    assert refused(2**64, parameter("seed", "seed"))["limit"] == [0, 2**64 - 1]
    assert put(2**64 - 1, parameter("seed", "seed")).values == {"seed": 2**64 - 1}


@pytest.mark.parametrize(("value", "used"), [(3, 3), (3.0, 3), (-2, -2)])
def test_integers_take_whole_numbers(value: Any, used: int) -> None:
    bound = put(value, parameter("steps", "integer"))
    assert bound.values["steps"] == used
    assert type(bound.graph["3"]["inputs"]["steps"]) is int


@pytest.mark.parametrize(
    "value", [True, "3", 3.5, [3], {}, float("nan"), float("inf"), 10**30, -(10**30), "x" * 500]
)
def test_integers_take_nothing_else(value: Any) -> None:
    assert refused(value, parameter("steps", "integer"))["parameter"] == "steps"


@pytest.mark.parametrize("value", [True, "1.5", [], float("nan"), float("-inf")])
def test_numbers_are_finite_numbers(value: Any) -> None:
    assert refused(value, parameter("cfg", "number"))["parameter"] == "cfg"


def test_limits_are_named() -> None:
    steps = parameter("steps", "integer", minimum=4, maximum=20, multiple_of=4)
    for value in (4, 16, 20):
        assert put(value, steps).values == {"steps": value}
    for value, limit in ((3, 4), (21, 20), (10, 4)):
        details = refused(value, steps)
        assert (details["parameter"], details["value"], details["limit"]) == ("steps", value, limit)
    tenth = parameter("cfg", "number", multiple_of=0.1)
    assert put(0.3, tenth).values == {"cfg": 0.3}
    refused(0.35, tenth)


@pytest.mark.parametrize("value", [1, 0, "true", [], 1.0])
def test_booleans_are_true_or_false(value: Any) -> None:
    assert refused(value, parameter("tiled", "boolean"))["limit"] == "boolean"
    assert put(True, parameter("tiled", "boolean")).graph["3"]["inputs"]["tiled"] is True


@pytest.mark.parametrize("value", [5, True, [], {}, "a\0b", "\ud800"])
def test_texts_are_texts(value: Any) -> None:
    refused(value, parameter("text", "string"))


def test_texts_have_lengths() -> None:
    text = parameter("text", "string", required=True, min_length=1, max_length=5)
    for empty in ("", "  \n"):
        assert refused(empty, text)["limit"] == 1
    assert refused("123456", text)["limit"] == 5
    assert refused(None, text)["limit"] == "required"
    assert refused("x" * 100_001, parameter("text", "string"))["limit"] == 100_000
    assert put("12345", text).values == {"text": "12345"}
    assert put(" ok ", text).values == {"text": " ok "}


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    known = parameter("steps", "integer"), parameter("text", "string")
    details = refused(1, *known, name="step")
    assert (details["parameter"], details["limit"]) == ("step", ["steps"])
    assert refused(1, *known, name="colour")["limit"] == ["steps", "text"]


def test_a_long_number_is_told_by_its_size() -> None:
    assert refused(10**30, parameter("steps", "integer"))["value"] == "a number of 100 bits"
    assert refused(float("inf"), parameter("cfg", "number"))["value"] == "inf"


def test_all_problems_come_at_once() -> None:
    flow = workflow(parameter("steps", "integer"), parameter("cfg", "number", required=True))
    with pytest.raises(InvalidParameter) as caught:
        bind(flow, {"steps": "x", "foo": 1}, draw_seed=lambda: 0)
    assert [e["parameter"] for e in caught.value.details["errors"]] == ["foo", "steps", "cfg"]
    with pytest.raises(InvalidParameter) as caught:
        bind(flow, {f"x{n}": 1 for n in range(9)}, draw_seed=lambda: 0)
    assert len(caught.value.details["errors"]) == 10
    assert str(caught.value).count("; it takes") == 5  # a sentence that can still be read


@pytest.mark.parametrize("value", [UUID, {"__type": "core/ASSET", "info": {"id": UUID, "hash": "x"}}])
def test_an_assets_id_goes_in_as_a_reference(value: Any) -> None:
    photo = parameter("photo", "image", targets=(target("image", "4"),), required=True)
    bound = put(value, photo)
    assert bound.graph["4"]["inputs"]["image"] == {"__type": "core/ASSET", "info": {"id": UUID}}
    assert bound.assets == bound.values == {"photo": UUID}


def test_an_uploads_name_goes_in_as_it_is() -> None:
    photo = parameter("photo", "image", targets=(target("image", "4"),), required=True)
    bound = put("me.png", photo)
    assert bound.graph["4"]["inputs"]["image"] == "me.png"
    assert bound.assets == {"photo": "me.png"}
    for value in (5, "", {}, {"__type": "core/ASSET"}, {"__type": "core/ASSET", "info": []}, "x" * 2000):
        refused(value, photo)


def test_files_are_checked_by_type_and_size() -> None:
    photo = parameter("photo", "image", accept=("image/png", "video/*"), max_bytes=10)
    check_file(photo, content_type="image/PNG; q=1", size_bytes=10)
    check_file(photo, content_type="video/mp4", size_bytes=1)
    with pytest.raises(InvalidParameter, match="takes image/png or video") as caught:
        check_file(photo, content_type="image/svg+xml", size_bytes=1)
    assert caught.value.details["parameter"] == "photo"
    with pytest.raises(InvalidParameter, match="takes image/png"):
        check_file(photo, content_type="image/pnm", size_bytes=1)
    with pytest.raises(InvalidParameter, match="at most 10 bytes"):
        check_file(photo, content_type="image/png", size_bytes=11)


STYLE = parameter(
    "style",
    "choice",
    targets=(target("cfg"),),
    default="plain",
    choices=(
        Choice(name="plain", value=1.5),
        Choice(
            name="toon",
            value=2.5,
            effect=Effect(wrap={"text": "cartoon of {}, bright"}, set=((target("steps"), 30),)),
        ),
        Choice(name="bare", value=3.5, effect=Effect(bypass=(Bypass(node_id="2", through=("model",)),))),
    ),
)


def test_a_choice_sets_its_value_and_does_what_it_says() -> None:
    text, steps = parameter("text", "string", default="x"), parameter("steps", "integer", default=5)
    assert put("plain", STYLE, text, steps).graph["3"]["inputs"]["cfg"] == 1.5
    toon = bind(workflow(STYLE, text, steps), {"style": "toon", "text": "a {} fox"}, draw_seed=lambda: 0)
    assert toon.graph["3"]["inputs"]["text"] == "cartoon of a {} fox, bright"
    assert toon.graph["3"]["inputs"]["steps"] == 30
    assert toon.values == {"style": "toon", "text": "a {} fox", "steps": 5}
    for value in ("nope", 1.5, ["toon"], True):
        assert refused(value, STYLE)["limit"] == ["plain", "toon", "bare"]


@pytest.mark.parametrize(
    ("wrap", "text"),
    [("{}", "a {} fox"), ("fixed", "fixed"), ("{}, like {}", "a {} fox, like {}")],
)
def test_a_text_goes_into_the_first_hole_and_is_dropped_without_one(wrap: str, text: str) -> None:
    on = parameter("tiled", "boolean", default=True, on=Effect(wrap={"text": wrap}))
    bound = bind(workflow(on, parameter("text", "string")), {"text": "a {} fox"}, draw_seed=lambda: 0)
    assert bound.graph["3"]["inputs"]["text"] == text


def test_a_bypassed_node_is_gone_and_its_readers_get_its_input() -> None:
    bound = put("bare", STYLE)
    assert "2" not in bound.graph
    assert bound.graph["3"]["inputs"]["model"] == ["1", 0]


def test_neighbours_may_both_be_bypassed_in_any_order() -> None:
    graph = {
        "1": {"class_type": "A", "inputs": {}},
        "2": {"class_type": "B", "inputs": {"x": ["1", 3]}},
        "3": {"class_type": "B", "inputs": {"x": ["2", 0]}},
        "4": {"class_type": "C", "inputs": {"x": ["3", 0]}},
    }
    for order in (("2", "3"), ("3", "2"), ("2", "3", "2")):
        off = Effect(bypass=tuple(Bypass(node_id=node_id, through=("x",)) for node_id in order))
        flow = Workflow(
            name="w", graph=graph, version="v", parameters=(parameter("on", "boolean", targets=(), off=off),)
        )
        assert bind(flow, {"on": False}, draw_seed=lambda: 0).graph["4"]["inputs"] == {"x": ["1", 3]}
        assert bind(flow, {"on": True}, draw_seed=lambda: 0).graph == graph


@pytest.mark.parametrize(
    "text",
    [
        "<a>x</a>",
        "<a/>",
        "<a>1 &lt; 2 &amp; &#65;</a>\n\ntext <b c='d'>y</b>",
        "<character_1>\n<n>$character_1$</n>\n</character_1>",
        "<a><![CDATA[ <x> ]]></a>",
        "<a>ä😀</a>",
    ],
)
def test_xml_that_is_fine(text: str) -> None:
    assert xml_text.defect(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("just words", "no element"),
        ("<a>x", "mismatched tag"),
        ("<a>x</b>", "mismatched tag"),
        ("</fragment><fragment>", "junk after document element"),
        ("<a/></fragment><!DOCTYPE x><fragment>", "DOCTYPE"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><a>&a;</a>", "DOCTYPE"),
        ("<a>&lol;</a>", "undefined entity"),
        ("<a>&#0;</a>", "reference to invalid character"),
        ("<?xml version='1.0'?><a/>", "line 1"),
        ("<a><?php x?></a>", "processing instruction"),
        ("<a>1 < 2</a>", "line 1"),
        ("<a>x &</a>", "line 1"),
        ("\n\n<a>\n</b>", "line 4"),
        ("<a>\x01</a>", "invalid token"),
        ("<a>" * 101 + "</a>" * 101, "deeper than 100 levels"),
        ("<a>" * 14_000 + "</a>" * 14_000, "deeper than 100 levels"),
        ("<a>" * 33_000, "mismatched tag"),
    ],
    ids=lambda value: value[:20],
)
def test_xml_that_is_not(text: str, why: str) -> None:
    assert why in (xml_text.defect(text) or "")
    xml = parameter("text", "string", format="xml")
    assert refused(text, xml)["limit"] == "xml"


@given(st.text(alphabet="<>/&;!?[]ab 'x\n", max_size=60))
def test_any_text_is_answered_and_what_is_taken_can_be_read(text: str) -> None:
    why = xml_text.defect(text)
    if why is None:
        assert len(ElementTree.fromstring(f"<all>{text}</all>")) > 0
    else:
        assert why
