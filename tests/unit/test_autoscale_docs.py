"""What is written about growing and shrinking is true: the files, the manifests, the rules."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from comfy_fleet.adapters.telemetry.fleet_text import ALL
from comfy_fleet.cli.app import build
from comfy_fleet.domain.scaling.rules import GROW, ScalingRules, ShrinkRule
from comfy_fleet.domain.scaling.scaling_file import read_scaling_file
from comfy_fleet.settings import Settings

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PAGE = (HOWTO / "autoscale.md").read_text()
MANIFESTS = sorted((HOWTO / "kubernetes").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_file_on_the_page_is_accepted() -> None:
    whole = next(text for text in blocks("toml") if "[pools.big]" in text)
    spec = read_scaling_file(whole, "page").pools["big"]
    assert spec.rules.cool_down_s == ScalingRules(minimum=0, maximum=1).cool_down_s
    assert spec.rules.shrink == ShrinkRule()
    (example,) = re.findall(r"<<'END'\n(.*?)END", blocks("sh")[0], re.DOTALL)
    assert read_scaling_file(example, "page").pools["default"].provider.simulated
    alone = [text for text in blocks("toml") if text.startswith("provider")]
    assert len(alone) == 2
    for text in alone:
        spec = read_scaling_file(f"[pools.p]\nmaximum = 3\n{text}", "page").pools["p"]
        assert spec.rules.maximum == 3


def test_the_rules_of_the_page_are_those_of_the_code() -> None:
    wait, backlog = GROW
    usual = ShrinkRule()
    assert f"for more than {wait.above:g} s | {wait.for_s / 60:g} min | one node more" in PAGE
    assert f"more than {backlog.above:g} jobs wait | {backlog.for_s / 60:g} min | two nodes more" in PAGE
    assert (wait.add, backlog.add) == (1, 2)
    assert f"less than {usual.busy_below:.0%}".replace("%", " %") in PAGE
    assert f"is work | {usual.for_s / 60:g} min | one node less" in PAGE


def manifests() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]


def test_the_manifests_are_of_known_kinds_and_fit_together() -> None:
    found = {one["kind"]: one for one in manifests()}
    assert set(found) == {"Secret", "Service", "StatefulSet", "ScaledObject"}
    pods, scaled = found["StatefulSet"], found["ScaledObject"]
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", pods["metadata"]["name"])
    spec = pods["spec"]["template"]["spec"]
    assert pods["spec"]["selector"]["matchLabels"] == pods["spec"]["template"]["metadata"]["labels"]
    volumes = {one["name"] for one in spec["volumes"]}
    mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
    assert mounted == volumes
    keys = set(found["Secret"]["stringData"])
    assert {item["key"] for one in spec["volumes"] for item in one.get("secret", {}).get("items", [])} <= keys
    for container in spec["containers"]:
        for variable in container["env"]:
            if "secretKeyRef" in variable.get("valueFrom", {}):
                assert variable["valueFrom"]["secretKeyRef"]["key"] in keys
    assert scaled["spec"]["minReplicaCount"] >= 1
    assert pods["spec"]["replicas"] <= scaled["spec"]["maxReplicaCount"]


def test_the_fleets_variables_and_commands_in_the_manifests_exist() -> None:
    (pods,) = (one for one in manifests() if one["kind"] == "StatefulSet")
    agent = next(one for one in pods["spec"]["template"]["spec"]["containers"] if one["name"] == "agent")
    names = {one["name"] for one in agent["env"] if one["name"].startswith("FLEET_")}
    known = {f"FLEET_{name.upper()}" for name in Settings.model_fields}
    assert names - known == {"FLEET_API_URL", "FLEET_API_KEY"}  # of commands, not of processes
    (hook,) = agent["lifecycle"]["preStop"]["exec"]["command"][2:]
    (main,) = agent["args"]
    lines = re.findall(r"fleet [^;|]+", f"{hook}; {main}")
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(re.sub(r"\$\w+", "x", line))[1:]
        command = typer.main.get_command(build())
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("fleet", words)  # refuses what it does not know
    wait = re.search(r"--timeout (\d+)", hook)
    assert wait is not None
    assert int(wait[1]) < pods["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_keda_asks_for_metrics_that_there_are() -> None:
    (scaled,) = (one for one in manifests() if one["kind"] == "ScaledObject")
    queries = [one["metadata"]["query"] for one in scaled["spec"]["triggers"]]
    queries += re.findall(r"`(max\(fleet[^`]*)`", (HOWTO / "kubernetes.md").read_text())
    assert len(queries) == 2
    known = {one.name: set(one.labels) for one in ALL}
    for query in queries:
        for name, labels in re.findall(r"(fleet_\w+)\{(\w+)=", query):
            assert labels in known[name]


@pytest.mark.parametrize("page", ["kubernetes.md", "autoscale.md"])
def test_what_was_not_run_says_so(page: str) -> None:
    assert "not run" in (HOWTO / page).read_text().lower()
