"""What the recordings do not show; a live server shows the same (see the contract tests)."""

import re
from typing import Any

import pytest

from comfy_fleet.sim.catalogue import Catalogue
from comfy_fleet.sim.options import builtin_models
from comfy_fleet.sim.validation import ValidationResult, check, fits
from comfy_fleet.sim.versions import VERSIONS, Version
from tests.unit.sim.graphs import Graph, node, text_to_image

OLD, NEW = VERSIONS["0.3.64"], VERSIONS["0.33.0"]


def of(version: Version) -> Catalogue:
    return Catalogue(version, builtin_models(), lambda _: [])


@pytest.fixture(params=VERSIONS)
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    return of(VERSIONS[request.param])


def verdict(catalogue: Catalogue, graph: Graph) -> ValidationResult:
    return check(graph, catalogue, lambda name: name == "there.png")


def kinds(found: ValidationResult) -> dict[str, list[str]]:
    return {key: [error["type"] for error in entry["errors"]] for key, entry in found.node_errors.items()}


SAVE = node("SaveImage", images=["1", 0], filename_prefix="x")


def test_a_good_graph_has_no_errors(catalogue: Catalogue) -> None:
    found = verdict(catalogue, text_to_image())
    assert (found.error, found.outputs, found.node_errors) == (None, ["9"], {})


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (node("EmptyImage", width="abc", height=1, batch_size=1, color=0), "invalid_input_type"),
        (node("EmptyImage", width=1 << 20, height=1, batch_size=1, color=0), "value_bigger_than_max"),
        (node("EmptyImage", width=0, height=1, batch_size=1, color=0), "value_smaller_than_min"),
        (node("LoadImage", image="missing.png"), "custom_validation_failed"),
        (node("ImageInvert", image=["1", 0, 0]), "bad_linked_input"),
        (node("ImageInvert", image=["99", 0]), "exception_during_inner_validation"),
        (node("VAELoader", vae_name="missing.safetensors"), "value_not_in_list"),
    ],
)
def test_each_kind_of_error_is_named(catalogue: Catalogue, first: dict[str, Any], expected: str) -> None:
    graph = {
        "1": first,
        "2": SAVE if first["class_type"] != "VAELoader" else node("PreviewAny", source=["1", 0]),
    }
    found = verdict(catalogue, graph)
    assert found.error is not None
    assert found.error["type"] == "prompt_outputs_failed_validation"
    assert kinds(found) == {"1": [expected]}
    assert found.node_errors["1"]["dependent_outputs"] == ["2"]


def test_values_are_converted_in_place(catalogue: Catalogue) -> None:
    graph = {"1": node("EmptyImage", width="64", height=64.0, batch_size=True, color=0), "2": SAVE}
    assert verdict(catalogue, graph).error is None
    assert graph["1"]["inputs"] == {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    assert isinstance(graph["1"]["inputs"]["width"], int)


def test_unknown_inputs_are_ignored(catalogue: Catalogue) -> None:
    graph = {"1": node("LoadImage", image="there.png", nonsense={"a": 1}), "2": SAVE}
    assert verdict(catalogue, graph).error is None


EMPTY = node("EmptyImage", width=8, height=8, batch_size=1, color=0)


@pytest.mark.parametrize(("version", "expected"), [(OLD, {}), (NEW, {"3": ["value_not_in_list"]})])
def test_new_style_enumerations_are_checked_by_later_versions(
    version: Version, expected: dict[str, list[str]]
) -> None:
    graph = {
        "1": EMPTY,
        "3": node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="nope"),
        "2": node("SaveImage", images=["3", 0], filename_prefix="x"),
    }
    assert kinds(verdict(of(version), graph)) == expected


def resize(**inputs: Any) -> Graph:
    whole = node("ResizeImageMaskNode", input=["0", 0], scale_method="area")
    return {"0": EMPTY, "1": {**whole, "inputs": {**whole["inputs"], **inputs}}, "2": SAVE}


