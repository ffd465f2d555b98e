"""The words that clients of the simple REST routes wait for."""

import pytest

from comfy_fleet.api.v1.task_words import COMPLETED, DONE, SUCCESS, TaskWords
from comfy_fleet.domain.jobs.job import TERMINAL, JobStatus


@pytest.mark.parametrize(
    ("words", "waiting", "end"),
    [
        (SUCCESS, {"queued", "processing"}, "success"),
        (COMPLETED, {"queued", "processing"}, "completed"),
        (DONE, {"pending"}, "done"),
    ],
)
def test_a_loop_ends_when_the_job_does_and_not_before(words: TaskWords, waiting: set[str], end: str) -> None:
    assert {words.of(status) for status in JobStatus if not status.terminal} == waiting
    assert words.of(JobStatus.SUCCEEDED) == end
    assert {words.of(status) for status in TERMINAL} <= {end, "failed"}


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED])
def test_what_ended_without_a_picture_is_no_success(status: JobStatus) -> None:
    assert SUCCESS.of(status) == COMPLETED.of(status) == "failed"
    assert DONE.of(status) == "done"  # that vocabulary has nothing else that ends a loop


def test_a_job_that_is_being_canceled_goes_on() -> None:
    assert SUCCESS.of(JobStatus.CANCELING) == "processing"
    assert DONE.of(JobStatus.CANCELING) == "pending"
