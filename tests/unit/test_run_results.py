"""What answers, errors and history entries mean, in all the shapes they come in."""

from typing import Any

import pytest

from comfy_fleet.adapters.redis.job_records import dump_error
from comfy_fleet.domain.jobs.run_messages import PostAnswered
from comfy_fleet.domain.jobs.run_results import (
    MAX_DEFECTS,
    failed,
    lost,
    node_errors,
    read_history,
    rejected,
    timed_out,
)
from tests.unit.run_harness import history_of, recording

FILE = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}


def test_recorded_histories() -> None:
    success = read_history(history_of(recording("success")))
    assert (success.success, success.error, success.interrupted) == (True, None, False)
    assert [item.id for item in success.items] == [("2", "images", 0)]
    error = read_history(history_of(recording("error_execution")))
    assert error.success is False
    assert error.error is not None
    assert error.error["node_id"] == "3"
    interrupted = read_history(history_of(recording("interrupted")))
    assert (interrupted.success, interrupted.interrupted) == (False, True)


@pytest.mark.parametrize(
    ("status", "success"),
    [
        (None, None),
        ({}, None),
        ({"status_str": "success"}, True),
        ({"status_str": "error", "messages": None}, False),
        (
            {"status_str": "new", "completed": True, "messages": [1, "ab", ["x"], ["execution_error", 3]]},
            True,
        ),
        ({"status_str": "error", "completed": True}, False),
    ],
)
def test_odd_histories(status: Any, success: bool | None) -> None:
    past = read_history({"status": status, "outputs": {"2": FILE, "3": None}})
    assert past.success is success
    assert past.error is None
    assert len(past.items) == 1
    assert read_history({"status": status, "outputs": None}).items == ()


@pytest.mark.parametrize("status", ["success", "error", "new"])
@pytest.mark.parametrize(
    ("messages", "success"),
    [
        ([["execution_error", {"exception_type": "X"}]], False),
        ([["execution_start", {}], ["execution_error", {}], ["execution_cached", {}]], False),
        ([["execution_interrupted", {}]], False),
        ([["execution_interrupted", None]], False),
        ([["execution_success", {}], ["execution_error", {}]], False),
        ([["execution_start", {}], ["execution_success", {}]], True),
        ([["execution_error", {"exception_type": "ExecutionBlocked"}], ["execution_success", {}]], True),
    ],
)
def test_how_it_ended_stands_in_the_messages(messages: Any, success: bool, status: str) -> None:
    entry = {"status": {"status_str": status, "completed": status == "success", "messages": messages}}
    past = read_history(entry)
    assert (past.success, past.told) == (success, True)


def test_whatever_comes_after_an_interrupt_it_was_one() -> None:
    messages = [["execution_interrupted", {}], ["execution_cached", {"nodes": []}]]
    assert read_history({"status": {"status_str": "error", "messages": messages}}).interrupted


def test_a_page_in_place_of_an_answer_is_cut() -> None:
    error = rejected(PostAnswered(502, None, "<html>" + "x" * 9000)).error
    assert error is not None
    assert len(error.message) < 600


def test_a_class_that_newer_servers_name_apart() -> None:
    extra = {"node_id": "12", "class_type": "Nope"}
    body = {"error": {"type": "missing_node_type", "message": "Nope.", "details": "?", "extra_info": extra}}
    assert node_errors(body) == {
        "12": [{"field": "class_type", "reason": "missing_node_type", "message": "Nope."}]
    }
    verdict = rejected(PostAnswered(400, body))
    assert verdict.error is not None
    assert (verdict.error.message, verdict.error.node_id) == ("Nope. ?", "12")


def test_what_a_node_says_of_itself_counts_more_than_what_is_said_of_the_whole() -> None:
    defect = {"type": "value_not_in_list", "message": "no", "details": "x", "extra_info": {"input_name": "a"}}
    body = {
        "error": {"type": "t", "message": "m", "details": "Node ID '#9'", "extra_info": {"node_id": "12"}},
        "node_errors": {"3": {"class_type": "KSampler", "errors": [defect]}},
    }
    mine = {"3": [{"field": "a", "reason": "value_not_in_list", "message": "no: x"}]}
    assert node_errors(body) == mine
    assert list(node_errors({"error": body["error"]})) == ["12"]
    verdict = rejected(PostAnswered(400, body))
    assert verdict.error is not None
    assert (verdict.error.node_id, verdict.error.class_type) == ("3", "KSampler")
    assert verdict.error.message == "m. Node ID '#9'. Node 3: no: x"
    assert verdict.retryable  # another node may take it


