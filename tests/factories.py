"""Small values for tests."""

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from blake3 import blake3

from comfy_fleet.domain.jobs.job import Job, JobStatus, NewJob, Output, OutputKind
from comfy_fleet.ports.runs import Claim

GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
}
GB = 10**9


def new_job(graph: dict[str, Any] | None = None, **fields: Any) -> NewJob:
    """Return a job that could be submitted."""
    data = orjson.dumps(graph or GRAPH)
    defaults: dict[str, Any] = {
        "id": str(uuid4()),
        "owner": "local",
        "graph": data,
        "graph_hash": f"blake3:{blake3(data).hexdigest()}",
        "created_at": time.time(),
        "expires_in_s": 3600.0,
    }
    return NewJob(**{**defaults, **fields})


def picture(color: int, **save: Any) -> dict[str, Any]:
    """A small graph of its own for every colour, so that nothing comes from a cache."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t", **save}},
    }


def sampled(size: int = 256, *, file: str = "m.safetensors", seed: int = 0) -> dict[str, Any]:
    """A graph that loads a checkpoint."""
    sampler = {"seed": seed, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["2", 0]}
    inputs: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": file}),
        "2": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a cat"}),
        "4": ("KSampler", {**links, **sampler, "denoise": 1.0}),
        "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "t"}),
    }
    return {key: {"class_type": name, "inputs": values} for key, (name, values) in inputs.items()}


def with_model(size_gb: float, name: str = "m.safetensors") -> dict[str, Any]:
    """What a simulated node has: one checkpoint of a size."""
    return {"checkpoints": {name: int(size_gb * GB)}}


def bare_checkout(folder: Path, *, main: str = "", database: bool = False) -> Path:
    """Make a folder that looks like a checkout of ComfyUI; newer ones know ``--database-url``."""
    home = folder / "ComfyUI"
    (home / "comfy").mkdir(parents=True, exist_ok=True)
    (home / "main.py").write_text(main)
    known = 'parser.add_argument("--database-url")' if database else ""
    (home / "comfy" / "cli_args.py").write_text(known)
    return home


def running_job(**fields: Any) -> Job:
    """Return the record of a job that runs."""
    defaults: dict[str, Any] = {"id": "j", "owner": "o", "created_at": 0, "expires_at": 9, "graph_hash": "h"}
    return Job(**{"status": JobStatus.RUNNING, **defaults, **fields})


def a_claim(job: Job | None = None, **fields: Any) -> Claim:
    """Return a claim of a job, by a run ``r`` on node ``g1``."""
    defaults: dict[str, Any] = {"graph": b"{}", "run": "r", "node": "g1", "token": "t", "attempt": 0}
    return Claim(job=job or running_job(), **{**defaults, **fields})


def an_output(**fields: Any) -> Output:
    """Return a committed output."""
    defaults: dict[str, Any] = {
        "asset_id": str(uuid4()),
        "node_id": "2",
        "key": "images",
        "index": 0,
        "name": "t_00001_.png",
        "kind": OutputKind.IMAGE,
        "content_type": "image/png",
        "size_bytes": 4,
        "hash": f"blake3:{'0' * 64}",
    }
    return Output(**{**defaults, **fields})
