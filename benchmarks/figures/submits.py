"""How many submits a second one API process accepts."""

from typing import Any

from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded
from benchmarks.stats import Spread, median

AT_ONCE = 24
ROUNDS = 3
TARGET = 500
API, EDGE, RQ = "fleet api", "fleet api, through the edge", "rq.Queue.enqueue"


async def measure(options: Options) -> Result:
    """Measure; about a minute."""
    seconds = options.some(5, 1)
    rates: dict[str, list[float]] = {API: [], EDGE: [], RQ: []}
    latencies: dict[str, list[float]] = {API: [], EDGE: [], RQ: []}
    async with Stage(options) as stage, bounded(300, "the figure of submits"):
        (node,) = await stage.sims(1)
        fleet = await stage.fleet([node], queue_depth=10_000_000)
        await fleet.cordon("node-1")
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            RQ: ("enqueues", {"url": fleet.settings.redis_url, "seconds": seconds}),
            API: ("submits", {"url": fleet.api_url, "at_once": AT_ONCE, "seconds": seconds}),
            EDGE: ("submits", {"url": fleet.url, "at_once": AT_ONCE, "seconds": seconds}),
        }
        for number in range(ROUNDS):
            for name, (which, arguments) in ways.items():
                options.say(f"round {number + 1} of {ROUNDS}: {name}")
                measured = await load(which, arguments)
                if measured["refused"]:
                    raise BenchError(f"{name} refused submits: {measured['refused']}")
                rates[name].append(len(measured["latencies"]) / measured["wall_s"])
                latencies[name] += measured["latencies"]
        stage.check()
    rate = {name: median(values) for name, values in rates.items()}
    spread = {name: Spread.of(values) for name, values in latencies.items()}
    return Result(
        name="submits",
        title="Accepted submits",
        verdicts=[
            Verdict(
                figure="accepted submits, one API process",
                target=f"≥ {TARGET}/s",
                ours=f"{rate[API]:.0f}/s, p99 {spread[API].p99 * 1000:.0f} ms",
                baseline=f"rq.Queue.enqueue {rate[RQ]:.0f}/s",
                ratio=rate[API] / rate[RQ],
                met=rate[API] >= TARGET,
            )
        ],
        columns=["way", "submits/s", "p50 ms", "p99 ms"],
        rows=[[name, f"{rate[name]:.0f}", *spread[name].row_ms()[:2]] for name in (API, EDGE, RQ)],
        notes=[
            f"Median of {ROUNDS} rounds of {seconds} s. Fleet: {AT_ONCE} connections kept open, a client "
            "process of its own, jobs only queue because the one node is cordoned; each submit is validated "
            "against the node's classes and in Redis when it is answered.",
            "rq.Queue.enqueue: a bare loop in one process on the same Redis (append-only file, synced every "
            "second): no HTTP, no validation, no idempotency.",
        ],
        data={"rates": rates, "latency": {name: vars(one) for name, one in spread.items()}},
        quick=options.quick,
    )
