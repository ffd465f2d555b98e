"""What differs between versions, and which of it breaks callers."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from comfy_fleet.adapters.workflows.manifest import resolve
from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs.binding import check_file, check_value
from comfy_fleet.domain.graphs.breaking_changes import breaking_changes
from comfy_fleet.domain.graphs.workflow import FILES, Choice, Parameter, ParameterType, Workflow
from comfy_fleet.domain.graphs.workflow_diff import MAX_DIFFERENCES, DifferenceKind, differences, matched

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "model": ["4", 0], "text": ["6", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}, "_meta": {"title": "Load"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}, "_meta": {"title": "$prompt"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}, "_meta": {"title": "Negative"}},
}


def workflow(graph: dict[str, Any], **manifest: Any) -> Workflow:
    return resolve("w", graph, manifest)


def changed(**inputs: Any) -> dict[str, Any]:
    graph = copy.deepcopy(GRAPH)
    graph["3"]["inputs"].update(inputs)
    return graph


def said(before: Workflow, after: Workflow) -> list[str]:
    return [one.message for one in differences(before, after)]


def test_equal_ones_do_not_differ() -> None:
    assert differences(workflow(GRAPH), workflow(copy.deepcopy(GRAPH))) == ()


def test_it_speaks_of_nodes_inputs_and_parameters() -> None:
    after = changed(steps=30, model=["7", 0])
    del after["4"]
    after["9"] = {"class_type": "VAELoader", "inputs": {"vae_name": "v"}}
    after["7"]["_meta"]["title"] = "$negative"
    manifest = {"title": "T", "parameters": {"prompt": {"max_length": 9}}, "requires": {"vram_gb": 8}}
    assert said(workflow(GRAPH), workflow(after, **manifest)) == [
        'title: "w" → "T"',
        "parameter prompt: max_length nothing → 9",
        "parameter negative (string) is added",
        "requires vram_gb: nothing → 8.0",
        "node 4 (CheckpointLoaderSimple 'Load') is removed",
        "node 9 (VAELoader) is added",
        "node 3 (KSampler): steps 20 → 30",
        "node 3 (KSampler): model output 0 of node 4 → output 0 of node 7 (CLIPTextEncode)",
        'node 7 (CLIPTextEncode \'$negative\'): title "Negative" → "$negative"',
    ]


def test_a_graph_with_other_ids_is_the_same() -> None:
    ids = {node: str(100 + index) for index, node in enumerate(GRAPH)}
    moved = {
        ids[node_id]: {
            **copy.deepcopy(node),
            "inputs": {
                name: [ids[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for node_id, node in GRAPH.items()
    }
    assert matched(GRAPH, moved) == ids
    assert differences(workflow(GRAPH), workflow(moved)) == ()


def test_an_id_with_another_class_is_another_node() -> None:
    after = copy.deepcopy(GRAPH)
    after["7"]["class_type"] = "Other"
    kinds = [one.kind for one in differences(workflow(GRAPH), workflow(after))]
    assert kinds == [DifferenceKind.NODE_REMOVED, DifferenceKind.NODE_ADDED]


def test_there_are_not_too_many_and_values_are_cut() -> None:
    many = {str(n): {"class_type": "X", "inputs": {"v": n}} for n in range(MAX_DIFFERENCES + 50)}
    assert len(differences(workflow(GRAPH), workflow(many))) == MAX_DIFFERENCES
    (one,) = differences(workflow(changed(long="a" * 9000)), workflow(changed(long="b" * 9000)))
    assert len(one.before) < 3000 and len(one.message) < 300


inputs = st.one_of(
    st.integers(-5, 5), st.text(max_size=3), st.booleans(), st.just(["4", 0]), st.just(["6", 1]), st.none()
)


@given(st.dictionaries(st.sampled_from(["seed", "steps", "a", "b"]), inputs, max_size=4))
def test_every_change_of_an_input_is_told_once(more: dict[str, Any]) -> None:
    after = changed(**more)
    before = GRAPH["3"]["inputs"]
    expected = {
        name
        for name, value in more.items()
        if (name not in before and value is not None)
        or (name in before and (before[name] != value or type(before[name]) is not type(value)))
    }
    found = differences(workflow(GRAPH), workflow(after))
    assert {one.field for one in found} == expected and len(found) == len(expected)
    back = differences(workflow(after), workflow(GRAPH))
    assert [(one.before, one.after) for one in sorted(found, key=lambda one: one.field)] == [
        (one.after, one.before) for one in sorted(back, key=lambda one: one.field)
    ]


# -- breaking changes --------------------------------------------------------------------------------------


def one_parameter(parameter: Parameter | None) -> Workflow:
    return Workflow(name="w", graph=GRAPH, version="v", parameters=(parameter,) if parameter else ())


def broken(before: Parameter | None, after: Parameter | None) -> list[str]:
    return [one.message for one in breaking_changes(one_parameter(before), one_parameter(after))]


P = Parameter(name="p", type=ParameterType.INTEGER, minimum=1, maximum=10)
TEXT = Parameter(name="p", type=ParameterType.STRING)
PICK = Parameter(
    name="p", type=ParameterType.CHOICE, choices=tuple(Choice(name=n, value=n) for n in ("a", "b", "c"))
)
FILE = Parameter(name="p", type=ParameterType.IMAGE, accept=("image/*",), max_bytes=100)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (P, None, ["disappears"]),
        (P, replace(P, minimum=2), ["has the minimum 2 instead of 1"]),
        (P, replace(P, maximum=9), ["has the maximum 9 instead of 10"]),
        (P, replace(P, multiple_of=2), ["takes multiples of 2 instead of any number"]),
        (P, replace(P, required=True), ["becomes required"]),
        (P, TEXT, ["takes text instead of a whole number"]),
        (None, replace(P, required=True), ["is new and required"]),
        (TEXT, replace(TEXT, max_length=5), ["takes at most 5 characters instead of any number"]),
        (TEXT, replace(TEXT, min_length=1), ["needs at least 1 characters instead of 0"]),
        (TEXT, replace(TEXT, format="xml"), ["must be XML now"]),
        (TEXT, PICK, ["takes one of a list instead of text"]),
        (PICK, replace(PICK, choices=PICK.choices[:1]), ["no longer takes 'b', 'c'"]),
        (FILE, replace(FILE, accept=("image/png",)), ["takes only image/png instead of image/*"]),
        (FILE, replace(FILE, max_bytes=99), ["takes at most 99 bytes instead of 100"]),
        (replace(TEXT, role="prompt"), TEXT, ["is no longer the workflow's 'prompt'"]),
        # what breaks nobody
        (P, P, []),
        (None, P, []),
        (P, replace(P, minimum=None, maximum=None, default=5, description="x"), []),
        (P, replace(P, type=ParameterType.NUMBER), []),
        (replace(P, multiple_of=4), replace(P, multiple_of=2), []),
        (PICK, TEXT, []),
        (PICK, replace(PICK, choices=(*PICK.choices, Choice(name="d", value=1))), []),
        (FILE, replace(FILE, type=ParameterType.ASSET, accept=(), max_bytes=None), []),
        (FILE, replace(FILE, accept=("image/*", "video/*")), []),
    ],
)
def test_a_change_that_breaks_callers_is_named(
    before: Parameter | None, after: Parameter | None, says: list[str]
) -> None:
    assert broken(before, after) == [f"parameter 'p' {one}" for one in says]


numbers = st.none() | st.integers(-20, 20)
lengths = st.none() | st.integers(1, 6)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    kind = draw(st.sampled_from(ParameterType))
    of_number = kind in (ParameterType.INTEGER, ParameterType.NUMBER, ParameterType.SEED)
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    return Parameter(
        name="p",
        type=kind,
        required=draw(st.booleans()),
        minimum=draw(numbers) if of_number else None,
        maximum=draw(numbers) if of_number else None,
        multiple_of=draw(st.none() | st.sampled_from([0.5, 1, 2, 3, 6])) if of_number else None,
        min_length=draw(lengths) if kind is ParameterType.STRING else None,
        max_length=draw(lengths) if kind is ParameterType.STRING else None,
        format=draw(st.sampled_from([None, "xml"])) if kind is ParameterType.STRING else None,
        choices=tuple(Choice(name=n, value=n) for n in names) if kind is ParameterType.CHOICE else (),
        accept=tuple(draw(st.lists(st.sampled_from(["image/png", "image/*", "*/*", "video/mp4"]))))
        if kind in FILES
        else (),
        max_bytes=draw(st.none() | st.integers(1, 5)) if kind in FILES else None,
    )


values = st.one_of(
    st.none(),
    st.integers(-21, 21),
    st.floats(-21, 21).map(lambda value: round(value * 2) / 2),
    st.booleans(),
    st.sampled_from(["", "a", "b", "c", "d", "ab", "<a/>", "abcdefg"]),
)


def takes(parameter: Parameter, value: Any, kind: str, size: int) -> bool:
    try:
        check_value(parameter, value)
        if parameter.type in FILES and value is not None:
            check_file(parameter, content_type=kind, size_bytes=size)
    except (InvalidParameter, ZeroDivisionError):
        return False
    return True


@given(
    parameters(),
    parameters(),
    values,
    st.sampled_from(["image/png", "image/webp", "video/mp4", "text/plain"]),
    st.integers(0, 6),
)
def test_what_breaks_nobody_takes_all_that_was_taken(
    before: Parameter, after: Parameter, value: Any, kind: str, size: int
) -> None:
    assume(before.type is not ParameterType.SEED or (before.maximum or 99) >= max(0, before.minimum or 0))
    if takes(before, value, kind, size) and not broken(before, after):
        assert takes(after, value, kind, size)


@given(parameters())
def test_nothing_breaks_what_stays(parameter: Parameter) -> None:
    assert broken(parameter, parameter) == []
