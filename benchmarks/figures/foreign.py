"""How soon no lease is given on a node whose GPU another program fills, by a real agent over NVML."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.operations import granted, replace_file, until
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded
from benchmarks.stats import TIMES, Spread
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.settings import SOURCE

GPUS = 4
ROUNDS = 3
TARGET_S = 1.0
WATCH_S = 2.5  # how long after the memory was taken leases are asked for
GAP_S = 0.005
OWN_MIB, FOREIGN_MIB, TOTAL_MIB = 9_000, 15_000, 24_576
_STANDIN = SOURCE / "tests" / "native" / "nvml_standin.c"
_LIBRARY = "libnvidia-ml.so.1"


async def measure(options: Options) -> Result:
    """Measure; about a minute and a half."""
    rounds = options.some(ROUNDS, 1)
    late: list[float] = []
    async with Stage(options) as stage, bounded(300, "the figure of foreign memory"):
        sims = await stage.sims_apart(GPUS)
        pids = [sim.pid for sim in sims]
        # Leases are asked for here: nobody else may hold them.
        fleet = await stage.fleet([], ready=False, env={"FLEET_READY_LEASES": "0"})
        scenario = stage.folder / "scenario"
        replace_file(scenario, _gpus(pids, taken=None))
        library = await asyncio.to_thread(_compile, stage.folder)
        argv = ["agent", "--join", fleet.api_url, "--host", "h1", "--port", "0"]
        for number, sim in enumerate(sims):
            argv += ["--node", f"g{number}={sim.url}@{number}"]
        env = {**fleet.env, "LD_LIBRARY_PATH": str(library), "NVML_STANDIN": str(scenario)}
        await stage.child("agent-h1", node_plans.fleet(*argv), stage=3, env=env)
        for number in range(rounds):
            options.say(f"round {number + 1} of {rounds}: until every node is up")
            await fleet.until_up(GPUS)
            for gpu in range(GPUS):
                options.say(f"round {number + 1} of {rounds}: GPU {gpu}")
                late.append(await _take(fleet, scenario, pids, gpu))
            replace_file(scenario, _gpus(pids, taken=None))
        stage.check()
    spread = Spread.of(late)
    return Result(
        name="foreign",
        title="Foreign memory",
        verdicts=[
            Verdict(
                figure="foreign process takes memory → no new lease",
                target=f"≤ {TARGET_S:g} s, every time",
                ours=spread.words(),
                baseline="ComfyUI itself would go on",
                ratio=None,
                met=spread.most <= TARGET_S,
            )
        ],
        columns=["what", *TIMES],
        rows=[["memory taken → last lease given", *spread.row(3)]],
        notes=[
            f"`fleet agent` beside {GPUS} simulated nodes, over the real NVML binding and a stand-in of "
            f"NVIDIA's library compiled from C. Each GPU has {TOTAL_MIB // 1024} GiB, of which its node "
            f"holds {OWN_MIB / 1024:.0f}; a foreign process takes another {FOREIGN_MIB / 1024:.0f} in one "
            "step. From then on HAProxy is asked for a lease on that node every few milliseconds for "
            f"{WATCH_S:g} s; the figure is the time of the last one that it gave.",
        ],
        data={"late_s": late},
        quick=options.quick,
    )


def _compile(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: install cc for the stand-in of NVIDIA's library")
    place = folder / "nvml"
    place.mkdir()
    flags = ["-std=c11", "-O1", "-shared", "-fPIC", "-DNEW_DRIVER"]
    subprocess.run([compiler, *flags, "-o", place / _LIBRARY, _STANDIN], check=True, timeout=60)
    return place


def _gpus(pids: Sequence[int], *, taken: int | None) -> str:
    lines = []
    for number, pid in enumerate(pids):
        foreign = FOREIGN_MIB if number == taken else 0
        lines += [f"gpu {number}", f"set total {TOTAL_MIB}", f"set used {OWN_MIB + foreign}"]
        lines.append(f"proc c {pid} {OWN_MIB}")
        if foreign:
            lines.append(f"proc c 1 {foreign}")
    return "\n".join(lines) + "\n"


async def _take(fleet: Fleet, scenario: Path, pids: Sequence[int], gpu: int) -> float:
    """Take a GPU's memory; return after how many seconds the last lease was given, 0 if none was."""
    node = f"g{gpu}"
    await until(f"a lease is given on {node}", lambda: granted(fleet, node))
    replace_file(scenario, _gpus(pids, taken=gpu))
    taken_at = last = time.monotonic()
    while time.monotonic() < taken_at + WATCH_S:
        if await granted(fleet, node):
            last = time.monotonic()
        await asyncio.sleep(GAP_S)
    return last - taken_at
