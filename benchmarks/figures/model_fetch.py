"""How soon jobs use a new LoRA on two hosts, from the command that has it fetched."""

import asyncio
import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming

MIB = 1024 * 1024
MOST_S = 15.0
_STAGE = 5  # agents end before all else
ROUNDS = 3
HOSTS = ("h1", "h2")
LOADER = {"class_type": "LoraLoaderModelOnly"}


async def measure(options: Options) -> Result:
    """Measure; about a minute."""
    size = options.some(200, 20) * MIB
    async with (
        Stage(options) as stage,
        bounded(600, "the figure of models that are fetched"),
        contextlib.AsyncExitStack() as stack,
    ):
        fleet = await stage.fleet([], ready=False)
        env = {**fleet.env, "FLEET_MODEL_ALLOW": "127.0.0.1", "FLEET_MODEL_FREE_BYTES": "0"}
        for host in HOSTS:
            models = stage.folder / host / "models"
            (models / "loras").mkdir(parents=True)
            (port,) = ports.draw(1)
            node = NodeOptions(
                name=host,
                timing=SimTiming(scale=0),
                models={"checkpoints": {"m.safetensors": 1000}, "loras": {}},
                models_folder=models,
            )
            sim = await stack.enter_async_context(SimNode(node, port=port))
            argv = [*node_plans.fleet("agent"), "--join", fleet.api_url, "--host", host, "--port", "0"]
            argv += ["--zone", host, "--node", f"{host}-gpu={sim.url}@cpu"]
            argv += ["--models-dir", f"{host}-gpu={models}", "--metrics-port", "none"]
            await stage.child(f"agent-{host}", argv, stage=_STAGE, env=env)
        await fleet.until_up(len(HOSTS))
        rounds = range(options.some(ROUNDS, 1))
        took = [await _round(options, fleet, stack, stage.folder, size, number) for number in rounds]
        stage.check()
    worst = max(max(one[host] for host in HOSTS) for one in took)
    return Result(
        name="model-fetch",
        title="A new LoRA on two hosts",
        verdicts=[
            Verdict(
                figure=f"from the command to the end of the first job that used {size // MIB} MiB, any host",
                target=f"≤ {MOST_S:g} s",
                ours=f"{worst:.1f} s",
                baseline="-",
                ratio=worst / MOST_S,
                met=worst <= MOST_S,
            )
        ],
        columns=["round", *(f"{host}, s" for host in HOSTS)],
        rows=[[str(at), *(f"{one[host]:.1f}" for host in HOSTS)] for at, one in enumerate(took, 1)],
        notes=[
            "`fleet model fetch` as a process of its own; the file's server, both agents and two simulated "
            "nodes on this machine. One host downloads, the other has the file from it. A job is sent again "
            "and again from the command on, until it is taken: the time ends when it has succeeded."
        ],
        data={"took_s": took, "bytes": size},
        quick=options.quick,
    )


async def _round(
    options: Options, fleet: Fleet, stack: contextlib.AsyncExitStack, folder: Path, size: int, number: int
) -> dict[str, float]:
    name = f"lora-{number}.safetensors"
    file = folder / name
    await asyncio.to_thread(file.write_bytes, bytes([number]) * size)
    with file.open("rb") as read:
        digest = hashlib.file_digest(read, "sha256").hexdigest()
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    (port,) = ports.draw(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    options.say(f"round {number + 1}: {size // MIB} MiB")
    began = time.monotonic()
    url = f"http://127.0.0.1:{port}/{name}"
    argv = [*node_plans.fleet("model"), "fetch", url, "--folder", "loras", "--sha256", digest]
    fetching = await asyncio.create_subprocess_exec(*argv, "--api", fleet.api_url)
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=60) as http:
        ends = await asyncio.gather(*(_used(http, name, host, number) for host in HOSTS))
    if await fetching.wait():
        raise BenchError("`fleet model fetch` failed")
    return {host: end - began for host, end in zip(HOSTS, ends, strict=True)}


async def _used(http: httpx.AsyncClient, name: str, host: str, seed: int) -> float:
    """Send a job that uses a LoRA on a host until it is taken, and return when it has succeeded."""
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "2": {**LOADER, "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": 1.0}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": host}},
        "5": {"class_type": "KSampler", "inputs": _sampler(seed)},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "t"}},
    }
    while True:
        sent = await http.post("/api/v2/jobs", json={"workflow": graph, "zone": host})
        if sent.status_code == httpx.codes.CREATED:
            break
        await asyncio.sleep(0.2)
    while True:
        job = (await http.get(f"/api/v2/jobs/{sent.json()['id']}")).json()
        if job["status"] == "succeeded":
            return time.monotonic()
        if job["status"] in ("failed", "expired", "canceled"):
            raise BenchError(f"the job on {host}: {job.get('error')}")
        await asyncio.sleep(0.05)


def _sampler(seed: int) -> dict[str, Any]:
    links = {"model": ["2", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["3", 0]}
    said = {"seed": seed, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    return {**links, **said, "denoise": 1.0}
