"""How much CPU time a job costs, by process."""

import asyncio
from typing import Any

from benchmarks.loads import load
from benchmarks.processes import CpuMeter
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import median

NODES = 4
ROUNDS = 3
IDLE_S = 3.0
TARGET_MS = 8.0
OURS = ("api", "dispatcher")


async def measure(options: Options) -> Result:
    """Measure; about half a minute."""
    each = options.some(100, 15)
    jobs = NODES * (each + 1)  # the first of each client is not in its own account, but in the servers'
    async with Stage(options) as stage, bounded(300, "the CPU figure"):
        nodes = await stage.sims(NODES)
        proxies = [await stage.proxy(node) for node in nodes]
        fleet = await stage.fleet(nodes)
        await fleet.until_up(NODES)
        pids = fleet.pids()
        everything = {**pids, "comfy-api-proxy": [proxy.pid for proxy in proxies]}
        meter = CpuMeter(everything)
        options.say("idle")
        await asyncio.sleep(IDLE_S)
        idle = meter.seconds()
        clients: dict[str, list[dict[str, Any]]] = {
            "bare": [{"kind": "bare", "node": node} for node in nodes],
            "comfy-api-proxy": [{"kind": "v2", "base": proxy.url, "events": True} for proxy in proxies],
            "fleet": [{"kind": "v2", "base": fleet.url, "events": True} for _ in nodes],
        }
        used: dict[str, list[float]] = {}
        own: dict[str, list[float]] = {name: [] for name in clients}
        walls: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(ROUNDS):
            for name, specs in clients.items():
                options.say(f"round {number + 1} of {ROUNDS}: {name}")
                meter = CpuMeter(everything)
                took = await load("crowd", {"clients": specs, "trips_each": each})
                own[name].append(took["cpu_s"] / (NODES * each) * 1000)
                walls[name].append(took["wall_s"])
                for part, seconds in meter.seconds().items():
                    if (part in pids) == (name == "fleet") and name != "bare":
                        used.setdefault(part, []).append(seconds / jobs * 1000)
        stage.check()
    ms = {part: median(values) for part, values in used.items()}
    ours = median([sum(used[part][number] for part in OURS) for number in range(ROUNDS)])
    bare = median(own["bare"])
    parts = [*pids, "comfy-api-proxy"]
    rows = [[part, f"{ms[part]:.2f}", f"{idle[part] / IDLE_S * 100:.1f}"] for part in parts]
    rows.append(["api + dispatcher", f"{ours:.2f}", ""])
    rows.append(["fleet, all processes", f"{sum(ms[part] for part in pids):.2f}", ""])
    rows += [[f"client: {name}", f"{median(values):.2f}", ""] for name, values in own.items()]
    return Result(
        name="cpu",
        title="CPU time of a job, by process",
        verdicts=[
            Verdict(
                figure="CPU of api + dispatcher",
                target=f"≤ {TARGET_MS:g} ms a job",
                ours=f"{ours:.1f} ms",
                baseline=f"the bare client itself {bare:.1f} ms",
                ratio=ours / bare,
                met=ours <= TARGET_MS,
            )
        ],
        columns=["process", "ms a job", "idle, % of a core"],
        rows=rows,
        notes=[
            f"Median of {ROUNDS} rounds of {NODES * each} trivial jobs, {NODES} clients side by side on "
            f"{NODES} simulated nodes; user and system time from /proc/PID/stat, idle consumption "
            "included. Clients of the fleet (through its edge) and of comfy-api-proxy submit, follow "
            "the event stream and read the picture.",
        ],
        data={"ms": used, "client_ms": own, "wall_s": walls, "idle_s": idle},
        quick=options.quick,
    )
