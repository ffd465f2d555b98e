"""Exact merging on a real ComfyUI: each job gets the bytes that it gets alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.bootstrap import open_assets
from comfy_fleet.domain.graphs.merging import MergeMode, MergeRule
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.jobs.merge_key import merge_key
from comfy_fleet.domain.nodes.node import Node
from tests.comfyui_server import ComfyServer
from tests.fleet import Fleet, fleet_of

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


CROP = {"crop": "disabled"}


def graph(value: float, width: int) -> dict[str, Any]:
    """Return a graph with every way in which results come: files, previews, frames, texts and latents."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 123456}),
        "2": ("ImageInvert", {"image": ["1", 0]}),
        "3": (
            "ImageScale",
            {
                "image": ["2", 0],
                "upscale_method": "lanczos",
                "width": width,
                "height": 48,
                "crop": "disabled",
            },
        ),
        "4": ("SolidMask", {"value": value, "width": width, "height": 48}),
        "5": (
            "ImageCompositeMasked",
            {"destination": ["3", 0], "source": ["2", 0], "x": 3, "y": 2, "resize_source": False},
        ),
        "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "a"}),
        "7": ("MaskToImage", {"mask": ["4", 0]}),
        "8": ("PreviewImage", {"images": ["7", 0]}),
        "9": ("EmptyLatentImage", {"width": width, "height": 64, "batch_size": 1}),
        "10": (
            "LatentUpscale",
            {
                "samples": ["9", 0],
                "upscale_method": "bilinear",
                "width": 128,
                "height": 128,
                "crop": "disabled",
            },
        ),
        "11": ("SaveLatent", {"samples": ["10", 0], "filename_prefix": "l"}),
        "12:3": ("ImageBlur", {"image": ["5", 0], "blur_radius": 2, "sigma": value}),
        "13": ("SaveImage", {"images": ["12:3", 0], "filename_prefix": "b"}),
        "14": ("SaveImageWebsocket", {"images": ["12:3", 0]}),
    }
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


GRAPHS = [graph(0.5, 32), graph(0.25, 40), graph(0.5, 40), graph(1.0, 32)]


async def results(fleet: Fleet, job: Job) -> dict[tuple[str, str, int], bytes]:
    """Return a job's results by their places; of latents the tensors, of a text, nothing else."""
    assets, found = open_assets(fleet.settings, fleet.stores), {}
    for output in job.outputs:
        asset = await assets.get(output.asset_id)
        assert asset is not None
        data = (fleet.settings.files_dir / asset.path).read_bytes()
        if output.name.endswith(".latent"):  # it carries the posted graph, with the names of the run's files
            size = int.from_bytes(data[:8], "little")
            head = {k: v for k, v in json.loads(data[8 : 8 + size]).items() if k != "__metadata__"}
            data = json.dumps(head, sort_keys=True).encode() + data[8 + size :]
        found[output.node_id, output.key, output.index] = data
    return found


async def run(fleet: Fleet, *, merged: bool) -> Sequence[Job]:
    jobs = []
    for one in GRAPHS:
        rule = MergeRule(mode=MergeMode.EXACT, window_s=0.0)
        key = merge_key(rule, one, version="sha256:1", owner="local", drawn=(), about={}) if merged else None
        jobs.append(await fleet.submit(one, merge=key))
    running = await fleet.dispatcher(f"d{merged}")
    done = [await fleet.ended(job.id, timeout_s=90) for job in jobs]
    await running.end()
    fleet.dispatchers.remove(running)
    assert [(job.status, job.error) for job in done] == [(JobStatus.SUCCEEDED, None)] * 4
    return done


async def test_merged_jobs_get_the_bytes_that_they_get_alone(
    redis_port: int, comfyui_server: ComfyServer
) -> None:
    async with fleet_of(redis_port, dispatch=False) as fleet:
        await fleet.stores.nodes.add(Node(name="real", url=comfyui_server.url, added_at=0.0))
        await fleet.verdict("real")
        together = await run(fleet, merged=True)
        alone = await run(fleet, merged=False)
        assert len({job.started_at for job in together}) == 1, "they were one prompt"
        assert len({job.started_at for job in alone}) == 4
        for one, other in zip(together, alone, strict=True):
            mine, theirs = await results(fleet, one), await results(fleet, other)
            assert mine.keys() == theirs.keys()
            assert len(mine) == 8
            assert mine == theirs
