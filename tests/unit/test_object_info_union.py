"""What several nodes answer to ``/object_info``, as one answer."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.graphs import object_info_union
from comfy_fleet.domain.graphs.choice_lists import choice_lists
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.graphs.object_info import Packer, unpack
from comfy_fleet.domain.graphs.object_info_union import (
    AlikeNodes,
    ObjectInfoUnion,
    ranked,
    union,
    version_order,
)
from tests.unit.test_object_info import classes_of

Told = Mapping[str, Any]
"""One node: its ComfyUI's version, and its classes."""


def answer(*nodes: str, comfyui: str = "0.33.0", digest: str = "") -> AlikeNodes:
    return AlikeNodes(digest=digest or "+".join(nodes), comfyui=comfyui, nodes=nodes)


def raw(classes: Told) -> dict[str, bytes]:
    return {name: json.dumps(body).encode() for name, body in classes.items()}


def together(*told: tuple[AlikeNodes, Told]) -> dict[str, Any]:
    found = union({one: raw(classes) for one, classes in told})
    return {name: json.loads(body) for name, body in found.items()}


def loader(*files: Any, new: bool = False, **more: Any) -> dict[str, Any]:
    """A class with one list, in either of its two forms."""
    declared = ["COMBO", {"options": [*files], **more}] if new else [[*files], *([more] if more else [])]
    return {"input": {"required": {"ckpt_name": declared}}, "output": ["MODEL"], "description": "Loads."}


def files_of(body: Any, name: str = "ckpt_name") -> list[Any]:
    kind, *more = body["input"]["required"][name]
    found: list[Any] = kind if isinstance(kind, list) else more[0]["options"]
    return found


def tooltip_of(body: Any, name: str = "ckpt_name") -> str:
    return str(body["input"]["required"][name][1].get("tooltip"))


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
def test_nodes_that_are_alike_answer_as_one_of_them(version: str) -> None:
    info, packer = classes_of(version), Packer()
    for name, found in parse(info).classes.items():
        packer.add(name, info[name], found)
    kept = packer.end()
    assert kept is not None
    one = unpack(kept.packed)
    two = {answer("gpu1", digest="a"): one, answer("gpu2", "gpu3", digest="b"): dict(one)}
    assert union(two) == one
    assert list(union(two)) == list(one)


def test_lists_are_put_together_in_order_and_tell_what_is_not_everywhere() -> None:
    found = together(
        (answer("gpu1"), {"L": loader("a.safetensors", "c.safetensors")}),
        (answer("gpu2"), {"L": loader("b.safetensors", "c.safetensors", tooltip="Choose.")}),
    )["L"]
    assert files_of(found) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert "b.safetensors (only on gpu2)" in tooltip_of(found)
    assert "a.safetensors (only on gpu1)" in tooltip_of(found)
    assert "c.safetensors" not in tooltip_of(found)
    assert found["description"] == "Loads."


@pytest.mark.parametrize(("first", "second"), list(itertools.product([False, True], repeat=2)))
def test_a_list_in_either_form_gets_the_others_choices(first: bool, second: bool) -> None:
    newest, older = answer("gpu1", comfyui="0.33.0"), answer("gpu2", comfyui="0.3.64")
    found = together(
        (older, {"L": loader("a.pt", new=second)}), (newest, {"L": loader("b.pt", new=first, multiselect=1)})
    )["L"]
    assert files_of(found) == ["a.pt", "b.pt"]
    assert (found["input"]["required"]["ckpt_name"][0] == "COMBO") is first
    assert found["input"]["required"]["ckpt_name"][1]["multiselect"] == 1


def test_choices_before_and_behind_the_files_keep_their_places() -> None:
    found = together(
        (answer("gpu1", "gpu2"), {"L": loader("None", "b.pt", "d.pt", "taesd", "pixel_space")}),
        (answer("gpu3"), {"L": loader("None", "a.pt", "c.pt", "e.pt", "taesd", "pixel_space")}),
    )["L"]
    assert files_of(found) == ["None", "a.pt", "b.pt", "c.pt", "d.pt", "e.pt", "taesd", "pixel_space"]


def test_a_node_without_any_file_does_not_decide_the_order() -> None:
    found = together(
        (answer("gpu1", comfyui="0.34"), {"L": loader()}),
        (answer("gpu2"), {"L": loader("None", "a.pt")}),
        (answer("gpu3"), {"L": loader("None", "b.pt")}),
    )["L"]
    assert files_of(found) == ["None", "a.pt", "b.pt"]


def test_a_file_that_windows_spells_otherwise_is_the_same_file() -> None:
    found = together(
        (answer("gpu1", "gpu2"), {"L": loader("sdxl/a.pt")}), (answer("gpu3"), {"L": loader("sdxl\\a.pt")})
    )["L"]
    assert files_of(found) == ["sdxl/a.pt"]


def test_choices_that_are_no_texts_are_not_mixed_up() -> None:
    found = together(
        (answer("gpu1", "gpu2"), {"L": loader(1, True, "1")}), (answer("gpu3"), {"L": loader(1.5, 1, False)})
    )["L"]
    assert files_of(found) == [1, True, "1", 1.5, False]


