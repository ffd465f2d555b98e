"""Inputs of newer classes: groups that grow, groups that choose, and values in other spellings."""

import json
from typing import Any

import pytest

from comfy_fleet.adapters.redis.inventories import pack, unpack
from comfy_fleet.domain.graphs.graph_problems import findings, problems
from comfy_fleet.domain.graphs.inventory import Inventory, parse, requirements, spelled
from comfy_fleet.domain.nodes.eligibility import PlacementRequest, Requirements, needs_of, offers


def growing(**template: Any) -> list[Any]:
    return ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"value": ["IMAGE", {}]}}, **template}}]


RESIZE: dict[str, Any] = {
    "required": {
        "how": [
            "COMFY_DYNAMICCOMBO_V3",
            {
                "options": [
                    {
                        "key": "size",
                        "inputs": {
                            "required": {
                                "width": ["INT", {"min": 0, "max": 8192}],
                                "crop": ["COMBO", {"options": ["disabled", "center"]}],
                            },
                            "optional": {"model": [["up/a.pth", "b.pth"]]},
                        },
                    },
                    {"key": "none", "inputs": {"required": {}}},
                    {
                        "key": "deep",
                        "inputs": {
                            "required": {
                                "codec": [
                                    "COMFY_DYNAMICCOMBO_V3",
                                    {
                                        "options": [
                                            {"key": "x", "inputs": {"required": {"q": ["INT", {"max": 9}]}}}
                                        ]
                                    },
                                ]
                            }
                        },
                    },
                ]
            },
        ]
    }
}
INFO: dict[str, Any] = {
    "Format": {"input": {"required": {"text": ["STRING"], "values": growing(names=["a", "b"], min=0)}}},
    "Batch": {"input": {"required": {"images": growing(prefix="image", min=2, max=3)}}},
    "Loose": {
        "input": {
            "required": {
                "more": [
                    "COMFY_AUTOGROW_V3",
                    {
                        "template": {
                            "input": {"optional": {"v": ["INT", {"max": 5}]}},
                            "prefix": "v",
                            "min": 2,
                            "max": 4,
                        }
                    },
                ]
            }
        }
    },
    "Resize": {"input": RESIZE},
    "Fill": {"input": {"required": {"pick": ["COMBO", {"options": []}]}}},
    "CustomCombo": {
        "input": {"required": {"choice": ["COMBO", {"options": []}]}},
        "python_module": "comfy_extras.nodes_logic",
    },
    "SelectModelDevice": {"input": {"required": {"device": ["COMBO", {"options": ["default", "gpu:0"]}]}}},
    "Load": {"input": {"required": {"thing": [[], {}]}}},
    "Packed": {
        "input": {"required": {"mode": [["a", "b"]], "n": ["INT", {"max": 3}], "model": [["m.safetensors"]]}},
        "python_module": "custom_nodes.some_pack",
    },
    "Numbers": {"input": {"required": {"n": ["INT", {"min": 1, "max": 64}], "f": ["FLOAT", {"max": 2.0}]}}},
    "Many": {"input": {"required": {"tags": [["x", "y\\z"], {"multiselect": True}]}}},
    "Pictures": {
        "input": {
            "required": {"image": [["a.png"], {"image_upload": True}], "far": ["STRING", {}]},
            "optional": {"camera": ["WEBCAM", {}], "also": ["COMBO", {"remote": {"route": "/x"}}]},
        }
    },
    "Vae": {"input": {"required": {"vae_name": [["sub/é.safetensors", "both/x.pt", "both\\x.pt", "taesd"]]}}},
    "Out": {"input": {"required": {"any": ["*"]}}, "output_node": True},
}
KNOWN = parse(INFO)


def made(class_type: str, inputs: dict[str, Any]) -> Any:
    return {
        "n": {"class_type": class_type, "inputs": inputs},
        "out": {"class_type": "Out", "inputs": {"any": ["n", 0]}},
    }


@pytest.fixture(params=["read", "kept"])
def known(request: pytest.FixtureRequest) -> Inventory:
    """The inventory as it was read, and as every other process gets it from the store."""
    return KNOWN if request.param == "read" else unpack(pack(KNOWN)[1])


