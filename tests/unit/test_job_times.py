"""The times that clients set for their jobs."""

import math

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job_times import LONGEST_S, check_ahead, moment, span_s


@pytest.mark.parametrize(
    ("field", "value"),
    [("ttl_s", 1e-9), ("ttl_s", 5), ("ttl_s", LONGEST_S), ("timeout_s", 1), ("timeout_s", 1.5)],
)
def test_a_span(field: str, value: float) -> None:
    assert span_s(field, value) == value


@pytest.mark.parametrize("field", ["ttl_s", "deadline_s", "timeout_s"])
@pytest.mark.parametrize(
    "value", [0, -0.0, -1, math.nan, math.inf, -math.inf, 10**400, LONGEST_S + 1, True, "5", None, [], {}]
)
def test_what_is_no_span_is_refused_under_its_name(field: str, value: object) -> None:
    with pytest.raises(BadInput, match=f"^{field} must be a number of seconds") as caught:
        span_s(field, value)
    assert caught.value.details == {"field": field}


def test_a_run_has_a_second_at_least() -> None:
    with pytest.raises(BadInput, match="at least 1 and at most 30 days"):
        span_s("timeout_s", 0.99)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01t00:00:10.25z", 10.25),
        ("1970-01-01 02:00:10+02:00", 10),
        ("1970-01-01T00:00:10.123456789-00:30", 1810.123456),
        (10, 10),
        (10.5, 10.5),
    ],
)
def test_a_moment(value: object, seconds: float) -> None:
    assert moment(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("1970-01-01T00:00:10", "1970-01-01", "19700101T000010Z", "1970-W01-1T00:00:10Z", "now", "10", ""),
        *("1970-02-30T00:00:10Z", "1970-01-01T25:00:10Z", "1970-01-01T00:00:10+99:00"),
        "1970-01-01T00:00:10Z\n",
        *("١٩٧٠-01-01T00:00:10Z", math.nan, math.inf, True, None, [], {}),
    ],
)
def test_what_is_no_moment_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match=r"^finish_by must be a time with its offset, such as 2") as caught:
        moment(value)
    assert caught.value.details == {"field": "finish_by"}


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (1000.0, "is past, by 0 s: "),
        (993.0, "is past, by 7 s: "),
        (1000 - 600.0, "is past, by 10 min: "),
        (1000 - 7200.0, "is past, by 2 h: "),
        (moment(-(10**400)), "is past: "),
        (1000 + LONGEST_S + 1, "is more than 30 days ahead: leave it out, or name an earlier time"),
    ],
)
def test_a_moment_has_to_come_within_thirty_days(at: float, words: str) -> None:
    with pytest.raises(BadInput, match=f"^finish_by .*{words}"):
        check_ahead(at, now=1000.0)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.8e12 + 5e6, True),
        (1.8e12 - 5e6, True),
        (1.9e9, False),
        (1.9e12, False),
        (10**30, False),
        ("9999-12-31T23:59:59Z", False),
    ],
)
def test_whoever_sends_milliseconds_is_told(value: object, told: bool) -> None:
    with pytest.raises(BadInput, match=r"more than 30 days ahead: leave it out") as caught:
        check_ahead(moment(value), now=1.8e9)
    assert ("not milliseconds" in caught.value.message) is told


def test_a_moment_to_come() -> None:
    check_ahead(1000.5, now=1000.0)
    check_ahead(1000 + LONGEST_S, now=1000.0)
