"""What metrics cost: counting them with each job, and scraping a fleet of a thousand nodes."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import httpx
from prometheus_client import CollectorRegistry

from benchmarks.loads import load
from benchmarks.processes import cpu_seconds, user_seconds
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded, pid_of
from benchmarks.stats import median
from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.redis.figures import RedisFigures
from comfy_fleet.adapters.telemetry import PrometheusTelemetry, new_registry
from comfy_fleet.adapters.telemetry.fleet_text import FleetText
from comfy_fleet.adapters.telemetry.text import RegistryText
from comfy_fleet.agent.metrics import AgentMetrics
from comfy_fleet.api.metrics import Metrics
from comfy_fleet.bootstrap import Stores, calm_collector, open_disk, open_stores
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import GpuAllocation, Heartbeat, Joining, NodeReport
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services import fleet_figures
from comfy_fleet.services.fleet_figures import FleetFigures
from comfy_fleet.settings import Settings

NODES, PER_HOST = 1000, 8
DISPATCHERS, APIS = 2, 2
WORKFLOWS, POOLS, TENANTS = 20, 3, 10
JOBS, PAIRS = 2000, 10
EVERY_S = 15.0
MOST_SHARE, MOST_BYTES, MOST_CORES = 0.03, 5_000_000, 0.01
_GIB = 2**30
_EXPORTERS = "HAProxy's exporters"


async def measure(options: Options) -> Result:
    """Measure; about three minutes."""
    sizes, seconds = await _scrapes(options)
    on, off = await _jobs(options)
    shares = [(one - other) / one for one, other in zip(on, off, strict=True)]
    share, cores = median(shares), sum(seconds.values()) / EVERY_S
    nodes = options.some(NODES, 100)
    return Result(
        name="telemetry",
        title="Metrics",
        verdicts=[
            Verdict(
                figure="metrics' share of the user CPU time of a job, API and dispatcher",
                target=f"< {MOST_SHARE:.0%}",
                ours=f"{share:.1%}",
                baseline=f"{median(off):.2f} ms a job without",
                ratio=median(on) / median(off),
                met=share < MOST_SHARE,
            ),
            Verdict(
                figure=f"all scrapes of {nodes} nodes together",
                target=f"< {MOST_BYTES // 10**6} MB",
                ours=f"{sum(sizes.values()) / 1e6:.2f} MB",
                baseline="",
                ratio=None,
                met=sum(sizes.values()) < MOST_BYTES,
            ),
            Verdict(
                figure=f"the same every {EVERY_S:g} s, all processes and Redis",
                target=f"< {MOST_CORES:.0%} of a core",
                ours=f"{cores:.2%} of a core",
                baseline="",
                ratio=None,
                met=cores < MOST_CORES,
            ),
        ],
        columns=["scraped", "kB", "ms of CPU"],
        rows=[[name, f"{sizes[name] / 1000:.1f}", f"{seconds[name] * 1000:.1f}"] for name in sizes],
        notes=[
            f"Jobs: {len(on)} pairs in turns of trivial jobs, {options.some(JOBS, 200)} in all, in one "
            "`fleet serve` whose metrics are switched off and on between rounds; user time by "
            "/proc/PID/stat. With metrics on, /metrics and /metrics/fleet are scraped once a round, which is "
            f"more often than every {EVERY_S:g} s. The share is the median over the pairs.",
            f"Scrapes: {nodes} nodes with what their agents say of cards, {nodes // PER_HOST} agents, "
            f"{DISPATCHERS} dispatchers and {APIS} APIs that have counted {WORKFLOWS} workflows in {POOLS} "
            f"pools of {TENANTS} tenants and runs on all nodes. CPU time of writing and, for the fleet's "
            "page, of reading Redis and of Redis itself; HAProxy's exporters, which do not list "
            "nodes, by how long an answer takes at least; that is no less.",
        ],
        data={"on_ms": on, "off_ms": off, "bytes": sizes, "seconds": seconds},
        quick=options.quick,
    )


async def _jobs(options: Options) -> tuple[list[float], list[float]]:
    """Return user CPU milliseconds a job with metrics and without, by pair."""
    pairs = options.some(PAIRS, 4)
    each = options.some(JOBS, 200) // pairs // 2
    found: dict[bool, list[float]] = {True: [], False: []}
    async with Stage(options) as stage, bounded(900, "the figure of metrics"):
        nodes = await stage.sims(2)
        argv = [sys.executable, "-m", "benchmarks.counted_serve"]
        fleet = await stage.fleet(nodes, together=True, serve=argv)
        await fleet.until_up(2)
        assert fleet.api is not None
        pid = pid_of(fleet.api)
        specs = [{"kind": "v2", "base": fleet.url, "events": True} for _ in nodes]
        await load("crowd", {"clients": specs, "trips_each": 10})
        async with httpx.AsyncClient(base_url=fleet.api_url, timeout=60) as http:
            for pair in range(pairs):
                options.say(f"pair {pair + 1} of {pairs}")
                for on in (True, False) if pair % 2 else (False, True):
                    os.kill(pid, signal.SIGUSR2 if on else signal.SIGUSR1)
                    await asyncio.sleep(0.2)
                    began = user_seconds(pid)
                    await load("crowd", {"clients": specs, "trips_each": each})
                    if on:
                        for path in ("/metrics", "/metrics/fleet"):
                            (await http.get(path)).raise_for_status()
                    # The first of each client is not in the account of its load, but in the servers'.
                    jobs = (each + 1) * len(specs)
                    found[on].append((user_seconds(pid) - began) / jobs * 1000)
        stage.check()
    return found[True], found[False]


async def _scrapes(options: Options) -> tuple[dict[str, float], dict[str, float]]:
    """Return bytes and CPU seconds of one scrape of everything, by what is scraped."""
    nodes, rounds = options.some(NODES, 100), options.some(30, 5)
    calm_collector()  # as all processes of a fleet do
    sizes: dict[str, float] = {}
    seconds: dict[str, float] = {}
    async with Stage(options) as stage, bounded(600, "the scrapes of a thousand nodes"):
        options.say(f"{nodes} nodes are registered")
        redis = await stage.redis("alone")  # nobody else asks it
        settings = Settings(data=stage.folder, redis_url=redis.url)
        settings.files_dir.mkdir()
        async with open_stores(settings) as stores:
            beats = await _join(stores, nodes)
            size, took = await _fleet_page(stores, settings, beats, redis.pid, rounds)
            sizes["the fleet's page"], seconds["the fleet's page"] = size, took
        options.say("HAProxy's exporters")
        fleet = await stage.fleet([], ready=False)
        places = files(fleet.settings)
        answers = [await _exporter(path, rounds) for path in (places.broker_monitor, places.edge_monitor)]
        sizes[_EXPORTERS], seconds[_EXPORTERS] = (sum(each) for each in zip(*answers, strict=True))
        stage.check()
    options.say("processes")
    for name, count, registry in (
        (f"{DISPATCHERS} dispatchers", DISPATCHERS, _dispatcher(nodes)),
        (f"{APIS} APIs", APIS, _api()),
        (f"{nodes // PER_HOST} agents", nodes // PER_HOST, _agent(beats[0])),
    ):
        size, took = _written(registry, rounds)
        sizes[name], seconds[name] = size * count, took * count
    return sizes, seconds


async def _join(stores: Stores, nodes: int) -> list[Heartbeat]:
    beats = []
    for first in range(0, nodes, PER_HOST):
        host, instance = f"h{first // PER_HOST:03}", uuid4().hex
        await stores.hosts.admit(host, instance)
        numbers = range(first, min(first + PER_HOST, nodes))
        for number in numbers:
            url = f"http://127.1.{number // 250}.{number % 250 + 1}:1"
            joining = Joining(name=f"g{number:04}", url=url, agent="127.0.0.1:1", simulated=True)
            await stores.hosts.join(host, joining, now=time.time(), most_nodes=PER_HOST)
        cards = [
            {
                "index": card,
                "uuid": f"GPU-{number}",
                "name": "NVIDIA GeForce RTX 4090",
                "utilisation": 97,
                "temperature_c": 70,
                "power_w": 400.5,
                "ecc_uncorrected": 0,
                "xids": [],
                "instances": [],
            }
            for card, number in enumerate(numbers)
        ]
        reports = [_report(number, instance) for number in numbers]
        beats.append(Heartbeat(host=host, instance=instance, gpus=cards, nodes=reports, version="1"))
    return beats


def _report(number: int, instance: str) -> NodeReport:
    vram = {"total": 24 * _GIB, "own": 9 * _GIB, "own_all": 9 * _GIB, "foreign": 0, "available": 14 * _GIB}
    return NodeReport(
        name=f"g{number:04}",
        readiness=Readiness.READY,
        weight=100,
        boot_id=instance,
        gpu_allocation=GpuAllocation(gpu=f"GPU-{number}", pids=(number,), own=9 * _GIB, used=9 * _GIB),
        facts={
            "url": "http://10.0.0.1:8188",
            "gpu": f"GPU-{number}",
            "weight": 100,
            "vram": {**vram, "source": "processes", "others": []},
            "version": "0.33.0",
            "busy": True,
            "orphans": [],
            "trouble": "",
            "answered_s_ago": 0.4,
            "cleans": True,
            "pid": number,
            "phase": "up",
            "restarts": 0,
            "jobs": 17,
            "host_memory_bytes": 9 * _GIB,
        },
    )


async def _fleet_page(
    stores: Stores, settings: Settings, beats: Sequence[Heartbeat], redis: int, rounds: int
) -> tuple[int, float]:
    figures = FleetFigures(
        nodes=stores.nodes,
        hosts=stores.hosts,
        figures=RedisFigures(stores.redis),
        estimates=stores.estimates,
        room=open_disk(settings).room,
        clock=stores.clock,
        write=FleetText(),
    )
    kept, fleet_figures.KEPT_S = fleet_figures.KEPT_S, 0.0
    own, servers, text = [], 0.0, b""
    try:
        for _ in range(rounds):
            for beat in beats:
                await stores.hosts.beat(beat, now=await stores.clock())
            began, at = time.process_time(), cpu_seconds(redis)
            text = await figures.text()
            own.append(time.process_time() - began)
            servers += cpu_seconds(redis) - at
    finally:
        fleet_figures.KEPT_S = kept
    return len(text), median(own) + servers / rounds


async def _exporter(monitor: Path, rounds: int) -> tuple[int, float]:
    size, least = 0, float("inf")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(monitor))) as session:
        for _ in range(rounds):
            began = time.perf_counter()
            async with session.get("http://haproxy/metrics?scope=frontend&scope=backend") as answer:
                size = len(await answer.read())
            least = min(least, time.perf_counter() - began)
    return size, least


def _written(registry: CollectorRegistry, rounds: int) -> tuple[int, float]:
    took, text, write = [], b"", RegistryText(registry)
    for _ in range(rounds):
        began = time.process_time()
        text = write()
        took.append(time.process_time() - began)
    return len(text), median(took)


def _dispatcher(nodes: int) -> CollectorRegistry:
    registry = new_registry()
    telemetry = PrometheusTelemetry(registry)
    job = Job(
        id="j",
        owner="o",
        status=JobStatus.RUNNING,
        created_at=0.0,
        started_at=1.0,
        expires_at=9.0,
        graph_hash="h",
    )
    claim = Claim(job=job, graph=b"{}", run="r", node="g", pool="p", token="t", attempt=0, load_s=1.0)
    for number in range(max(nodes, WORKFLOWS * POOLS * TENANTS)):
        workflow, rest = number % WORKFLOWS, number // WORKFLOWS
        job = replace(job, workflow=f"workflow_{workflow}", tenant=f"tenant-{rest // POOLS % TENANTS}")
        one = replace(claim, job=job, node=f"g{number % nodes:04}", pool=f"pool-{rest % POOLS}")
        telemetry.claimed(one)
        telemetry.posted(one)
        telemetry.left(one, busy_s=1.0)
        telemetry.ended(one, JobStatus.SUCCEEDED, error=None, duration_s=1.0, outputs=1)
    return registry


def _api() -> CollectorRegistry:
    registry = new_registry()
    PrometheusTelemetry(registry)
    metrics = Metrics(registry)
    for handler in range(100):
        for status in (200, 404):
            metrics.count(f"handler_{handler}", status, 0.001)
    return registry


def _agent(beat: Heartbeat) -> CollectorRegistry:
    registry = new_registry()
    said: Callable[[str], Any] = lambda _: None  # noqa: E731 - nothing asks
    registry.register(AgentMetrics(lambda: beat, said, lambda: 0.5))
    return registry
