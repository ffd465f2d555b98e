"""Prometheus and Grafana beside the containers: whole, and reached by nobody who should not."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_fleet.settings import Settings
from tests.container_files import COMPOSE, DOCKER, FLEET, MONITORING, load, services

PROVISIONING = DOCKER / "grafana" / "provisioning"


def merged(path: Path) -> dict[str, dict[str, Any]]:
    """Return the services of a file with the override's, as Compose merges them: mappings key by key."""

    def merge(below: Any, above: Any) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}

    whole: dict[str, dict[str, Any]] = merge(services(path), services(MONITORING))
    return whole


BOTH = pytest.mark.parametrize("path", [COMPOSE, FLEET], ids=lambda path: path.stem)


@BOTH
def test_it_only_adds_to_services_that_there_are(path: Path) -> None:
    ours = {"prometheus", "grafana"}
    assert services(MONITORING).keys() - services(path).keys() == ours
    declared = {**load(path)["networks"], **load(MONITORING)["networks"]}
    secrets, volumes = ({**load(path)[kind], **load(MONITORING)[kind]} for kind in ("secrets", "volumes"))
    for name, service in merged(path).items():
        assert set(service.get("networks", [])) <= declared.keys(), name
        assert set(service.get("secrets", [])) <= secrets.keys(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(("/", ".")) or source in volumes, (name, volume)
            assert name not in ours or not source.startswith(".") or (DOCKER / source).is_dir(), volume
    for name in ours:
        service = merged(path)[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "one version, the same for everybody"


@BOTH
def test_who_reaches_whom(path: Path) -> None:
    found = merged(path)
    where = {name: set(service.get("networks", [])) for name, service in found.items()}
    assert {name for name in where if "metrics" in where[name]} == {
        *("prometheus", "grafana", "api", "dispatch", "haproxy"),
    }, "no node, and not Redis"
    assert where["prometheus"] == {"metrics", "nodes"}, "not Redis' network"
    assert where["grafana"] == {"edge", "metrics"}
    assert load(MONITORING)["networks"]["metrics"]["internal"] is True
    (alias,) = found["prometheus"]["networks"]["metrics"]["aliases"]
    assert f"--web.listen-address={alias}:9090" in found["prometheus"]["command"], "nodes must not read it"
    assert {name for name, service in found.items() if "ports" in service} == {"haproxy", "grafana"}
    assert found["grafana"]["ports"] == ["127.0.0.1:3000:3000"]


@BOTH
def test_every_process_serves_its_metrics_where_prometheus_is(path: Path) -> None:
    found = merged(path)
    of_prometheus = set(found["prometheus"]["networks"])
    told = {
        name: service["environment"]["FLEET_METRICS_HOST"]
        for name, service in found.items()
        if "FLEET_METRICS_HOST" in service.get("environment", {})
    }
    processes = {name for name, service in found.items() if "fleet" in service["image"]} - {"cli"}
    assert told.keys() == {name for name in processes if not name.startswith(("gpu-", "comfyui-"))} - {"api"}
    assert found["api"]["environment"]["FLEET_API_HOST"] == "0.0.0.0"
    for name, host in told.items():
        Settings(metrics_host=host)
        holder = found[found[name].get("network_mode", f"service:{name}").removeprefix("service:")]
        if host == "0.0.0.0":
            assert set(holder["networks"]) <= {"backend", "metrics"}, "no node hears it"
            continue
        named = {
            network: {name, *((options or {}).get("aliases") or [])}
            for network, options in holder["networks"].items()
        }
        assert len([one for one in named if host in named[one]]) == 1 or host == name, (name, host)
        assert any(host in named[one] for one in named if one in of_prometheus), (name, host)


def test_prometheus_reads_what_it_would_elsewhere(tmp_path: Path) -> None:
    paths = [DOCKER / "prometheus" / name for name in ("prometheus.yml", "compose.yml")]
    plain, ours = (yaml.safe_load(path.read_text()) for path in paths)
    assert f"--config.file=/etc/prometheus/{paths[1].name}" in services(MONITORING)["prometheus"]["command"]
    (discovery,) = ours["scrape_configs"][0]["http_sd_configs"]
    secret = Path(discovery["authorization"]["credentials_file"])
    assert secret.name in services(MONITORING)["prometheus"]["secrets"]
    text = paths[1].read_text().replace(str(secret), str(tmp_path / "key"))
    (tmp_path / "key").write_text("x")
    (tmp_path / "alerts.yml").write_text((DOCKER / "prometheus" / "alerts.yml").read_text())
    (tmp_path / "compose.yml").write_text(text)
    told = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "compose.yml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    discovery["url"] = discovery["url"].replace("haproxy", "127.0.0.1")
    discovery["authorization"]["credentials_file"] = "/etc/prometheus/fleet.key"
    assert ours == plain


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (alias,) = services(MONITORING)["prometheus"]["networks"]["metrics"]["aliases"]
    assert source["url"] == f"http://{alias}:9090"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "fleet.yml").read_text())["providers"]
    grafana = services(MONITORING)["grafana"]
    mounts = {target: source for source, target, *_ in (one.split(":") for one in grafana["volumes"])}
    folder = (DOCKER / mounts[provider["options"]["path"]]).resolve()
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((folder / Path(home).name).read_text())["uid"]
    assert (DOCKER / mounts["/etc/grafana/provisioning"]).resolve() == PROVISIONING
    told = grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert Path(told).name in grafana["secrets"]
