"""Stored workflows: selectors, titles, schema and version."""

from typing import Any

import pytest

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs import selector, title_parameters
from comfy_fleet.domain.graphs.workflow import (
    Choice,
    Parameter,
    ParameterTarget,
    ParameterType,
    Workflow,
    json_schema,
    version_of,
)


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


GRAPH = {
    "1": node("CLIPTextEncode", "Positive", text="a", clip=["9", 1]),
    "2": node("CLIPTextEncode", "Negative", text="b", clip=["9", 1]),
    "3": node("KSampler", "KSampler", seed=5, model=["4", 0], positive=["1", 0], negative=["2", 0]),
    "4": node("LoraLoader", "LoRA", lora_name="x", model=["9", 0], clip=["9", 1]),
    "9": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m"}},
}


def test_a_node_is_chosen_by_title_class_or_both() -> None:
    assert selector.select(GRAPH, title="Positive") == "1"
    assert selector.select(GRAPH, class_type="KSampler") == "3"
    assert selector.select(GRAPH, title="KSampler", class_type="KSampler") == "3"


def test_several_matches_fail_and_are_listed() -> None:
    with pytest.raises(
        ConfigError, match=r"2 nodes have class 'CLIPTextEncode': 1 .*'Positive', 2 "
    ) as caught:
        selector.select(GRAPH, class_type="CLIPTextEncode")
    assert [c["node_id"] for c in caught.value.details["candidates"]] == ["1", "2"]


def test_no_match_lists_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match="no node has title 'Prompt'; the graph has 1 CLIPTextEncode 'Positive'"
    ):
        selector.select(GRAPH, title="Prompt")


def test_a_target_must_be_an_input_with_a_value() -> None:
    assert selector.target(GRAPH, title="Positive", input_="text") == ParameterTarget(
        node_id="1", input="text"
    )
    with pytest.raises(ConfigError, match="has no input 'txt'; it has text, clip"):
        selector.target(GRAPH, title="Positive", input_="txt")
    with pytest.raises(ConfigError, match="'model' comes from node 4"):
        selector.target(GRAPH, class_type="KSampler", input_="model")


def test_a_bypass_needs_a_link_for_every_slot_that_is_read() -> None:
    assert selector.bypass(GRAPH, title="LoRA", through=["model"]).through == ("model",)
    with pytest.raises(ConfigError, match="through 'lora_name': that is not a link"):
        selector.bypass(GRAPH, title="LoRA", through=["lora_name"])
    with pytest.raises(ConfigError, match="node 1 reads its output 1"):
        selector.bypass(GRAPH, class_type="CheckpointLoaderSimple", through=[])


@pytest.mark.parametrize(
    ("title", "made", "expected"),
    [
        ("$prompt", node("CLIPTextEncode", text="a", clip=["9", 0]), [("prompt", "string", "text", "a")]),
        ("$seed", node("KSampler", seed=5, steps=8, cfg=1.5), [("seed", "seed", "seed", None)]),
        ("$seed", node("RandomNoise", noise_seed=5), [("seed", "seed", "noise_seed", None)]),
        (
            "$steps $cfg",
            node("KSampler", steps=8, cfg=1.5),
            [("steps", "integer", "steps", 8), ("cfg", "number", "cfg", 1.5)],
        ),
        ("$size.width", node("PrimitiveInt", width=64), [("size", "integer", "width", 64)]),
        (
            "$w.width $h.height",
            node("X", width=64, height=32),
            [("w", "integer", "width", 64), ("h", "integer", "height", 32)],
        ),
        ("$tiled", node("X", tiled=True, n=1), [("tiled", "boolean", "tiled", True)]),
        ("$photo", node("LoadImage", image="x.png"), [("photo", "image", "image", None)]),
        ("$clip", node("LoadVideo", file="x.mp4"), [("clip", "asset", "file", None)]),
        ("$amount", node("X", value=3, image=["9", 0]), [("amount", "integer", "value", 3)]),
        ("costs $5", node("X", a=1, b=2), []),
    ],
)
def test_titles_declare_parameters(title: str, made: dict[str, Any], expected: list[Any]) -> None:
    made["_meta"]["title"] = title
    found = title_parameters.declared({"1": made, "9": node("Y")})
    assert [(p.name, p.type, p.targets[0].input, p.default) for p in found] == expected


