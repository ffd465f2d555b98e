"""Jobs that are merged into one batch of latents: how many a second, and how long one waits."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson

from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded, sim_reset, sim_stats
from benchmarks.stats import median

RUN_S = 0.6
SIDE, STEPS = 64, 4
BATCH_OF_4 = 2.6
"""Four pictures in one batch take as long as so many alone."""
SHARE = (BATCH_OF_4 - 1) / 3
TARGET = 1.35
ROUNDS = 3
NODES = 2
STUCK_S = 60.0
BATCH, EXACT, ALONE = "batch", "exact", "not merged"
MODEL = "v1-5-pruned-emaonly-fp16.safetensors"


async def measure(options: Options) -> Result:
    """Measure; about three minutes."""
    jobs = options.some(96, 16)
    rates: dict[str, list[float]] = {ALONE: [], EXACT: [], BATCH: []}
    prompts: dict[str, list[int]] = {ALONE: [], EXACT: [], BATCH: []}
    async with bounded(900, "the figure of merging"), Stage(options) as stage:
        step_s = RUN_S / STEPS / (SIDE * SIDE / 1e6)
        timing = ["--step-seconds", str(step_s), "--batch-share", str(SHARE)]
        nodes = await stage.sims(NODES, more=timing)
        folder = stage.folder / "workflows"
        for way in rates:
            write_workflow(folder / way.replace(" ", "-"), way)
        fleet = await stage.fleet(nodes, workflows=folder)
        await fleet.until_up(len(nodes))
        for number in range(options.some(ROUNDS, 1)):
            for way, found in rates.items():
                await sim_reset(nodes)
                began = time.time()
                await submit(fleet.url, way.replace(" ", "-"), jobs)
                stats = await done(fleet.url, nodes, jobs)
                took = max(end for one in stats for _, end, _ in one["intervals"]) - began
                found.append(jobs / took)
                prompts[way].append(sum(one["done"] for one in stats))
                options.say(f"round {number + 1}: {way}: {jobs / took:.2f} jobs/s")
        stage.check()
    rate = {way: median(values) for way, values in rates.items()}
    return Result(
        name="merging",
        title="Jobs merged into one prompt",
        verdicts=[
            Verdict(
                figure=f"jobs a second with batch merging, where a batch of 4 takes {BATCH_OF_4:g} times as "
                "long as one picture",
                target=f"≥ {TARGET} × not merged",
                ours=f"{rate[BATCH]:.2f}/s",
                baseline=f"not merged {rate[ALONE]:.2f}/s",
                ratio=rate[BATCH] / rate[ALONE],
                met=rate[BATCH] >= TARGET * rate[ALONE],
            )
        ],
        columns=["way", "jobs/s", "prompts"],
        rows=[[way, f"{rate[way]:.2f}", str(prompts[way][-1])] for way in rates],
        notes=[
            f"Median of {ROUNDS} rounds. {jobs} jobs of one stored workflow, {RUN_S} s each, submitted at "
            f"once to {NODES} simulated nodes; the client gave no seed. The ways take turns on one fleet. "
            f"At most four are merged: then the bound is {4 / BATCH_OF_4:.2f} times.",
            "Exact merging saves no sampling: jobs share loaders and equal prompts, which ComfyUI's cache "
            "saves them anyway, and the way from one prompt to the next.",
        ],
        data={"rates": rates, "prompts": prompts},
        quick=options.quick,
    )


def write_workflow(folder: Path, way: str) -> None:
    """Write a stored workflow whose jobs are merged in this way."""
    folder.mkdir(parents=True)
    manifest = "[parameters.seed]\ntype = 'seed'\ntarget = {class = 'KSampler', input = 'seed'}\n"
    if way != ALONE:
        manifest += f"[merge]\nmode = '{way}'\n"
    (folder / "workflow.toml").write_text(manifest)
    (folder / "workflow.json").write_bytes(orjson.dumps(graph()))


def graph() -> dict[str, Any]:
    """Return a graph with one small picture."""
    sampler = {"seed": 0, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["2", 0]}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": MODEL}),
        "2": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": f"a cat {secrets.token_hex(4)}"}),
        "4": ("KSampler", {**links, **sampler, "denoise": 1.0}),
        "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "bench/merged"}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


async def submit(url: str, workflow: str, jobs: int) -> None:
    """Submit all jobs."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        answers = await asyncio.gather(
            *(http.post(f"/api/v1/workflows/{workflow}/jobs", json={"params": {}}) for _ in range(jobs))
        )
    for answer in answers:
        if answer.status_code != 201:
            raise BenchError(f"a submit was answered {answer.status_code}: {answer.text[:300]}")


async def done(url: str, nodes: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """Wait until no job is left; return the nodes' accounts."""
    deadline = time.monotonic() + STUCK_S + jobs * RUN_S
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        while time.monotonic() < deadline:
            states = [
                (await http.get("/api/v2/jobs", params={"status": status, "limit": 1})).json()["jobs"]
                for status in ("queued", "running")
            ]
            if not any(states):
                return await sim_stats(nodes)
            await asyncio.sleep(0.2)
    raise BenchError(f"{jobs} jobs are not done in time")