def test_of_differing_classes_the_newest_counts_whatever_the_majority_says() -> None:
    old = {"input": {"required": {"gone": ["INT", {}]}}, "output": [], "description": "Old."}
    new = {"input": {"required": {"steps": ["INT", {"min": 1}]}}, "output": ["A"], "description": "New."}
    few, many = answer("gpu1", comfyui="0.33.0"), answer("gpu2", "gpu3", "gpu4", comfyui="0.4.9")
    assert together((many, {"K": old}), (few, {"K": new})) == {"K": new}


def test_versions_are_ordered_by_number() -> None:
    told = ["0.3.64", "v0.3.64", "sim-0.33.0", "0.4", "", "nightly", "1.0.0-rc1"]
    assert sorted(told, key=version_order)[-2:] == ["sim-0.33.0", "1.0.0-rc1"]
    assert version_order("0.33") == version_order("0.33.0")
    assert version_order("") == version_order("nightly") == ()
    assert version_order("9" * 40) == (999_999_999,)


def test_a_class_says_where_it_is_if_it_is_not_everywhere() -> None:
    plain: dict[str, Any] = {"input": {}, "output": [], "description": "Loads."}
    silent: dict[str, Any] = {"input": {}, "output": []}
    found = together(
        (answer("gpu1"), {"A": plain, "B": silent, "Everywhere": plain}),
        (answer("gpu2", "gpu3"), {"C": {**plain, "description": None}, "Everywhere": plain}),
    )
    assert found["A"]["description"] == "Loads.\n\nOnly on gpu1."
    assert found["B"]["description"] == "Only on gpu1."
    assert found["C"]["description"] == "Not on gpu1."
    assert found["Everywhere"] == plain


def test_a_description_stays_short_in_a_large_fleet() -> None:
    many = tuple(f"gpu{number:03}" for number in range(300))
    body: dict[str, Any] = {"input": {}, "output": []}
    found = together((answer(*many[:150]), {"A": body}), (answer(*many[150:]), {"B": body}))
    assert found["A"]["description"].endswith("gpu007 and 142 more.")
    names = [f"{number:04}.pt" for number in range(1000)]
    longer = together((answer("a"), {"L": loader(*names)}), (answer("b"), {"L": loader()}))["L"]
    assert files_of(longer) == names
    assert len(tooltip_of(longer)) < 600


def dynamic(**branches: Any) -> dict[str, Any]:
    options = [{"key": key, "inputs": {"required": inputs}} for key, inputs in branches.items()]
    declared = ["COMFY_DYNAMICCOMBO_V3", {"options": options}]
    return {"input": {"required": {"format": declared}}, "output": []}


def test_groups_are_put_together_and_so_is_what_is_in_them() -> None:
    codec = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "h264", "inputs": {"required": {"q": [["a"]]}}}]}]
    more = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "h264", "inputs": {"required": {"q": [["b"]]}}}]}]
    found = together(
        (answer("gpu1", "gpu2"), {"S": dynamic(mp4={"codec": codec})}),
        (answer("gpu3"), {"S": dynamic(mp4={"codec": more}, webm={"speed": [["x.pt"]]})}),
        (answer("gpu4"), {"S": dynamic(webm={"speed": [["y.pt"]]})}),
    )["S"]
    mp4, webm = found["input"]["required"]["format"][1]["options"]
    assert (mp4["key"], webm["key"]) == ("mp4", "webm")
    (inner,) = mp4["inputs"]["required"]["codec"][1]["options"]
    assert inner["inputs"]["required"]["q"][0] == ["a", "b"]
    assert webm["inputs"]["required"]["speed"][0] == ["x.pt", "y.pt"]
    tooltip = found["input"]["required"]["format"][1]["tooltip"]
    assert tooltip == "Not everywhere: mp4 (not on gpu4); webm (only on gpu3, gpu4)."


def test_growing_rows_slots_and_outputs_have_lists_too() -> None:
    def body(*files: str) -> dict[str, Any]:
        row = {"template": {"input": {"required": {"lora": [list(files), {}]}}, "prefix": "lora", "max": 9}}
        slot = {"inputs": {"optional": {"vae": ["COMBO", {"options": list(files)}]}}}
        inputs = {"row": ["COMFY_AUTOGROW_V3", row], "slot": ["COMFY_DYNAMICSLOT_V3", slot]}
        return {"input": {"required": inputs}, "output": [list(files), "INT"]}

    found = together((answer("a"), {"X": body("1.pt", "3.pt")}), (answer("b"), {"X": body("2.pt")}))["X"]
    both = ["1.pt", "2.pt", "3.pt"]
    row, slot = found["input"]["required"]["row"][1], found["input"]["required"]["slot"][1]
    assert row["template"]["input"]["required"]["lora"][0] == both
    assert slot["inputs"]["optional"]["vae"][1]["options"] == both
    assert found["output"] == [both, "INT"]


