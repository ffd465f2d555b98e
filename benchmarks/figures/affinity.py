"""Jobs of several model sets on a real fleet: how long all take, how often models load, who gets what."""

import asyncio
import json
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from benchmarks import schedule
from benchmarks.operations import order
from benchmarks.owners import SHARE_TARGET, Shares, shares
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, sim_reset, sim_stats
from comfy_fleet.planning.bounds import bounds
from comfy_fleet.services.fleet_model_sizes import LOOK_S

RUN_S = 0.3
SIDE, STEPS, ENCODE_S = 64, 4, 0.05
MOST_TIME, MOST_LOADS = 1.15, 1.2
NEW, FLEET, ROBIN = "new fleet", "fleet", "round-robin"
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """Jobs in an order, equally many of each set.

    Attributes:
        jobs: How many.
        load_s: How long a set takes to load.
        order: Which order.
    """

    jobs: int
    load_s: float
    order: int

    @property
    def graphs(self) -> list[dict[str, Any]]:
        """The jobs, others at each look: no node has any results of them."""
        sets = [number % schedule.SETS for number in range(self.jobs)]
        random.Random(self.order).shuffle(sets)
        return [graph(which, secrets.randbits(48)) for which in sets]

    def outcome(self, stats: Sequence[dict[str, Any]], began: float) -> BatchOutcome:
        """Compare what the nodes count with the best.

        Args:
            stats: The nodes' own accounts.
            began: When the first job was submitted, in Unix seconds.
        """
        best = bounds(schedule.set_jobs(self.jobs, run_s=RUN_S), schedule.nodes(self.load_s))
        if best.makespan_s is None:
            raise AssertionError("8 sets on 4 nodes are few enough to try everything")
        took = max(end for one in stats for _, end, _ in one["intervals"]) - began
        loads = [one["loads"] for one in stats]
        return BatchOutcome(
            makespan_s=took,
            loads=sum(loads),
            by_node=loads,
            time=took / best.makespan_s,
            more=sum(loads) / best.loads,
        )


async def measure(options: Options) -> Result:
    """Measure; about eight minutes."""
    jobs, load_s = options.some(80, 32), options.some(3, 1)
    found: dict[str, list[BatchOutcome]] = {NEW: [], FLEET: [], ROBIN: []}
    async with bounded(1500, "the figure of affinity"):
        for order in range(options.some(3, 1)):
            case = Case(jobs=jobs, load_s=float(load_s), order=order)
            for way, outcome in {**await _fleet(options, case), ROBIN: await _robin(options, case)}.items():
                found[way].append(outcome)
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
            f"{schedule.CARD_GIB} GiB, on which one set fits, and nothing is loaded at first. The best "
            "assignment is found by exhaustive search; each set must be loaded once. Loads are the nodes' "
            "own counts.",
            f"{NEW}: it knows nothing of how long jobs and loads take. {FLEET}: the same one after it ran "
            "such jobs once, and after its nodes were told to unload their models.",
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
    ours, theirs, new = found[FLEET], found[ROBIN], found[NEW]

    def worst(outcomes: Sequence[BatchOutcome], what: str) -> float:
        return max(float(getattr(one, what)) for one in outcomes)

    return [
        Verdict(
            figure=f"{words}, {jobs} jobs of {RUN_S} s over 8 model sets at once, loads of {load_s} s",
            target=f"≤ {most:g} × the {least}",
            ours=", ".join(f"{getattr(one, what):.2f}" for one in ours),
            baseline=f"round-robin {worst(theirs, what):.2f}; {NEW} {worst(new, what):.2f}",
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


async def _fleet(options: Options, case: Case) -> dict[str, BatchOutcome]:
    """Run all jobs through a fleet that has just started, and again when it knows how long they take."""
    made = {}
    async with Stage(options) as stage:
        nodes = await stage.sims(schedule.NODES, more=sim_arguments(stage.folder, case.load_s))
        fleet = await stage.fleet(nodes)
        await fleet.until_up(len(nodes))
        await sizes_known(fleet)
        for way in (NEW, FLEET):
            async with httpx.AsyncClient(base_url=fleet.console_url, trust_env=False, timeout=30) as http:
                await order(http, "POST", "/free", {"unload_models": True, "free_memory": True})
            await sim_reset(nodes)
            began = time.time()
            await _through(fleet, case.graphs)
            made[way] = case.outcome(await _done(nodes, case.jobs, way, options.say), began)
        stage.check()
    return made


async def _robin(options: Options, case: Case) -> BatchOutcome:
    """Post all jobs to the nodes in turn."""
    async with Stage(options) as stage:
        nodes = await stage.sims(schedule.NODES, more=sim_arguments(stage.folder, case.load_s))
        began = time.time()
        await _in_turn(nodes, case.graphs)
        made = case.outcome(await _done(nodes, case.jobs, ROBIN, options.say), began)
        stage.check()
    return made


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


async def _done(
    nodes: Sequence[str], jobs: int, way: str, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Wait until the nodes have done all jobs; return their accounts."""
    last, since = -1, time.monotonic()
    while True:
        stats = await sim_stats(nodes)
        if failed := sum(one["failed"] for one in stats):
            raise BenchError(f"{failed} jobs failed on their nodes")
        done = sum(one["done"] for one in stats)
        if done >= jobs:
            return stats
        if done != last:
            last, since = done, time.monotonic()
            say(f"{way}: {done} of {jobs} jobs")
        elif time.monotonic() - since > STUCK_S:
            raise BenchError(f"nothing happens any more after {last} of {jobs} jobs")
        await asyncio.sleep(POLL_S)
