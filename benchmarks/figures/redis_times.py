"""How long Redis is busy with a submit, a claim and a cancel, in a large fleet and in a small one."""

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import orjson
from blake3 import blake3

from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded
from benchmarks.stats import Spread
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.domain.jobs.job import JobStatus, NewJob, Placement
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim, Refused
from comfy_fleet.settings import Settings

SIZES = {"small": (100, 4), "large": (100_000, 1_000)}
"""Queued jobs and nodes."""
OWNERS, SETS = 50, 8
GIB = 2**30
TARGET = 1.2
HEALED_S = 60.0
UPKEEP_S = 1.0
"""Between two calls of a dispatcher that keep the queue as it should be."""
TURN = 100
"""Jobs that are submitted, claimed and canceled in one fleet before it is the other's turn."""
SUBMIT, CLAIM, CANCEL = "submit", "claim", "cancel"
_PLACEMENT = Placement()
_Got = TypeVar("_Got")


@dataclass(kw_only=True)
class _Fleet:
    """One Redis and what is measured in it."""

    stores: Stores
    nodes: Sequence[str]
    random: random.Random
    times: dict[str, list[float]] = field(default_factory=lambda: {SUBMIT: [], CLAIM: [], CANCEL: []})

    async def fill(self, jobs: int, say: Any) -> None:
        for node in self.nodes:
            await self.stores.nodes.add(Node(name=node, url=f"http://127.0.0.1/{node}"))
        for number in range(jobs):
            await self.submit()
            if number % 5_000 == 0:
                say(f"{number:,} of {jobs:,} jobs are queued")

    async def submit(self) -> str:
        number = self.random.randrange(SETS)
        graph = orjson.dumps({"1": {"class_type": "EmptyImage", "inputs": {"color": self.random.random()}}})
        new = NewJob(
            id=str(uuid4()),
            owner=f"owner-{self.random.randrange(OWNERS)}",
            graph=graph,
            graph_hash=f"blake3:{blake3(graph).hexdigest()}",
            created_at=time.time(),
            expires_in_s=86_400.0,
            models=((f"checkpoints/{number}.safetensors", 6 * GIB),),
            able=tuple(self.nodes[:4]),
        )
        return (await self.stores.jobs.submit(new, idempotency=None, depth_limit=10_000_000)).job.id

    async def claim(self) -> Claim | Refused:
        return await self.stores.runs.claim(
            node=self.random.choice(self.nodes),
            placements=[_PLACEMENT],
            run=str(uuid4()),
            token=uuid4().hex,
            dispatcher="d",
            ttl_s=60,
            pool="default",
            peers=len(self.nodes),
        )

    async def turn(self) -> None:
        """Measure each kind of call once more, a hundred times; the fleet is as large afterwards."""
        ids = [await self._timed(SUBMIT, self.submit()) for _ in range(TURN)]
        for job in ids[: TURN // 2]:
            await self._timed(CANCEL, self.stores.jobs.request_cancel(job))
        for _ in range(TURN // 2):
            got = await self._timed(CLAIM, self.claim())
            if isinstance(got, Claim):
                await self.stores.runs.left(got, [])
                await self.stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=0.3)

    async def heal(self, patience_s: float) -> float:
        """Lose all that claims choose by; return after how many seconds every job is chosen from again.

        Raises:
            BenchError: It takes longer than ``patience_s``.
        """
        client: Any = self.stores.redis
        wanted = sum(one.count for one in await self.stores.runs.waiting())
        lost = await client.keys(f"{self.stores.redis.keyspace.namespace}:sched:*")
        if not lost:
            raise BenchError("there is nothing to lose")
        for at in range(0, len(lost), 1000):
            await client.delete(*lost[at : at + 1000])
        begun = time.perf_counter()
        while (took := time.perf_counter() - begun) < patience_s:
            await self.stores.runs.tend()
            if sum(one.count for one in await self.stores.runs.waiting()) == wanted:
                return took
            await asyncio.sleep(UPKEEP_S)
        raise BenchError(f"the queue is not as it was after {patience_s:g} s")

    async def _timed(self, kind: str, call: Awaitable[_Got]) -> _Got:
        client: Any = self.stores.redis
        await client.slowlog_reset()
        got = await call
        scripts = [
            one["duration"] for one in await client.slowlog_get(20) if one["command"].startswith(b"EVAL")
        ]
        if len(scripts) != 1:
            raise BenchError(f"a {kind} is {len(scripts)} scripts, not one")
        self.times[kind].append(scripts[0] / 1e6)
        return got


async def measure(options: Options) -> Result:
    """Measure; about four minutes, nearly all of which fill the large fleet."""
    turns = options.some(20, 2)
    found: dict[str, dict[str, Spread]] = {}
    sizes = {name: (options.some(jobs, min(jobs, 2_000)), nodes) for name, (jobs, nodes) in SIZES.items()}
    async with Stage(options) as stage, bounded(1200, "the figure of Redis' time"):
        urls = {name: (await stage.redis(f"redis-{name}")).url for name in sizes}
        async with (
            open_stores(Settings(redis_url=urls["small"])) as small,
            open_stores(Settings(redis_url=urls["large"])) as large,
        ):
            fleets: dict[str, _Fleet] = {}
            for name, stores in (("small", small), ("large", large)):
                jobs, nodes = sizes[name]
                names = [f"node-{number}" for number in range(nodes)]
                fleets[name] = _Fleet(stores=stores, nodes=names, random=random.Random(7))
                await fleets[name].fill(jobs, options.say)
                client: Any = stores.redis
                await client.config_set("slowlog-log-slower-than", 0)
            for number in range(turns):
                options.say(f"turn {number + 1} of {turns}")
                for fleet in fleets.values():
                    await fleet.turn()
            options.say("the large fleet's queue is made anew")
            healed_s = await fleets["large"].heal(600.0)
            found = {
                name: {kind: Spread.of(t) for kind, t in one.times.items()} for name, one in fleets.items()
            }
        stage.check()
    verdicts = []
    for kind in (SUBMIT, CLAIM, CANCEL):
        ours, baseline = found["large"][kind], found["small"][kind]
        worst = max(ours.p50 / baseline.p50, ours.p99 / baseline.p99)
        verdicts.append(
            Verdict(
                figure=f"Redis' time of a {kind}, {_size(sizes['large'])}",
                target=f"≤ {TARGET} x, p50 and p99",
                ours=_both(ours),
                baseline=f"{_size(sizes['small'])}: {_both(baseline)}",
                ratio=worst,
                met=worst <= TARGET,
            )
        )
    verdicts.append(
        Verdict(
            figure=f"a lost queue is made anew, {sizes['large'][0]:,} queued",
            target=f"≤ {HEALED_S:g} s",
            ours=f"{healed_s:.0f} s",
            baseline="-",
            ratio=None,
            met=healed_s <= HEALED_S,
        )
    )
    return Result(
        name="redis-times",
        title="Redis' time, by the size of the fleet",
        verdicts=verdicts,
        columns=["call", "fleet", "p50 ms", "p99 ms", "least ms"],
        rows=[
            [kind, _size(sizes[name]), *found[name][kind].row_ms()]
            for kind in (SUBMIT, CLAIM, CANCEL)
            for name in sizes
        ],
        notes=[
            f"By Redis' own count (`SLOWLOG`) of the one script that each of them is; {turns} turns of "
            f"{TURN} submits, {TURN // 2} claims and {TURN // 2} cancels in each fleet, one after the other. "
            f"{OWNERS} owners, {SETS} sets of models.",
            "The ratio is the worse of those of p50 and p99.",
            "At the end all keys by which claims choose are deleted in the large fleet. One dispatcher's "
            "upkeep makes them anew, a part each second, and jobs are claimed meanwhile.",
        ],
        data={name: {kind: vars(one) for kind, one in times.items()} for name, times in found.items()},
        quick=options.quick,
    )


def _size(size: tuple[int, int]) -> str:
    jobs, nodes = size
    return f"{jobs:,} queued, {nodes:,} nodes"


def _both(times: Spread) -> str:
    return f"{times.p50 * 1000:.3f} and {times.p99 * 1000:.3f} ms"
