"""What the command line prints: durations, sizes, tables that fit a terminal, and no secrets."""

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from comfy_fleet.cli.console import SIMULATED, ago, facts, size, span, table
from comfy_fleet.cli.jobs import ATTEMPT_COLUMNS, attempt_row
from comfy_fleet.cli.node_state import COLUMNS, row, state
from comfy_fleet.cli.pools import COLUMNS as POOL_COLUMNS
from comfy_fleet.cli.pools import row as pool_row
from comfy_fleet.cli.up.programs import masked
from comfy_fleet.domain.text import natural

NODE = {
    "name": "sim-1",
    "url": "http://127.0.0.1:40001",
    "pool": "default",
    "verdict": "up",
    "simulated": True,
    "job": "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b",
    "done": 12345,
    "failed": 3,
}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.0, "0ms"),
        (0.85, "850ms"),
        (4.25, "4.2s"),
        (59, "59s"),
        (60, "1m"),
        (200, "3m 20s"),
        (7500, "2h 5m"),
        (200_000, "2d 7h"),
    ],
)
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1848320, "1.8 MiB"), (5 * 1024**3, "5.0 GiB")]
)
def test_sizes_have_a_unit(count: int, words: str) -> None:
    assert size(count) == words


def test_age_counts_from_what_the_api_writes() -> None:
    now = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
    assert ago("2030-01-01T11:56:00Z", now) == "4m"
    assert ago((now - timedelta(seconds=5)).timestamp(), now) == "5.0s"
    assert ago(None, now) == ""
    assert ago("2030-01-01T13:00:00Z", now) == "0ms"  # clocks differ a little


def printed(renderable: object, width: int = 80) -> list[str]:
    buffer = StringIO()
    Console(file=buffer, width=width).print(renderable)
    return buffer.getvalue().splitlines()


def test_the_node_table_fits_80_columns() -> None:
    long = {**NODE, "name": "gpu-rack-17-node-03", "cordoned": True, "cordon_reason": "new driver, " * 6}
    lines = printed(table(COLUMNS, [row(NODE), row(long)]))
    assert max(map(len, lines)) <= 80
    assert "gpu-rack-17-node-03" in "\n".join(lines)


def test_a_node_for_the_editor_says_so() -> None:
    lines = printed(table(COLUMNS, [row({**NODE, "simulated": False, "editor": True})]))
    assert "(editor)" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_the_pool_table_fits_80_columns() -> None:
    name = "a-pool-with-a-long-name"
    pool = {"name": name, "slot": 16, "nodes": 128, "up": 127}
    pools = [
        {**pool, "free_idle_s": 86400.0, "free_on_oom": True, "patience_s": 86400.0},
        {**pool, "name": "b", "slot": None},
    ]
    lines = printed(table(POOL_COLUMNS, [pool_row(one) for one in pools]))
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == ["b", "-", "128", "127", "default", "default", "default"]
    assert [line.split() for line in lines if name in line] == [
        [name, "16", "128", "127", "after", "86400", "s", "yes", "86400", "s"]
    ]


def test_a_simulated_node_says_so() -> None:
    assert SIMULATED in "\n".join(printed(table(COLUMNS, [row(NODE)])))
    assert SIMULATED not in "\n".join(printed(table(COLUMNS, [row({**NODE, "simulated": False})])))


def test_markup_in_cells_stays_text() -> None:
    assert "[red]x[/red]" in "\n".join(printed(table(["A"], [("[red]x[/red]",)])))
    assert "[bold]y" in "\n".join(printed(facts({"name": "[bold]y"})))


def test_facts_leave_out_what_is_not_known() -> None:
    assert printed(facts({"a": None, "b": "", "c": {}, "d": "here"})) == ["d  here"]


def test_a_cordon_goes_before_the_verdict() -> None:
    assert state({**NODE, "cordoned": True, "cordon_reason": "new driver"}) == "drain: new driver"
    assert state({**NODE, "verdict": "down", "why": "no answer"}) == "down: no answer"
    assert state(NODE) == "up"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:geheim@db:6379/0", "redis://***@db:6379/0"),
        ("redis://user:a@b@db/0", "redis://***@db/0"),
        ("redis://db:6379/0", "redis://db:6379/0"),
        ("unix:///run/redis.sock?db=0", "unix:///run/redis.sock?db=0"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_numbered_names_stand_in_the_order_of_their_numbers() -> None:
    names = ["sim-10", "sim-2", "b", "sim-1", "2", "10", ""]
    assert sorted(names, key=natural) == ["", "2", "10", "b", "sim-1", "sim-2", "sim-10"]


def test_attempts_fit_80_columns() -> None:
    lost = {"code": "node_lost", "message": "the node went down " * 10}
    attempt = {
        "run": "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b",
        "node": "a-host-of-ours-gpu-12",
        "started_at": "2030-01-01T12:00:00.000Z",
        "ended_at": "2030-01-01T12:03:20.000Z",
        "counted": True,
        "error": lost,
    }
    done = {**attempt, "node": "sim-1", "counted": False, "error": None}
    lines = printed(table(ATTEMPT_COLUMNS, [attempt_row(attempt), attempt_row(done)]))
    assert max(map(len, lines)) <= 80
    assert "a-host-of-ours-gpu-12" in lines[1] and "3m 20s" in lines[1] and " yes " in lines[1]
    assert "node_lost:" in lines[1]
    assert lines[-1].split()[0] == "sim-1" and lines[-1].split()[-1] == "no"