def test_uploaded_files_are_never_put_together() -> None:
    flagged = {"input": {"required": {"image": [[], {"image_upload": True}]}}, "output": []}
    unmarked = {"input": {"required": {"image": [["theirs.png", "x"]]}}, "output": []}
    found = together((answer("gpu1"), {"My": flagged}), (answer("gpu2", comfyui="0.3"), {"My": unmarked}))
    assert files_of(found["My"], "image") == []


ODD: list[Any] = [
    {},
    {"input": 3},
    {"input": {"required": [], "optional": {"a": 1, "b": [], "c": [[]], "d": [None]}}},
    {"input": {"required": {"a": ["COMFY_DYNAMICCOMBO_V3", {"options": ["a", {"key": 1}, {"inputs": 2}]}]}}},
    {"input": {"required": {"a": ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": [1]}}}]}}},
    {"input": {"required": {"a": ["COMBO", {"options": {"a": 1}}], "b": ["COMBO", "x"]}}},
    {"input": {"required": {"a": [["x", ["y"], {"z": 1}, None]]}}, "output": {"a": 1}, "description": 7},
    {"output": [[["deep"]]], "output_name": "x"},
]


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_answer_spoils_nothing(odd: Any) -> None:
    good = {"A": loader("a.pt"), "B": {"input": {}, "output": []}}
    for comfyui in ("0.1", "9.9"):
        found = together((answer("good"), good), (answer("odd", comfyui=comfyui), {**good, "A": odd}))
        assert found["B"] == good["B"]
        assert set(found) == {"A", "B"}
    assert together((answer("a"), {"A": odd}), (answer("b"), {"A": odd, "B": {}}))["A"] == odd


def test_what_is_no_json_at_all_is_left_as_it_is() -> None:
    nested = b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for bad in (b"{", b"[]", nested, b'{"input": {"required": {"a": [["x"]]}}} tail'):
        found = union({answer("a"): {"A": b'{"output":[]}'}, answer("b", comfyui="9"): {"A": bad}})
        assert found["A"] == bad
        assert union({answer("a"): {"A": bad}, answer("b"): {"B": b"{}"}})["A"] == bad


def test_numbers_that_json_does_not_have_become_numbers_that_every_client_reads() -> None:
    body = b'{"input":{"required":{"a":["FLOAT",{"max":Infinity,"min":-Infinity,"default":NaN}]}},"d":"NaN"}'
    told = union({answer("a"): {"A": body}})["A"]

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(told, parse_constant=refuse)
    limits = found["input"]["required"]["a"][1]
    assert limits["max"] == -limits["min"] > 1e300
    assert (limits["default"], found["d"]) == (None, "NaN")


def test_a_hostile_node_can_add_a_bounded_number_of_choices_and_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_info_union, "MAX_CHOICES", 10)
    many = [f"{number}.pt" for number in range(100)]
    found = together((answer("a", "b"), {"L": loader("own.pt")}), (answer("c"), {"L": loader(*many)}))["L"]
    assert 1 < len(files_of(found)) <= 11
    monkeypatch.setattr(object_info_union, "MAX_BYTES", 1000)
    huge = {"A": {"description": "x" * 900}, "B": {"description": "x" * 900}, "C": {}}
    assert set(together((answer("a"), huge))) == {"A"}


def test_an_answer_that_does_not_come_counts_for_nobody() -> None:
    order = ranked([answer("gpu1"), answer("gpu2", "gpu3")])
    made = ObjectInfoUnion(order)
    made.add(1, {"A": b"{}"})
    assert made.end() == {"A": b"{}"}


# --- whatever the nodes answer -----------------------------------------------------------------------

NAMES = st.sampled_from(["a.pt", "b.pt", "sub/c.pt", "sub\\c.pt", "None", "x", "z"])
LISTS = st.lists(NAMES, max_size=5, unique=True)
BODIES = st.builds(
    lambda files, new, text: {**loader(*files, new=new), "description": text},
    LISTS,
    st.booleans(),
    st.sampled_from(["", "Text."]),
)
ANSWERS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("ABC"), BODIES, max_size=3), st.sampled_from(["0.3.64", "0.33", ""])
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(told=ANSWERS, order=st.randoms(use_true_random=False))
def test_the_union_has_everything_and_does_not_depend_on_the_order(told: Any, order: Any) -> None:
    answers = {
        answer(f"n{number}", comfyui=comfyui): raw(classes) for number, (classes, comfyui) in enumerate(told)
    }
    found = union(answers)
    shuffled = list(answers.items())
    order.shuffle(shuffled)
    again = union(dict(shuffled))
    assert again == found
    assert list(again) == list(found)
    for classes in answers.values():
        for name, body in classes.items():
            (offered,) = choice_lists(name, json.loads(found[name]))
            have = {str(choice).replace("\\", "/") for choice in offered.choices}
            (asked,) = choice_lists(name, json.loads(body))
            assert have >= {str(choice).replace("\\", "/") for choice in asked.choices}


@settings(max_examples=100, deadline=None)
@given(classes=st.dictionaries(st.sampled_from("ABC"), BODIES), count=st.integers(1, 4))
def test_equal_answers_make_the_same_answer(classes: Any, count: int) -> None:
    one = raw(classes)
    assert union({answer(f"n{number}"): one for number in range(count)}) == one
