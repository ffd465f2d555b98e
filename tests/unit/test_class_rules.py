"""Which classes jobs may use: by name, and by what classes of both real versions of ComfyUI do."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from comfy_fleet.domain.errors import BadInput, InvalidWorkflow
from comfy_fleet.domain.graphs.class_rules import CODE, CORE, FOLDERS, NETWORK, ClassRules, groups_of
from comfy_fleet.domain.graphs.file_access import declared_inputs
from comfy_fleet.domain.graphs.file_check import Declared, FilePolicy, check
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from tests.unit.test_file_access import VERSIONS, classes_of


def inventory(classes: dict[str, Any]) -> Inventory:
    return parse(classes)


def members(version: str, group: str) -> set[str]:
    known = inventory(classes_of(version))
    return {name for name, info in known.classes.items() if group in groups_of(name, [info])}


IN_FOLDERS = {
    *("LoadImageSetFromFolderNode", "LoadImageTextSetFromFolderNode"),
    *("LoadImageDataSetFromFolder", "LoadImageTextDataSetFromFolder", "LoadTrainingDataset"),
    *("LoadVideoDataSetFromFolder", "LoadVideoTextDataSetFromFolder", "SaveImageDataSetToFolder"),
    *("SaveImageTextDataSetToFolder", "SaveTrainingDataset"),
}
WITH_CODE = {"ComfyMathExpression", "GLSLShader", "RegexExtract", "RegexMatch", "RegexReplace"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_groups_of_real_classes(version: str) -> None:
    there = set(classes_of(version))
    assert members(version, FOLDERS) == IN_FOLDERS & there
    assert members(version, CODE) == WITH_CODE & there
    assert members(version, NETWORK) == {
        name for name, body in classes_of(version).items() if body.get("api_node")
    }
    assert members(version, CORE) == there


LIKE_A_DANGER = re.compile(
    r"url|uri|http|host(?!ile)|server|endpoint|code|script|expr|regex|shader|python|eval|command|lambda|formula",
    re.IGNORECASE,
)
HARMLESS = {
    "description": "a text",
    "high_level_description": "a text",
    "language_code": "a choice of the service's",
    "tongue_code": "a choice of the service's",
}
"""Inputs that look like a danger and that a person has looked at."""


def unread(classes: dict[str, Any]) -> Iterator[str]:
    """Yield texts that may be a URL or code, of classes that are in no such group."""
    known = inventory(classes)
    for class_type, body in classes.items():
        groups = groups_of(class_type, [known.classes[class_type]])
        for name, declared in declared_inputs(body["input"]):
            last = name.rstrip(".").rpartition(".")[2]
            is_text = isinstance(declared[0], str) and "STRING" in declared[0].split(",")
            if (
                is_text
                and LIKE_A_DANGER.search(last)
                and last not in HARMLESS
                and not groups & {NETWORK, CODE}
            ):
                yield f"{class_type}.{name}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_input_that_looks_like_a_url_or_code_is_in_a_group(version: str) -> None:
    assert list(unread(classes_of(version))) == []


def test_a_class_that_nobody_has_looked_at_is_noticed() -> None:
    new = {"New": {"input": {"required": {"evaluate_this": ["STRING", {}]}}, "output": []}}
    assert list(unread(new)) == ["New.evaluate_this"]


@pytest.mark.parametrize(
    ("body", "groups"),
    [
        ({"required": {"image_url": ["STRING", {}]}}, {NETWORK}),
        ({"optional": {"urls": ["STRING", {"multiline": True}]}}, {NETWORK}),
        ({"required": {"python_code": ["STRING", {"multiline": True}]}}, {CODE}),
        ({"required": {"expression": ["*", {}]}}, {CODE}),
        ({"required": {"language_code": ["STRING", {}]}}, set()),
        ({"required": {"url": ["IMAGE", {}]}}, set()),
        ({"required": {"source_directory": ["STRING", {}]}}, {FOLDERS}),
        ({"required": {"prompt": ["STRING", {}]}}, set()),
    ],
)
def test_the_rules_for_classes_of_node_packs(body: dict[str, Any], groups: set[str]) -> None:
    known = inventory({"New": {"input": body, "output": [], "python_module": "custom_nodes.pack"}})
    assert groups_of("New", [known.classes["New"]]) == groups
    assert groups_of("Nobody", []) == frozenset()


CLASSES = inventory(
    {
        "LoadImage": {
            "input": {"required": {"image": [["a.png"], {"image_upload": True}]}},
            "output": ["IMAGE"],
        },
        "GLSLShader": {"input": {"required": {"fragment_shader": ["STRING", {}]}}, "output": ["IMAGE"]},
        "Theirs": {"input": {}, "output": [], "python_module": "custom_nodes.pack"},
        "TheirCode": {
            "input": {"required": {"script": ["STRING", {}]}},
            "output": [],
            "python_module": "custom_nodes.pack",
        },
    }
)


@pytest.mark.parametrize(
    ("deny", "allow", "usable"),
    [
        ("", "", {"LoadImage", "GLSLShader", "Theirs", "TheirCode"}),
        ("Theirs", "", {"LoadImage", "GLSLShader", "TheirCode"}),
        ("@code", "", {"LoadImage", "Theirs"}),
        ("@code,-GLSLShader", "", {"LoadImage", "GLSLShader", "Theirs"}),
        ("", "@core", {"LoadImage", "GLSLShader"}),
        ("@code", "@core", {"LoadImage"}),
        ("@code", "@core, TheirCode", {"LoadImage", "TheirCode"}),
        ("Theirs", "Theirs", set()),
        ("", "LoadImage", {"LoadImage"}),
    ],
)
def test_lists_of_names_and_groups(deny: str, allow: str, usable: set[str]) -> None:
    policy = FilePolicy.parse(deny, "", allow)
    for class_type in CLASSES.classes:
        graph = {"1": {"class_type": class_type, "inputs": {}}}
        if class_type in usable:
            check(graph, Declared([CLASSES]), policy=policy)
            continue
        with pytest.raises(InvalidWorkflow) as refused:
            check(graph, Declared([CLASSES]), policy=policy)
        (fault,) = refused.value.details["node_errors"]["1"]
        assert (fault["field"], fault["reason"]) == ("class_type", "class_denied")
        assert "FLEET_DENY_CLASSES" in fault["message"] or "FLEET_ALLOW_CLASSES" in fault["message"]


def test_a_class_must_pass_every_set_of_rules() -> None:
    policy = FilePolicy(rules=(ClassRules.parse("@code", ""), ClassRules.parse("", "@core", shipped={})))
    usable = [name for name in CLASSES.classes if policy.why_not(name, Declared([CLASSES])) is None]
    assert usable == ["LoadImage"]


def test_a_core_class_that_a_node_has_from_a_pack_is_none_of_the_cores() -> None:
    other = inventory({"LoadImage": {"input": {}, "output": [], "python_module": "custom_nodes.pack"}})
    policy = FilePolicy.parse("", "", "@core")
    assert policy.why_not("LoadImage", Declared([CLASSES])) is None
    assert policy.why_not("LoadImage", Declared([CLASSES, other])) is not None


def test_a_group_that_there_is_not_is_an_error() -> None:
    for deny, allow in (("@folder", ""), ("", "@everything")):
        with pytest.raises(BadInput, match="@folders, @network, @code, @core"):
            ClassRules.parse(deny, allow)
