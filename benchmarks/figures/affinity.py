"""Jobs of several model sets on a real fleet: how long all take, how often models load, who gets what."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from benchmarks import schedule
from benchmarks.owners import SHARE_TARGET, Shares, shares
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, sim_stats
from comfy_fleet.planning.bounds import bounds
from comfy_fleet.services.fleet_model_sizes import LOOK_S

RUN_S = 0.3
SIDE, STEPS, ENCODE_S = 64, 4, 0.05
MOST_TIME, MOST_LOADS = 1.15, 1.2
AT_ONCE = 16
POLL_S = 0.1
STUCK_S = 60.0


@dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """What became of all jobs.

    Attributes:
        makespan_s: From the first submit to the last end of a computation.
        loads: How often a file was read, as the nodes counted it.
        by_node: The same by node.
        time: Makespan over the best assignment's.
        more: Loads over the least.
    """

    makespan_s: float
    loads: int
    by_node: list[int]
    time: float
    more: float


async def measure(options: Options) -> Result:
    """Measure; about eight minutes."""
    jobs, load_s = options.some(80, 40), options.some(3, 1)
    orders = range(options.some(3, 1))
    found: dict[str, list[BatchOutcome]] = {"fleet": [], "round-robin": []}
    async with bounded(1500, "the figure of affinity"):
        for order in orders:
            for way, outcomes in found.items():
                outcomes.append(await _all_at_once(options, way, jobs, float(load_s), order))
        split = await shares(options)
    return Result(
        name="affinity",
        title="Models, and shares of GPU time",
        verdicts=[*_verdicts(found, jobs, load_s), _share_verdict(split)],
        columns=["way", "order", "makespan s", "over the best", "loads", "loads by node"],
        rows=[
            [
                way,
                str(order + 1),
                f"{one.makespan_s:.1f}",
                f"{one.time:.2f}",
                str(one.loads),
                " ".join(map(str, one.by_node)),
            ]
            for way, outcomes in found.items()
            for order, one in enumerate(outcomes)
        ],
        notes=[
            f"{jobs} jobs of {RUN_S} s over {schedule.SETS} model sets of {schedule.SET_GIB} GiB that take "
            f"{load_s} s to load, submitted at once in random order to {schedule.NODES} simulated nodes of "
            f"{schedule.CARD_GIB} GiB, on which one set fits, with a fleet that has just started. The best "
            "assignment is found by exhaustive search; each set must be loaded once. Loads are the nodes' "
            "own counts.",
            "Round-robin: a client posts each job to the next node in turn, straight to its ComfyUI's queue.",
            f"Shares: two owners with weights of 2 and 1 have {split.jobs} jobs of {split.job_s:g} s waiting "
            f"all the time; the largest difference from two thirds, over any {split.window_s:g} s, as a part "
            "of all GPU time in them. By the nodes' own intervals.",
        ],
        data={
            "cases": {way: [vars(one) for one in outcomes] for way, outcomes in found.items()},
            "shares": vars(split),
        },
        quick=options.quick,
    )


def _verdicts(found: dict[str, list[BatchOutcome]], jobs: int, load_s: int) -> list[Verdict]:
    ours, theirs = found["fleet"], found["round-robin"]

    def worst(outcomes: Sequence[BatchOutcome], what: str) -> float:
        return max(float(getattr(one, what)) for one in outcomes)

    return [
        Verdict(
            figure=f"{words}, {jobs} jobs of {RUN_S} s over 8 model sets at once, loads of {load_s} s",
            target=f"≤ {most:g} × the {least}",
            ours=", ".join(f"{getattr(one, what):.2f}" for one in ours),
            baseline=f"round-robin {worst(theirs, what):.2f}",
            ratio=worst(ours, what) / worst(theirs, what),
            met=worst(ours, what) <= most,
        )
        for words, what, most, least in (
            ("makespan", "time", MOST_TIME, "best"),
            ("model loads", "more", MOST_LOADS, "least"),
        )
    ]


def _share_verdict(split: Shares) -> Verdict:
    return Verdict(
        figure=f"shares 2:1 in GPU seconds, {split.job_s:g} s jobs, over any {split.window_s:g} s",
        target=f"within {SHARE_TARGET:.0%}",
        ours=f"{split.off:.1%} ({split.worst:.1%} of two thirds at the worst moment)",
        baseline="-",
        ratio=None,
        met=split.off <= SHARE_TARGET,
    )


async def _all_at_once(options: Options, way: str, jobs: int, load_s: float, order: int) -> BatchOutcome:
    """Run all jobs one way, on nodes and a fleet of their own that hold nothing."""
    chance = random.Random(order)
    sets = [number % schedule.SETS for number in range(jobs)]
    chance.shuffle(sets)
    graphs = [graph(which, number) for number, which in enumerate(sets)]
    async with Stage(options) as stage:
        nodes = await stage.sims(schedule.NODES, more=sim_arguments(stage.folder, load_s))
        if way == "fleet":
            fleet = await stage.fleet(nodes)
            await fleet.until_up(len(nodes))
            await sizes_known(fleet)
            began = time.time()
            await _through(fleet, graphs)
        else:
            began = time.time()
            await _in_turn(nodes, graphs)
        stats = await _done(nodes, jobs, lambda done: options.say(f"{way}: {done} of {jobs} jobs"))
        stage.check()
    ended = max(end for one in stats for _, end, _ in one["intervals"])
    best = bounds(schedule.set_jobs(jobs, run_s=RUN_S), schedule.nodes(load_s))
    if best.makespan_s is None:
        raise AssertionError("8 sets on 4 nodes are few enough to try everything")
    loads = [one["loads"] for one in stats]
    return BatchOutcome(
        makespan_s=ended - began,
        loads=sum(loads),
        by_node=loads,
        time=(ended - began) / best.makespan_s,
        more=sum(loads) / best.loads,
    )


def sim_arguments(folder: Path, load_s: float) -> Sequence[str]:
    """Return the options of nodes on which a set takes so long to load, and a job :data:`RUN_S`."""
    models = folder / "models.json"
    size_gb = schedule.SET_GIB * schedule.GIB / 1e9
    models.write_text(json.dumps({"checkpoints": {_file(n): size_gb for n in range(schedule.SETS)}}))
    step_s = (RUN_S - ENCODE_S) / STEPS / (SIDE * SIDE / 1e6)
    values = {
        "--models": models,
        "--vram-gib": schedule.CARD_GIB,
        "--load-gb-per-s": size_gb / load_s,
        "--step-seconds": step_s,
    }
    return [text for name, value in values.items() for text in (name, str(value))]


def graph(which: int, seed: int) -> dict[str, Any]:
    """Return a job's graph: a checkpoint, a sampler, a small picture."""
    sampler = {"seed": seed, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["2", 0]}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": _file(which)}),
        "2": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": f"job {seed}"}),
        "4": ("KSampler", {**links, **sampler, "denoise": 1.0}),
        "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "bench/set"}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