@pytest.mark.parametrize(
    ("graph", "expected", "named"),
    [
        (resize(resize_type="scale by multiplier", **{"resize_type.multiplier": 2}), None, None),
        (resize(resize_type="scale by multiplier"), "required_input_missing", "resize_type.multiplier"),
        (
            resize(resize_type="scale by multiplier", **{"resize_type.multiplier": -5}),
            "value_smaller_than_min",
            "resize_type.multiplier",
        ),
        (resize(resize_type="bogus"), None, None),  # fails when it runs
        (resize(), None, None),
        ({"1": node("BatchImagesNode"), "2": SAVE}, "required_input_missing", "images.image0"),
        ({"0": EMPTY, "1": node("BatchImagesNode", **{"images.image0": ["0", 0]}), "2": SAVE}, None, None),
        (
            {
                "0": node("PrimitiveInt", value=1),
                "1": node("BatchImagesNode", **{"images.image0": ["0", 0]}),
                "2": SAVE,
            },
            "return_type_mismatch",
            "images.image0",
        ),
        (
            {"1": node("StringFormat", f_string="hi"), "2": node("PreviewAny", source=["1", 0])},
            None,
            None,
        ),
        (
            {"1": node("CustomCombo", choice="any"), "2": node("PreviewAny", source=["1", 0])},
            None,
            None,
        ),
    ],
)
def test_inputs_that_depend_on_others_are_checked(
    graph: Graph, expected: str | None, named: str | None
) -> None:
    found = verdict(of(NEW), graph)
    assert kinds(found) == ({} if expected is None else {"1": [expected]})
    if named:
        assert found.node_errors["1"]["errors"][0]["extra_info"]["input_name"] == named


def test_valid_outputs_stay_when_others_fall(catalogue: Catalogue) -> None:
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": SAVE,
        "3": node("PreviewImage"),
    }
    found = verdict(catalogue, graph)
    assert found.error is None
    assert found.outputs == ["2"]
    assert kinds(found) == {"3": ["required_input_missing"]}


def test_only_wanted_outputs_are_looked_at(catalogue: Catalogue) -> None:
    graph = {**text_to_image(), "20": node("PreviewImage")}
    assert check(graph, catalogue, lambda _: True, ["9"]).outputs == ["9"]


def test_a_cycle_is_refused_without_a_reason_by_early_versions() -> None:
    found = verdict(of(OLD), {"1": node("ImageInvert", image=["1", 0]), "2": SAVE})
    assert found.error is not None
    assert found.node_errors == {}


def test_a_cycle_is_explained_at_each_of_its_nodes_by_later_versions() -> None:
    graph = {
        "0": node("ImageInvert", image=["1", 0]),
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "4": node("SaveImage", images=["0", 0], filename_prefix="x"),
    }
    found = verdict(of(NEW), graph)
    assert kinds(found) == {"1": ["dependency_cycle"], "2": ["dependency_cycle"]}
    reason = found.node_errors["2"]["errors"][0]
    assert reason["details"] == "1 (ImageInvert) -> 2 (ImageInvert) -> 1 (ImageInvert)"
    assert reason["extra_info"] == {"node_id": "2", "cycle_nodes": ["1", "2"]}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (OLD, "Cannot execute because node Nope does not exist."),
        (NEW, "Node 'Mine' not found. The custom node may not be installed."),
    ],
)
def test_an_unknown_class_is_named(version: Version, message: str) -> None:
    found = verdict(of(version), {"1": {**node("Nope"), "_meta": {"title": "Mine"}}})
    assert found.error is not None
    assert (found.error["type"], found.error["message"]) == (version.class_error, message)


def test_long_enumerations_are_not_repeated(catalogue: Catalogue) -> None:
    graph = text_to_image()
    graph["7"]["inputs"]["sampler_name"] = "magic"
    error = verdict(catalogue, graph).node_errors["7"]["errors"][0]
    assert re.fullmatch(r"sampler_name: 'magic' not in \(list of length 4\d\)", error["details"])
    assert error["extra_info"]["input_config"] is None


def test_types_fit_by_name_star_or_overlap() -> None:
    assert fits("IMAGE", "IMAGE")
    assert fits("IMAGE", "*")
    assert fits("*", "IMAGE")
    assert fits("STRING,INT", "INT,FLOAT")
    assert not fits("IMAGE", "MASK")
    assert not fits(["a"], "MASK")
