"""What commands print about versions of stored workflows, and how versions are named."""

import json
import re
from typing import Any

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.workflow_versions import sides
from tests.canned import Canned, error, run

OLD, NEW = f"sha256:{'a1' * 32}", f"sha256:{'b2' * 32}"
LONG = "a very long prompt about a fox in a wood at dawn, with mist …"


def change(kind: str, message: str, field: str = "", node: str = "3") -> dict[str, Any]:
    return {"kind": kind, "message": message, "field": field, "node_id": node, "parameter": "p"}


SAMPLER = "node 3 (KSampler 'Detail (fine): steps')"
DIFFERENCES = [
    change("text", 'title: "Card" → "Big card"', "title"),
    change("parameter_added", "parameter width (integer) is added"),
    change("parameter", "parameter steps: maximum 50 → 30", "maximum"),
    change("requirement", "requires vram_gb: 8 → 16", "vram_gb"),
    change("node_removed", "node 9 (PreviewImage) is removed", node="9"),
    change("input", f"{SAMPLER}: steps 20 → 30", "steps"),
    change("input", f"{SAMPLER}: cfg 7.0 → 8.5", "cfg"),
    change("node_title", 'node 4 (CLIPTextEncode): title "" → "$prompt"', node="4"),
    change("input", f'node 4 (CLIPTextEncode): text "{LONG}" → "{LONG[:-1]}!"', "text", "4"),
]
BREAKING = [{"parameter": "steps", "message": "parameter 'steps' has the maximum 30 instead of 50"}]


def diff_of(canned: Canned, *argv: str) -> str:
    found = {"a": OLD, "b": NEW, "differences": DIFFERENCES, "breaking_changes": BREAKING}
    canned.on("GET", "/api/v1/workflows/card/diff", found)
    result = run(canned, "workflow", "diff", "card", *argv)
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


def test_a_diff_speaks_of_nodes_inputs_and_parameters(canned: Canned) -> None:
    assert diff_of(canned).splitlines() == [
        "card  a1a1a1a1a1a1 → b2b2b2b2b2b2",
        "About",
        '  ~ title: "Card" → "Big card"',
        "Parameters",
        "  + width (integer)",
        "  ~ steps: maximum 50 → 30",
        "Needs",
        "  ~ vram_gb: 8 → 16",
        "Nodes",
        "  - node 9 (PreviewImage)",
        f"  {SAMPLER}",
        "    steps 20 → 30",
        "    cfg 7.0 → 8.5",
        "  node 4 (CLIPTextEncode)",
        '    title "" → "$prompt"',
        f'    text "{LONG}" → "{LONG[:-1]}!"',
        "This breaks programs that use it:",
        "  ! parameter 'steps' has the maximum 30 instead of 50",
    ]


def test_long_values_are_below_each_other_on_a_narrow_terminal(
    canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = diff_of(canned).splitlines()
    at = lines.index("    text")
    assert lines[at + 1 : at + 3] == [f'      - "{LONG}"', f'      + "{LONG[:-1]}!"']
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("card",), (None, None)),
        (("card@production",), (None, None)),
        (("card", "staging"), ("staging", "production")),
        (("card@staging",), ("staging", "production")),
        (("card", "draft"), ("production", "draft")),
        (("card", "1f0c2ab", "draft"), ("1f0c2ab", "draft")),
        (("card@1f0c2ab", "card"), ("1f0c2ab", "production")),
        (("card@1f0c2ab", "card@staging"), ("1f0c2ab", "staging")),
        (("card@1f0c2ab", "staging"), ("1f0c2ab", "staging")),
    ],
)
def test_two_versions_may_be_named_in_several_ways(
    argv: tuple[str, ...], wanted: tuple[str | None, str | None]
) -> None:
    name, a, b = (*argv, None, None)[:3]
    assert sides(str(name), a, b) == ("card", *wanted)


@pytest.mark.parametrize("argv", [("card", "other@staging"), ("card@a", "b", "c")])
def test_versions_of_different_workflows_are_not_compared(argv: tuple[str, ...]) -> None:
    name, a, b = (*argv, None, None)[:3]
    with pytest.raises(Fail) as caught:
        sides(str(name), a, b)
    assert caught.value.exit is Exit.USAGE


