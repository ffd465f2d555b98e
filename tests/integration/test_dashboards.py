"""Each panel has data, in a real Prometheus that found and scraped a real fleet under load."""

import contextlib
import http.server
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks import profile
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture, sampled
from tests.integration.agent_kit import checkout
from tests.integration.up_kit import Up, until, up
from tests.key_files import write_keys

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "docker" / "grafana").glob("*.json"))
OPS, PROM = "ops-0123456789abcdef", "prom-0123456789abcdef"
CARDS = """\
gpu 0
set total 24576
set free 20000
set util 60
set temp 71
set power 301000
gpu 1
set total 24576
set free 20000
set util 40
set temp 65
set power 250000
"""
FILES = ("v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors")
VARIABLES = {"$__rate_interval": "15s", "$__range": "5m", "$node": ".*", "$workflow": ".*", "$tenant": ".*"}


@dataclass(frozen=True)
class Watched:
    """A fleet under load, and the Prometheus that scrapes it."""

    fleet: Up
    prometheus: str
    stop: threading.Event

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=30)
        assert answer.status_code == 200, (query, answer.text)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


LIES = b"""\
fleet_dispatchers 99
fleet_jobs_total{status="succeeded",workflow="x",pool="x",tenant="x"} 1000000
fleet_agent_nodes{word="ready"} 7
"""


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes messages of webhooks, but not those to /broken; has metrics as a host that was broken into."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(LIES)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def people(fleet: Up) -> list[dict[str, str]]:
    """Make a user in each of two tenants; return the headers of their requests."""
    found = []
    with httpx.Client(base_url=f"{fleet.console}/api/v1", headers=bearer(OPS), timeout=60) as console:
        for tenant, user in (("studio", "ada"), ("shop", "bob")):
            for path, body in (("tenants", {"name": tenant}), ("users", {"name": user, "tenant": tenant})):
                assert (made := console.post(path, json=body)).status_code == 201, made.text
            made = console.post("keys", json={"user": user})
            assert made.status_code == 201, made.text
            found.append(bearer(made.json()["key"]))
    return found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def load(fleet: Up, hooks: str, stop: threading.Event) -> None:
    """Submit jobs of several kinds, tenants and ends, until told to stop."""
    nodes = httpx.get(f"{fleet.console}/api/v1/nodes", headers=bearer(OPS), timeout=60).json()["nodes"]
    with contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(httpx.Client(base_url=fleet.url, headers=key, timeout=60))
            for key in people(fleet)
        ]
        for turn in itertools.count():
            if stop.wait(0.3):
                return
            if turn % 3 == 0:
                httpx.post(f"{nodes[turn % len(nodes)]['url']}/sim/faults", json={"oom": 1}, timeout=60)
            submit(clients[turn % len(clients)], turn, f"{hooks}/{'broken' if turn % 3 == 0 else 'well'}")


def submit(client: httpx.Client, turn: int, hook: str) -> None:
    """Submit a few jobs, ask about each, and cancel the last."""
    graphs = [picture(turn), *(sampled(64, seed=turn, file=file) for file in FILES), picture(10**6 + turn)]
    made = []
    for graph in graphs:
        answer = client.post("/api/v2/jobs", json={"workflow": graph, "webhook_url": hook})
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
        client.get(f"/api/v2/jobs/{made[-1]}")  # so that its end is estimated
    client.post(f"/api/v2/jobs/{made[-1]}/cancel")
    same = client.post(
        "/api/v2/jobs", json={"workflow": picture(turn // 8)}, headers={"Cache-Control": "max-age=600"}
    )
    card = client.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": f"number {turn}"}})
    assert same.is_success and card.is_success, (same.text, card.text)


@contextlib.contextmanager
def prometheus(folder: Path, fleet: Up, liar: str) -> Iterator[str]:
    """Run Debian's Prometheus, configured as the page says, with shorter intervals and one more agent."""
    config = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    key = write_keys(folder / "fleet.key", PROM)
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(ROOT / "docker" / "prometheus" / "alerts.yml")]
    (found,) = config["scrape_configs"][0]["http_sd_configs"]
    found["url"] = f"{fleet.console}/api/v1/prometheus/targets"
    found["refresh_interval"] = "1s"
    labels = {"job": "fleet-agent", "host": "liar"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [liar], "labels": labels}]
    found["authorization"]["credentials_file"] = str(key)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(mortal(argv), stdout=log, stderr=log, env={"GOMAXPROCS": "1"})
    try:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/-/ready", timeout=30).status_code == 200
            return False

        until(ready, "Prometheus is ready")
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, build: Callable[[str], Path]) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    keys = write_keys(folder / "keys", f"ops {OPS} operator\nprom {PROM} metrics\n")
    cards = folder / "cards"
    cards.write_text(CARDS)
    home = checkout(folder).home
    comfyui = ("--comfyui", str(home), "--comfyui-python", sys.executable, "--nodes", "2")
    stop = threading.Event()
    with (
        up(
            folder / "data",
            *(*comfyui, "--comfyui-args=--job-s 0.2"),
            LD_LIBRARY_PATH=str(build("-DNEW_DRIVER")),
            NVML_STANDIN=str(cards),
            FLEET_KEYS_FILE=str(keys),
            FLEET_WEBHOOK_ALLOW="127.0.0.1",
            FLEET_API_KEY=OPS,
        ) as fleet,
        receiver() as hooks,
        prometheus(folder, fleet, hooks.removeprefix("http://")) as url,
    ):
        loading = threading.Thread(target=load, args=(fleet, hooks, stop))
        loading.start()
        try:
            yield Watched(fleet, url, stop)
        finally:
            stop.set()
            loading.join(60)


