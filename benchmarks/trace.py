"""A trace of jobs that need memory: what is asked, when, and of cards of which size. Drawn from a seed.

Every job belongs to a workflow, as in production; a workflow's jobs need the same memory, which is a model
file's size here. What its author has declared is wrong by up to :data:`ERROR` either way, or is not there.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARDS_GIB = (24, 24, 16, 12)
NEEDS_GIB = (6.0, 20.0)
ERROR = 0.3
UNDECLARED = 0.2
LOAD = 0.8  # share of the cards' time that the trace asks for
FOREIGN_GIB = 14.0  # on the first card: what is left is less than the smallest one has
FOREIGN_EVERY_S, FOREIGN_FOR_S = 20.0, 7.0
FOREIGN_FIRST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Need:
    """A workflow's memory.

    Attributes:
        name: The workflow; its model file is called so, too.
        true_gib: What its jobs really need.
        declared_gib: What its author says; None: nothing.
    """

    name: str
    true_gib: float
    declared_gib: float | None


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A job.

    Attributes:
        at_s: When it is submitted, in seconds from the start.
        workflow: Index of its workflow.
        seed: Makes its picture unlike any other, so that nothing is cached.
    """

    at_s: float
    workflow: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What is asked of the cards."""

    needs: Sequence[Need]
    arrivals: Sequence[Arrival]


def draw(seed: int, *, jobs: int, workflows: int, job_s: float) -> Trace:
    """Draw a trace.

    Args:
        seed: The same seed draws the same trace.
        jobs: How many; a multiple of ``workflows`` gives each the same number.
        workflows: How many; as many as jobs means that no job is like another.
        job_s: How long each job computes.
    """
    chance = random.Random(seed)
    undeclared = set(chance.sample(range(workflows), round(workflows * UNDECLARED)))
    needs = []
    for number in range(workflows):
        true = chance.uniform(*NEEDS_GIB)
        # The largest card is the most that anybody would declare: no node could ever run more.
        declared = min(true / (1 + chance.uniform(-ERROR, ERROR)), max(CARDS_GIB))
        needs.append(
            Need(
                name=f"w{number:03}",
                true_gib=round(true, 2),
                declared_gib=None if number in undeclared else round(declared, 2),
            )
        )
    order = [number % workflows for number in range(jobs)]
    chance.shuffle(order)
    gap_s = job_s / (LOAD * len(CARDS_GIB))
    at_s, arrivals = 0.0, []
    for number, workflow in enumerate(order):
        at_s += chance.expovariate(1 / gap_s)
        arrivals.append(Arrival(at_s=at_s, workflow=workflow, seed=number))
    return Trace(needs=needs, arrivals=arrivals)


def foreign(at_s: float) -> float:
    """Return how many GiB the foreign process holds on the first card, so many seconds after the start."""
    since = at_s - FOREIGN_FIRST_S
    return FOREIGN_GIB if since >= 0 and since % FOREIGN_EVERY_S < FOREIGN_FOR_S else 0.0


def graph(need: Need, seed: int) -> dict[str, Any]:
    """Return a job's graph: a checkpoint as large as the need, a sampler, a small picture."""
    sampler = {"seed": seed, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["2", 0]}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": _file(need)}),
        "2": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": need.name}),
        "4": ("KSampler", {**links, **sampler, "denoise": 1.0}),
        "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "bench/trace"}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


def write_models(path: Path, needs: Sequence[Need]) -> None:
    """Write the simulated nodes' model files: all of them on every node."""
    sizes = {_file(need): need.true_gib * 2**30 / 1e9 for need in needs}
    path.write_text(json.dumps({"checkpoints": sizes}))


def write_workflows(folder: Path, needs: Sequence[Need]) -> None:
    """Write the needs as stored workflows with a seed as their parameter."""
    for need in needs:
        place = folder / need.name
        place.mkdir(parents=True)
        (place / "workflow.json").write_text(json.dumps(graph(need, 0)))
        lines = [f'title = "{need.name}"', "[parameters.seed]", 'type = "integer"']
        lines += ['target = { class = "KSampler", input = "seed" }']
        if need.declared_gib is not None:
            lines += ["[requires]", f"vram_gb = {need.declared_gib}"]
        (place / "workflow.toml").write_text("\n".join(lines) + "\n")


def _file(need: Need) -> str:
    return f"{need.name}.safetensors"