def _file(which: int) -> str:
    return f"set-{which}.safetensors"


async def sizes_known(fleet: Fleet) -> None:
    """Wait until the API knows how large the nodes' model files are."""
    deadline = time.monotonic() + STUCK_S
    async with fleet.stores() as stores:
        while await stores.model_sizes.load("") is None:
            if time.monotonic() > deadline:
                raise BenchError("the nodes' model files are not known")
            await asyncio.sleep(POLL_S)
    await asyncio.sleep(2 * LOOK_S)  # by then, every API process has read it


async def _through(fleet: Fleet, graphs: Sequence[dict[str, Any]]) -> None:
    """Submit all jobs to the fleet, in their order."""
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=30) as http:
        for one in graphs:
            answer = await http.post("/api/v2/jobs", json={"workflow": one})
            if answer.status_code != 201:
                raise BenchError(f"a submit was answered {answer.status_code}: {answer.text[:300]}")


async def _in_turn(nodes: Sequence[str], graphs: Sequence[dict[str, Any]]) -> None:
    """Post each job to the next node's queue."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        for number, one in enumerate(graphs):
            body = {"prompt": one, "prompt_id": str(uuid4())}
            (await http.post(f"{nodes[number % len(nodes)]}/prompt", json=body)).raise_for_status()


async def _done(nodes: Sequence[str], jobs: int, tell: Any) -> list[dict[str, Any]]:
    """Wait until the nodes have done all jobs; return their accounts."""
    last, since = -1, time.monotonic()
    while True:
        stats = await sim_stats(nodes)
        ends = Counter({what: sum(one[what] for one in stats) for what in ("done", "failed")})
        if ends["failed"]:
            raise BenchError(f"{ends['failed']} jobs failed on their nodes")
        if ends["done"] >= jobs:
            return stats
        if ends["done"] != last:
            last, since = ends["done"], time.monotonic()
            tell(last)
        elif time.monotonic() - since > STUCK_S:
            raise BenchError(f"nothing happens any more after {last} of {jobs} jobs")
        await asyncio.sleep(POLL_S)
