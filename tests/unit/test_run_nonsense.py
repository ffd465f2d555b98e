"""Whatever a node sends, a run goes on: frames, answers and numbers that no sound ComfyUI sends."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.adapters.comfyui.json_lenient import decode
from comfy_fleet.domain.jobs.frames import frame_of
from comfy_fleet.domain.jobs.run import Run, RunLimits
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    Binary,
    Collect,
    Event,
    Finish,
    Frame,
    HistoryAnswered,
    Opened,
    PostAnswered,
    SocketClosed,
)
from comfy_fleet.domain.jobs.run_transcript import RunTranscript

RUN = "0b0e3f5c-0000-4000-8000-000000000001"
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
ACCEPTED = PostAnswered(200, {"prompt_id": RUN, "node_errors": {}})


def running() -> Run:
    run = Run(run_id=RUN, graph=GRAPH, limits=RunLimits(silence_s=60, run_s=60), now=0.0)
    for event in (Opened(), ACCEPTED, Frame("execution_start", {"prompt_id": RUN})):
        run.handle(event, 0.0)
    return run


def finished(run: Run, *events: Event) -> Finish | None:
    actions = [action for event in events for action in run.handle(event, 1.0)]
    return next((action for action in actions if isinstance(action, Finish)), None)


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 5000, "1e308", "1e999", "NaN", "-Infinity"])
@pytest.mark.parametrize("field", ["value", "max"])
def test_numbers_beyond_all_ranges_end_no_run(field: str, number: str) -> None:
    run = running()
    numbers = {"value": "1", "max": "20", field: number}
    text = (
        f'{{"type": "progress", "data": {{"prompt_id": "{RUN}", "node": "1", '
        f'"value": {numbers["value"]}, "max": {numbers["max"]}}}}}'
    )
    frame = frame_of(decode(text))
    assert frame is not None
    assert finished(run, Frame("executing", {"prompt_id": RUN, "node": "1"}), frame) is None
    snapshot = run.progress
    assert 0 <= snapshot.value <= 1
    assert (snapshot.steps or 0) <= 2**53
    assert run.misread == ""


def test_deep_metadata_is_no_metadata() -> None:
    head = b"[" * 200_000
    data = (4).to_bytes(4, "big") + len(head).to_bytes(4, "big") + head + b"\x89PNG"
    run = running()
    assert finished(run, Binary(data)) is None
    assert run.misread == ""


def test_nothing_that_names_another_run_becomes_an_output() -> None:
    """A node may know other runs' ids: all that it says of them is said of nothing."""
    graph = {**GRAPH, "3": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    other = RUN.replace("0001", "0002")
    file = {"filename": "stolen.png", "subfolder": "", "type": "output"}

    def saved(prompt: str) -> Binary:
        head = json.dumps({"node_id": "3", "prompt_id": prompt}).encode()
        return Binary((4).to_bytes(4, "big") + len(head).to_bytes(4, "big") + head + b"\x89PNG")

    def collected(prompt: str) -> list[str]:
        run = Run(run_id=RUN, graph=graph, limits=RunLimits(silence_s=60, run_s=60), now=0.0)
        executed = {"prompt_id": prompt, "node": "2", "output": {"images": [file]}}
        events: list[Event] = [
            *(Opened(), ACCEPTED, Frame("execution_start", {"prompt_id": RUN})),
            *(Frame("executing", {"prompt_id": prompt, "node": "3"}), saved(prompt)),
            *(Frame("executed", executed), Frame("execution_success", {"prompt_id": prompt})),
            Frame("executing", {"prompt_id": prompt, "node": None}),
        ]
        actions = [action for event in events for action in run.handle(event, 1.0)]
        return [item.name for action in actions if isinstance(action, Collect) for item in action.items]

    assert len(collected(RUN)) == 2
    assert collected(other) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(RUN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["prompt_id", "node", "nodes", "value", "max", "output", "display_node", "exception_type", "traceback"]
)
DATA = st.dictionaries(KEYS, JSON, max_size=6).map(lambda data: {**data, "prompt_id": RUN})
TYPES = st.sampled_from(
    [
        *("execution_cached", "executing", "progress", "progress_state", "executed"),
        *("execution_success", "execution_error", "execution_interrupted"),
    ]
)
ENTRY_KEYS = st.sampled_from(["outputs", "status", "prompt", "meta"])
EVENTS = st.one_of(
    st.builds(Frame, TYPES, DATA),
    st.builds(Binary, st.binary(max_size=40)),
    st.builds(HistoryAnswered, st.dictionaries(ENTRY_KEYS, JSON, max_size=4)),
    st.builds(PostAnswered, st.sampled_from([200, 400, 500]), st.dictionaries(st.text(max_size=8), JSON)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_no_order_of_nonsense_raises(events: list[Event]) -> None:
    run = running()
    for event in events:
        run.handle(event, 1.0)
    assert run.misread == ""


def test_something_that_raises_all_the_same_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = running()

    def broken(*_: Any) -> Any:
        raise OverflowError("too much")

    monkeypatch.setattr(RunTranscript, "take", broken)
    assert finished(run, Frame("executing", {"prompt_id": RUN, "node": "1"})) is None
    assert "OverflowError" in run.misread


def test_a_frame_beyond_the_limit_fails_the_run_once_its_prompt_has_left() -> None:
    run = running()
    limit = "node g1 sent a websocket frame of more than 32 MiB (FLEET_NODE_FRAME_BYTES)"
    assert finished(run, SocketClosed("too big", limit)) is None
    end = finished(run, HistoryAnswered(None))
    end = end or finished(run, SocketClosed())
    while end is None:
        run.handle(AskFailed("queue", "unusable", "x"), 1.0)
        end = finished(run, AskFailed("history", "unusable", "x"))
        if end is None:
            end = next((a for a in run.handle(SocketClosed("", limit), 99.0) if isinstance(a, Finish)), None)
    assert end.verdict.error is not None
    assert (end.verdict.error.code, end.verdict.error.message) == ("frame_too_large", limit)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"min": -18446744073709551615, "default": NaN}', -18446744073709551615.0),
        ('{"min": 18446744073709551616, "names": ["\\udcfc"]}', 18446744073709551616.0),
        (b'{"min": 7, "names": ["\xfc.safetensors"]}', 7),
    ],
)
def test_what_is_read_can_be_written(text: str | bytes, value: float) -> None:
    import orjson

    found = decode(text)
    assert found["min"] == value
    orjson.dumps(found)
    assert json.dumps(found)
