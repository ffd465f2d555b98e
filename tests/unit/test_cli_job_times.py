"""Moments as people write them on the command line."""

from datetime import datetime, timedelta

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.job_times import moment, seconds

NOW = datetime(2030, 5, 17, 12, 0).astimezone()


def read(text: str) -> datetime:
    return datetime.fromisoformat(moment(text, NOW))


def test_a_time_of_day_is_the_next_one_in_local_time() -> None:
    assert read("18:30") == NOW + timedelta(hours=6, minutes=30)
    assert read("6:05") == datetime(2030, 5, 18, 6, 5).astimezone()
    assert read("12:00") == datetime(2030, 5, 18, 12, 0).astimezone()


def test_a_date_without_an_offset_is_local_too() -> None:
    local = datetime(2030, 6, 1, 8, 15).astimezone()
    assert read("2030-06-01 08:15") == read("2030-06-01T08:15:00") == local
    assert read("2030-06-01 08:15").utcoffset() is not None


def test_an_offset_stays_what_it_is() -> None:
    assert moment("2030-06-01T08:15:00-03:30", NOW) == "2030-06-01T08:15:00-03:30"
    assert moment("2030-06-01T08:15:00.5Z", NOW) == "2030-06-01T08:15:00.500000+00:00"


@pytest.mark.parametrize(
    "text", ["8", "08:5", "24:00", "08:60", "2030-06-01", "2030-13-01 08:15", "a", "", "٨:١٥"]
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Fail, match=r"^--finish-by ") as caught:
        moment(text, NOW)
    assert caught.value.exit is Exit.USAGE
    assert "18:30" in str(caught.value.hint)


def test_spans_are_named_as_they_were_typed() -> None:
    assert seconds("--run-timeout", "timeout_s", None) is None
    assert seconds("--run-timeout", "timeout_s", 5) == 5.0
    with pytest.raises(Fail, match=r"^--run-timeout must be a number of seconds, at least 1"):
        seconds("--run-timeout", "timeout_s", 0)