def test_files_of_a_title_are_required_and_nothing_else_is() -> None:
    graph = {"1": node("LoadImage", "$photo", image="x.png"), "2": node("X", "$n", n=1)}
    assert [(p.name, p.required) for p in title_parameters.declared(graph)] == [("photo", True), ("n", False)]


def test_the_same_name_at_two_places_is_one_parameter() -> None:
    graph = {"1": node("A", "$size.width $size.height", width=64, height=32), "2": node("B", "$size.w", w=1)}
    (parameter,) = title_parameters.declared(graph)
    assert [(t.node_id, t.input) for t in parameter.targets] == [("1", "width"), ("1", "height"), ("2", "w")]


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("$thing", r"could mean any of a, b; name the input: \$thing.INPUT"),
        ("$thing.c", "has no input 'c'"),
        ("$thing.link", "comes from node 9"),
        ("$Thing", "must look like"),
        ("$a and more", "'and' must look like"),
        ("$a.a.a", "has no input 'a.a'"),
    ],
)
def test_titles_that_say_nothing_clear_are_refused(title: str, message: str) -> None:
    graph = {"1": node("X", title, a=1, b=2, link=["9", 0]), "9": node("Y")}
    with pytest.raises(ConfigError, match=message):
        title_parameters.declared(graph)


def test_one_name_for_different_types_is_refused() -> None:
    with pytest.raises(ConfigError, match="'x' is declared with different types"):
        title_parameters.declared({"1": node("A", "$x", x=1), "2": node("B", "$x", x="text")})


def test_the_version_follows_content_not_spelling() -> None:
    a = {"1": node("A", x=1, y=2)}
    b = {"1": {"_meta": {"title": ""}, "inputs": {"y": 2, "x": 1}, "class_type": "A"}}
    assert version_of(a, {}) == version_of(b, {})
    assert version_of(a, {}) != version_of(a, {"title": "x"})
    assert version_of(a, {}) != version_of({"1": node("A", x=1, y=3)}, {})


def test_the_schema_says_what_binding_checks() -> None:
    parameters = (
        Parameter(
            name="prompt", type=ParameterType.STRING, required=True, min_length=1, max_length=9, format="xml"
        ),
        Parameter(name="steps", type=ParameterType.INTEGER, default=8, minimum=1, maximum=50, multiple_of=2),
        Parameter(name="seed", type=ParameterType.SEED),
        Parameter(name="tiled", type=ParameterType.BOOLEAN, default=False),
        Parameter(
            name="style",
            type=ParameterType.CHOICE,
            default="a",
            choices=(Choice(name="a", value=1, label="A!"), Choice(name="b", value=2)),
        ),
        Parameter(name="photo", type=ParameterType.IMAGE, required=True, accept=("image/*",), max_bytes=5),
    )
    schema = json_schema(Workflow(name="w", graph={}, version="v", title="T", parameters=parameters))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt", "photo"]
    properties = schema["properties"]
    assert properties["prompt"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 9,
        "contentMediaType": "application/xml",
    }
    assert properties["steps"] == {
        "type": "integer",
        "default": 8,
        "minimum": 1,
        "maximum": 50,
        "multipleOf": 2,
    }
    assert properties["seed"]["minimum"] == -1
    assert properties["tiled"] == {"type": "boolean", "default": False}
    assert properties["style"]["enum"] == ["a", "b"]
    assert properties["style"]["oneOf"] == [{"const": "a", "title": "A!"}, {"const": "b", "title": "b"}]
    assert properties["photo"]["x-fleet-accept"] == ["image/*"]


def test_a_role_finds_a_parameter_under_another_name() -> None:
    parameters = (
        Parameter(name="avoid", type=ParameterType.STRING, role="negative_prompt"),
        Parameter(name="prompt", type=ParameterType.STRING),
    )
    workflow = Workflow(name="w", graph={}, version="v", parameters=parameters)
    assert workflow.name_for("negative_prompt") == "avoid"
    assert workflow.name_for("prompt") == "prompt"
    assert workflow.name_for("seed") == "seed"
