"""What nodes hand over for the user interface, kept within its limit; against recordings of both versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.jobs.outputs import FileRef, InlineText, find_outputs, leaves_of
from comfy_fleet.domain.jobs.raw_ui import MAX_UI_BYTES, RawUi
from comfy_fleet.domain.jobs.run import Run
from comfy_fleet.domain.jobs.run_messages import HistoryAnswered, Opened, PostAnswered, QueueAnswered
from tests.unit.run_harness import LIMITS, Log, events_of, history_of, request_of

TESTS = Path(__file__).parents[1]
RECORDED = [
    path
    for folder in ("recordings", "recordings-0.33")
    for path in sorted((TESTS / folder).glob("*.json"))
    if path.name != "jobs_api.json" and '"executed"' in path.read_text() and '"meta"' in path.read_text()
]


def ids(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RECORDED, ids=ids)
@pytest.mark.parametrize("told_by", ["frames", "history"])
def test_what_history_says_is_kept_as_it_is(path: Path, told_by: str) -> None:
    record = json.loads(path.read_text())
    request, entry = request_of(record), history_of(record)
    frames = told_by == "frames"
    run = Run(
        run_id=request["prompt_id"],
        graph=request["prompt"],
        limits=LIMITS,
        now=0.0,
        adopted=not frames,
        accepted=not frames,
    )
    log = Log()
    log.add(run.handle(Opened(), 0.0))
    if frames:
        log.add(run.handle(PostAnswered(200, {"prompt_id": request["prompt_id"]}), 0.0))
        for event in events_of(record):
            log.add(run.handle(event, 0.0))
    else:
        log.add(run.handle(QueueAnswered("absent"), 0.0))
        log.add(run.handle(HistoryAnswered(entry), 0.0))
    kept = json.loads(run.ui or "{}")
    assert kept == entry["outputs"] and list(kept) == list(entry["outputs"])


@pytest.mark.parametrize("path", RECORDED, ids=ids)
def test_an_output_is_found_where_it_stands_in_what_is_kept(path: Path) -> None:
    record = json.loads(path.read_text())
    for node, ui in history_of(record)["outputs"].items():
        for item in find_outputs(node, ui, run=request_of(record)["prompt_id"]):
            leaf = leaves_of(ui[item.key])[item.index]
            match item.source:
                case FileRef(filename=name):
                    assert name == (leaf["filename"] if isinstance(leaf, dict) else leaf)
                case InlineText(text=text):
                    assert text == leaf


def dumped(ui: RawUi) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(ui.dump() or "{}")
    return value


def test_what_a_node_hands_over_last_counts() -> None:
    ui = RawUi()
    ui.take("1", {"text": ["a"]})
    ui.take("2", {"n": [None, True, 0.5, {"deep": [[]]}], "é😀": "ü"})
    ui.take("1", {"text": ["b"]})
    assert dumped(ui) == {
        "2": {"n": [None, True, 0.5, {"deep": [[]]}], "é😀": "ü"},
        "1": {"text": ["b"]},
    }
    values: list[object] = [None, {}, [], "text", 5]
    for nothing in values:
        ui.take("1", nothing)
        assert list(dumped(ui)) == ["2"]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": 1}
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    "huge",
    [
        {"text": ["x" * MAX_UI_BYTES]},
        {"text": ["\u4e00" * (MAX_UI_BYTES // 4)]},  # six bytes each, once they are written
        {"x" * MAX_UI_BYTES: 1},
        {"list": [[]] * MAX_UI_BYTES},
        {"many": [{"a": 1}] * 100_000},
        {str(index): 0 for index in range(100_000)},
        nested(100),
        nested(100_000),
    ],
    ids=["text", "wide text", "key", "lists", "objects", "keys", "deep", "deeper"],
)
def test_what_is_too_much_is_left_out_and_hides_nothing_else(huge: dict[str, Any]) -> None:
    ui = RawUi()
    ui.take("1", {"text": ["a"]})
    ui.take("2", {"text": ["b"]})
    ui.take("2", huge)
    ui.take("3", {"text": ["c"]})
    assert dumped(ui) == {"1": {"text": ["a"]}, "3": {"text": ["c"]}}


def test_all_nodes_together_stay_within_the_limit() -> None:
    ui = RawUi()
    for index in range(10_000):
        ui.take(f"grown-{index}", {"t": ["x" * (index % 300)]})
    assert MAX_UI_BYTES / 2 < len(ui.dump()) <= MAX_UI_BYTES
    ui.take("x" * MAX_UI_BYTES, {"t": [1]})
    for index in range(10_000):
        ui.take(f"grown-{index}", None)
    assert ui.dump() == ""
    ui.take("1", {"t": ["x" * (MAX_UI_BYTES - 100)]})
    assert "1" in dumped(ui)  # the room of what is gone is there again


def test_a_nodes_id_counts_as_it_is_written() -> None:
    ui = RawUi()
    ui.take("1", {"text": ["a"]})
    ui.take("😀" * (MAX_UI_BYTES // 4), {"text": ["b"]})  # twelve bytes each
    assert dumped(ui) == {"1": {"text": ["a"]}}