def test_every_process_is_found_and_answers(watched: Watched) -> None:
    jobs = {"fleet", *(f"fleet-{name}" for name in ["api", "dispatch", "haproxy", "broker", "edge", "agent"])}

    def all_up() -> bool:
        states = watched.ask("up == 1")
        agents = {one["metric"]["host"] for one in states if one["metric"]["job"] == "fleet-agent"}
        # The central one, and that of the GPUs.
        return {one["metric"]["job"] for one in states} == jobs and len(agents - {"liar"}) == 2

    until(all_up, f"{jobs} answer", 90)
    assert [one["metric"]["instance"] for one in watched.ask('up{job="fleet"}')] == ["fleet"]
    assert len(watched.ask("fleet_dispatchers")) == 1, "from one target"
    assert watched.ask("haproxy_frontend_status") and watched.ask("haproxy_backend_status")
    assert watched.ask("haproxy_server_status") == [], "there are too many servers"


def test_promtool_finds_nothing_to_improve_in_any_process(watched: Watched) -> None:
    wanted = ["fleet", "fleet-agent", "fleet-agent", "fleet-api", "fleet-dispatch", "fleet-haproxy"]

    def pages() -> list[tuple[str, str]]:
        answer = httpx.get(f"{watched.prometheus}/api/v1/targets", timeout=30).json()
        found = [one for one in answer["data"]["activeTargets"] if one["labels"].get("host") != "liar"]
        targets = {(one["labels"]["job"], one["scrapeUrl"]) for one in found}
        # HAProxy's own words are not ours.
        return sorted(one for one in targets if one[0] not in ("fleet-broker", "fleet-edge"))

    until(lambda: [name for name, _ in pages()] == wanted, f"{wanted} are found", 90)
    for name, url in pages():
        page = httpx.get(url, headers=bearer(PROM), timeout=60)
        assert (page.status_code == 200 and "process_cpu" in page.text) or name == "fleet", (name, page.text)
        argv = ["promtool", "check", "metrics"]
        told = subprocess.run(argv, input=page.text, capture_output=True, text=True, check=False, timeout=60)
        assert (told.returncode, told.stdout, told.stderr) == (0, "", ""), name


def test_a_process_of_a_running_fleet_is_drawn(watched: Watched, tmp_path: Path) -> None:
    """What ``scripts/profile dispatch --data DIR`` does."""
    out = tmp_path / "flame.svg"
    py_spy = Path(sys.executable).with_name("py-spy")
    argv = ["dispatch", "--data", str(watched.fleet.data), "--seconds", "2", "--py-spy", str(py_spy)]
    assert profile.main([*argv, "--out", str(out)]) == 0
    drawn = out.read_text()
    assert "dispatch, 2 s at 200 Hz" in drawn and "comfy_fleet/processes/dispatcher.py" in drawn


def panels() -> Iterator[Any]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                yield pytest.param(target["expr"], id=name)


@pytest.mark.parametrize("query", [*panels()])
def test_each_panel_has_data(watched: Watched, query: str) -> None:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    deadline = time.monotonic() + 90
    while True:
        values = [float(one["value"][1]) for one in watched.ask(query)]
        if any(math.isfinite(value) for value in values):
            return
        assert time.monotonic() < deadline, f"no data: {query}: {values}"
        time.sleep(0.5)


def test_what_a_host_says_of_others_is_dropped(watched: Watched) -> None:
    told = '{host="liar",__name__=~"fleet_.+"}'
    until(lambda: bool(watched.ask(told)), "the host's page is read", 90)
    assert {one["metric"]["__name__"] for one in watched.ask(told)} == {"fleet_agent_nodes"}
    of_ours = {one["metric"]["__name__"] for one in watched.ask('{job="fleet-agent"}')}
    assert "process_cpu_seconds_total" in of_ours and not any("__tmp" in name for name in of_ours)


def test_jobs_are_counted_once(watched: Watched) -> None:
    """What all processes together have counted is what the fleet has in its records."""
    watched.stop.set()

    def ended() -> dict[str, int] | None:
        found: Counter[str] = Counter()
        cursor = ""
        while True:
            path = f"{watched.fleet.console}/api/v1/jobs?all=true&limit=100{cursor}"
            page = httpx.get(path, headers=bearer(OPS), timeout=60).json()
            found.update(job["status"] for job in page["jobs"])
            if not page["next_cursor"]:
                return None if found.keys() - {"succeeded", "failed", "canceled"} else dict(found)
            cursor = f"&cursor={page['next_cursor']}"

    def counted() -> dict[str, int]:
        rows = watched.ask("sum by (status) (fleet_jobs_total) > 0")
        return {one["metric"]["status"]: int(one["value"][1]) for one in rows}

    until(lambda: ended() == counted(), "the same jobs are counted and on record", 120)
    assert {"succeeded", "canceled"} <= counted().keys()
    tenants = {one["metric"]["tenant"] for one in watched.ask("sum by (tenant) (fleet_jobs_total)")}
    assert tenants == {"studio", "shop"}
