"""What a user of the official SDK waits for a job of a tenth of a second, on an idle fleet of one node."""

from typing import Any

from benchmarks.loads import in_turn
from benchmarks.report import Result, Verdict
from benchmarks.stage import Options, Stage, bounded
from benchmarks.stats import Spread

JOB_S = 0.1
RUN, EVENTS = "fleet, run()", "fleet, events()"
PROXY_RUN, PROXY_EVENTS = "comfy-api-proxy, run()", "comfy-api-proxy, events()"


async def measure(options: Options) -> Result:
    """Measure; about 60 s."""
    rounds = options.some(50, 5)
    async with Stage(options) as stage, bounded(300, "the SDK figure"):
        (node,) = await stage.sims(1, job_s=JOB_S)
        proxy = await stage.proxy(node)
        fleet = await stage.fleet([node])
        ways: dict[str, dict[str, Any]] = {
            PROXY_RUN: {"kind": "sdk", "base": proxy.url, "events": False},
            PROXY_EVENTS: {"kind": "sdk", "base": proxy.url, "events": True},
            RUN: {"kind": "sdk", "base": fleet.url, "events": False},
            EVENTS: {"kind": "sdk", "base": fleet.url, "events": True},
        }
        measured = await in_turn(stage, ways, rounds)
    spread = {name: Spread.of(value["seconds"]) for name, value in measured.items()}
    return Result(
        name="sdk",
        title="With the official SDK",
        verdicts=[
            Verdict(
                figure=f"comfy-sdk `run()` of a job of {JOB_S:g} s, p50",
                target="below comfy-api-proxy",
                ours=spread[RUN].words_ms(),
                baseline=f"comfy-api-proxy {spread[PROXY_RUN].words_ms()}",
                ratio=spread[RUN].p50 / spread[PROXY_RUN].p50,
                met=spread[RUN].p50 < spread[PROXY_RUN].p50,
            )
        ],
        columns=["way", "p50 ms", "p99 ms", "least ms"],
        rows=[[name, *one.row_ms(1)] for name, one in spread.items()],
        notes=[
            f"{rounds} trips each over a simulated node whose jobs take {JOB_S:g} s, one at a time, the ways "
            "in turn, with comfy-sdk from PyPI as it is: submit, wait, read the picture's bytes.",
            "`run()` looks at the job at once and then sleeps for half a second and more between two looks. "
            "The fleet holds its answer for up to 0.2 s when the job should end within that time.",
        ],
        data=measured,
        quick=options.quick,
    )