def test_the_message_says_what_a_node_found_once() -> None:
    defect = {"type": "custom_validation_failed", "message": "Invalid image file: a.png", "details": ""}
    error = {"type": "t", "message": "Prompt outputs failed validation", "details": ""}
    body = {"error": error, "node_errors": {"1": {"class_type": "LoadImage", "errors": [defect]}}}
    verdict = rejected(PostAnswered(400, body))
    assert verdict.error is not None
    assert verdict.error.message == "Prompt outputs failed validation. Node 1: Invalid image file: a.png"
    error["details"] = "Invalid image file: a.png"
    verdict = rejected(PostAnswered(400, body))
    assert verdict.error is not None
    assert verdict.error.message == "Prompt outputs failed validation. Invalid image file: a.png"


@pytest.mark.parametrize(
    "body",
    [{}, {"node_errors": []}, {"node_errors": {"1": None, "2": {"errors": ["x", None]}}}, {"error": 3}],
)
def test_bodies_that_name_nothing(body: dict[str, Any]) -> None:
    assert node_errors(body) == {}
    verdict = rejected(PostAnswered(400, body, "the text"))
    assert verdict.error is not None
    assert verdict.error.message == "the node answered POST /prompt with 400: the text"


def test_an_error_without_anything() -> None:
    verdict = failed({})
    assert verdict.error is not None
    assert verdict.error.message
    assert (verdict.error.code, verdict.error.traceback) == ("node_execution_error", None)
    bare = failed({"exception_type": "KeyError"}).error
    assert bare is not None
    assert (bare.message, bare.details) == ("KeyError", {"exception_type": "KeyError"})
    text = failed({"exception_message": "x", "traceback": "one line"}).error
    assert text is not None
    assert text.traceback == "one line"


@pytest.mark.parametrize(
    ("type_", "message", "code"),
    [
        ("ValueError", "the word memory is out of place", "node_execution_error"),
        ("NotAnOutOfMemoryErrorReally", "", "node_execution_error"),
        ("OutOfMemoryError", "", "out_of_memory"),
        (
            "RuntimeError",
            "cuda runtime error (2) : out of memory at THCStorage.cu:58",
            "out_of_memory",
        ),
        ("RuntimeError", "MPS backend out of memory (MPS allocated: 9 GB)", "out_of_memory"),
    ],
)
def test_out_of_memory_is_told_apart(type_: str, message: str, code: str) -> None:
    error = failed({"exception_type": type_, "exception_message": message}).error
    assert error is not None
    assert error.code == code


def test_an_error_of_any_length_is_kept_in_part() -> None:
    verdict = failed({"exception_message": "m" * 10**6, "traceback": ["a" * 10**6, "the end"]})
    assert verdict.error is not None and verdict.error.traceback is not None
    assert (len(verdict.error.message), len(verdict.error.traceback)) == (4096, 32_768)
    assert verdict.error.traceback.endswith("the end")


def test_lost_and_timed_out() -> None:
    gone, late = lost("why", counts=True), timed_out("why")
    assert (gone.kind, gone.counts, gone.retryable) == ("lost", True, True)
    assert (late.kind, late.counts, late.retryable) == ("timeout", True, False)


def test_a_refusal_with_very_many_faults_is_a_small_record() -> None:
    fault = {
        "type": "value_not_in_list",
        "message": "m" * 5000,
        "details": "d" * 5000,
        "extra_info": {"input_name": "i" * 5000},
    }
    errors = {f"{n}" + "x" * 5000: {"errors": [fault, fault], "class_type": "c" * 5000} for n in range(2000)}
    body = {"error": {"type": "t", "message": "w" * 9000, "details": "d" * 9000}, "node_errors": errors}
    error = rejected(PostAnswered(400, body, "")).error
    assert error is not None
    assert sum(len(found) for found in error.details["node_errors"].values()) == MAX_DEFECTS
    assert error.details["node_errors_left_out"] == 4000 - MAX_DEFECTS
    assert len(dump_error(error)) < 65_536


def test_an_error_with_very_long_or_broken_names_is_a_small_record() -> None:
    long = "\ud83d" + "x" * 100_000
    names = ("exception_type", "exception_message", "node_id", "node_type")
    error = failed({**dict.fromkeys(names, long), "traceback": [long]}).error
    assert error is not None and error.traceback is not None
    assert error.message.endswith("…") and len(dump_error(error)) < 65_536
    error = failed({**dict.fromkeys(names, "\ud83d"), "traceback": "\ud83d"}).error
    assert dump_error(error)


def test_a_list_of_a_nodes_folders_shows_no_other_jobs() -> None:
    job, run = "0b9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a11", "1c9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a22"
    details = f"folder: 'x' not in ['3d', 'fleet', 'fleet/{job}', 'fleet/{job}/{run}', 'fleet\\\\{job}', 'z']"
    error = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": details,
        "extra_info": {"input_name": "folder"},
    }
    answer = PostAnswered(status=400, body={"node_errors": {"1": {"class_type": "L", "errors": [error]}}})
    verdict = rejected(answer)
    assert verdict.error is not None
    assert job not in repr(verdict) and run not in repr(verdict)
    assert "'3d', 'fleet', 'fleet/...', 'fleet/...', 'fleet/...', 'z'" in verdict.error.message