# -- publish ----------------------------------------------------------------

STEPS = [
    {"name": "parameters", "state": "passed", "message": "each finds its place", "problems": []},
    {"name": "nodes", "state": "passed", "message": "2 nodes can run it", "problems": []},
    {"name": "test_run", "state": "passed", "message": "it has succeeded", "problems": []},
]
CHECK: dict[str, Any] = {
    "workflow": "card",
    "draft": "seal",
    "version": NEW,
    "ready": True,
    "unchanged": False,
    "steps": STEPS,
    "test_run": None,
    "production": {"version": OLD, "changed_by": "bob", "changed_at": "2030-01-01T00:00:00Z"},
    "overtaken": False,
    "theirs": [],
    "changes": [change("input", "node 3 (KSampler): steps 20 → 30", "steps")],
    "breaking": [],
    "unrun": "",
}
PUBLISH, CHECKED = "/api/v1/workflows/card/publish", "/api/v1/workflows/card/check"


def test_a_draft_is_checked_shown_and_published(canned: Canned) -> None:
    canned.on("POST", CHECKED, CHECK)
    canned.on("POST", PUBLISH, {"workflow": "card", "version": NEW, "before": OLD, "changed": True})
    result = run(canned, "workflow", "publish", "card", "--note", "softer")
    assert result.exit_code == 0, result.output
    assert "ok      test run: it has succeeded" in result.stdout
    assert "    steps 20 → 30" in result.stdout
    assert result.stdout.endswith(
        "card  b2b2b2b2b2b2 published, after a1a1a1a1a1a1; back: fleet workflow rollback card\n"
    )
    sent = {"draft": "seal", "over": OLD, "note": "softer", "breaking": False}
    assert canned.bodies("POST", PUBLISH) == [sent]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"breaking": BREAKING}, "programs that use it would break"),
        ({"overtaken": True, "theirs": DIFFERENCES}, "it would replace the version of bob"),
        (
            {
                "overtaken": True,
                "production": None,
                "removed": {"removed_by": "bob", "removed_at": "2030-01-01T00:00:00Z"},
            },
            "has removed card since your draft was begun",
        ),
        ({"unrun": "card.json"}, "card.json was saved since the draft: run it"),
        ({"files_message": "These files have the same id, card: a, b."}, "not published: These files have"),
    ],
)
def test_what_needs_a_yes_is_not_published_without_one(
    canned: Canned, found: dict[str, Any], says: str
) -> None:
    canned.on("POST", CHECKED, {**CHECK, **found})
    canned.on("POST", PUBLISH, {"workflow": "card", "version": NEW, "before": OLD, "changed": True})
    result = run(canned, "workflow", "publish", "card")
    assert isinstance(result.exception, Fail)
    assert says in result.exception.message
    assert "--force" in str(result.exception.hint)
    assert canned.bodies("POST", PUBLISH) == []
    assert run(canned, "workflow", "publish", "card", "--force").exit_code == 0
    sent = canned.bodies("POST", PUBLISH)[0]
    assert (sent["breaking"], sent.get("leave_out_unrun", False)) == ("breaking" in found, "unrun" in found)
    assert sent.get("leave_out_files", False) is ("files_message" in found)


def test_a_draft_that_fails_a_check_is_not_published(canned: Canned) -> None:
    failed = {**STEPS[1], "state": "failed", "message": "no node can", "problems": ["sim-1: no class A"]}
    waits = {**STEPS[2], "state": "waiting", "message": "not begun"}
    steps = [STEPS[0], failed, waits]
    canned.on("POST", CHECKED, {**CHECK, "ready": False, "steps": steps})
    result = run(canned, "workflow", "publish", "card")
    assert result.exit_code == Exit.FAILED
    assert "failed  nodes: no node can" in result.stdout
    assert "sim-1: no class A" in result.stdout
    answer = run(canned, "workflow", "publish", "card", "--json")
    assert json.loads(answer.stdout)["ready"] is False


def test_a_missing_draft_says_how_to_get_one(canned: Canned) -> None:
    canned.on("POST", CHECKED, error("not_found", "you have no draft of card: save and run it"), 404)
    result = run(canned, "workflow", "publish", "card")
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.NOT_FOUND
    assert "save and run it" in result.exception.message
