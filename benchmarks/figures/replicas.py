"""What it costs a submit to wait until a replica of Redis has its job."""

from benchmarks.failover import redis_server
from benchmarks.loads import load
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Options, Stage, bounded
from benchmarks.stats import Spread
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports

ROUNDS = 5
TARGET_MS = 3.0
ALONE, CROWD = 1, 24
WITHOUT, WITH = "answered by the primary", "confirmed by a replica"


async def measure(options: Options) -> Result:
    """Measure; about two minutes."""
    seconds = options.some(5, 1)
    latencies: dict[tuple[str, int], list[float]] = {}
    async with (
        Stage(options) as stage,
        bounded(400, "the figure of replicas"),
        redis_server(stage.folder / "primary") as (primary, _),
        redis_server(stage.folder / "replica", primary=primary),
    ):
        (node,) = await stage.sims(1)
        url = f"redis://127.0.0.1:{primary}/0"
        fleet = await stage.fleet([node], queue_depth=10_000_000, redis_url=url)
        await fleet.cordon("node-1")
        (port,) = ports.draw(1)
        env = {**fleet.env, "FLEET_API_PORT": str(port), "FLEET_REDIS_REPLICAS": "1"}
        await stage.child("api-replicas", node_plans.fleet("api"), stage=3, env=env)
        waiting = f"http://127.0.0.1:{port}"
        await stage.until_200(f"{waiting}/api/v1/health")
        for number in range(ROUNDS):
            ways = [(WITHOUT, fleet.api_url), (WITH, waiting)]
            for name, base in ways if number % 2 else reversed(ways):
                for at_once in (ALONE, CROWD):
                    options.say(f"round {number + 1} of {ROUNDS}: {name}, {at_once} at once")
                    measured = await load("submits", {"url": base, "at_once": at_once, "seconds": seconds})
                    if measured["refused"]:
                        raise BenchError(f"{name} refused submits: {measured['refused']}")
                    latencies.setdefault((name, at_once), []).extend(measured["latencies"])
        stage.check()
    spread = {which: Spread.of(values) for which, values in latencies.items()}
    price_ms = (spread[WITH, ALONE].p50 - spread[WITHOUT, ALONE].p50) * 1000
    return Result(
        name="replicas",
        title="Submits that a replica confirms",
        verdicts=[
            Verdict(
                figure="price of a replica's confirmation, p50 of a submit",
                target=f"≤ {TARGET_MS:g} ms",
                ours=f"{price_ms:.2f} ms",
                baseline=f"{spread[WITHOUT, ALONE].p50 * 1000:.2f} ms without",
                ratio=spread[WITH, ALONE].p50 / spread[WITHOUT, ALONE].p50,
                met=price_ms <= TARGET_MS,
            )
        ],
        columns=["way", "at once", "submits/s", "p50 ms", "p99 ms"],
        rows=[
            [
                name,
                str(at_once),
                f"{len(latencies[name, at_once]) / (ROUNDS * seconds):.0f}",
                *one.row_ms()[:2],
            ]
            for (name, at_once), one in sorted(spread.items(), key=lambda pair: (pair[0][1], pair[0][0]))
        ],
        notes=[
            f"{ROUNDS} rounds of {seconds} s each, in turns, one API process for each way on the same Redis "
            "(append-only file, never synced). The replica is a second Redis on the same machine: a line "
            "between two machines adds its round trip."
        ],
        data={f"{name}, {at_once}": vars(one) for (name, at_once), one in spread.items()},
        quick=options.quick,
    )