LINK = ["n", 0]
PACKED = {"mode": "a", "n": 1, "model": "m.safetensors"}


@pytest.mark.parametrize(
    ("class_type", "inputs", "expected"),
    [
        ("Format", {"text": "hi"}, []),
        ("Format", {"text": "hi", "values.a": LINK, "values.far": LINK}, []),
        ("Batch", {}, ["images.image0 missing_input", "images.image1 missing_input"]),
        ("Batch", {"images.image0": LINK}, ["images.image1 missing_input"]),
        ("Batch", {"images.image0": LINK, "images.image1": LINK, "images.image2": LINK}, []),
        ("Loose", {}, []),
        ("Loose", {"more.v3": 6}, ["more.v3 out_of_range"]),
        ("Resize", {}, ["how missing_input"]),
        ("Resize", {"how": "none"}, []),
        ("Resize", {"how": LINK}, []),
        ("Resize", {"how": "sideways"}, ["how value_not_in_list"]),
        ("Resize", {"how": "none", "how.width": -5}, []),
        ("Resize", {"how": "size", "how.width": 5}, ["how.crop missing_input"]),
        (
            "Resize",
            {"how": "size", "how.width": -5, "how.crop": "bad"},
            ["how.width out_of_range", "how.crop value_not_in_list"],
        ),
        ("Resize", {"how": "size", "how.width": 5, "how.crop": "center", "how.model": "up\\a.pth"}, []),
        (
            "Resize",
            {"how": "size", "how.width": 5, "how.crop": "center", "how.model": "c.pth"},
            ["how.model file_missing"],
        ),
        ("Resize", {"how": "deep", "how.codec": "x", "how.codec.q": 10}, ["how.codec.q out_of_range"]),
        ("Resize", {"how": "deep", "how.codec": "x"}, ["how.codec.q missing_input"]),
        ("Fill", {"pick": "mine"}, []),
        ("Fill", {"pick": "mine.safetensors"}, ["pick file_missing"]),
        ("CustomCombo", {"choice": "mine.safetensors"}, []),
        ("SelectModelDevice", {"device": "gpu:3"}, []),
        ("Load", {"thing": "mine"}, ["thing value_not_in_list"]),
        ("Packed", {**PACKED, "mode": "c"}, []),
        ("Packed", {**PACKED, "n": 9}, []),
        ("Packed", {**PACKED, "n": "nine"}, ["n invalid_input_type"]),
        ("Packed", {**PACKED, "model": "other.safetensors"}, ["model file_missing"]),
        ("Packed", {"mode": "a", "n": 1}, ["model missing_input"]),
        ("Numbers", {"n": "64", "f": 1}, []),
        ("Numbers", {"n": 64.0, "f": "1.5"}, []),
        ("Numbers", {"n": "65", "f": "2.5"}, ["n out_of_range", "f out_of_range"]),
        ("Numbers", {"n": "many", "f": None}, ["n invalid_input_type", "f invalid_input_type"]),
        ("Numbers", {"n": {"__value__": 65}, "f": 1}, ["n out_of_range"]),
        ("Numbers", {"n": [1, 2, 3], "f": 1}, ["n bad_link"]),
        ("Pictures", {"image": "mine.png", "far": "x", "camera": {"__type": "core/ASSET"}, "also": 1}, []),
        ("Pictures", {"image": LINK, "far": LINK}, []),
        (
            "Pictures",
            {"image": ["mine.png"], "far": LINK, "camera": [], "also": ["a", "b"]},
            ["image bad_link", "camera bad_link", "also bad_link"],
        ),
        ("Many", {"tags": {"__value__": ["x", "y/z"]}}, []),
        ("Many", {"tags": {"__value__": ["x", "w"]}}, ["tags value_not_in_list"]),
        ("Vae", {"vae_name": {"__value__": "taesd"}}, []),
        ("Vae", {"vae_name": {"__value__": "other"}}, ["vae_name value_not_in_list"]),
    ],
)
def test_what_a_server_takes_is_taken_and_what_it_refuses_is_told(
    known: Inventory, class_type: str, inputs: dict[str, Any], expected: list[str]
) -> None:
    assert [f"{p.field} {p.kind}" for p in problems(made(class_type, inputs), known)] == expected


