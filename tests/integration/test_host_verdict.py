"""What keeps jobs from a node: foreign memory, work that nobody explains, an agent that died."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
from redis.asyncio import Redis
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from comfy_fleet.agent.main import AgentOptions, Beside, run
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import GRAPH
from tests.integration.agent_kit import SOURCE, Host, host_of
from tests.integration.haproxy_kit import eventually
from tests.integration.redis_kit import claim, submit

logger = logging.getLogger(__name__)  # figures: --log-cli-level=INFO
SLOW = SimTiming(job_s=30)


def beside(sim: SimNode, output: Path | None = None, input_: Path | None = None) -> dict[str, object]:
    return {"beside": (Beside(name="g1", url=sim.url, output=output, input=input_),)}


async def granted(host: Host, node: str = "g1") -> bool:
    """Ask for a lease, and give it back."""
    headers = {"X-Fleet-Pool": "default", "X-Fleet-Nodes": node}
    try:
        url = f"ws://localhost/ws?clientId={uuid4()}"
        async with unix_connect(str(host.settings.lease_socket), url, additional_headers=headers):
            return True
    except InvalidStatus:
        return False


async def post(http: httpx.AsyncClient, sim: SimNode, prompt: str, *, ours: bool) -> None:
    extra = {"fleet": {"job": str(uuid4()), "run": prompt}} if ours else {}
    body = {"prompt": GRAPH, "prompt_id": prompt, "client_id": "x", "extra_data": extra}
    assert (await http.post(f"{sim.url}/prompt", json=body)).status_code == 200


async def test_foreign_memory_stops_leases_within_a_second_and_a_warm_node_stays(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, haproxy=True, options=beside(sim)) as host,
    ):
        await host.is_up("g1")
        sim.vram.load("big.safetensors", 20 * 2**30)  # its own: ComfyUI gives it back by itself
        await eventually("it was looked at", lambda: _own(host, 20 * 2**30))
        assert await granted(host)
        sim.vram.unload()
        await sim.set_faults({"foreign_gib": 15})
        taken_at = last = time.monotonic()
        while (asked_at := time.monotonic()) < taken_at + 3:
            if await granted(host):
                last = asked_at
            await asyncio.sleep(0.01)
        assert last - taken_at <= 1.0, last - taken_at  # what operators are promised
        await host.is_up("g1", "drain")
        assert "other programs hold" in (await host.state("g1")).why


async def _own(host: Host, wanted: int) -> bool:
    return int(((await host.report("g1")).get("vram") or {}).get("own") or 0) >= wanted


async def test_work_that_nobody_explains_drains_and_only_ours_is_interrupted(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1", timing=SLOW)) as sim,
        host_of(redis_port, tmp_path, options=beside(sim)) as host,
    ):
        await host.said("g1", "ready")
        theirs, ours, waiting = (str(uuid4()) for _ in range(3))
        await post(host.http, sim, theirs, ours=False)
        await host.said("g1", "drain")
        assert theirs in (await host.api.stores.hosts.words("g1"))[1]
        await post(host.http, sim, waiting, ours=True)
        await eventually("ours is taken out of the queue", lambda: not sim.engine.pending)
        assert [item.prompt_id for item in sim.engine.running] == [theirs]
        await host.http.post(f"{sim.url}/interrupt", json={"prompt_id": theirs})
        await host.said("g1", "ready")
        await post(host.http, sim, ours, ours=True)
        await eventually("ours is interrupted", lambda: sim.stats.interrupted == 2)
        await host.said("g1", "ready")


async def test_a_run_of_the_fleet_is_no_orphan_even_when_its_dispatcher_died(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1", timing=SLOW)) as sim,
        host_of(redis_port, tmp_path, options=beside(sim)) as host,
    ):
        await host.said("g1", "ready")
        await submit(host.api.stores)
        run_ = (await claim(host.api.stores, "g1", ttl=-1)).run
        await post(host.http, sim, run_, ours=True)
        await eventually("it was seen", lambda: _busy(host))
        await _heartbeats(host, 3)
        assert (await host.api.stores.hosts.words("g1"))[0] == "ready"
        assert [item.prompt_id for item in sim.engine.running] == [run_]


async def _busy(host: Host) -> bool:
    return (await host.report("g1")).get("busy") is True


async def _heartbeats(host: Host, count: int) -> None:
    for _ in range(count):
        seen = (await host.api.stores.hosts.hosts())[0].seen_at
        await eventually("another heartbeat", partial(_beat_after, host, seen))


async def _beat_after(host: Host, at: float) -> bool:
    return (await host.api.stores.hosts.hosts())[0].seen_at > at


async def test_a_dead_agent_s_nodes_get_no_lease_within_five_seconds(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, haproxy=True) as host,  # without nodes of its own
    ):
        stop = asyncio.Event()
        options = AgentOptions(join=host.api.url, host="h2", port=0, beside=(Beside(name="g1", url=sim.url),))
        agent = asyncio.create_task(run(host.settings, options, stop))
        await host.is_up("g1")
        assert await granted(host)
        died_at = time.monotonic()
        stop.set()
        await agent
        await host.is_up("g1", "drain", within_s=6)
        assert time.monotonic() - died_at <= 5.0  # what operators are promised
        assert not await granted(host)
        assert "agent is silent" in (await host.state("g1")).why


async def test_a_hung_agent_s_nodes_get_no_lease_within_five_seconds(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, haproxy=True) as host,  # without nodes of its own
    ):
        command = [sys.executable, "-m", "comfy_fleet", "agent", "--join", host.api.url, "--host", "h2"]
        agent = subprocess.Popen(
            mortal([*command, "--port", "0", "--node", f"g1={sim.url}"]),
            stderr=subprocess.DEVNULL,
            cwd=SOURCE,
        )
        try:
            await host.is_up("g1")
            assert await granted(host)
            last = hung_at = time.monotonic()
            agent.send_signal(signal.SIGSTOP)  # its port still takes connections
            while (asked_at := time.monotonic()) < hung_at + 7:
                if await granted(host):
                    last = asked_at
                await asyncio.sleep(0.05)
            logger.info("hung agent: the last lease after %.2f s", last - hung_at)
            assert last - hung_at <= 5.0, last - hung_at  # what operators are promised
            await host.is_up("g1", "drain")
            assert "agent is silent" in (await host.state("g1")).why
            agent.send_signal(signal.SIGCONT)
            await host.is_up("g1")
            assert await granted(host)
        finally:
            agent.kill()
            await asyncio.to_thread(agent.wait)


async def test_the_central_agent_looks_at_nodes_that_are_known_by_url_only(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with (
        SimNode(NodeOptions(name="far")) as sim,
        host_of(redis_port, tmp_path) as host,
    ):
        await host.api.stores.nodes.add(Node(name="far", url=sim.url))
        await host.said("far", "ready")
        assert (await host.report("far"))["vram"]["total"] == sim.vram.total
        await sim.set_faults({"foreign_gib": 20})
        await host.said("far", "drain")
        assert "other programs hold" in (await host.api.stores.hosts.words("far"))[1]
        await host.api.stores.nodes.remove("far")
        await eventually("it is forgotten", lambda: _no_nodes(host))


async def _no_nodes(host: Host) -> bool:
    (state,) = await host.api.stores.hosts.hosts()
    return state.record.get("nodes") == []


async def test_finished_jobs_files_are_deleted_and_nothing_else(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    output, input_ = tmp_path / "out", tmp_path / "in"
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, options=beside(sim, output=output, input_=input_)) as host,
    ):
        await host.said("g1", "ready")
        job = await submit(host.api.stores)
        got = await claim(host.api.stores, "g1")
        mine, staged = output / "fleet" / job.id / got.run, input_ / "fleet" / job.id
        others = [output / "fleet" / str(uuid4()) / "run", input_ / "fleet" / str(uuid4())]
        for folder in (mine, staged, *others):
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(b"x")
        await host.api.finish(got)
        await eventually("the files are gone", lambda: not mine.parent.exists() and not staged.exists())
        assert all((folder / "a.png").exists() for folder in others)
        await eventually("the list is empty", lambda: _no_trash(redis))


async def _no_trash(redis: Redis) -> bool:
    return int(await redis.zcard("fleet:trash:h1")) == 0


async def test_an_idle_node_unloads_its_models_once(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    async with (
        SimNode(NodeOptions(name="g1", timing=SLOW)) as sim,
        host_of(redis_port, tmp_path, options=beside(sim), free_idle_s="0,default=0.8") as host,
    ):
        await host.said("g1", "ready")
        prompt = str(uuid4())
        await post(host.http, sim, prompt, ours=False)
        await eventually("it works", lambda: _busy(host))
        sim.vram.load("m.safetensors", 2**30)
        await _heartbeats(host, 3)  # more than the time after which an idle one is asked
        assert sim.vram.models, "freed while something ran"
        await host.http.post(f"{sim.url}/interrupt", json={"prompt_id": prompt})
        await eventually("its models are unloaded", lambda: not sim.vram.models)
        sim.vram.load("m.safetensors", 2**30)
        await _heartbeats(host, 3)
        assert sim.vram.models, "asked again, though it did nothing since"


async def test_metrics_and_health_tell_the_same_verdict(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    port = free_port()
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, options=beside(sim), agent_metrics_port=port) as host,
    ):
        await host.said("g1", "ready")
        base = f"http://127.0.0.1:{port}"
        assert (await host.http.get(f"{base}/health/g1")).status_code == 200
        assert (await host.http.get(f"{base}/health")).text == "ok\n"
        assert (await host.http.get(f"{base}/health/nobody")).status_code == 404
        await sim.set_faults({"foreign_gib": 20})
        await host.said("g1", "drain")
        sick = await host.http.get(f"{base}/health/g1")
        assert (sick.status_code, "other programs hold" in sick.text) == (503, True)
        text = (await host.http.get(f"{base}/metrics")).text
        assert 'fleet_agent_nodes{word="drain"} 1' in text
        assert "fleet_agent_confirmed_age_seconds" in text
