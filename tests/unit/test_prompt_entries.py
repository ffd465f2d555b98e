"""A job in the forms of ComfyUI's queue, history and jobs API."""

from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.domain.jobs import prompt_entries
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Progress
from comfy_fleet.domain.jobs.prompt_entries import ListedState

JOB = Job(
    id="j",
    owner="ada",
    status=JobStatus.SUCCEEDED,
    created_at=1000.0014,
    started_at=1001.0,
    completed_at=1003.5,
    expires_at=9999.0,
    graph_hash="h",
    prompt_id="p",
    number=3.0,
)


def file(name: str, type_: str = "output", **more: Any) -> dict[str, Any]:
    return {"filename": name, "subfolder": "", "type": type_, **more}


def item(ui: dict[str, Any], job: Job = JOB, state: ListedState = ListedState.COMPLETED) -> dict[str, Any]:
    return prompt_entries.final_item(job, state, ui)


@pytest.mark.parametrize(
    ("ui", "count", "previewable", "preview"),
    [
        ({}, 0, 0, None),
        ({"1": {"images": [file("a.png"), file("b.png")]}}, 2, 2, "a.png"),
        ({"1": {"images": [file("t.png", "temp")]}, "2": {"images": [file("s.png")]}}, 2, 2, "s.png"),
        ({"1": {"images": [file("t.png", "temp")]}}, 1, 1, "t.png"),
        ({"1": {"text": ["words"]}, "2": {"images": [file("t.png", "temp")]}}, 1, 1, "t.png"),
        ({"1": {"files": [file("a.txt")]}, "2": {"images": [file("t.png", "temp")]}}, 2, 2, "t.png"),
        ({"1": {"files": [file("a.txt")]}, "2": {"text": ["words"]}}, 1, 1, "a.txt"),
        ({"1": {"latents": [file("a.latent")]}, "2": {"images": [file("b.png")]}}, 2, 1, "b.png"),
        ({"1": {"gifs": [file("a.mp4", format="video/h264")]}}, 1, 1, "a.mp4"),
        ({"1": {"result": ["x.glb", {"camera": 1}, None]}}, 2, 1, "x.glb"),
        ({"1": {"animated": [True], "dims": 5, "images": [None]}, "2": "odd"}, 0, 0, None),
    ],
)
def test_outputs_are_counted_and_one_stands_for_all(
    ui: dict[str, Any], count: int, previewable: int, preview: str | None
) -> None:
    made = item(ui)
    assert (made["outputs_count"], made["previewable_outputs_count"]) == (count, previewable)
    assert made.get("preview_output", {}).get("filename") == preview


def test_a_preview_says_where_it_is_from() -> None:
    shown = {"filename": "x.GLB", "subfolder": "", "type": "output", "nodeId": "1", "mediaType": "3d"}
    assert item({"1": {"result": ["x.GLB"]}})["preview_output"] == shown
    assert item({"1": {"text": ["w"]}})["preview_output"] == {
        "content": "w",
        "nodeId": "1",
        "mediaType": "text",
    }
    long = item({"1": {"text": ["w" * 1025]}})["preview_output"]
    assert (len(long["content"]), long["truncated"]) == (1024, True)
    details = prompt_entries.job_details(JOB, graph={}, extra_data={}, ui={"1": {"result": ["x.glb", None]}})
    assert details["outputs"]["1"]["result"] == [
        {"filename": "x.glb", "type": "output", "subfolder": "", "mediaType": "3d"}
    ]


def test_times_and_numbers_are_written_as_comfyui_does() -> None:
    made = item({})
    assert (made["create_time"], made["priority"]) == (1000001, 3)
    assert (made["execution_start_time"], made["execution_end_time"]) == (1001000, 1003500)
    assert "workflow_id" not in made and "execution_error" not in made
    assert prompt_entries.shown_number(-2.0) == -2
    assert prompt_entries.shown_number(1.5) == 1.5
    for job, number in ((JOB, 3), (replace(JOB, history_number=5.0), 5)):
        entry = prompt_entries.history_entry(job, graph={}, extra_data={}, outputs=[], ui={})
        assert entry["prompt"][0] == number
    extra = prompt_entries.shown_extra_data({"create_time": 1}, client_id=None, created_at=2.5)
    assert extra == {"create_time": 2500}


@pytest.mark.parametrize(
    ("status", "more", "state", "last"),
    [
        (JobStatus.SUCCEEDED, {}, ListedState.COMPLETED, "execution_success"),
        (JobStatus.FAILED, {}, ListedState.FAILED, "execution_error"),
        (JobStatus.EXPIRED, {"started_at": None}, ListedState.FAILED, "execution_error"),
        (JobStatus.CANCELED, {}, ListedState.CANCELLED, "execution_interrupted"),
        (JobStatus.CANCELED, {"started_at": None}, None, "execution_interrupted"),
        (JobStatus.SUCCEEDED, {"hidden": True}, None, "execution_success"),
    ],
)
def test_states(status: JobStatus, more: dict[str, Any], state: ListedState | None, last: str) -> None:
    job = replace(JOB, status=status, **more)
    assert prompt_entries.listed_state(job) == state
    told = prompt_entries.execution_status(job)
    assert told["completed"] is (status is JobStatus.SUCCEEDED)
    assert told["messages"][-1][0] == last
    assert told["messages"][-1][1]["timestamp"] == 1003500


def test_live_states() -> None:
    for status in (JobStatus.RUNNING, JobStatus.CANCELING):
        assert prompt_entries.listed_state(replace(JOB, status=status)) is ListedState.IN_PROGRESS
    assert prompt_entries.listed_state(replace(JOB, status=JobStatus.QUEUED)) is ListedState.PENDING
    assert not ListedState.PENDING.final and ListedState.FAILED.final


def test_an_error_names_a_node_with_texts_alone() -> None:
    at = Progress(value=0.5, nodes_done=1, nodes_total=2, current_node="7", current_node_class="KSampler")
    failed = replace(JOB, status=JobStatus.FAILED, error=JobError(code="node_lost", message="gone"))
    told = item({}, failed, ListedState.FAILED)["execution_error"]
    assert (told["node_id"], told["node_type"], told["exception_type"]) == ("", "", "node_lost")
    assert told["exception_message"] == "gone"
    stopped = replace(JOB, status=JobStatus.CANCELED, progress=at)
    message = prompt_entries.execution_status(stopped)["messages"][-1][1]
    assert (message["node_id"], message["node_type"]) == ("7", "KSampler")
