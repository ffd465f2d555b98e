"""What it costs that outputs go into a bucket, too: pictures a second with and without."""

import asyncio
import secrets
import time
from functools import partial
from typing import Any

import httpx

from benchmarks.bucket import BenchBucket, record
from benchmarks.figures.gpus import JOB_S, NODES, finished
from benchmarks.processes import cpu_seconds
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded, sim_reset
from benchmarks.stats import median

TARGET = 0.8
ROUNDS = 3
SIDE = 832  # of a picture of noise: 2 MB as PNG
WARMING = 4
POLL_S = 0.1
DISK, BUCKET = "the fleet's own disk", "a bucket besides"


async def measure(options: Options) -> Result:
    """Measure; about three minutes."""
    jobs = options.some(200, 24)
    took: dict[str, list[float]] = {DISK: [], BUCKET: []}
    store_cpu: list[float] = []
    async with Stage(options) as stage, bounded(900, "the figure of stores"):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(nodes)
        await fleet.until_up(NODES)
        bucket = await BenchBucket.start(stage)
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            added = await http.post(f"{fleet.console_url}/api/v1/stores", json=record(bucket.served.url))
            if added.status_code != 201:
                raise BenchError(f"the store was refused: {added.text[:300]}")
            for way in (DISK, BUCKET):
                await _made(http, fleet.url, way, WARMING)
            for number in range(options.some(ROUNDS, 1)):
                for way, seconds in took.items():
                    options.say(f"round {number + 1}: {way}")
                    await sim_reset(nodes)
                    busy, clock = cpu_seconds(bucket.served.pid), time.perf_counter()
                    ending = asyncio.create_task(_made(http, fleet.url, way, jobs))
                    await finished(nodes, jobs, partial(_say, options, way))
                    await ending
                    seconds.append(time.perf_counter() - clock)
                    if way == BUCKET:
                        store_cpu.append(cpu_seconds(bucket.served.pid) - busy)
            sizes = bucket.objects().values()
        stage.check()
    wanted = options.some(ROUNDS, 1) * jobs + WARMING
    if len(sizes) != wanted:
        raise BenchError(f"{len(sizes)} of {wanted} objects are in the bucket")
    rate = {way: jobs / median(found) for way, found in took.items()}
    ratio = rate[BUCKET] / rate[DISK]
    return Result(
        name="stores",
        title="Outputs in a bucket",
        verdicts=[
            Verdict(
                figure=f"{jobs} pictures of {sum(sizes) / len(sizes) / 1e6:.1f} MB and {JOB_S} s on {NODES} "
                "nodes, until the last is in the bucket",
                target=f"≥ {TARGET} x without",
                ours=f"{rate[BUCKET]:.2f}/s",
                baseline=f"{DISK} {rate[DISK]:.2f}/s",
                ratio=ratio,
                met=ratio >= TARGET,
            )
        ],
        columns=["way", "pictures/s", "until the last s", "CPU of the bucket's server s"],
        rows=[
            [
                way,
                f"{rate[way]:.2f}",
                f"{median(found):.2f}",
                f"{median(store_cpu):.2f}" if way == BUCKET else "",
            ]
            for way, found in took.items()
        ],
        notes=[
            f"Median of {options.some(ROUNDS, 1)} rounds, the ways in turn. The bucket is moto's server, on "
            "the same machine: what it computes is taken from the fleet, and is shown.",
        ],
        data={"took": took, "store_cpu": store_cpu},
        quick=options.quick,
    )


def _say(options: Options, way: str, done: int) -> None:
    options.say(f"{way}: {done} done")


def noise(prefix: str) -> dict[str, Any]:
    """Return a graph that makes a picture of noise, which no format makes small."""
    picture = {"width": SIDE, "height": SIDE, "batch_size": 1, "color": 7}
    return {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {
            "class_type": "ImageAddNoise",
            "inputs": {"image": ["1", 0], "seed": secrets.randbits(48), "strength": 1.0},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


async def _made(http: httpx.AsyncClient, url: str, way: str, jobs: int) -> None:
    """Submit jobs, and wait until all have succeeded and none waits for a store."""
    output = {"output": {"store": "bench", "key": "{custom_id}/{job_id}.png"}} if way == BUCKET else {}
    items = [{"custom_id": str(number), "workflow": noise("bench/x")} for number in range(jobs)]
    answer = await http.post(f"{url}/api/v2/batches", json={"items": items, "defaults": output})
    if answer.status_code != 201:
        raise BenchError(f"the batch was refused: {answer.text[:300]}")
    batch = answer.json()["id"]
    while True:
        found = (await http.get(f"{url}/api/v1/batches/{batch}?limit=0")).json()
        if found["status"] == "completed":
            break
        await asyncio.sleep(POLL_S)
    if found["counts"]["succeeded"] != jobs or found["not_stored"]:
        raise BenchError(f"not all is there: {found['counts']}, {found['not_stored']} not stored")
