"""What a submit that waits for its job's end costs, beside asking again and the event stream."""

import asyncio
from collections import Counter
from typing import Any

import httpx

from benchmarks.loads import load
from benchmarks.processes import CpuMeter
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, pid_of
from benchmarks.stats import Spread, median
from benchmarks.vitals import process_vitals
from benchmarks.waiting_clients import POLL_S, POLLS, STREAMS, WAITS

NODES = 4
JOB_S = 0.1
ROUNDS = 3
HELD = 500
MOST_KB = 100.0
WAYS = {
    WAITS: "a submit that waits",
    STREAMS: "submit, then the event stream",
    POLLS: f"submit, then ask each {POLL_S:g} s",
}


async def measure(options: Options) -> Result:
    """Measure; about two minutes."""
    clients, each = options.some(32, 6), options.some(10, 3)
    held = options.some(HELD, 40)
    took: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    async with Stage(options) as stage, bounded(900, "the figure of submits that wait"):
        nodes = await stage.sims(NODES, job_s=JOB_S)
        limits = {"FLEET_MAX_STREAMS": "2000", "FLEET_MAX_WAITS": "2000", "FLEET_MAX_WAIT_S": "540"}
        fleet = await stage.fleet(nodes, env=limits)
        await fleet.until_up(NODES)
        pids = fleet.pids()
        for way in WAYS:  # the first of each opens what the servers keep open
            await load("want_ends", {"base": fleet.url, "way": way, "clients": clients, "trips_each": 1})
        for number in range(options.some(ROUNDS, 1)):
            for way, named in WAYS.items():
                options.say(f"round {number + 1}: {named}")
                meter = CpuMeter(pids)
                asked = {"base": fleet.url, "way": way, "clients": clients, "trips_each": each}
                took[way].append(await load("want_ends", asked))
                cpu[way].append(sum(meter.seconds().values()) / (clients * each) * 1000)
        options.say(f"{held} submits wait")
        memory = await _memory(fleet, held)
        stage.check()
    jobs = clients * each
    late = {way: Spread.of([one for run in took[way] for one in run["late"]]) for way in WAYS}
    asked_of = {way: median([run["requests"] / jobs for run in took[way]]) for way in WAYS}
    each_kb = (memory["after"] - memory["before"]) / held / 1024
    return Result(
        name="waiting",
        title="Submits that wait for the end",
        verdicts=[
            Verdict(
                figure=f"the answer after a job's end, {clients} clients at once, median",
                target=f"no later than {WAYS[POLLS]}",
                ours=f"{late[WAITS].p50 * 1000:.0f} ms",
                baseline=f"{late[POLLS].p50 * 1000:.0f} ms",
                ratio=late[WAITS].p50 / late[POLLS].p50,
                met=late[WAITS].p50 <= late[POLLS].p50,
            ),
            Verdict(
                figure=f"memory of the API for each of {held} submits that wait",
                target=f"≤ {MOST_KB:g} KB",
                ours=f"{each_kb:.0f} KB",
                baseline=f"before {memory['before'] / 1e6:.0f} MB",
                ratio=each_kb / MOST_KB,
                met=each_kb <= MOST_KB,
            ),
        ],
        columns=["way", "after the end p50 ms", "p99 ms", "requests a job", "CPU of the fleet, ms a job"],
        rows=[
            [WAYS[way], *late[way].row_ms()[:2], f"{asked_of[way]:.2f}", f"{median(cpu[way]):.1f}"]
            for way in WAYS
        ],
        notes=[
            f"{jobs} jobs of {JOB_S} s a way and round, on {NODES} simulated nodes, through the edge; "
            f"{clients} clients, each with one connection. From the job's completed_at to the whole answer "
            "that tells of its end. One look at the record after a stream's end, to know when that was, "
            "counts in its CPU and not in its requests. CPU: all of the fleet's processes, Redis and HAProxy "
            "included.",
            f"Memory: resident, of the API process, before and while {held} submits wait for jobs that no "
            "node may take.",
        ],
        data={"took": took, "cpu_ms": cpu, "memory": memory},
        quick=options.quick,
    )


async def _memory(fleet: Fleet, held: int) -> dict[str, float]:
    """Return the API's resident memory before, and while so many submits wait."""
    assert fleet.api is not None
    for number in range(NODES):
        await fleet.cordon(f"node-{number + 1}")
    before = process_vitals(pid_of(fleet.api))["RSS"]
    waiting = asyncio.create_task(load("hold_waits", {"base": fleet.url, "clients": held}))
    try:
        async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=120) as http:
            while (await http.get("/api/v1/queue")).json()["queued"] < held:
                if waiting.done():
                    raise BenchError(f"nobody waits: {Counter(waiting.result())}")
                await asyncio.sleep(0.2)
            await asyncio.sleep(1)
            after = process_vitals(pid_of(fleet.api))["RSS"]
            (await http.post("/api/v1/jobs-cancel", json={})).raise_for_status()
        ends = Counter(await waiting)
    finally:
        waiting.cancel()
    if ends != {"canceled": held}:
        raise BenchError(f"not every submit was answered with its job's end: {ends}")
    return {"before": before, "after": after}