def test_where_a_class_may_check_by_itself_there_is_a_doubt_and_no_problem() -> None:
    graph = made("Packed", {"mode": "c", "n": 9, "model": "m.safetensors"})
    assert [(p.field, p.doubtful) for p in findings(graph, KNOWN)] == [("mode", True), ("n", True)]


@pytest.mark.parametrize(
    ("class_type", "inputs", "expected"),
    [
        ("Vae", {"vae_name": "sub\\é.safetensors"}, {"vae_name": "sub/é.safetensors"}),
        ("Vae", {"vae_name": "sub/e\u0301.safetensors"}, {"vae_name": "sub/é.safetensors"}),
        ("Vae", {"vae_name": "both\\x.pt"}, {"vae_name": "both\\x.pt"}),
        ("Vae", {"vae_name": "both/x.pt"}, {"vae_name": "both/x.pt"}),
        ("Vae", {"vae_name": "un\\known.pt"}, {"vae_name": "un\\known.pt"}),
        ("Vae", {"vae_name": {"__value__": "sub\\é.safetensors"}}, {"vae_name": "sub/é.safetensors"}),
        ("Vae", {"vae_name": LINK, "x": "a\\b"}, {"vae_name": LINK, "x": "a\\b"}),
        ("Many", {"tags": {"__value__": ["x", "y/z"]}}, {"tags": {"__value__": ["x", "y\\z"]}}),
        ("Resize", {"how": "size", "how.model": "up\\a.pth"}, {"how": "size", "how.model": "up/a.pth"}),
        ("Resize", {"how": "none", "how.model": "up\\a.pth"}, {"how": "none", "how.model": "up\\a.pth"}),
    ],
)
def test_a_graph_is_written_as_the_node_spells(
    known: Inventory, class_type: str, inputs: dict[str, Any], expected: dict[str, Any]
) -> None:
    graph = made(class_type, inputs)
    before = json.dumps(graph)
    assert spelled(graph, known)["n"]["inputs"] == expected
    assert json.dumps(graph) == before
    stranger = {"n": {"class_type": "Nobody", "inputs": {"x": "a\\b"}}}
    assert spelled(stranger, known) == stranger


def test_files_inside_groups_tell_nodes_apart() -> None:
    less = json.loads(json.dumps(INFO))
    less["Resize"]["input"]["required"]["how"][1]["options"][0]["inputs"]["optional"]["model"] = [["b.pth"]]
    graph = made("Resize", {"how": "size", "how.width": 5, "how.crop": "center", "how.model": "up\\a.pth"})
    needs = needs_of(graph, PlacementRequest(), [KNOWN, parse(less)])
    assert needs == Requirements(choices=frozenset({("Resize", "how.model", "up/a.pth")}))
    assert offers(KNOWN.classes["Resize"], "how.model", "up/a.pth") is True
    assert offers(parse(less).classes["Resize"], "how.model", "up/a.pth") is False
    assert requirements(graph, KNOWN).files == {("Resize", "how.model", "up/a.pth")}


def test_a_value_that_a_class_may_take_unlisted_goes_where_it_is_listed_if_that_is_anywhere() -> None:
    other = json.loads(json.dumps(INFO))
    other["Packed"]["input"]["required"]["mode"] = [["a", "b", "c"]]
    listing = parse(other)
    graph = made("Packed", {**PACKED, "mode": "c"})
    assert needs_of(graph, PlacementRequest(), [KNOWN]).choices == frozenset()
    assert needs_of(graph, PlacementRequest(), [KNOWN, listing]).choices == {("Packed", "mode", "c")}
    assert needs_of(graph, PlacementRequest(), [KNOWN, listing], near=[KNOWN]).choices == frozenset()


