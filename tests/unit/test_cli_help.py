"""The front door: help is quick, errors are one line, completion works, the reference is current."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from click.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import MEANING, Exit
from comfy_fleet.cli.main import exit_for
from comfy_fleet.domain import errors

ROOT = Path(__file__).parents[2]


def fleet(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "comfy_fleet", *argv],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "COLUMNS": "80", **env},
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from comfy_fleet.cli.app import build; build();"
        "heavy = {'httpx', 'redis', 'starlette', 'pydantic', 'uvicorn', 'jinja2', 'pynvml', 'asyncio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "heavy"), [("comfy_fleet.cli.up.fleet", "aiohttp"), ("comfy_fleet.api.main", "httpx")]
)
def test_a_process_loads_no_http_client_that_it_does_not_use(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print({heavy!r} in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_command_loads_neither_other_commands_nor_what_only_they_need() -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules));"
        "from comfy_fleet.cli import main; main()"
    )
    argv = [sys.executable, "-c", code, "node", "ls", "--api", "http://127.0.0.1:1"]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert told.returncode == Exit.UNREACHABLE
    loaded = set(told.stdout.split())
    assert {"comfy_fleet.cli.nodes", "httpx"} <= loaded
    others = {"comfy_fleet.cli.workflows", "comfy_fleet.cli.processes", "http.server", "pygments"}
    assert others & loaded == set()


def test_a_character_that_the_terminal_lacks_ends_no_command() -> None:
    code = (
        "import atexit; atexit.register(lambda: print('k\u00f8n \u72d0 \u2192'));"
        "from comfy_fleet.cli import main; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (told.stdout.splitlines()[-1], told.stderr) == ("k?n ? ?", "")


def test_a_command_is_the_same_alone_as_in_the_whole_tree() -> None:
    def helps(root: Any, *words: str) -> dict[tuple[str, ...], str]:
        told = {words: str(CliRunner().invoke(root, [*words, "--help"]).output)}
        command = root
        for word in words:
            command = command.commands[word]
        for name in getattr(command, "commands", {}):
            told |= helps(root, *words, name)
        return told

    whole: Any = typer.main.get_command(build())
    for name in whole.commands:
        alone: Any = typer.main.get_command(build([name, "--help"]))
        assert helps(alone, name) == helps(whole, name)
        assert len(alone.commands) < len(whole.commands) / 2


def test_to_build_it_twice_adds_nothing() -> None:
    typer.main.get_command(build())
    again: Any = build()
    (jobs,) = (group for group in again.registered_groups if group.name == "job")
    names = [one.name or one.callback.__name__ for one in jobs.typer_instance.registered_commands]
    assert len(names) == len(set(names))


def test_help_names_every_command_and_the_exit_codes() -> None:
    told = fleet("--help")
    assert told.returncode == 0
    for word in (
        "up",
        "down",
        "logs",
        "status",
        "doctor",
        "demo",
        "submit",
        "job",
        "node",
        "workflow",
        "serve",
        "api",
        "dispatch",
    ):
        assert f"\n  {word} " in told.stdout
    assert "6 the time given with --timeout" in " ".join(told.stdout.split())
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_no_help_shows_a_type_where_a_name_says_more() -> None:
    root: Any = typer.main.get_command(build())
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen = 0
    while waiting:
        words, command = waiting.pop()
        told = CliRunner().invoke(root, [*words, "--help"], terminal_width=80).output
        assert not re.search(r"<(?!=|api[|])", told), told
        waiting += [((*words, name), one) for name, one in getattr(command, "commands", {}).items()]
        seen += 1
    assert seen > 30


def test_an_expected_error_is_one_line_and_a_hint() -> None:
    told = fleet("status", "--api", "http://127.0.0.1:1")
    assert told.returncode == Exit.UNREACHABLE
    assert told.stdout == ""
    first, second = told.stderr.splitlines()
    assert first.startswith("error: nothing answers at http://127.0.0.1:1")
    assert second.startswith("hint:")


def test_a_wrong_setting_is_named_without_its_value() -> None:
    told = fleet("doctor", FLEET_QUEUE_DEPTH="geheim")
    assert told.returncode == Exit.USAGE
    assert "FLEET_QUEUE_DEPTH" in told.stderr
    assert "geheim" not in told.stderr
    assert "Traceback" not in told.stderr


def test_a_mistyped_command_is_usage() -> None:
    assert fleet("statsu").returncode == Exit.USAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_answers(shell: str) -> None:
    shown = fleet("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0, shown.stderr
    assert "_FLEET_COMPLETE" in shown.stdout


def test_completion_offers_commands() -> None:
    told = fleet(_FLEET_COMPLETE="complete_bash", COMP_WORDS="fleet wor", COMP_CWORD="1")
    assert told.stdout.split() == ["workflow"]


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANING) == set(Exit)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInput("x"), Exit.USAGE),
        (errors.NotFound("x"), Exit.NOT_FOUND),
        (errors.Conflict("x"), Exit.REFUSED),
        (errors.QueueFull("x"), Exit.REFUSED),
        (errors.ConfigError("x"), Exit.FAILED),
    ],
)
def test_project_errors_have_exit_codes(error: errors.FleetError, code: Exit) -> None:
    assert exit_for(error) is code


def test_the_reference_is_current() -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gen_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
