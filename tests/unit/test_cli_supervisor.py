"""Children are started again, slower and slower, and their lines end up in JSON."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.system.child_processes import LogFile
from comfy_fleet.cli.up import supervisor
from comfy_fleet.cli.up.supervisor import ChildSpec, LogTrouble, Supervised, is_loud, parse_line, stop_all
from comfy_fleet.cli.up.terminal import line_of
from comfy_fleet.domain.backoff import Backoff

QUICK = Backoff(first_s=0.01, longest_s=0.03)


def spec(name: str, code: str, *, stage: int = 0) -> ChildSpec:
    return ChildSpec(name=name, argv=(sys.executable, "-c", code), stage=stage)


def supervised(made: ChildSpec, logs: Path, heard: list[Mapping[str, Any]] | None = None) -> Supervised:
    lines: list[Mapping[str, Any]] = [] if heard is None else heard
    return Supervised(made, logs=logs, echo=lambda _, fields: lines.append(fields), backoff=QUICK)


async def until(condition: Any, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_crashing_child_is_started_again_and_its_end_is_told(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    child = supervised(spec("crasher", "print('going down'); raise SystemExit(3)"), tmp_path, heard)
    await child.start()
    try:
        await until(lambda: child.crashes >= 3)
    finally:
        await child.stop()
    ends = [fields for fields in heard if fields["msg"] == "ended by itself"]
    assert ends[0]["status"] == "exit 3"
    assert [fields["again_in_s"] for fields in ends[:3]] == [0.01, 0.02, 0.03]
    assert all(is_loud(fields) for fields in ends)
    logged = [json.loads(line) for line in (tmp_path / "crasher.log").read_text().splitlines()]
    assert [fields["msg"] for fields in logged][:2] == ["going down", "ended by itself"]


async def test_one_that_ran_for_long_is_started_again_as_soon_as_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)  # as long as that
    heard: list[Mapping[str, Any]] = []
    child = supervised(spec("crasher", "raise SystemExit(3)"), tmp_path, heard)
    await child.start()
    try:
        await until(lambda: len(heard) >= 3)
    finally:
        await child.stop()
    assert [fields["again_in_s"] for fields in heard[:3]] == [0.01] * 3


async def test_a_signal_is_named(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    child = supervised(spec("killed", "import os; os.kill(os.getpid(), 9)"), tmp_path, heard)
    await child.start()
    try:
        await until(lambda: any(fields.get("status") == "SIGKILL" for fields in heard))
    finally:
        await child.stop()


async def test_a_stopped_child_stays_stopped(tmp_path: Path) -> None:
    child = supervised(spec("sleeper", "print('up', flush=True); import time; time.sleep(60)"), tmp_path)
    await child.start()
    await until((tmp_path / "sleeper.log").exists)
    pid = child.pid
    assert pid
    await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert child.crashes == 0


async def test_stages_end_from_the_highest_to_the_lowest(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    with open({path!r}, 'a') as file: file.write({name!r} + ' ')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)\n"
    )
    children = [
        supervised(spec(name, code.format(path=str(order), name=name), stage=stage), tmp_path)
        for name, stage in (("redis", 0), ("dispatch", 2), ("api", 1))
    ]
    for child in children:
        await child.start()
    await until(lambda: all((tmp_path / f"{child.spec.name}.log").exists() for child in children))
    await stop_all(children)
    assert order.read_text().split() == ["dispatch", "api", "redis"]


@pytest.mark.parametrize("line", ["Redis is starting", '{"no": "message"}', '{"msg": 5}', "{broken", "[1]"])
def test_foreign_lines_become_messages(line: str) -> None:
    fields = parse_line("redis", line)
    assert (fields["msg"], fields["process"], fields["level"]) == (line, "redis", "info")
    assert not is_loud(fields)


def test_our_own_lines_keep_their_fields() -> None:
    line = '{"level": "warning", "process": "api", "msg": "queue full", "job_id": "j1"}'
    assert parse_line("x", line) == json.loads(line)
    assert is_loud(parse_line("x", line))


async def test_a_part_says_that_it_runs_again_and_how_long_it_was_away(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    code = "import os, time; print('it is ready', flush=True); time.sleep(60)"
    child = supervised(replace(spec("api", code), ready="is ready"), tmp_path, heard)
    await child.start()
    try:
        await until(lambda: heard)
        assert [fields["msg"] for fields in heard] == ["it is ready"]  # the first start is no return
        child.kill()
        await until(lambda: any(fields["msg"] == "runs again" for fields in heard))
    finally:
        await child.stop()
    (ended,) = [fields for fields in heard if fields["msg"] == "ended by itself"]
    assert ended["reason"] == "killed by signal SIGKILL (perhaps out of memory)"
    back = heard[-1]
    assert back["after_s"] >= 0
    assert is_loud(back)


def test_a_full_disk_is_said_once_for_all_logs_and_its_end_too(tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    trouble = LogTrouble(lambda _, fields: heard.append(fields))
    full = [LogFile(Path("/dev/full"), on_trouble=trouble.of) for _ in range(2)]
    for log in full * 3:
        log.write("x" * 10_000)
    assert [(fields["level"], fields["reason"]) for fields in heard] == [("error", "No space left on device")]
    for _ in range(2):
        trouble.of(None)
    assert [fields["msg"] for fields in heard[1:]] == ["logs are written again"]
    for log in full:
        log.close()


def test_a_line_for_people_has_a_time_a_reason_and_no_escapes() -> None:
    made = {
        "ts": "2026-01-01T00:00:00.000+00:00",
        "level": "error",
        "process": "api",
        "msg": "ended by itself",
    }
    line = line_of("api", {**made, "reason": "exit 3", "again_in_s": 0.2, "path": "a\n\x1b[2J"})
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d error api: ended by itself: exit 3 again_in_s=0\.2 path=a\\n\\x1b\[2J", line
    )
    assert re.match(
        r"\d\d:\d\d:\d\d info redis: Ready", line_of("redis", {"msg": "Ready", "ts": "yesterday"})
    )
