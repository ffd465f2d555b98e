"""Frames and records of a job in its client's words."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.jobs.client_messages import ClientMessage, execution_start
from comfy_fleet.domain.jobs.frames import (
    Picture,
    RawFrame,
    parse_binary,
    with_metadata,
    with_prompt,
    without_metadata,
)
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, OutputKind, Progress
from comfy_fleet.domain.jobs.shown_prompt import PromptMessage, Topic
from comfy_fleet.services.job_frames import JobFrames, is_for_anybody, prompt_end, shown_node, type_of
from tests.factories import an_output

RUN = "6d6a8f7c-3a43-4c4c-9a0a-000000000001"
PNG = b"\x89PNG\r\n\x1a\n rest of it"
PREVIEW = b"\0\0\0\1\0\0\0\1\xff\xd8\xff"


def text(type_: str, **data: Any) -> RawFrame:
    told = {"type": type_, "data": {"prompt_id": RUN, **data}}
    return RawFrame(run=RUN, data=json.dumps(told).encode(), text=True)


def read(frames: JobFrames, frame: RawFrame, *, metadata: bool = False) -> PromptMessage:
    found = frames.read(frame, metadata=metadata)
    assert found is not None
    return found


def told(one: ClientMessage) -> tuple[str, dict[str, Any]]:
    message = json.loads(one.data)
    return message["type"], message["data"]


def job(status: JobStatus = JobStatus.SUCCEEDED, **more: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "j",
        "owner": "o",
        "status": status,
        "created_at": 1.0,
        "expires_at": 9.0,
        "graph_hash": "h",
        "run": RUN,
        "started_at": 2.0,
        "prompt_id": "mine",
    }
    return Job(**{**fields, **more})


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=128))
def test_a_run_has_its_clients_name_in_every_message(name: str) -> None:
    frames = JobFrames(name)
    nodes = {"1": {"prompt_id": RUN, "value": 1}}
    one = read(frames, text("progress_state", nodes=nodes))
    assert told(one.message) == (
        "progress_state",
        {"prompt_id": name, "nodes": {"1": {"prompt_id": name, "value": 1}}},
    )
    assert (one.topic, one.message.spare, one.run) == (Topic.PROGRESS_STATE, True, RUN)
    binary = RawFrame(run=RUN, data=with_metadata(PREVIEW, {"node_id": "7", "prompt_id": RUN}), text=False)
    picture = parse_binary(read(frames, binary, metadata=True).message.data)
    assert isinstance(picture, Picture) and (picture.node_id, picture.prompt_id) == ("7", name)


@pytest.mark.parametrize(
    ("frame", "topic", "key"),
    [
        (text("execution_start", timestamp=1), Topic.START, None),
        (text("execution_cached", nodes=[]), Topic.CACHED, None),
        (text("executing", node="3", display_node="2"), Topic.EXECUTING, ("3", None)),
        (text("executed", node="3", output={}), Topic.RESULT, ("3", None)),
        (text("progress", node="3", value=1), Topic.OTHER, None),
        (text("an.extension's own", x=1), Topic.OTHER, ("an.extension's own", None)),
        (text("execution_error", exception_type="ExecutionBlocked"), Topic.OTHER, None),
        (RawFrame(run=RUN, data=PREVIEW, text=False, place=("3", 4)), Topic.RESULT, ("3", 4)),
        (RawFrame(run=RUN, data=b"\0\0\0\x63 of a later version", text=False), Topic.OTHER, None),
    ],
)
def test_what_a_frame_is_about(frame: RawFrame, topic: Topic, key: Any) -> None:
    one = read(JobFrames("mine"), frame)
    assert (one.topic, one.key) == (topic, key)


@pytest.mark.parametrize(
    "frame",
    [
        text("status", status={}),
        text("feature_flags"),
        text("execution_success"),
        text("execution_interrupted"),
        text("execution_error", exception_type="ValueError"),
        text("executing", node=None),
        text("executed", node=5),
        RawFrame(run=RUN, data=b"[]", text=True),
        RawFrame(run=RUN, data=b"no JSON", text=True),
        RawFrame(run=RUN, data=b'{"type": 5}', text=True),
    ],
)
def test_ends_and_what_is_not_the_clients_are_not_passed_on(frame: RawFrame) -> None:
    assert JobFrames("mine").read(frame, metadata=False) is None


def test_previews_of_either_form_become_the_form_that_is_wanted() -> None:
    frames = JobFrames("mine")
    read(frames, text("executing", node="2.0.0.1", display_node="2"))
    state = {"display_node_id": "2", "parent_node_id": "9", "real_node_id": "1", "value": 1}
    read(frames, text("progress_state", nodes={"2.0.0.1": state}))
    old = RawFrame(run=RUN, data=PREVIEW, text=False)
    assert read(frames, old).message == ClientMessage(PREVIEW, text=False, spare=True)
    new = read(frames, old, metadata=True).message.data
    size = int.from_bytes(new[4:8], "big")
    assert json.loads(new[8 : 8 + size]) == {
        "node_id": "2.0.0.1",
        "prompt_id": "mine",
        "display_node_id": "2",
        "parent_node_id": "9",
        "real_node_id": "1",
        "image_type": "image/jpeg",
    }
    assert new[8 + size :] == PREVIEW[8:]
    assert without_metadata(new) == PREVIEW
    assert read(JobFrames("mine"), old, metadata=True).message.data == PREVIEW  # of an unknown node


@given(st.binary(max_size=64), st.booleans())
def test_no_binary_frame_breaks_a_conversion(data: bytes, longer: bool) -> None:
    for frame in (data, b"\0\0\0\1" + data, b"\0\0\0\4" + data, b"\0\0\0\4\0\0\0\2{}" + data):
        assert isinstance(with_metadata(frame, {"node_id": "x"}), bytes)
        assert isinstance(without_metadata(frame), bytes)
        assert isinstance(with_prompt(frame, b"{" if longer else b"zz", b"run"), bytes)


def test_text_and_progress_of_nobodys_prompt_are_for_anybody() -> None:
    assert is_for_anybody(text("progress_state", nodes={}))
    assert is_for_anybody(RawFrame(run=RUN, data=b"\0\0\0\3\0\0\0\1 5text", text=False))
    assert not is_for_anybody(text("progress"))
    assert not is_for_anybody(RawFrame(run=RUN, data=PREVIEW, text=False))


def end(
    done: Job, ui: Any = None, frames: JobFrames | None = None, **more: Any
) -> list[tuple[str, dict[str, Any]]]:
    found = prompt_end(done, ui or {}, frames or JobFrames("mine"), metadata=False, live=None, at=5.0, **more)
    messages = [*([found.start] if found.start else []), *(one.message for one in found.results), *found.last]
    return [told(one) for one in messages]


def test_a_success_is_told_with_every_result_of_the_record() -> None:
    output = an_output(node_id="2", key="images", index=0, name="t_00042_.png", saved=True, subfolder="sub")
    done = job(outputs=(output,))
    ui = {"2": {"images": [{"filename": "t_00001_.png", "subfolder": "fleet/j/r/sub", "type": "output"}]}}
    file = {"filename": "t_00042_.png", "subfolder": "sub", "type": "output"}
    expected = [
        ("execution_start", {"prompt_id": "mine", "timestamp": 2000}),
        ("executed", {"node": "2", "display_node": "2", "output": {"images": [file]}, "prompt_id": "mine"}),
        ("execution_success", {"prompt_id": "mine", "timestamp": 5000}),
        ("executing", {"node": None, "prompt_id": "mine"}),
    ]
    assert end(done, ui) == expected
    assert end(done) == expected  # what its nodes returned was too large to be kept
    assert [type_ for type_, _ in end(done, ui, told=[("2", None)])] == [
        "execution_start",
        "execution_success",
        "executing",
    ]


def test_pictures_of_messages_come_from_their_assets_behind_their_nodes_turn() -> None:
    names = [f"websocket_0000{index + 1}.png" for index in range(2)]
    outputs = tuple(
        an_output(
            node_id="2", key="images", index=index, name=name, asset_id=f"a{index}", kind=OutputKind.IMAGE
        )
        for index, name in enumerate(names)
    )
    done = job(outputs=outputs)
    found = prompt_end(done, {}, JobFrames("mine"), told=[("2", 0)], metadata=True, live=None, at=5.0)
    (one,) = found.results
    assert one.key == ("2", 1) and one.before is not None and told(one.before)[1]["node"] == "2"
    assert one.message.asset == "a1" and one.message.data.startswith(b"\0\0\0\4")
    picture = parse_binary(one.message.data + PNG)
    assert isinstance(picture, Picture)
    assert (picture.prompt_id, picture.node_id, picture.data) == ("mine", "2", PNG)


def test_the_nodes_own_words_about_an_end_are_told_if_they_are_about_the_last_run() -> None:
    frames = JobFrames("mine")
    raised = {"exception_type": "ValueError", "node_id": "4", "current_inputs": {"x": [1]}}
    assert frames.read(text("execution_error", **raised), metadata=False) is None
    failed = job(JobStatus.FAILED, error=JobError(code="node_execution_error", message="boom"))
    assert end(failed, frames=frames)[1] == ("execution_error", {"prompt_id": "mine", **raised})
    other = replace(failed, run="another")
    assert end(other, frames=frames)[1][1]["exception_message"] == "boom"
    assert end(job(), frames=frames)[1][0] == "execution_success"
    frames.read(text("execution_interrupted", node_id="4"), metadata=False)
    assert end(job(JobStatus.CANCELED), frames=frames)[1] == (
        "execution_interrupted",
        {"prompt_id": "mine", "node_id": "4"},
    )


def test_an_error_of_the_record_has_all_that_a_client_looks_at() -> None:
    error = JobError(
        code="node_execution_error",
        message="boom",
        node_id="4",
        class_type="KSampler",
        traceback="one\ntwo\n",
        details={"exception_type": "RuntimeError"},
    )
    (_, (type_, data), _) = end(job(JobStatus.FAILED, error=error))
    assert type_ == "execution_error"
    assert data == {
        "prompt_id": "mine",
        "node_id": "4",
        "node_type": "KSampler",
        "executed": [],
        "exception_message": "boom",
        "exception_type": "RuntimeError",
        "traceback": ["one\n", "two\n"],
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": 5000,
    }


def test_what_never_began_has_no_run_and_no_results() -> None:
    waited = {"run": None, "started_at": None, "outputs": (an_output(),)}
    canceled = job(JobStatus.CANCELED, **waited)
    late = job(JobStatus.EXPIRED, error=JobError(code="deadline_exceeded", message="too late"), **waited)
    for done, type_ in ((canceled, "execution_interrupted"), (late, "execution_error")):
        found = prompt_end(done, {}, JobFrames("mine"), metadata=False, live=None, at=5.0)
        assert (found.run, found.results) == ("", ())
        assert [told(one)[0] for one in found.last] == [type_, "executing"]


def test_an_interruption_names_the_node_that_computed() -> None:
    progress = Progress(
        value=0.5, nodes_done=1, nodes_total=2, current_node="4", current_node_class="KSampler"
    )
    data = end(job(JobStatus.CANCELED, progress=progress))[1][1]
    assert (data["node_id"], data["node_type"]) == ("4", "KSampler")


@pytest.mark.parametrize(
    ("node", "shown"),
    [("2", "2"), ("2.0.0.3", "2"), ("2.0.0.3.0.1.5", "2"), ("12:7", "12:7"), ("a.b", "a.b")],
)
def test_a_node_that_another_made_is_shown_as_that_one(node: str, shown: str) -> None:
    assert shown_node(node) == shown


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (b'{"type": "executing", "data": {}}', "executing"),
        (b'{"type":"executing"}', "executing"),
        (b'{"data": {}, "type": "executing"}', "executing"),
        (b'{"type": "x\\u0041"}', "xA"),
        (b'{"type": "x", "data": NaN}', "x"),
        (b'{"data": NaN, "type": "x"}', "x"),
        (b"", None),
    ],
)
def test_the_type_of_a_message(data: bytes, type_: str | None) -> None:
    assert type_of(data) == type_


def test_a_start_is_in_milliseconds() -> None:
    assert told(execution_start("mine", 1.5)) == ("execution_start", {"prompt_id": "mine", "timestamp": 1500})


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_an_error_says_nothing_of_where_a_runs_files_are(slash: str) -> None:
    frames = JobFrames("mine")
    folder = slash.join(["fleet", "0d6a8f7c-3a43-4c4c-9a0a-00000000000a", RUN, ""])
    inputs = {"filename_prefix": [f"{folder}sub{slash}ComfyUI"], "image": [f"{folder}abc.png"]}
    failed = text(
        "execution_error", exception_type="OSError", current_inputs=inputs, traceback=[f"in {folder}x"]
    )
    assert frames.read(failed, metadata=False) is None
    type_, data = told(frames.end_of(job(JobStatus.FAILED), 3.0))
    assert (type_, data["prompt_id"], data["traceback"]) == ("execution_error", "mine", ["in x"])
    assert data["current_inputs"] == {"filename_prefix": [f"sub{slash}ComfyUI"], "image": ["abc.png"]}
    error = JobError(code="node_execution_error", message=f"no {folder}x", traceback=f"1\nin {folder}x\n")
    _, data = told(JobFrames("mine").end_of(job(JobStatus.FAILED, error=error), 3.0))
    assert (data["exception_message"], data["traceback"]) == ("no x", ["1\n", "in x\n"])
