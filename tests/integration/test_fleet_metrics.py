"""The fleet's own metrics, and where Prometheus finds those of all processes."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.scrape_targets import KEPT_S, RedisScrapeTargets
from comfy_fleet.adapters.telemetry.fleet_text import ALL, MOST_POOLS, OTHER
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim
from comfy_fleet.ports.scrape_targets import ScrapeTarget
from comfy_fleet.services import announcing, fleet_figures
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

AGENT = "agents-token-0123456789"
PROM, ADA = "prom-0123456789abcdef", "ada-0123456789abcdef"
CARD: dict[str, Any] = {
    "index": 0,
    "uuid": "GPU-1",
    "name": 'a "card"\\\n',
    "utilisation": 50,
    "temperature_c": 71,
    "power_w": 301.5,
    "ecc_uncorrected": 0,
    "xids": [13],
    "instances": [],
}
NODE = {"name": "g1", "url": "http://127.0.0.1:9100", "agent": "127.0.0.1:9200"}
REPORT = {
    "name": "g1",
    "word": "ready",
    "seat": {"gpu": "GPU-1"},
    "facts": {
        "gpu": "0",
        "vram": {"total": 24, "own": 5, "foreign": None, "available": 19, "source": "processes"},
        "orphans": ["x"],
        "restarts": 2,
        "host_memory_bytes": 7,
    },
}


@pytest.fixture(autouse=True)
def fresh(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from one scrape to the next."""
    monkeypatch.setattr(fleet_figures, "KEPT_S", 0.0)


async def beat(api: Api, *, metrics: str = "", host: str = "h1", **more: Any) -> None:
    headers = {"Fleet-Metrics": metrics} if metrics else {}
    answer = await api.client.post(
        f"/api/v1/agents/{host}/heartbeat", json={"instance": "i1", **more}, headers=headers
    )
    assert answer.status_code == 200, answer.text


async def next_claim(api: Api) -> None:
    """Have a run begin on g1, as a dispatcher does."""
    (waiting,) = await api.stores.runs.waiting()
    more: dict[str, Any] = {"run": str(uuid4()), "token": str(uuid4()), "dispatcher": "d1", "ttl_s": 30}
    claim = await api.stores.runs.claim(node="g1", placements=[waiting.placement], **more)
    assert isinstance(claim, Claim), claim


