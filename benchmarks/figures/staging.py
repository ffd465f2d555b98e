"""How long a node waits between two jobs that read large files, with and without staging ahead."""

import asyncio
import io
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
from PIL import Image

from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, sim_intervals, sim_reset
from benchmarks.stats import median, percentile

EDGE = 2584  # 20 MB of noise, three bytes a pixel, not compressed
JOB_S = 3.0
OFF, ON, NONE = "as the run begins", "ahead", "there are none"
TARGET = 0.1


async def measure(options: Options) -> Result:
    """Measure; about five minutes."""
    jobs, rounds = options.some(6, 3), options.some(3, 1)
    gaps: dict[str, list[float]] = {OFF: [], ON: [], NONE: []}
    async with AsyncExitStack() as stack, bounded(900, "the figure of staging"):
        ways: dict[str, tuple[Fleet, str]] = {}
        for way in (OFF, ON):
            stage = await stack.enter_async_context(Stage(options))
            if options.comfyui:
                node = await stage.comfyui(testing=True)
            else:
                (node,) = await stage.sims(1, job_s=JOB_S)
            env = {"FLEET_STAGE_AHEAD_BYTES": "0"} if way == OFF else {}
            fleet = await stage.fleet([node], env=env)
            await fleet.until_up(1)
            async with fleet.stores() as stores:  # as an agent says that deletes the node's files
                redis: Any = stores.redis
                cleaned = {"host": "central", "cleans": "1"}
                await redis.hset(stores.redis.keyspace.node("node-1"), mapping=cleaned)
            ways[way] = fleet, node
        ways[NONE] = ways[ON]
        for turn in range(rounds):
            for way, (fleet, node) in ways.items():
                options.say(f"round {turn + 1} of {rounds}: files are staged {way}")
                real, files = bool(options.comfyui), way != NONE
                gaps[way] += await _gaps(fleet, node, jobs, real=real, files=files)
                fleet.stage.check()
    none = median(gaps[NONE])
    off, on = (median(gaps[way]) - none for way in (OFF, ON))
    kind = "a real ComfyUI on the CPU" if options.comfyui else "a simulated node"
    return Result(
        name="staging",
        title="The gap between two jobs that read 20 MB each",
        verdicts=[
            Verdict(
                figure="what pictures of 20 MB, one for each job, add to the gap between two prompts, p50",
                target=f"≤ {TARGET} × without staging ahead",
                ours=f"{on * 1000:.0f} ms",
                baseline=f"{off * 1000:.0f} ms",
                ratio=on / off,
                met=on <= TARGET * off,
            )
        ],
        columns=["files are staged", "gap p50 ms", "p90 ms", "gaps"],
        rows=[
            [way, f"{median(one) * 1000:.0f}", f"{percentile(one, 90) * 1000:.0f}", str(len(one))]
            for way, one in gaps.items()
        ],
        notes=[
            f"Two fleets of one node ({kind}), in turns; {jobs} jobs at once in each of {rounds} rounds, "
            f"{JOB_S:g} s each. The gap is from a prompt's end to the start of the next one, by the node.",
            "Files go over loopback: a real network adds its time to the larger gap.",
        ],
        data={way: list(one) for way, one in gaps.items()},
        quick=options.quick,
    )


async def _gaps(fleet: Fleet, node: str, jobs: int, *, real: bool, files: bool) -> list[float]:
    """Run jobs that may read a picture each; return the times between them in seconds."""
    if not real:
        await sim_reset([node])
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=60) as client:
        assets = [await _upload(client) if files else None for _ in range(jobs)]
        ids = [await _submit(client, asset, real=real) for asset in assets]
    states = await load("follow_all", {"bases": [fleet.url], "ids": [ids], "poll_s": 0.1})
    if states != {"succeeded": jobs}:
        raise BenchError(f"jobs that read files ended as {states}")
    spans = await _spans(node, ids) if real else (await sim_intervals([node]))[0]
    ordered = sorted(spans)[-jobs:]
    return [later[0] - earlier[1] for earlier, later in pairwise(ordered)]


async def _upload(client: httpx.AsyncClient) -> str:
    picture = await asyncio.to_thread(_noise)
    name = f"{uuid4()}.png"
    answer = await client.post("/api/v2/assets", files={"file": (name, picture)}, data={"file_path": name})
    answer.raise_for_status()
    return str(answer.json()["id"])


def _noise() -> bytes:
    data = io.BytesIO()
    Image.frombytes("RGB", (EDGE, EDGE), os.urandom(EDGE * EDGE * 3)).save(data, "PNG", compress_level=0)
    return data.getvalue()


async def _submit(client: httpx.AsyncClient, asset: str | None, *, real: bool) -> str:
    empty = {"width": 64, "height": 64, "batch_size": 1, "color": secrets.randbelow(1 << 24)}
    graph: dict[str, dict[str, Any]] = {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "area",
                "width": 64,
                "height": 64,
                "crop": "disabled",
            },
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "s"}},
    }
    if asset is not None:
        reference = {"__type": "core/ASSET", "info": {"id": asset}}
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": reference}}
    if real:
        graph["4"] = {"class_type": "TestSleep", "inputs": {"value": ["2", 0], "seconds": JOB_S}}
        graph["3"]["inputs"]["images"] = ["4", 0]
    answer = await client.post("/api/v2/jobs", json={"workflow": graph})
    answer.raise_for_status()
    return str(answer.json()["id"])


async def _spans(node: str, jobs: Sequence[str]) -> list[tuple[float, float]]:
    """Return when a real ComfyUI began and ended the prompts of some jobs, in Unix seconds."""
    deadline = time.monotonic() + 10
    while True:
        async with httpx.AsyncClient(base_url=node, trust_env=False, timeout=30) as client:
            entries = (await client.get("/history")).json().values()
        spans = []
        for entry in entries:
            if entry["prompt"][3].get("fleet", {}).get("job") in jobs:
                times = {name: data["timestamp"] / 1000 for name, data in entry["status"]["messages"]}
                spans.append((times["execution_start"], times["execution_success"]))
        if len(spans) == len(jobs):
            return spans
        if time.monotonic() > deadline:
            raise BenchError(f"{node} has {len(spans)} of {len(jobs)} prompts in its history")
        await asyncio.sleep(0.2)
