"""The units for systemd: valid, with commands, options and settings that exist, and time to finish runs."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from comfy_fleet.agent.commanded_process import COMMAND_LIMIT_S, RestartTemplate
from comfy_fleet.cli.agent import beside
from comfy_fleet.cli.app import build
from comfy_fleet.settings import Settings

FOLDER = Path(__file__).parents[2] / "docs" / "howto" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
FLEET = "/opt/comfy-fleet/bin/fleet"
KNOWN = {f"FLEET_{name.upper()}" for name in Settings.model_fields}


class Unit(configparser.RawConfigParser):
    """A unit file; a setting may come several times, its values are kept in lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        seen: dict[tuple[str, str], int] = {}
        section, lines = "", []
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = line
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                count = seen[section, name] = seen.get((section, name), 0) + 1
                lines.append(f"{name}={value}" if count == 1 else f"{name}.{count}={value}")
            else:
                lines.append(line)
        self.read_string("\n".join(lines), str(path))

    def all(self, name: str) -> list[str]:
        """Return all values of a setting of the service."""
        return [value for key, value in self["Service"].items() if key.partition(".")[0] == name]


def variables(text: str) -> dict[str, str]:
    """Read an environment file."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert all(re.match(r"[A-Z_]+=", line) for line in lines)
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def environment(unit: Unit) -> dict[str, str]:
    """Return the variables of a unit, those of its file included."""
    [file] = unit.all("EnvironmentFile")
    name = Path(file.replace("%i", "g0")).name
    given = dict(pair.split("=", 1) for pair in unit.all("Environment"))
    return {**given, **variables((FOLDER / name).read_text())}


def test_all_processes_have_a_unit_and_the_target_starts_those_of_the_fleet() -> None:
    names = {path.name for path in UNITS}
    assert names == {
        "comfyui@.service",
        "fleet-agent.service",
        "fleet-api.service",
        "fleet-autoscale.service",
        "fleet-central-agent.service",
        "fleet-dispatch@.service",
        "fleet-haproxy.service",
    }
    target = Unit(FOLDER / "comfy-fleet.target")
    wanted = set(target["Unit"]["Wants"].split())
    apart = {"fleet-agent.service", "fleet-autoscale.service"}
    ours = {name.replace("@", "@1") for name in names if name.startswith("fleet-")} - apart
    assert wanted == {*ours, "redis-server.service"}
    for path in UNITS:
        assert Unit(path)["Install"]["WantedBy"] in {"comfy-fleet.target", "multi-user.target"}


@pytest.mark.parametrize(
    "path", [path for path in UNITS if path.name != "comfyui@.service"], ids=lambda p: p.name
)
def test_a_unit_runs_a_command_that_exists_with_its_options(path: Path) -> None:
    unit = Unit(path)
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    given = environment(unit)
    words = [
        inner
        for word in words
        for inner in (shlex.split(given[word[1:]]) if word.startswith("$") else [word])
    ]
    assert program == FLEET
    command = typer.main.get_command(build())
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands
        command = command.commands[name]
    command.make_context(
        "fleet", [word.replace("%i", "1") for word in words]
    )  # refuses what it does not know
    assert {name for name in given if name.startswith("FLEET_")} <= KNOWN
    values = {name: value for name, value in given.items() if name in KNOWN and not name.endswith("_FILE")}
    Settings.model_validate({name.removeprefix("FLEET_").lower(): value for name, value in values.items()})


def test_the_agent_restarts_the_units_of_its_nodes() -> None:
    unit = Unit(FOLDER / "fleet-agent.service")
    words = shlex.split(unit["Service"]["ExecStart"])
    text = words[words.index("--restart-command") + 1]
    template = RestartTemplate(words=tuple(shlex.split(text)))
    nodes = [word for word in shlex.split(environment(unit)["NODES"]) if word != "--node"]
    for node in beside(nodes, {}, {}):
        assert template.argv(node.name) == ("systemctl", "restart", f"comfyui@{node.name}")
    comfyui = Unit(FOLDER / "comfyui@.service")
    assert comfyui["Service"]["User"] == unit["Service"]["User"]  # else the agent can't see their processes
    assert float(comfyui["Service"]["TimeoutStopSec"]) < COMMAND_LIMIT_S
    pattern = re.search(r"/(\^comfyui.+\$)/\.test", (FOLDER / "50-comfyui.rules").read_text())
    assert pattern is not None
    assert re.search(pattern[1], "comfyui@g0.service")
    assert not re.search(pattern[1], "fleet-api.service")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_comes_back_and_ends_its_work_before_it_is_killed(path: Path) -> None:
    unit = Unit(path)
    service = unit["Service"]
    assert service["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    waits = float(environment(unit).get("FLEET_STOP_WAIT_S", Settings().stop_wait_s))
    assert float(service["TimeoutStopSec"]) > waits
    assert (service["User"], service["NoNewPrivileges"]) != ("root", "no")
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in (*UNITS, FOLDER / "comfy-fleet.target"):
        text = path.read_text().replace(FLEET, "/bin/true")
        text = text.replace("/opt/ComfyUI/venv/bin/python", "/bin/true")
        (tmp_path / path.name).write_text(text)
    redis = "[Service]\nExecStart=/bin/true\n"  # the distribution's
    (tmp_path / "redis-server.service").write_text(redis)
    files = [str(tmp_path / path.name) for path in UNITS]
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files, str(tmp_path / "comfy-fleet.target")],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in told.stderr.splitlines() if re.search(r"fleet|comfyui", line)]
    assert (told.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_check_of_units_can_fail(tmp_path: Path) -> None:
    wrong = tmp_path / "fleet-api.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nProtectSistem=strict\n")
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(wrong)], capture_output=True, text=True, check=False
    )
    assert "ProtectSistem" in told.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_little_is_exposed(path: Path) -> None:
    """systemd's own measure, from 0 to 10; a unit without any hardening has 9.2."""
    argv = ["systemd-analyze", "security", "--offline=yes", "--threshold=40", "--no-pager", str(path)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "unrecognized option" in told.stderr:
        pytest.skip("this systemd looks at running units only")
    assert told.returncode == 0, told.stdout[-300:]
