"""What an operator may type wrong: one line that says what, and nothing is begun."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.errors import BadInput

AGENT = ("agent", "--join", "http://127.0.0.1:1", "--host", "h1", "--port", "0")
BESIDE = (*AGENT, "--node", "g1=http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((*AGENT, "--comfyui", "/nowhere", "--comfyui-args", "'x"), '--comfyui-args "\'x"'),
        ((*AGENT, "--comfyui", "/nowhere", "--override", "0:'x"), "--override"),
        (("up", "--comfyui", "/nowhere", "--comfyui-args", "'x"), "--comfyui-args"),
        (("up", "--sim-args", "'x"), "--sim-args"),
        (("node", "roll", "--restart-command", "'x"), "--restart-command"),
        (("node", "roll", "--restart-command", " "), "--restart-command is empty"),
        (("node", "roll", "--restart-command", "/no/such {name}"), "no program /no/such"),
        (("node", "roll", "--restart-command", "", "--wait-restart"), "either"),
        (("up", "--data", "/tmp/\udcff"), "--data"),
        (("down", "--data", "/tmp/a\nb"), "--data"),
        ((*BESIDE, "--node", "g1=http://127.0.0.1:2"), "named twice"),
        ((*BESIDE, "--metrics-port", "65536"), "--metrics-port"),
        ((*BESIDE, "--metrics-port", "no"), "--metrics-port"),
    ],
)
def test_it_is_told_before_anything_is_begun(line: tuple[str, ...], words: str) -> None:
    refused = CliRunner().invoke(build(line), line)
    assert isinstance(refused.exception, Fail), refused.exception
    assert (refused.exception.exit, words in str(refused.exception)) == (Exit.USAGE, True)


@pytest.mark.parametrize("line", [("api",), ("dispatch",), ("doctor",), ("up", "--data", "/nowhere")])
@pytest.mark.parametrize("value", ["a:b", "blue\nflushall", "rq", "A B", "*", ""])
def test_a_namespace_that_is_no_name_is_refused_by_every_command(line: tuple[str, ...], value: str) -> None:
    refused = CliRunner().invoke(build(line), line, env={"FLEET_NAMESPACE": value})
    assert isinstance(refused.exception, Fail), refused.exception
    assert (refused.exception.exit, "FLEET_NAMESPACE: " in str(refused.exception)) == (Exit.USAGE, True)


def test_a_pool_s_name_is_looked_at_before_the_api_is_asked() -> None:
    refused = CliRunner().invoke(build(BESIDE), [*BESIDE, "--pool", "Big One"])
    assert isinstance(refused.exception, BadInput)
    assert "pool 'Big One'" in str(refused.exception)


@pytest.mark.parametrize(
    "line",
    [
        ("submit", "--wait"),
        ("status", "--wait"),
        ("job", "events", "x"),
        ("node", "add", "n", "http://h"),
        ("node", "drain", "n"),
        ("node", "cordon-host", "h"),
        ("node", "roll"),
        ("node", "roll", "--drain-timeout"),
        ("down",),
    ],
)
@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_no_time_is_less_than_none(line: tuple[str, ...], seconds: str) -> None:
    if not line[-1].startswith("--drain"):
        line = (*line, "--timeout")
    refused = CliRunner().invoke(build(line), [*line, seconds], env={"FLEET_API_URL": "http://127.0.0.1:1"})
    assert (refused.exit_code, f"'{line[-1]}'" in refused.output) == (Exit.USAGE, True)


@pytest.mark.parametrize("line", [("--help",), ("doctor",), ("doctor", "--json")])
def test_an_output_on_a_full_disk_is_told_in_one_line(line: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        told = subprocess.run(
            [sys.executable, "-m", "comfy_fleet", *line],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert told.returncode == Exit.FAILED
    assert told.stderr == "error: can't write the output: No space left on device\n"
