"""`fleet doctor` on this machine, with the real programs."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.cli.console import FleetConsole
from comfy_fleet.cli.doctor import listing
from comfy_fleet.cli.doctor_checks import Finding, Severity
from comfy_fleet.cli.up.programs import find_haproxy
from tests.conftest import free_port
from tests.key_files import write_keys


def doctor(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "comfy_fleet", "doctor", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, "COLUMNS": "80", **env},
    )


def findings(told: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(told.stdout)}


def test_a_good_machine_passes_and_every_part_is_looked_at(tmp_path: Path) -> None:
    told = doctor("--data", str(tmp_path), "--json", FLEET_PORT=str(free_port()))
    found = findings(told)
    assert told.returncode == 0, told.stdout
    assert {"Python", "HAProxy", "HAProxy Lua", "HAProxy metrics", "Redis program", "Redis server"} <= set(
        found
    )
    assert {"NVML", "Port", "Data folder", "Open files", "Workflows", "HAProxy files"} <= set(found)
    assert "image_card" in found["Workflows"]["found"]


def test_the_table_fits_80_columns_and_says_what_to_do(tmp_path: Path) -> None:
    told = doctor("--data", str(tmp_path), FLEET_HAPROXY_BIN="surely-no-such-haproxy")
    assert told.returncode == 1
    assert "FAIL" in told.stdout
    assert "apt-get install -y haproxy" in told.stdout  # in a pipe no line is broken
    console = FleetConsole()
    console.width, console.file = 80, StringIO()
    console.print(
        listing([Finding(check="Redis AOF", verdict=Severity.WARN, found="a b " * 40, do="c d " * 40)])
    )
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


def test_a_named_redis_is_asked_for_its_append_only_file(tmp_path: Path, redis_port: int) -> None:
    found = findings(doctor("--json", FLEET_REDIS_URL=f"redis://127.0.0.1:{redis_port}/0"))
    assert found["Redis server"]["verdict"] == "OK"
    assert found["Redis AOF"]["verdict"] == "WARN"  # the tests' Redis runs without one
    assert "appendonly yes" in found["Redis AOF"]["do"]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (b"ada short\n", "line 1: a key must have at least 16 characters"),
        (b"# nobody\n", "holds no key"),
        (b"\xff\xfe", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_a_keys_file_that_no_fleet_would_start_with_is_found(
    tmp_path: Path, keys: bytes | None, found: str
) -> None:
    path = tmp_path / "keys"
    if keys is not None:
        path.write_bytes(keys)
        path.chmod(0o600)
    told = doctor("--data", str(tmp_path), "--json", FLEET_KEYS_FILE=str(path))
    finding = findings(told)["Keys"]
    assert (told.returncode, finding["verdict"]) == (1, "FAIL")
    assert found in finding["found"]


def test_who_may_ask_is_told_without_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_keys(path, "ada geheim-geheim-geheim-1\nop geheim-geheim-geheim-2 admin\n")
    told = doctor("--data", str(tmp_path), "--json", FLEET_KEYS_FILE=str(path))
    assert "ada, op" in findings(told)["Keys"]["found"]
    assert "geheim" not in told.stdout


@pytest.mark.parametrize(("mode", "found"), [(0o644, "readable by others"), (0o600, "must hold 32 bytes")])
def test_a_secret_key_that_no_fleet_would_start_with_is_found(tmp_path: Path, mode: int, found: str) -> None:
    path = tmp_path / "secret.key"
    path.write_text("x")
    path.chmod(mode)
    told = doctor("--data", str(tmp_path), "--json")
    finding = findings(told)["Secret key"]
    assert (told.returncode, finding["verdict"]) == (1, "FAIL")
    assert found in finding["found"]


def test_a_data_folder_that_others_may_look_into_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    verdicts = []
    for mode in (0o755, 0o750, 0o700):
        data.chmod(mode)
        finding = findings(doctor("--data", str(data), "--json"))["Data folder"]
        verdicts.append(finding["verdict"])
        assert ("chmod 700" in finding["do"]) is (mode == 0o755)
    assert verdicts == ["WARN", "OK", "OK"]  # a group may be meant to


def test_no_fleet_runs_on_what_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    found = findings(doctor("--data", str(path), "--json", FLEET_PORT=str(free_port())))
    assert "free" in found["Port"]["found"]
    assert found["Data folder"]["verdict"] == "FAIL"


def test_an_old_haproxy_fails_once_and_what_follows_is_not_told(tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\necho 'HAProxy version 2.2.9 2021'; echo 'Feature list : -LUA'\n")
    program.chmod(0o755)
    told = doctor("--json", FLEET_HAPROXY_BIN=str(program))
    found = findings(told)
    assert told.returncode == 1
    assert [name for name, finding in found.items() if finding["verdict"] == "FAIL"] == ["HAProxy"]
    assert "2.2.9 is too old" in found["HAProxy"]["found"]
    assert "2.6" in found["HAProxy"]["do"]


@pytest.mark.parametrize("argv", [("haproxy", "check", "--empty"), ("haproxy", "render", "--empty")])
def test_haproxy_accepts_what_is_rendered(tmp_path: Path, argv: tuple[str, ...]) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "comfy_fleet", *argv, "--data", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "FLEET_HAPROXY_BIN": find_haproxy("haproxy")},
    )
    assert told.returncode == 0, told.stderr
    assert "broker.cfg" in told.stdout
    assert not (tmp_path / "d").exists()
