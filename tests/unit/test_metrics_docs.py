"""What is written about metrics is true: their table, the alerts and the dashboards."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from comfy_fleet.adapters.telemetry import PrometheusTelemetry
from comfy_fleet.adapters.telemetry.autoscale import AutoscaleFigures
from comfy_fleet.adapters.telemetry.fleet_text import ALL
from comfy_fleet.adapters.telemetry.otlp import OtlpSpans
from comfy_fleet.agent.metrics import AgentMetrics
from comfy_fleet.api.metrics import Metrics
from comfy_fleet.domain.nodes.host import Heartbeat
from comfy_fleet.domain.scaling.decide import PoolStrength
from comfy_fleet.domain.scaling.orders import PoolBook

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "metrics.md").read_text()
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
ALERTS_TEST = ROOT / "tests" / "data" / "alerts_test.yml"
PROCESSES = ROOT / "comfy_fleet" / "processes"
ROW = re.compile(r"^\| `(fleet_\w+)(?:\{([\w,]+)\})?` \| (\w+) \|", re.MULTILINE)
NAMED = re.compile(r"\bfleet_[a-z0-9_]+\b")


def registered() -> CollectorRegistry:
    registry = CollectorRegistry()
    PrometheusTelemetry(registry)
    Metrics(registry)
    OtlpSpans("test", registry, exporter=InMemorySpanExporter()).close()
    registry.register(AgentMetrics(lambda: Heartbeat(host="h", instance="i"), lambda _: None, lambda: 1.0))
    counted = {"default": (PoolStrength(ready=1), PoolBook())}
    registry.register(AutoscaleFigures(lambda: True, lambda: counted))
    return registry


def made() -> dict[str, tuple[str, frozenset[str] | None]]:
    """Return every metric: its kind, and its labels where the code says them at once."""
    found: dict[str, tuple[str, frozenset[str] | None]] = {
        one.name: (one.kind, frozenset(one.labels)) for one in ALL
    }
    registry = registered()
    for collector in set(registry._names_to_collectors.values()):  # noqa: SLF001 - no other way to its labels
        labels = getattr(collector, "_labelnames", None)
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = family.type, None if labels is None else frozenset(labels)
    for family in registry.collect():  # what is made at each scrape
        found.setdefault(family.name + ("_total" if family.type == "counter" else ""), (family.type, None))
    for name in {
        name for path in PROCESSES.glob("*.py") for name in re.findall(r'"(fleet_\w+)"', path.read_text())
    }:
        found[name] = "gauge", None
    return found


def test_the_table_has_every_metric_and_no_other() -> None:
    rows = ROW.findall(PAGE)
    told = {name: (kind, frozenset(filter(None, labels.split(",")))) for name, labels, kind in rows}
    known = made()
    assert told.keys() == known.keys()
    for name, (kind, labels) in known.items():
        assert told[name][0] == kind, name
        assert labels is None or told[name][1] == labels, name


def rules() -> dict[str, Any]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_each_alert_is_tested_described_and_leads_somewhere() -> None:
    tested = {one["name"] for one in yaml.safe_load(ALERTS_TEST.read_text())["tests"]}
    assert tested == {f"{name} {what}" for name in rules() for what in ("fires", "stays quiet")}
    section = PAGE[PAGE.index("## Alerts") :]
    for name, rule in rules().items():
        assert f"| `{name}` | {rule['labels']['severity']} |" in section, name
        for path in re.findall(r"docs/[\w/.-]+\.md", rule["annotations"]["description"]):
            assert (ROOT / path).is_file(), (name, path)


def test_alerts_fire_when_they_should_and_not_else() -> None:
    for argv in (["check", "rules", str(ALERTS)], ["test", "rules", str(ALERTS_TEST)]):
        told = subprocess.run(["promtool", *argv], capture_output=True, text=True, check=False, timeout=60)
        assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize(
    "path", [ALERTS, *sorted((ROOT / "docker" / "grafana").glob("*.json"))], ids=lambda path: path.name
)
def test_only_metrics_that_there_are_are_asked_for(path: Path) -> None:
    histograms = {name for name, (kind, _) in made().items() if kind == "histogram"}
    known = set(made()) | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    asked = set(NAMED.findall(path.read_text()))
    assert asked
    assert asked - known <= {"fleet_api", "fleet_dispatch"}, asked - known


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docker" / "prometheus" / "prometheus.yml").read_text()
    (tmp_path / "fleet.key").write_text("x")
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/fleet.key", str(tmp_path / "fleet.key")))
    told = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False, timeout=60
    )
    assert told.returncode == 0, told.stdout + told.stderr
    wanted = yaml.safe_load(text)["scrape_configs"][0]["http_sd_configs"][0]
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    assert wanted in shown["scrape_configs"][0]["http_sd_configs"]


def test_each_dashboard_is_told_of_and_whole() -> None:
    paths = sorted((ROOT / "docker" / "grafana").glob("*.json"))
    told = re.findall(r"^\| `(\w+\.json)` \|", PAGE, re.MULTILINE)
    assert sorted(told) == [path.name for path in paths]
    found = [json.loads(path.read_text()) for path in paths]
    assert len({one["uid"] for one in found}) == len(found)
    for one in found:
        known = {f"${variable['name']}" for variable in one["templating"]["list"]}
        known |= {"$__rate_interval", "$__range"}
        ids = [panel["id"] for panel in one["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in one["panels"]:
            for target in panel.get("targets", ()):
                assert set(re.findall(r"\$\w+", target["expr"])) <= known, panel["title"]
