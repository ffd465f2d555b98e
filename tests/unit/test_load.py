"""What ``scripts/load`` takes, and how it reads locust's figures."""

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import load


@pytest.mark.parametrize("url", ["http://192.0.2.7:8188", "http://", "no address"])
def test_only_this_machine_is_loaded(url: str) -> None:
    with pytest.raises(SystemExit) as ended:
        load.main(["--url", url])
    assert f"--url {url}" in str(ended.value)


@pytest.mark.parametrize("users", ["0", "-1", "ten", "1e3", "100001"])
def test_users_are_whole_numbers(users: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load.main(["--users", users])
    assert f"'{users}' must be a whole number from 1 to 100000" in capsys.readouterr().err


def _row(name: str, method: str, times: Mapping[str, int], failures: int = 0) -> dict[str, Any]:
    count = sum(times.values())
    return {
        "name": name,
        "method": method,
        "num_requests": count,
        "num_failures": failures,
        "response_times": times,
    }


def test_rows_show_rates_and_percentiles_and_whole_trips_come_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trips = _row("a trip", "job", {"500": 98, "900": 1, "1200": 1}, failures=2)
    requests = _row("POST /prompt", "POST", {"4": 50, "9": 45, "30": 5})
    load.show([trips, requests], users=10, seconds=10, first=True)
    _, first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["10", "POST", "/prompt", "10.0", "0", "4", "9", "30"]
    assert last.split() == ["10", "a", "trip", "10.0", "2", "500", "500", "900"]


def test_a_request_that_nobody_made_has_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    load.show([_row("GET /view", "GET", {})], users=1, seconds=10, first=False)
    assert capsys.readouterr().out.split() == ["1", "GET", "/view", "0.0", "0", "0", "0", "0"]
