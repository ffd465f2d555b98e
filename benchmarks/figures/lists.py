"""How long a list takes whose filter matches none of very many jobs."""

import asyncio
import time
from collections.abc import Mapping
from uuid import uuid4

import httpx
import orjson
from blake3 import blake3

from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded
from benchmarks.stats import Spread
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.jobs.job import NewJob

JOBS, FEW = 100_000, 1_000
ASKED = 60
AT_ONCE = 32
TARGET_S = 0.5
LISTS: Mapping[str, Mapping[str, int | str]] = {
    "the newest 100": {"limit": 100},
    "matches nothing": {"limit": 1, "metadata[a]": "nope"},
    "matches nothing, by state": {"limit": 1, "status": "failed"},
}


async def measure(options: Options) -> Result:
    """Measure; some minutes, most of them to queue the jobs."""
    counts = (options.some(FEW, 200), options.some(JOBS, 4_000))
    taken: dict[tuple[int, str], Spread] = {}
    async with Stage(options) as stage, bounded(1800, "the figure of lists"):
        (node,) = await stage.sims(1)
        fleet = await stage.fleet([node], queue_depth=10_000_000)
        await fleet.cordon("node-1")
        there = 0
        async with open_stores(fleet.settings) as stores, httpx.AsyncClient(trust_env=False) as http:
            places = asyncio.Semaphore(AT_ONCE)
            graph = orjson.dumps({"1": {"class_type": "EmptyImage", "inputs": {"color": 1}}})

            async def submit() -> None:
                async with places:
                    new = NewJob(
                        id=str(uuid4()),
                        owner="local",
                        graph=graph,
                        graph_hash=f"blake3:{blake3(graph).hexdigest()}",
                        created_at=time.time(),
                        expires_in_s=86_400.0,
                        metadata={"a": "b"},
                    )
                    await stores.jobs.submit(new, idempotency=None, depth_limit=10_000_000)

            for count in counts:
                while there < count:
                    options.say(f"{there:,} of {count:,} jobs are queued")
                    some = min(2_000, count - there)
                    await asyncio.gather(*(submit() for _ in range(some)))
                    there += some
                for name, query in LISTS.items():
                    options.say(f"{count:,} jobs: {name}")
                    taken[count, name] = await _asked(http, fleet.api_url, query)
        stage.check()
    few, many = (taken[count, "matches nothing"] for count in counts)
    slowest = max(spread.p99 for (count, _), spread in taken.items() if count == counts[1])
    return Result(
        name="lists",
        title="Lists of very many jobs",
        verdicts=[
            Verdict(
                figure=f"a page of a list of {counts[1]:,} jobs whose filter matches none, p99",
                target=f"≤ {TARGET_S:g} s",
                ours=f"{many.p99 * 1000:.0f} ms",
                baseline=f"{counts[0]:,} jobs: {few.p99 * 1000:.0f} ms",
                ratio=many.p50 / few.p50,
                met=slowest <= TARGET_S,
            )
        ],
        columns=["jobs", "list", "p50 ms", "p99 ms"],
        rows=[[f"{count:,}", name, *spread.row_ms()[:2]] for (count, name), spread in taken.items()],
        notes=[
            f"Each list {ASKED} times, one after the other, from the API's own port. A page looks at a "
            "bounded number of jobs; where more may match, its cursor goes on from there.",
        ],
    )


async def _asked(http: httpx.AsyncClient, url: str, query: Mapping[str, int | str]) -> Spread:
    """Return how long a list takes."""
    times = []
    for _ in range(ASKED):
        began = time.perf_counter()
        answer = await http.get(f"{url}/api/v2/jobs", params=query, timeout=120)
        if answer.status_code != 200:
            raise BenchError(f"a list was answered with {answer.status_code}: {answer.text[:200]}")
        times.append(time.perf_counter() - began)
    return Spread.of(times)
