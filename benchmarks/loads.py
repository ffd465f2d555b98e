"""Loads, each in a process of its own: the clients' CPU time is theirs alone and disturbs no measurement.

``python -m benchmarks.loads NAME ARGUMENTS`` with the arguments as a JSON object; writes
``{"done": N}`` lines while it works and ``{"result": ...}`` at the end.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import rq
import uvloop
from redis import Redis

from benchmarks.clients import (
    BareClient,
    Client,
    LeaseClient,
    NativeClient,
    SdkClient,
    V2Client,
    trivial_graph,
)
from benchmarks.floods import flood
from benchmarks.operations import submit
from benchmarks.rawhttp import RawConnection
from benchmarks.rq_node import QUEUE, picture
from benchmarks.socket_loads import follow
from benchmarks.stage import BenchError, Stage
from benchmarks.told import tell as tell_line
from benchmarks.waiting_clients import hold_waits, want_ends
from comfy_fleet.settings import SOURCE

WARM_UP = 5
REPORT_EVERY = 10


def client(spec: Mapping[str, Any]) -> Client:
    """Build a client from its description."""
    match spec["kind"]:
        case "bare":
            return BareClient(spec["node"])
        case "native":
            return NativeClient(spec["base"], history=spec["history"])
        case "lease":
            return LeaseClient(spec["lease"], spec["direct"])
        case "v2":
            return V2Client(spec["base"], events=spec["events"])
        case "sdk":
            return SdkClient(spec["base"], events=spec["events"])
    raise ValueError(f"no client is called {spec['kind']!r}")


def _tell(done: int) -> None:
    tell_line({"done": done})


async def trips(clients: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, Any]:
    """Make trips one after the other, the clients in turn; returns seconds and detours by client."""
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    made = {name: client(spec) for name, spec in clients.items()}
    for one in made.values():
        await one.__aenter__()
    try:
        for number in range(WARM_UP + rounds):
            for name, one in made.items():
                started = time.perf_counter()
                await one.trip()
                if number >= WARM_UP:
                    seconds[name].append(time.perf_counter() - started)
                else:
                    one.detours = 0
            if number % REPORT_EVERY == 0:
                _tell(number)
    finally:
        for one in made.values():
            await one.__aexit__(None, None, None)
    return {name: {"seconds": seconds[name], "detours": made[name].detours} for name in made}


async def crowd(clients: Sequence[Mapping[str, Any]], trips_each: int) -> dict[str, Any]:
    """Let clients work side by side; returns wall and CPU seconds of this process."""

    async def work(one: Client) -> None:
        for _ in range(trips_each):
            await one.trip()

    made = [client(spec) for spec in clients]
    for one in made:
        await one.__aenter__()
        await one.trip()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        await asyncio.gather(*(work(one) for one in made))
        return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    finally:
        for one in made:
            await one.__aexit__(None, None, None)


async def submit_all(bases: Sequence[str], jobs: int, at_once: int) -> dict[str, Any]:
    """Submit jobs to servers of Comfy API v2, in turn; returns ids by server and when it began."""
    ids: list[list[str]] = [[] for _ in bases]
    numbers = iter(range(jobs))
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as http:

        async def work() -> None:
            for number in numbers:
                index = number % len(bases)
                ids[index].append(await submit(http, bases[index]))

        started = time.time()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return {"ids": ids, "started": started, "submitted": time.time()}


async def follow_all(bases: Sequence[str], ids: Sequence[Sequence[str]], poll_s: float) -> dict[str, Any]:
    """Wait for all jobs as a batch client would: look at the oldest of each server; returns the states."""
    states: dict[str, int] = {}

    async def follow(http: httpx.AsyncClient, base: str, waiting: Sequence[str]) -> None:
        for job_id in waiting:
            while True:
                job = (await http.get(f"{base}/api/v2/jobs/{job_id}")).json()
                if job["status"] not in ("queued", "running", "canceling", "expired"):
                    break
                await asyncio.sleep(poll_s)
            states[job["status"]] = states.get(job["status"], 0) + 1
            if sum(states.values()) % REPORT_EVERY == 0:
                _tell(sum(states.values()))

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        await asyncio.gather(*(follow(http, base, own) for base, own in zip(bases, ids, strict=True)))
    return states


async def submits(url: str, at_once: int, seconds: float) -> dict[str, Any]:
    """Submit as fast as the server accepts; returns latencies of accepted submits and what was refused."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    latencies: list[float] = []
    refused: dict[str, int] = {}
    end = time.perf_counter() + seconds

    async def work(connection: RawConnection) -> None:
        while (started := time.perf_counter()) < end:
            body = orjson.dumps({"workflow": trivial_graph()})
            status, answer = await connection.post("/api/v2/jobs", body)
            if status == 201:
                latencies.append(time.perf_counter() - started)
            else:
                why = f"{status} {answer[:200].decode(errors='replace')}"
                refused[why] = refused.get(why, 0) + 1

    open_ = [await RawConnection.open(parts.hostname, parts.port) for _ in range(at_once)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(work(connection) for connection in open_))
        return {"latencies": latencies, "refused": refused, "wall_s": time.perf_counter() - began}
    finally:
        for connection in open_:
            await connection.close()


