"""Inventories: what /object_info says, and what follows for a graph."""

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.file_check import Declared, named_files
from comfy_fleet.domain.graphs.graph import asset_reference
from comfy_fleet.domain.graphs.graph_problems import findings, problems
from comfy_fleet.domain.graphs.inventory import Inventory, parse, requirements
from comfy_fleet.domain.graphs.version_conditions import version_allows
from comfy_fleet.domain.graphs.workflow import (
    ManifestRequirements,
    ModelFile,
    Parameter,
    ParameterType,
    Workflow,
)
from comfy_fleet.services.workflow_check import check_workflow

RECORDINGS = Path(__file__).parent.parent / "recordings"

INFO: dict[str, Any] = {
    "Load": {
        "input": {
            "required": {
                "model": [["a.safetensors", "sub/b.safetensors"], {"tooltip": "x"}],
                "kind": ["COMBO", {"options": ["one", "two"]}],
            },
            "optional": {
                "strength": ["FLOAT", {"min": 0.0, "max": 2.0}],
                "flag": ["BOOLEAN", {}],
                "base": ["MODEL", {}],
            },
        },
        "output": ["MODEL"],
        "output_node": False,
    },
    "LoadImage": {
        "input": {"required": {"image": [["old.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "LoadRemote": {"input": {"required": {"file": ["COMBO", {"remote": {"route": "/x"}, "options": ["y"]}]}}},
    "Empty": {
        "input": {
            "required": {"ckpt": [[], {}], "open": ["COMBO", {}], "many": [["x"], {"multiselect": True}]}
        }
    },
    "Switch": {"input": {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a"}]}]}}},
    "Save": {
        "input": {"required": {"images": ["*", {}], "filename_prefix": ["STRING", {"default": "x"}]}},
        "output": [],
        "output_node": True,
    },
    "Odd": {"input": {"required": {"x": "nonsense", "y": []}}, "output": [["a", "b"]]},
    "Broken": [],
}
INVENTORY = parse(INFO, version="0.3.64")


def graph(**nodes: tuple[str, dict[str, Any]]) -> Any:
    """Make a graph whose nodes all feed one Save node, so that all of them count."""
    made: dict[str, Any] = {
        node_id: {"class_type": class_type, "inputs": inputs}
        for node_id, (class_type, inputs) in nodes.items()
    }
    links = {f"extra_{node_id}": [node_id, 0] for node_id in nodes}
    made["save"] = {
        "class_type": "Save",
        "inputs": {"images": [next(iter(nodes)), 0], "filename_prefix": "p", **links},
    }
    return made


def found(made: Any, inventory: Inventory = INVENTORY) -> list[tuple[str, str, str]]:
    result = problems(made, inventory)
    assert all(problem.message for problem in result)
    return [(problem.node_id, problem.field, str(problem.kind)) for problem in result]


GOOD = {"model": "a.safetensors", "kind": "one"}


def test_both_shapes_of_enumeration_are_read() -> None:
    load = INVENTORY.classes["Load"]
    assert load.required["model"].options == ("a.safetensors", "sub/b.safetensors")
    assert load.required["kind"].options == ("one", "two")
    assert load.optional["strength"].maximum == 2.0
    assert load.outputs == ("MODEL",)
    assert INVENTORY.classes["Save"].output_node
    assert INVENTORY.classes["Odd"].outputs == ("COMBO",)
    assert "Broken" not in INVENTORY.classes


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_what_is_no_object_info_is_refused(body: object) -> None:
    with pytest.raises(ConfigError, match="is this URL a ComfyUI"):
        parse(body)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (GOOD, []),
        ({**GOOD, "model": "sub\\b.safetensors"}, []),
        ({**GOOD, "strength": 2, "flag": True}, []),
        ({**GOOD, "undeclared": "whatever", "fleet_run": "R"}, []),
        ({**GOOD, "base": ["other", 0]}, []),
        ({"kind": "one"}, [("n", "model", "missing_input")]),
        ({**GOOD, "model": "c.safetensors"}, [("n", "model", "file_missing")]),
        ({**GOOD, "kind": "three"}, [("n", "kind", "value_not_in_list")]),
        ({**GOOD, "kind": 1}, [("n", "kind", "value_not_in_list")]),
        ({**GOOD, "strength": 2.1}, [("n", "strength", "out_of_range")]),
        ({**GOOD, "strength": -1}, [("n", "strength", "out_of_range")]),
    ],
)
def test_each_input_is_compared(inputs: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert found(graph(n=("Load", inputs), other=("Load", GOOD))) == expected


@pytest.mark.parametrize(
    ("slot", "expected"), [(0, []), *((slot, [("n", "base", "bad_link")]) for slot in (1, 99))]
)
def test_a_link_to_a_slot_that_its_class_does_not_have(
    slot: int, expected: list[tuple[str, str, str]]
) -> None:
    linked = {**GOOD, "base": ["other", slot]}
    assert found(graph(n=("Load", linked), other=("Load", GOOD))) == expected
    told = [one.message for one in problems(graph(n=("Load", linked), other=("Load", GOOD)), INVENTORY)]
    assert all("slot" in one and "node other (Load), whose outputs are MODEL" in one for one in told)
    # Nobody looks at what no output reads, or at an input that the class does not declare.
    assert found(graph(n=("Load", {**GOOD, "undeclared": ["other", slot]}), other=("Load", GOOD))) == []


TYPED: dict[str, Any] = {
    "Noise": {"input": {}, "output": ["LATENT", "INT,FLOAT", "*", ["a", "b"], "COMFY_MATCHTYPE_V3"]},
    "Packed": {"input": {}, "output": ["LATENT"], "python_module": "custom_nodes.pack"},
    "Show": {
        "input": {
            "required": {},
            "optional": {
                "image": ["IMAGE", {}],
                "number": ["FLOAT,STRING", {}],
                "any": ["*", {}],
                "choice": [["a"], {}],
            },
        },
        "output_node": True,
    },
}


@pytest.mark.parametrize(
    ("name", "slots"),
    [("image", {0, 1, 3}), ("number", {0, 3}), ("any", set()), ("choice", {0, 1})],
)
def test_types_of_links_are_compared(name: str, slots: set[int]) -> None:
    inventory = parse(TYPED)

    def told(class_type: str, slot: int) -> list[tuple[str, bool]]:
        made: Any = {
            "n": {"class_type": class_type, "inputs": {}},
            "s": {"class_type": "Show", "inputs": {name: ["n", slot]}},
        }
        return [(one.kind.value, one.doubtful) for one in findings(made, inventory)]

    assert {slot for slot in range(5) if told("Noise", slot)} == slots
    for slot in slots:
        assert told("Noise", slot) == [("return_type_mismatch", False)]
    # A pack's class may take what it does not list.
    assert told("Packed", 0) == ([("return_type_mismatch", True)] if 0 in slots else [])


@pytest.mark.parametrize(
    ("outputs", "doubts"),
    [({"output": ["MODEL"], "python_module": "custom_nodes.pack"}, [True]), ({"output": 5}, []), ({}, [])],
)
def test_a_class_may_hand_out_more_than_it_lists(outputs: dict[str, Any], doubts: list[bool]) -> None:
    linked = {**GOOD, "base": ["other", 3]}
    made = graph(n=("Load", linked), other=("Many", {}))
    inventory = parse({**INFO, "Many": {"input": {}, **outputs}})
    assert found(made, inventory) == []
    assert [one.doubtful for one in findings(made, inventory)] == doubts


def test_uploads_remote_and_open_lists_are_no_needs() -> None:
    made = graph(
        a=("LoadImage", {"image": "never-seen.png"}),
        b=("LoadImage", {"image": asset_reference("x")}),
        c=("LoadRemote", {"file": "whatever"}),
        d=("Switch", {"mode": "b", "mode.steps": 4}),
        e=("Switch", {"mode.steps": 4}),
        f=("Empty", {"ckpt": "m.ckpt", "open": "anything", "many": "x,y"}),
    )
    assert found(made) == [("f", "ckpt", "file_missing")]
    assert [u.node_id for u in named_files(made, Declared([INVENTORY]))] == ["a"]


def test_unknown_classes_count_anywhere_and_inputs_only_where_an_output_reads_them() -> None:
    made = graph(n=("Load", GOOD))
    made["orphan"] = {"class_type": "Load", "inputs": {}}
    assert found(made) == []
    made["stranger"] = {"class_type": "FromAnExtension", "inputs": {}}
    assert found(made) == [("stranger", "", "unknown_class")]


def test_a_graph_without_outputs_is_a_problem() -> None:
    assert found({"n": {"class_type": "Load", "inputs": GOOD}}) == [("", "", "no_outputs")]


def test_requirements_name_classes_and_files() -> None:
    made = graph(
        n=("Load", {"model": "sub\\b.safetensors", "kind": "one"}),
        i=("LoadImage", {"image": "x.png"}),
        f=("Empty", {"ckpt": "m.ckpt", "open": "x"}),
    )
    needs = requirements(made, INVENTORY)
    assert needs.classes == {"Load", "LoadImage", "Empty", "Save"}
    assert needs.files == {("Load", "model", "sub/b.safetensors"), ("Empty", "ckpt", "m.ckpt")}


@pytest.mark.parametrize(
    ("version", "wanted", "allowed"),
    [
        ("0.3.64", ">=0.3.64", True),
        ("v0.3.64", ">=0.3.64", True),
        ("0.3.64", ">=0.3.100", False),
        ("0.10.0", ">=0.9", True),
        ("0.4", ">=0.4.0", True),
        ("0.3.64+cu128", "<=0.3.64", True),
        ("0.3.64", ">0.3.64", False),
        ("1.2", ">=0.3.71,<1", False),
        ("0.3.64", "==0.3.64", True),
        ("0.3.64", "", True),
        ("", ">=0.3", None),
        ("nightly", ">=0.3", None),
    ],
)
def test_versions(version: str, wanted: str, allowed: bool | None) -> None:
    assert version_allows(version, wanted) is allowed


@pytest.mark.parametrize("wanted", ["0.3.71", ">=", "~=1.0", ">=0.3.x", ">=1,"])
def test_conditions_that_say_nothing_are_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        version_allows("1.0", wanted)


def test_recorded_refusals_of_a_real_server_are_foreseen() -> None:
    info = json.loads((RECORDINGS / "GET_object_info.json").read_text())
    inventory = parse(_body(info))
    assert len(inventory.classes) > 5
    sampler = inventory.classes["KSampler"]
    assert sampler.required["steps"].minimum == 1
    assert sampler.required["sampler_name"].options
    assert inventory.classes["LoadImage"].required["image"].upload


def _body(recording: Any) -> Any:
    """Return the answer that a recording holds, whichever way it wraps it."""
    if "KSampler" in recording:
        return recording
    for key in ("response", "body", "json"):
        if isinstance(recording.get(key), dict):
            return _body(recording[key])
    raise AssertionError(list(recording))


def test_too_old_is_told_from_file_missing() -> None:
    made = graph(n=("Load", {"model": "c.safetensors", "kind": "new"}), m=("NewNode", {}))
    flow = Workflow(
        name="w",
        graph=made,
        version="v",
        parameters=(Parameter(name="p", type=ParameterType.STRING, required=True),),
        requires=ManifestRequirements(
            comfyui=">=0.3.71", models=(ModelFile(file="c.safetensors", folder="loras", source="Somewhere"),)
        ),
    )
    old = check_workflow(flow, INVENTORY)
    assert [str(p.kind) for p in old] == [
        "comfyui_too_old",
        "unknown_class",
        "file_missing",
        "value_not_in_list",
    ]
    assert "0.3.64 does not fulfil >=0.3.71" in old[0].message
    assert "newer versions have it" in old[1].message
    assert "put it into models/loras (Somewhere)" in old[2].message
    new = check_workflow(flow, INVENTORY, "0.3.80")
    assert [str(p.kind) for p in new] == ["unknown_class", "file_missing", "value_not_in_list"]
    assert not any("newer versions" in p.message for p in new)
