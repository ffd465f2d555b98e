"""What is wrong with a graph, in ComfyUI's words; whole answers are held against recordings elsewhere."""

from typing import Any

import orjson
import pytest

from comfy_fleet.domain.graphs import prompt_errors

CLASS: dict[str, Any] = {
    "input": {
        "required": {
            "width": ["INT", {"min": 1, "max": 8}],
            "mode": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {"required": {
                "steps": ["INT", {"min": 2}]}}}, {"key": "b", "inputs": {}}]}],
            "rows": ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {
                "row": ["IMAGE", {"x": 1}]}}}}],
            "slot": ["COMFY_DYNAMICSLOT_V3", {"inputs": {"optional": {"in": ["MASK"]}}}],
        },
        "optional": {"many": [[str(i) for i in range(21)], {}], "few": [["a", "b"]]},
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("width", {}, ["INT", {"min": 1, "max": 8}]),
        ("few", {}, [["a", "b"], {}]),
        ("mode.steps", {"mode": "a"}, ["INT", {"min": 2}]),
        ("mode.steps", {"mode": "b"}, None),
        ("mode.steps", {}, None),
        ("rows.row3", {}, ["IMAGE", {"x": 1}]),
        ("slot.in", {}, ["MASK", {}]),
        ("nothing", {}, None),
        ("width.x", {}, None),
    ],
)
def test_declarations_are_found_in_groups_too(name: str, given: dict[str, Any], expected: object) -> None:
    assert prompt_errors.declaration(CLASS, name, given) == expected
    assert prompt_errors.declaration({}, name, given) is None


def told(reason: str, field: str, value: object, message: str = "m", **more: object) -> dict[str, Any]:
    graph: Any = {
        "1": {"class_type": "C", "inputs": {field: value}},
        "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "Save", "inputs": {"images": ["4", 0]}},
    }
    found = prompt_errors.node_errors(
        graph,
        {"1": [{"field": field, "reason": reason, "message": message, **more}], "gone": []},
        outputs=["2", "3"],
        declarations=lambda _, name, given: prompt_errors.declaration(CLASS, name, given),
    )
    assert found.keys() == {"1"}
    assert (found["1"]["class_type"], found["1"]["dependent_outputs"]) == ("C", ["2"])
    (error,) = found["1"]["errors"]
    assert error.keys() == {"type", "message", "details", "extra_info"}
    return dict(error)


def test_an_error_for_each_kind_of_defect() -> None:
    error = told("out_of_range", "width", "0")
    assert (error["type"], error["message"]) == ("value_smaller_than_min", "Value 0 smaller than min of 1")
    assert error["extra_info"]["received_value"] == 0
    error = told("out_of_range", "width", 9)
    assert (error["type"], error["message"]) == ("value_bigger_than_max", "Value 9 bigger than max of 8")
    error = told("value_not_in_list", "few", "c")
    assert error["details"] == "few: 'c' not in ['a', 'b']"
    assert error["extra_info"]["input_config"] == [["a", "b"], {}]
    error = told("file_missing", "many", "c")
    assert error["details"] == "many: 'c' not in (list of length 21)"
    assert error["extra_info"]["input_config"] is None
    error = told("invalid_input_type", "width", "x")
    text = "invalid literal for int() with base 10: 'x'"
    assert (error["type"], error["details"]) == ("invalid_input_type", f"width, x, {text}")
    assert told("missing_input", "mode.steps", 1)["details"] == "steps"
    error = told("bad_link", "few", ["a"])
    assert (error["type"], error["details"]) == ("bad_linked_input", "few")
    error = told("unknown_node", "few", ["9", 0], "links to node '9', which the graph does not have")
    assert (error["type"], error["details"]) == ("exception_during_inner_validation", "'9'")
    error = told("bad_link", "few", ["2", 7], "few links to slot 7 of node 2 (Save), whose outputs are X")
    assert error["details"] == "tuple index out of range"
    error = told("return_type_mismatch", "width", ["2", 0], received_type="IMAGE", wanted_type="INT")
    assert error["details"] == "width, received_type(IMAGE) mismatch input_type(INT)"
    assert error["extra_info"]["linked_node"] == ["2", 0]
    error = told("bad_path", "few", "../x", "few must stay in its folder")
    assert (error["type"], error["details"]) == (
        "custom_validation_failed",
        "few - few must stay in its folder",
    )
    assert told("class_denied", "class_type", 1)["type"] == "class_denied"
    assert told("made_up", "few", 1)["type"] == "custom_validation_failed"


@pytest.mark.parametrize("value", [1e30, -1e308, "9" * 400, 2**63, "-9223372036854775809", 2**64])
def test_numbers_of_any_size_are_told_in_json(value: float | str) -> None:
    found = told("out_of_range", "width", value)
    assert found["type"] in ("value_bigger_than_max", "value_smaller_than_min")
    assert orjson.loads(orjson.dumps(found)) == found


def test_long_values_are_repeated_in_part() -> None:
    error = told("value_not_in_list", "few", "x" * 100_000)
    assert len(error["details"]) < 3000
    assert len(error["extra_info"]["received_value"]) < 3000
    assert len(told("bad_link", "few", ["x"] * 10_000)["extra_info"]["received_value"]) < 3000


def test_a_circle_is_told_from_where_an_output_reads_it() -> None:
    graph: Any = {
        str(number): {"class_type": "C", "inputs": {"x": [str(number % 3 + 1), 0]}} for number in range(1, 4)
    }
    graph["save"] = {"class_type": "Save", "inputs": {"images": ["2", 0]}}
    cycle = [{"field": "x", "reason": "cycle", "message": "x closes a circle of links"}]
    found = prompt_errors.node_errors(
        graph,
        dict.fromkeys(("1", "2", "3"), cycle),
        outputs=["save"],
        declarations=lambda *_: None,
    )
    for node_id in ("1", "2", "3"):
        (error,) = found[node_id]["errors"]
        assert error["details"] == "2 (C) -> 3 (C) -> 1 (C) -> 2 (C)"
        assert error["extra_info"] == {"node_id": node_id, "cycle_nodes": ["2", "3", "1"]}
        assert found[node_id]["dependent_outputs"] == ["save"]


def test_a_refusal_explains_a_limited_number_of_nodes() -> None:
    graph: Any = {str(number): {"class_type": "C", "inputs": {}} for number in range(5000)}
    defects = {node_id: [{"field": "few", "reason": "missing_input", "message": "m"}] for node_id in graph}
    found = prompt_errors.node_errors(graph, defects, outputs=(), declarations=lambda *_: None)
    assert len(found) == prompt_errors.MOST_NODES
