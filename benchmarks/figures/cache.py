"""What equal jobs cost: a hundred at once, and one whose result is there."""

import asyncio
import time
from typing import Any

import httpx

from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded, sim_done, sim_reset
from benchmarks.stats import Spread

EQUAL = 100
MOST = 2.0
"""Times a GET of the same job."""
GET, HIT, MISS = "GET of the job", "submit, shared result", "submit, a job of its own"
_PATH = "/api/v1/workflows/image_card/jobs"
_FINAL = ("succeeded", "failed", "canceled", "expired")


async def measure(options: Options) -> Result:
    """Measure; about half a minute."""
    rounds = options.some(1000, 100)
    async with Stage(options) as stage, bounded(300, "the figure of equal jobs"):
        nodes = await stage.sims(2, job_s=1.0)
        fleet = await stage.fleet(nodes, queue_depth=100_000)
        limits = httpx.Limits(max_connections=EQUAL, max_keepalive_connections=EQUAL)
        async with httpx.AsyncClient(base_url=fleet.url, timeout=60, limits=limits) as client:
            await _run(client, 1)
            await sim_reset(nodes)
            options.say(f"{EQUAL} equal submits")
            begun = time.perf_counter()
            ends = await asyncio.gather(*(_run(client, 2) for _ in range(EQUAL)))
            all_s = time.perf_counter() - begun
            runs = await sim_done(nodes)
            files = {output["id"] for end in ends for output in end["outputs"]}
            results = sum(end["status"] == "succeeded" and bool(end["outputs"]) for end in ends)
            if len(files) < results:
                raise BenchError("equal jobs have files together")
            options.say("a shared result")
            times: dict[str, list[float]] = {GET: [], HIT: [], MISS: []}
            for number in range(rounds):
                await _timed(times[GET], client.get(f"/api/v1/jobs/{ends[0]['id']}"))
                hit = await _timed(times[HIT], client.post(_PATH, json=_body(2)))
                if not hit["cached"]:
                    raise BenchError("an equal job was not shared")
                if number % 10 == 0:  # a queue that grows would be another figure
                    own = await _timed(times[MISS], client.post(_PATH, json=_body(1000 + number)))
                    await client.post(f"/api/v1/jobs/{own['id']}/cancel")
        stage.check()
    spread = {name: Spread.of(values) for name, values in times.items()}
    ratio = spread[HIT].p50 / spread[GET].p50
    return Result(
        name="cache",
        title="Equal jobs",
        verdicts=[
            Verdict(
                figure=f"{EQUAL} equal submits at once",
                target=f"1 run, {EQUAL} results",
                ours=f"{runs} run{'' if runs == 1 else 's'}, {results} results in {all_s:.1f} s",
                baseline="a run for each",
                ratio=None,
                met=runs == 1 and results == EQUAL,
            ),
            Verdict(
                figure="a submit that gets a shared result, p50",
                target=f"≤ {MOST:g} × a GET of the job",
                ours=spread[HIT].words_ms(1),
                baseline=f"{GET} {spread[GET].words_ms(1)}",
                ratio=ratio,
                met=ratio <= MOST,
            ),
        ],
        columns=["request", "p50 ms", "p99 ms", "least ms"],
        rows=[[name, *spread[name].row_ms()] for name in (GET, HIT, MISS)],
        notes=[
            f"{EQUAL} submits of image_card with one prompt and one seed, over {EQUAL} connections, two "
            "simulated nodes on which a job takes 1 s; runs as the nodes count them.",
            f"Then {rounds} times in turn, through the edge, over one connection: a GET of such a job, and "
            "the same submit again, which is answered with the ended job and its own records of the files.",
        ],
        data={"runs": runs, "results": results, "seconds": all_s, "times": times},
        quick=options.quick,
    )


def _body(seed: int) -> dict[str, Any]:
    return {"params": {"prompt": "a red fox in the snow", "seed": seed}}


async def _run(client: httpx.AsyncClient, seed: int) -> dict[str, Any]:
    """Submit a job and wait for its end."""
    answer = await client.post(_PATH, json=_body(seed))
    job: dict[str, Any] = answer.raise_for_status().json()
    while job["status"] not in _FINAL:
        await asyncio.sleep(0.1)
        job = (await client.get(f"/api/v1/jobs/{job['id']}")).raise_for_status().json()
    return job


async def _timed(times: list[float], request: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    answer = await request
    times.append(time.perf_counter() - begun)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found