async def submit_cards(base: str, jobs: int, at_once: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Submit so many jobs of a stored workflow; returns how long it took."""
    parts = urlsplit(base)
    assert parts.hostname and parts.port
    body, left = orjson.dumps({"params": params}), iter(range(jobs))

    async def work(connection: RawConnection) -> None:
        for _ in left:
            status, answer = await connection.post("/api/v1/workflows/image_card/jobs", body)
            if status != 201:
                raise BenchError(f"a submit was refused: {answer[:200].decode(errors='replace')}")

    open_ = [await RawConnection.open(parts.hostname, parts.port) for _ in range(at_once)]
    began = time.perf_counter()
    try:
        await asyncio.gather(*(work(connection) for connection in open_))
        return {"wall_s": time.perf_counter() - began}
    finally:
        for connection in open_:
            await connection.close()


def enqueues(url: str, seconds: float) -> dict[str, Any]:
    """Enqueue into stock RQ in a bare loop; returns the latencies."""
    latencies: list[float] = []
    with Redis.from_url(url) as connection:
        queue = rq.Queue("bench-submits", connection=connection)
        began = time.perf_counter()
        while (started := time.perf_counter()) - began < seconds:
            queue.enqueue(picture, trivial_graph())
            latencies.append(time.perf_counter() - started)
        return {"latencies": latencies, "refused": {}, "wall_s": time.perf_counter() - began}


def rq_submit_all(url: str, jobs: int) -> dict[str, Any]:
    """Enqueue jobs for stock RQ workers; returns when it began."""
    with Redis.from_url(url) as connection:
        queue = rq.Queue(QUEUE, connection=connection)
        started = time.time()
        for _ in range(jobs):
            queue.enqueue(picture, trivial_graph())
        return {"started": started, "submitted": time.time()}


async def load(name: str, arguments: Mapping[str, Any], tell: Callable[[int], None] = lambda _: None) -> Any:
    """Run a load in a process of its own and return its result.

    Args:
        name: One of :data:`LOADS`.
        arguments: For it.
        tell: Gets how much is done.

    Raises:
        BenchError: It failed; the message is what it said last.
    """
    argv = [sys.executable, "-m", "benchmarks.loads", name, json.dumps(arguments)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=SOURCE, limit=1 << 26
    )
    assert process.stdout and process.stderr
    errors = asyncio.create_task(process.stderr.read())
    result: Any = None
    try:
        async for line in process.stdout:
            said = orjson.loads(line)
            if "done" in said:
                tell(said["done"])
            else:
                result = said["result"]
        if await process.wait():
            last = (await errors).decode(errors="replace").strip().splitlines()
            raise BenchError(f"the load {name} failed: {last[-1] if last else 'it said nothing'}")
        return result
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.cancel()


async def in_turn(stage: Stage, ways: Mapping[str, Mapping[str, Any]], rounds: int) -> dict[str, Any]:
    """Compare ways by their :func:`trips`: returns seconds and detours by way.

    Args:
        stage: Where they lead.
        ways: What :func:`client` makes, by name.
        rounds: Trips of each.

    Raises:
        BenchError: A trip failed, or a process of the stage ended meanwhile.
    """
    say = stage.options.say
    measured: dict[str, Any] = await load(
        "trips", {"clients": ways, "rounds": rounds}, lambda done: say(f"round {done} of {rounds}")
    )
    stage.check()
    return measured


LOADS: Mapping[str, Callable[..., Any]] = {
    made.__name__: made
    for made in (
        *(trips, crowd, submit_all, follow_all, follow, submits, submit_cards),
        *(enqueues, rq_submit_all, flood, want_ends, hold_waits),
    )
}


def main() -> None:
    """Run the load that the command line names."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    made = LOADS[name](**arguments)
    result = uvloop.run(made) if asyncio.iscoroutine(made) else made
    tell_line({"result": result})


if __name__ == "__main__":
    main()