async def figures(api: Api) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values, in the order of their names."""
    text = (await api.client.get("/metrics/fleet")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


async def test_what_is_shown_of_nodes_cards_and_queue(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        await beat(api, join=[NODE], nodes=[REPORT], gpus=[CARD])
        await api.stores.nodes.report("g1", verdict="up", why="")
        await api.stores.nodes.add(Node(name="g2", url="http://127.0.0.1:9101", pool="big"))
        await api.stores.nodes.cordon("g2", reason="fans")
        client: Any = api.stores.redis
        job, *_ = [await api.submit(picture(number)) for number in range(3)]
        await client.hset(f"fleet:job:{job['id']}", "created", await api.stores.clock() - 90)
        shown = await figures(api)

        def value(name: str, *labels: str) -> float | None:
            return shown.get((f"fleet_{name}", *labels))

        assert value("queue_depth", "default") == 3
        assert 90 <= (value("queue_oldest_seconds", "default") or 0) < 150
        assert value("queue_depth", "big") == 0 and value("queue_oldest_seconds", "big") == 0
        assert value("nodes", "default", "up") == value("nodes", "big", "drained") == 1
        assert (value("nodes_able", "default"), value("nodes_able", "big")) == (1, 0)
        assert value("node_state", "g1", "up") == value("node_state", "g2", "drained") == 1
        assert value("node_busy", "g1") == 0
        for kind, size in (("total", 24), ("own", 5), ("available", 19), ("foreign", None)):
            assert value("gpu_memory_bytes", kind, "g1") == size
        assert (value("gpu_utilization", "g1"), value("gpu_temperature_celsius", "g1")) == (0.5, 71)
        assert (value("gpu_power_watts", "g1"), value("gpu_faulty", "g1")) == (301.5, 0)
        assert (value("node_orphans", "g1"), value("node_restarts", "g1")) == (1, 2)
        assert 0 <= (value("host_heartbeat_age_seconds", "h1") or -1.0) + 1 < 60
        assert (value("disk_free_bytes") or 0) > (value("disk_floor_bytes") or 0) > 0
        assert (value("redis_memory_used_bytes") or 0) > 0 and value("redis_saves") == 1
        assert value("webhook_messages") == value("dispatchers") == 0
        assert (await api.client.post(f"/api/v1/jobs/{job['id']}/cancel")).is_success
        shown = await figures(api)
        assert value("queue_depth", "default") == 2
        assert (value("queue_oldest_seconds", "default") or 0) < 60
        await next_claim(api)
        shown = await figures(api)
        assert value("queue_depth", "default") == 1
        assert value("nodes_busy", "default") == value("node_busy", "g1") == 1
        for trouble in ({"lost": True}, {"xids": [79]}, {"ecc_uncorrected": 2}, {"recovery": "a reboot"}):
            await beat(api, nodes=[REPORT], gpus=[{**CARD, **trouble}])
            shown = await figures(api)
            assert value("gpu_faulty", "g1") == 1, trouble


async def test_an_agents_odd_words_break_no_scrape(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        odd = {
            **REPORT,
            "facts": {"vram": {"total": "much", "own": True}, "restarts": [1], "host_memory_bytes": "x"},
        }
        card = {"index": "0", "utilisation": "full", "temperature_c": None, "xids": "all", "instances": 7}
        await beat(api, join=[NODE], nodes=[odd, {**odd, "name": "stranger"}], gpus=[card])
        shown = await figures(api)
        assert ("fleet_node_state", "g1", "new") in shown
        assert not [key for key in shown if key[0].startswith(("fleet_gpu_mem", "fleet_gpu_temp"))]
        assert not [key for key in shown if "stranger" in key]
        await api.stores.redis.set("fleet:scrape:targets", "not a hash")
        assert (await api.client.get("/api/v1/prometheus/targets")).status_code == 200
        await api.stores.redis.set("fleet:webhook:receivers", "not a zset")
        await api.stores.redis.set("fleet:transfers:bytes", "not a hash")
        assert (await figures(api))["fleet_webhook_messages",] == 0


async def test_pools_that_clients_make_up_are_few(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        await api.add_node()
        client: Any = api.stores.redis
        await client.hset(
            "fleet:sched:count", mapping={f"made-up-{number}": 2 for number in range(2 * MOST_POOLS)}
        )
        shown = await figures(api)
        pools = {key[1] for key in shown if key[0] == "fleet_queue_depth"}
        assert len(pools) == MOST_POOLS + 1 and {"default", OTHER} <= pools
        assert sum(shown[key] for key in shown if key[0] == "fleet_queue_depth") == 4 * MOST_POOLS


async def test_many_who_ask_are_answered_by_one_look(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_figures, "KEPT_S", 600.0)
    async with running(redis_port, tmp_path) as api:
        before = (await api.client.get("/metrics/fleet")).content
        await api.add_node()
        assert (await api.client.get("/metrics/fleet")).content == before
        assert (await api.client.get("/api/v1/metrics")).content == before


async def test_every_process_is_found_by_those_who_may_know(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, f"prom {PROM} metrics\nada {ADA}\n")
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=AGENT) as api:

        async def found(key: str = PROM) -> dict[str, Any]:
            answer = await api.client.get(
                "/api/v1/prometheus/targets", headers={"Authorization": f"Bearer {key}"}
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == "application/json"
            return {one["labels"]["job"]: one for one in answer.json()}

        def told() -> Any:
            return api.stores.redis.hlen("fleet:scrape:targets")

        await until(told, what="the API says where it is")
        own = f"127.0.0.1:{api.deps.settings.api_port}"
        groups = await found()
        assert {name: one["targets"] for name, one in groups.items()} == {"fleet": [own], "fleet-api": [own]}
        assert groups["fleet"]["labels"]["__metrics_path__"] == "/metrics/fleet"
        assert groups["fleet"]["labels"]["instance"] == "fleet", "the same whichever API answers"
        assert groups["fleet-api"]["labels"] == {
            "job": "fleet-api",
            "instance": own,
            "host": api.deps.machine,
            "__metrics_path__": "/metrics",
            "__meta_fleet_namespace": "fleet",
            "__meta_fleet_process": "api",
            "__meta_fleet_host": api.deps.machine,
        }
        targets = api.deps.scrape_targets
        there = ScrapeTarget(process="haproxy", host="edge-1", address="10.0.0.7:8195")
        hidden = ScrapeTarget(process="dispatch", host="box", address="127.0.0.1:8194", only_on="box")
        for one in (there, hidden):
            await targets.announce(one)
        groups = await found()
        paths = {name: one["labels"]["__metrics_path__"] for name, one in groups.items()}
        assert {name: path for name, path in paths.items() if "10.0.0.7:8195" in groups[name]["targets"]} == {
            "fleet-haproxy": "/metrics",
            "fleet-broker": "/metrics/broker",
            "fleet-edge": "/metrics/edge",
        }
        assert "fleet-dispatch" not in groups, "nobody can reach it from here"
        api.client.headers["Authorization"] = f"Bearer {AGENT}"
        for address in ("127.0.0.1:8196", "nonsense", "a b:1", "h:0", "169.254.169.254:80"):
            await beat(api, metrics=address, host="h1")
        agent = (await found())["fleet-agent"]
        assert (agent["targets"], agent["labels"]["host"]) == (["127.0.0.1:8196"], "h1")
        # Through a proxy, it is another machine's.
        api.client.headers["X-Forwarded-For"] = "10.0.0.9"
        await beat(api, metrics="127.0.0.1:8196", host="h2")
        await beat(api, metrics="10.0.0.9:8196", host="h3")
        agents = [one for one in await targets.targets() if one.process == "agent"]
        assert [(one.host, one.only_on != "") for one in agents] == [("h1", True), ("h3", False)]
        del api.client.headers["X-Forwarded-For"]
        await targets.leave(there)
        assert "fleet-edge" not in await found()
        late = RedisScrapeTargets(api.stores.redis, lambda: _later(api, KEPT_S + 1))
        assert await late.targets() == [], "what is silent for long is forgotten"
        api.client.headers.pop("Authorization")
        for path in ("prometheus/targets", "metrics"):
            answer = await api.client.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {ADA}"})
            assert code(answer) == (403, "forbidden")


async def _later(api: Api, seconds: float) -> float:
    return await api.stores.clock() + seconds


async def test_an_api_that_ends_is_forgotten(redis_port: int, tmp_path: Path, redis: Redis) -> None:
    client: Any = redis
    async with running(redis_port, tmp_path) as api:
        await until(lambda: client.hlen("fleet:scrape:targets"), what="it says where it is")
        assert not api.serving.done()
    assert await client.hlen("fleet:scrape:targets") == 0


@pytest.mark.parametrize(
    ("host", "advertise", "address", "only_on"),
    [
        ("127.0.0.1", None, "127.0.0.1:8190", "box"),
        ("::1", "ops.test", "[::1]:8190", "box"),
        ("localhost", None, "localhost:8190", "box"),
        ("10.0.0.5", None, "10.0.0.5:8190", ""),
        ("0.0.0.0", None, "box:8190", ""),
        ("::", "ops.test", "ops.test:8190", ""),
        ("0.0.0.0", "fd00::7", "[fd00::7]:8190", ""),
    ],
)
def test_where_a_process_is(host: str, advertise: str | None, address: str, only_on: str) -> None:
    found = announcing.target_of("api", machine="box", host=host, port=8190, advertise=advertise)
    assert found == ScrapeTarget(process="api", host="box", address=address, only_on=only_on)
    assert replace(found, process="dispatch") != found


def checked(text: bytes) -> subprocess.CompletedProcess[bytes]:
    argv = ["promtool", "check", "metrics"]
    return subprocess.run(argv, input=text, capture_output=True, check=False, timeout=60)


async def test_promtool_finds_nothing_to_improve(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        await beat(api, join=[NODE], nodes=[REPORT], gpus=[CARD])
        await api.submit(GRAPH)
        client: Any = api.stores.redis
        await client.rpush("fleet:sched:errors:run", "1.5", "0.5")
        await client.hset("fleet:transfers:bytes", mapping={"shop": 7, "": 7})
        texts = [(await api.client.get(path)).content for path in ("/metrics", "/metrics/fleet")]
        for text in texts:
            told = checked(text)
            assert told.returncode == 0, (told.stdout + told.stderr).decode()
        names = {line.split()[2] for line in texts[-1].decode().splitlines() if line.startswith("# TYPE")}
        assert names == {one.name for one in ALL}
