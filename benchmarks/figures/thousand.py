"""What a thousand nodes cost while they idle, and how soon one more of them takes jobs."""

import asyncio
import json
import sys
import time
from uuid import uuid4

import httpx

from benchmarks.hosts import StandInHost
from benchmarks.operations import order, until
from benchmarks.processes import CpuMeter
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, pid_of, sim_stats
from benchmarks.stats import Spread
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.settings import SOURCE

NODES = 1000
PER_HOST = 8
ADDED = 10
SETTLE_S = 15.0  # after the last node has come up: what was put off by then is done
WATCH_S = 30.0
TARGET_CORES, TARGET_S = 1.0, 1.0
LATE = "late"  # pool of the nodes that are added
JOIN_S = 240.0
REST_S = 3.0  # between a removal and the next node: each is added to a fleet at rest


async def measure(options: Options) -> Result:
    """Measure; about three minutes."""
    count, added = options.some(NODES, 50), options.some(ADDED, 3)
    async with Stage(options) as stage, bounded(900, "the figure of a thousand nodes"):
        options.say(f"{count} simulated nodes start")
        urls = await stage.sims(count + added + 1)
        fleet = await stage.fleet([], ready=False)
        hosts = {
            f"h{number // PER_HOST:03}": {
                f"g{index:04}": urls[index] for index in range(number, min(number + PER_HOST, count))
            }
            for number in range(0, count, PER_HOST)
        }
        listed = stage.folder / "hosts.json"
        listed.write_text(json.dumps(hosts))
        began = time.monotonic()
        argv = [sys.executable, "-m", "benchmarks.hosts", fleet.url, str(listed)]
        standins = await stage.child("agents", argv, stage=1, cwd=SOURCE)
        joined_s = await _all_up(fleet, count, began, options)
        options.say("until everything has settled")
        await asyncio.sleep(options.some(round(SETTLE_S), 3))
        parts = fleet.pids()
        meter = CpuMeter({**parts, "agents": [pid_of(standins)]})
        watch_s = options.some(round(WATCH_S), 5)
        options.say(f"{count} nodes: CPU time of {watch_s} s")
        started = time.monotonic()
        await asyncio.sleep(watch_s)
        watched = time.monotonic() - started
        cores = {part: seconds / watched for part, seconds in meter.seconds().items()}
        took = await _add(fleet, urls[count:], options)
        stage.check()
    ours = sum(cores[part] for part in parts)
    spread = Spread.of(took)
    return Result(
        name="thousand",
        title="A thousand nodes",
        verdicts=[
            Verdict(
                figure=f"{count} nodes with agents: all of the fleet's processes and Redis",
                target=f"< {TARGET_CORES:g} core together",
                ours=f"{ours:.2f} cores",
                baseline=f"HAProxy's broker alone {cores['HAProxy broker']:.2f}",
                ratio=ours / cores["HAProxy broker"] if cores["HAProxy broker"] else None,
                met=ours < TARGET_CORES,
            ),
            Verdict(
                figure=f"a node added to {count} → its first job computes",
                target=f"< {TARGET_S:g} s, every time",
                ours=spread.words(),
                baseline="",
                ratio=None,
                met=spread.most < TARGET_S,
            ),
        ],
        columns=["process", "% of a core"],
        rows=[
            *([part, f"{cores[part] * 100:.1f}"] for part in parts),
            ["together", f"{ours * 100:.1f}"],
            ["not counted: stand-ins for the agents", f"{cores['agents'] * 100:.1f}"],
        ],
        notes=[
            f"{count} simulated nodes on {len(hosts)} hosts; each host's agent sends a heartbeat a second "
            "through the edge, and answers HAProxy's agent-check of each node twice a second; HAProxy also "
            f"asks each node itself every 2 s. User and system time of {watch_s} s without a job. The "
            "agents are stand-ins: the real line and the real answers, but no GPU to look at.",
            f"From the first heartbeat to the last node up and read: {joined_s:.0f} s, with the simulated "
            "nodes on the same cores.",
            "An added node joins by its agent's heartbeat while a job waits for its pool; the time counts "
            "from before the agent opens its port to the start of the computation, as the node counted it.",
        ],
        data={"cores": cores, "joined_s": joined_s, "added_s": took},
        quick=options.quick,
    )


async def _all_up(fleet: Fleet, count: int, began: float, options: Options) -> float:
    """Wait until HAProxy would give jobs to all nodes, and all are read; return when, in seconds."""
    async with open_stores(fleet.settings) as stores:
        while True:
            states = await stores.nodes.states()
            up = sum(state.verdict == "up" for state in states)
            read = sum(bool(state.reading.inventory) for state in states)
            passed = time.monotonic() - began
            options.say(f"{passed:.0f} s: of {count} nodes {len(states)} joined, {up} up, {read} read")
            if up == read == count:
                return passed
            if passed > JOIN_S:
                raise BenchError(f"after {JOIN_S:g} s only {up} of {count} nodes are up, and {read} read")
            await asyncio.sleep(1)


async def _add(fleet: Fleet, urls: list[str], options: Options) -> list[float]:
    """Add nodes one after the other, each awaited by a job; return how long each took."""
    nodes, took = f"{fleet.console_url}/api/v1/nodes", []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
        open_stores(fleet.settings) as stores,
    ):
        # A job is only taken if a node could run it: this one could, but is drained.
        await order(http, "POST", nodes, {"name": "late-0", "url": urls[0], "pool": LATE})
        await order(http, "POST", f"{nodes}/late-0/drain")

        async def read() -> bool:
            return bool((await http.get(f"{nodes}/late-0")).json()["inventory"])

        await until("the drained node is read", read, within_s=60, every_s=1)
        for number, url in enumerate(urls[1:], start=1):
            options.say(f"node {number} of {len(urls) - 1} is added")
            name = f"late-{number}"
            job = await order(
                http,
                "POST",
                f"{fleet.url}/api/v1/workflows/image_card/jobs",
                {"params": {"prompt": uuid4().hex}, "pool": LATE},
            )
            job_id = str(job.json()["id"])
            at = time.time()
            async with StandInHost(fleet.url, f"late-{number}", {name: url}, pool=LATE):

                async def ended(job_id: str = job_id) -> bool:
                    found = await stores.jobs.get(job_id)
                    return found is not None and found.status is JobStatus.SUCCEEDED

                await until(f"the job on {name} succeeds", ended)
                (account,) = await sim_stats([url])
                took.append(account["intervals"][0][0] - at)
                await order(http, "DELETE", f"{nodes}/{name}?force=true")
            await asyncio.sleep(REST_S)
    return took
