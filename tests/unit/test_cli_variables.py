"""FLEET_* variables that nothing reads are warned of: by every process, but once."""

import json
import os
import subprocess
import sys

import pytest

from comfy_fleet.cli.variables import is_service
from comfy_fleet.settings import WARNED, Settings, unknown


def fleet(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "comfy_fleet", *argv],
        capture_output=True, text=True, timeout=60, check=False, env={**kept, "COLUMNS": "60", **env},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLEET_QUEUE_DEPHT", "FLEET_QUEUE_DEPTH"),
        ("FLEET_REDISURL", "FLEET_REDIS_URL"),
        ("FLEET_API_KEYS", "FLEET_API_KEY"),
        ("FLEET_BOGUS", None),
        ("FLEET_", None),
    ],
)
def test_a_slip_of_the_pen_is_told_with_what_may_be_meant(name: str, meant: str | None) -> None:
    assert unknown({name: "1"}) == {name: meant}
    assert unknown({name: "1", WARNED: f"FLEET_X,{name}"}) == {}


def test_what_is_read_somewhere_is_never_warned_of() -> None:
    ours = [f"FLEET_{name.upper()}" for name in Settings.model_fields]
    others = [
        "FLEET_API_URL",
        "FLEET_API_KEY",
        "FLEET_IMAGE",
        "FLEET_TEST_WORKERS",
        "_FLEET_COMPLETE",
        "PATH",
    ]
    assert unknown(dict.fromkeys([*ours, *others, "FLEET_queue_depth"], "1")) == {}


@pytest.mark.parametrize(
    ("argv", "service"),
    [
        (["api"], True),
        (["haproxy", "run"], True),
        (["haproxy", "--help", "run"], True),
        (["haproxy", "show"], False),
        (["up", "--data", "api"], False),
        (["status"], False),
        ([], False),
    ],
)
def test_the_fleets_own_processes_warn_in_their_logs(argv: list[str], service: bool) -> None:
    assert is_service(argv) is service


def test_a_command_warns_on_stderr_and_its_output_stays_clean() -> None:
    told = fleet("--version", FLEET_QUEUE_DEPHT="5", FLEET_QUEUE_DEPTH="5")
    assert told.stderr == "warning: nothing reads FLEET_QUEUE_DEPHT; did you mean FLEET_QUEUE_DEPTH?\n"
    assert told.stdout.startswith("comfy-fleet ")
    assert fleet("--version", FLEET_QUEUE_DEPTH="5", FLEET_TEST_A="1").stderr == ""
    completed = fleet(
        FLEET_BOGUS="1", _FLEET_COMPLETE="complete_bash", COMP_WORDS="fleet wor", COMP_CWORD="1"
    )
    assert completed.stderr == ""


def test_a_process_of_the_fleet_warns_in_the_form_of_its_logs() -> None:
    told = fleet("sim", "--faults", "no json", FLEET_BOGUS="1", FLEET_LOG_FORMAT="json")
    line = json.loads(told.stderr.splitlines()[0])
    assert (line["level"], line["process"]) == ("warning", "sim")
    assert "FLEET_BOGUS" in line["reason"]
    assert (
        "FLEET_BOGUS"
        not in fleet("sim", "--faults", "no json", FLEET_BOGUS="1", FLEET_WARNED="FLEET_BOGUS").stderr
    )
