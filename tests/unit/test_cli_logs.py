"""`fleet logs` and `fleet job logs`: logs for people and for programs, whatever stands in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Fail
from tests.canned import DONE, JOB, Canned, run
from tests.unit.test_cli_console import ATTACKS
from tests.unit.test_log_files import logged, write


def fleet(*argv: str) -> Any:
    return CliRunner().invoke(build(), argv)


def logs(data: Path, *argv: str) -> list[str]:
    told = fleet("logs", "--data", str(data), *argv)
    assert told.exit_code == 0, told.output
    return list(told.stdout.splitlines())


def make(data: Path, **parts: list[str]) -> Path:
    (data / "logs").mkdir()
    for part, lines in parts.items():
        write(data / "logs" / f"{part}.log", *lines)
    return data


def test_a_line_is_a_line_however_long_and_parts_can_be_chosen(tmp_path: Path) -> None:
    data = make(tmp_path, api=[logged(1, "word " * 100)], dispatch=[logged(2, "two", job_id=JOB)])
    lines = logs(data)
    assert [line.split(": ", 1)[1] for line in lines] == ["word " * 100, f"two job_id={JOB}"]
    assert logs(data, "-n", "1") == lines[1:]
    assert logs(data, "api") == lines[:1]
    assert json.loads(logs(data, "dispatch", "--json")[0])["job_id"] == JOB


def test_a_traceback_is_shown_whole(tmp_path: Path) -> None:
    data = make(tmp_path, api=[logged(1, "broke", traceback="Traceback:\n  File x\nValueError: \x1b[2J")])
    assert logs(data)[1:] == ["    Traceback:", "      File x", r"    ValueError: \x1b[2J"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_line_commands_the_terminal(tmp_path: Path, attack: str) -> None:
    hostile = [f"{attack}\n as text", json.dumps({"msg": attack, attack: attack, "level": attack})]
    hostile += [logged(1, attack, reason=attack, traceback=attack, process=attack)]
    data = make(tmp_path, sim=hostile)
    for form in ((), ("--json",)):
        assert all(line.isprintable() for line in logs(data, *form))


def test_colours_of_a_comfyui_are_left_out_for_people(tmp_path: Path) -> None:
    data = make(tmp_path, gpu0=["\x1b[32m[INFO]\x1b[0m Prompt executed"])
    assert logs(data) == ["info gpu0: [INFO] Prompt executed"]


@pytest.mark.parametrize(("parts", "says"), [({}, "no logs in"), ({"api": []}, "no part 'nope'")])
def test_what_is_not_there_is_said(tmp_path: Path, parts: dict[str, list[str]], says: str) -> None:
    told = fleet("logs", "nope", "--data", str(make(tmp_path, **parts)))
    assert isinstance(told.exception, Fail)
    assert (told.exception.exit, told.exception.message.startswith(says)) == (7, True)
    assert told.exception.hint


def test_a_jobs_record_and_the_lines_that_name_it_are_one_story(canned: Canned, tmp_path: Path) -> None:
    failed = {"code": "node_lost", "message": "the node went down"}
    attempt = {"node": "sim-1", "started_at": "2026-01-01T00:00:02Z", "counted": True}
    attempts = [
        {**attempt, "ended_at": "2026-01-01T00:00:04Z", "error": failed},
        {**attempt, "node": "sim-2", "started_at": "2026-01-01T00:00:06Z", "ended_at": None, "error": None},
    ]
    record = {
        **DONE,
        "created_at": "2026-01-01T00:00:00Z",
        "completed_at": "2026-01-01T00:00:08Z",
        "attempts": attempts,
    }
    canned.on("GET", "/api/v1/job-ids", {"ids": [JOB]})
    canned.on("GET", f"/api/v1/jobs/{JOB}", record)
    data = make(
        tmp_path,
        api=[logged(1, "job accepted", job_id=JOB)],
        dispatch=[logged(3, "another", job_id="other"), logged(5, "given back", job_id=JOB)],
    )
    told = run(canned, "job", "logs", JOB[:4], "--data", str(data))
    assert told.exit_code == 0, told.output
    assert [line.split(" ", 2)[2] for line in told.stdout.splitlines()] == [
        "info job: submitted workflow=image_card",
        "info api: job accepted",
        "info job: attempt began node=sim-1",
        "warning job: attempt ended: node_lost: the node went down node=sim-1",
        "info dispatch: given back",
        "info job: attempt began node=sim-2",
        "info job: succeeded",
    ]
    as_json = run(canned, "job", "logs", JOB, "--data", str(data), "--json").stdout.splitlines()
    assert {json.loads(line)["job_id"] for line in as_json} == {JOB}
    elsewhere = run(canned, "job", "logs", JOB, "--data", str(tmp_path / "other"))
    assert (elsewhere.exit_code, len(elsewhere.stdout.splitlines())) == (0, 5)
    assert "--data DIR" in elsewhere.stderr