def test_uploads_inside_groups_are_no_needs() -> None:
    branch = {"key": "file", "inputs": {"required": {"image": [["old.png"], {"image_upload": True}]}}}
    known = parse(
        {
            "X": {
                "input": {
                    "required": {
                        "from": ["COMFY_DYNAMICCOMBO_V3", {"options": [branch]}],
                        "more": growing(
                            prefix="image",
                            min=0,
                            max=2,
                            input={"required": {"i": [["old.png"], {"image_upload": True}]}},
                        ),
                    }
                }
            },
            "Out": INFO["Out"],
        }
    )
    assert [name for name, spec in known.classes["X"].everything() if spec.upload] == [
        "from.image",
        "more.image0",
        "more.image1",
    ]
    assert problems(made("X", {"from": "file", "from.image": "new.png", "more.image0": "x.png"}), known) == []


def test_a_node_can_t_make_lists_without_end() -> None:
    deep: dict[str, Any] = {"required": {"x": ["INT"]}}
    for _ in range(60):
        deep = {"required": {"g": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": deep}]}]}}
    info = parse(
        {
            "Deep": {"input": deep},
            "Long": {"input": {"required": {"l": growing(prefix="i", min=0, max=10**9)}}},
        }
    )
    assert len(list(info.classes["Deep"].everything())) < 100
    assert len(list(info.classes["Long"].everything())) < 2000


@pytest.mark.parametrize("template", [None, {}, {"input": {}}, {"input": {"required": {"x": ["INT"]}}}, []])
def test_what_can_t_be_read_of_a_group_is_left_open(template: Any) -> None:
    known = parse(
        {**INFO, "Odd": {"input": {"required": {"g": ["COMFY_AUTOGROW_V3", {"template": template}]}}}}
    )
    assert problems(made("Odd", {"g.x": 1}), known) == []


# -- classes that a node replaces ----------------------------------------------------------------------

REPLACED = {
    "OldFormat": [{"new_node_id": "Format", "input_mapping": [{"new_id": "text", "old_id": "words"}]}],
    "OldVae": [{"new_node_id": "Vae", "input_mapping": [{"new_id": "vae_name", "old_id": "name"}]}],
    "OldResize": [
        {
            "new_node_id": "Resize",
            "input_mapping": [{"new_id": "how", "set_value": "size"}, {"new_id": "how.width", "old_id": "w"},
                              {"new_id": "how.crop", "set_value": "center"}],
        }
    ],
    "Dropped": [{"new_node_id": "Format", "input_mapping": None}],
    "Out": [{"new_node_id": "Format", "input_mapping": [{"new_id": "text", "old_id": "any"}]}],
    "ToNowhere": [{"new_node_id": "Missing", "input_mapping": []}],
    "Odd": "x",
    "Odder": [{"new_node_id": "Format", "input_mapping": ["x", {"new_id": "text"}]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("class_type", "inputs", "expected"),
    [
        ("OldFormat", {"words": "hi"}, []),
        ("OldFormat", {}, ["words missing_input"]),
        ("OldVae", {"name": "sub\\é.safetensors"}, []),
        ("OldVae", {"name": "other.safetensors"}, ["name file_missing"]),
        ("OldResize", {"w": 3}, []),
        ("OldResize", {"w": -3}, ["w out_of_range"]),
        ("Dropped", {"text": "hi"}, [" unknown_class"]),
        ("ToNowhere", {}, [" unknown_class"]),
        ("Odd", {}, [" unknown_class"]),
        ("Odder", {}, [" unknown_class"]),
    ],
)
def test_a_class_that_a_node_replaces_is_there(
    class_type: str, inputs: dict[str, Any], expected: list[str]
) -> None:
    known = parse(INFO, replacements=REPLACED)
    assert [f"{p.field} {p.kind}" for p in problems(made(class_type, inputs), known)] == expected
    assert problems(made(class_type, inputs), unpack(pack(known)[1])) == problems(
        made(class_type, inputs), known
    )
    assert known.classes["Out"] == KNOWN.classes["Out"], "what is installed is not replaced"


@pytest.mark.parametrize(
    "replacements",
    [
        None,
        [],
        "x",
        {"A": []},
        {"A": [{}]},
        {"A": [None]},
        {"A": [{"new_node_id": "Format", "input_mapping": 5}]},
    ],
)
def test_replacements_that_can_t_be_read_are_none(replacements: Any) -> None:
    assert parse(INFO, replacements=replacements) == KNOWN
