"""A trace of jobs that need memory: what is asked, when, and of cards of which size. Drawn from a seed.

Every job belongs to a workflow, as in production; a workflow's jobs need the same memory: a model file of
that size, or one of a few model files and what the picture takes beside it. What the author has declared is
wrong by up to :data:`ERROR` either way, or is not there.
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
MODELS_GIB = (3.0, 12.0)
BYTES_PER_PIXEL = 1600  # what a simulated sampler takes
SMALL = 64  # width and height of a picture that takes next to nothing
WIDTHS, BATCHES = (1024, 1536, 2048), (1, 2, 4)
FOREIGN_GIB = 14.0  # on the first card: what is left is less than the smallest one has
FOREIGN_EVERY_S, FOREIGN_FOR_S = 20.0, 7.0
FOREIGN_FIRST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Need:
    """A workflow's memory.

    Attributes:
        name: The workflow.
        true_gib: What its jobs really need.
        declared_gib: What its author says; None: nothing.
        model: Its model file, without its ending.
        model_gib: The file's size.
        width: Its pictures' width, in pixels.
        height: Their height.
        batch: How many it makes at once.
    """

    name: str
    true_gib: float
    declared_gib: float | None
    model: str
    model_gib: float
    width: int = SMALL
    height: int = SMALL
    batch: int = 1


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


def draw(seed: int, *, jobs: int, workflows: int, job_s: float, models: int = 0) -> Trace:
    """Draw a trace.

    Args:
        seed: The same seed draws the same trace.
        jobs: How many; a multiple of ``workflows`` gives each the same number.
        workflows: How many; as many as jobs means that no job is like another.
        job_s: How long each job computes.
        models: How many model files they share; 0: each has its own, which is all that it needs.
    """
    chance = random.Random(seed)
    shared = [round(chance.uniform(*MODELS_GIB), 2) for _ in range(models)]
    undeclared = set(chance.sample(range(workflows), round(workflows * UNDECLARED)))
    needs = []
    for number in range(workflows):
        true = chance.uniform(*NEEDS_GIB)
        # The largest card is the most that anybody would declare: no node could ever run more.
        declared = min(true / (1 + chance.uniform(-ERROR, ERROR)), max(CARDS_GIB))
        name, said = f"w{number:03}", None if number in undeclared else round(declared, 2)
        if shared:
            needs.append(_sized(chance, name, true, said, shared))
        else:
            true = round(true, 2)
            needs.append(Need(name=name, true_gib=true, declared_gib=said, model=name, model_gib=true))
    order = [number % workflows for number in range(jobs)]
    chance.shuffle(order)
    gap_s = job_s / (LOAD * len(CARDS_GIB))
    at_s, arrivals = 0.0, []
    for number, workflow in enumerate(order):
        at_s += chance.expovariate(1 / gap_s)
        arrivals.append(Arrival(at_s=at_s, workflow=workflow, seed=number))
    return Trace(needs=needs, arrivals=arrivals)


def _sized(
    chance: random.Random, name: str, true: float, declared: float | None, shared: Sequence[float]
) -> Need:
    """Return a workflow with one of these models, whose pictures take the rest of what it needs."""
    number = chance.choice([at for at, size in enumerate(shared) if size <= true - 0.5] or [_least(shared)])
    width, batch = chance.choice(WIDTHS), chance.choice(BATCHES)
    beside = max(0.5, true - shared[number]) * 2**30 / BYTES_PER_PIXEL
    height = max(SMALL, round(beside / width / batch / 8) * 8)
    return Need(
        name=name,
        true_gib=shared[number] + width * height * batch * BYTES_PER_PIXEL / 2**30,
        declared_gib=declared,
        model=f"m{number}",
        model_gib=shared[number],
        width=width,
        height=height,
        batch=batch,
    )


def _least(sizes: Sequence[float]) -> int:
    return min(range(len(sizes)), key=sizes.__getitem__)


def foreign(at_s: float) -> float:
    """Return how many GiB the foreign process holds on the first card, so many seconds after the start."""
    since = at_s - FOREIGN_FIRST_S
    return FOREIGN_GIB if since >= 0 and since % FOREIGN_EVERY_S < FOREIGN_FOR_S else 0.0


def graph(need: Need, seed: int) -> dict[str, Any]:
    """Return a job's graph: a checkpoint, a sampler, pictures that are made small before they are drawn."""
    sampler = {"seed": seed, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["2", 0]}
    scaled = {"upscale_method": "nearest-exact", "crop": "disabled"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": _file(need)}),
        "2": ("EmptyLatentImage", {"width": need.width, "height": need.height, "batch_size": need.batch}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": need.name}),
        "4": ("KSampler", {**links, **sampler, "denoise": 1.0}),
        "5": ("LatentUpscale", {"samples": ["4", 0], "width": SMALL, "height": SMALL, **scaled}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("SaveImage", {"images": ["6", 0], "filename_prefix": "bench/trace"}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


def write_models(path: Path, needs: Sequence[Need]) -> None:
    """Write the simulated nodes' model files: all of them on every node."""
    sizes = {_file(need): need.model_gib * 2**30 / 1e9 for need in needs}
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
    return f"{need.model}.safetensors"
