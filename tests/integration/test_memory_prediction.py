"""Jobs of which no two are alike keep off cards on which others ran out of memory."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.bootstrap import Stores
from comfy_fleet.cli.app import build
from comfy_fleet.domain.graphs import inventory
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.pixels import sampled_pixels
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest
from comfy_fleet.domain.nodes.node import Node, Reading
from comfy_fleet.ports.runs import Claim, Refused
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.memory_prediction import MemoryPrediction
from tests.factories import GB, new_job, sampled, with_model
from tests.fleet import Fleet, fleet_of
from tests.integration.api_kit import Api, object_info, running

CARDS = {"small": 12, "mid": 16, "large": 24}
FAMILY = "checkpoints/m.safetensors"


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def of_size(pixels: int, *, file: str = "m.safetensors", seed: int = 0) -> dict[str, Any]:
    """A graph that samples so many pixels at 512 a row, and decodes 64 by 64."""
    graph = sampled(file=file, seed=seed)
    graph["2"]["inputs"] = {"width": 512, "height": pixels // 512, "batch_size": 1}
    scaled = {"samples": ["4", 0], "upscale_method": "nearest-exact", "crop": "disabled"}
    graph["7"] = {"class_type": "LatentUpscale", "inputs": {**scaled, "width": 64, "height": 64}}
    graph["5"]["inputs"]["samples"] = ["7", 0]
    return graph


async def fleet_with_cards(fleet: Fleet, models: dict[str, Any]) -> NodeInventories:
    for name, size in CARDS.items():
        await fleet.add_sim(name, models=models, vram_bytes=size * GIB)
    for name in fleet.sims:
        await fleet.verdict(name)
    return await fleet.refresher()


async def sent(fleet: Fleet, known: NodeInventories, graph: dict[str, Any], work: Workload) -> Job:
    """Submit a graph as the API does; each has a profile of its own."""
    prediction = MemoryPrediction(fleet.stores.memory, keep_s=60)  # one that has read nothing yet
    placement = await known.placement(check(graph), PlacementRequest())
    placement = known.large_enough(placement, (await prediction.need(work, "local")).least)
    return await fleet.submit(
        graph, placement=placement, workload=work, profile=str(graph["4"]["inputs"]["seed"])
    )


def failures(fleet: Fleet) -> int:
    return sum(sim.stats.failed for sim in fleet.sims.values())


async def test_sizes_that_are_all_different_teach_each_other(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        known = await fleet_with_cards(fleet, with_model(6))
        # 6 GB of weights and 1,600 bytes a pixel: 13 to 14 GB, too much for 12 GiB.
        for number in range(12):
            pixels = 512 * (8600 + 50 * number)
            work = Workload(family=FAMILY, model_bytes=6 * GB, pixels=pixels)
            graph = of_size(pixels, seed=number)
            assert sampled_pixels(graph) == pixels
            done = await fleet.ended((await sent(fleet, known, graph, work)).id)
            assert done.status is JobStatus.SUCCEEDED
            assert done.node in ("mid", "large")
        assert failures(fleet) <= 1
        light = Workload(family=FAMILY, model_bytes=6 * GB, pixels=512 * 512)
        prediction = MemoryPrediction(fleet.stores.memory, keep_s=60)
        assert (await prediction.need(light, "local")).least < GIB


async def test_jobs_that_wait_already_are_looked_at_again(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        known = await fleet_with_cards(fleet, with_model(6))
        for name in ("mid", "large"):
            await fleet.stores.nodes.cordon(name, reason="later")
        jobs = []
        for number in range(8):
            pixels = 512 * (8600 + 50 * number)
            work = Workload(family=FAMILY, model_bytes=6 * GB, pixels=pixels)
            jobs.append(await sent(fleet, known, of_size(pixels, seed=number), work))
        assert {job.placement for job in jobs} <= {Placement(), Placement(above=12 * GIB)}
        for name in ("mid", "large"):
            await fleet.stores.nodes.uncordon(name)
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        assert {job.attempt for job in ended} == {0}
        assert failures(fleet) <= 1


async def test_models_of_which_none_is_like_another_teach_that_they_must_fit(redis_port: int) -> None:
    files = {f"m{number}.safetensors": 18 * GB + number for number in range(12)}
    async with fleet_of(redis_port) as fleet:
        known = await fleet_with_cards(fleet, {"checkpoints": files})
        for number, (file, size) in enumerate(files.items()):
            work = Workload(family=f"checkpoints/{file}", model_bytes=size, pixels=512 * 512)
            graph = of_size(512 * 512, file=file, seed=number)
            done = await fleet.ended((await sent(fleet, known, graph, work)).id)
            assert (done.status, done.node) == (JobStatus.SUCCEEDED, "large")
        assert failures(fleet) <= 4


# -- models on cards that are too small --------------------------------------------------------------------


@pytest.mark.parametrize("names_without_small", [{"able": "mid large"}, {"unable": "small"}])
async def test_no_job_is_left_to_a_node_that_cannot_run_it(
    stores: Stores, names_without_small: dict[str, str]
) -> None:
    for name, size in CARDS.items():
        await stores.nodes.add(Node(name=name, url=f"http://{name}:8188"))
        await stores.nodes.report(name, verdict="up", why="")
        await stores.inventories.save(name, inventory.parse({}), Reading(vram_bytes=size * GIB))
    above = Placement(above=12 * GIB)

    async def claim(node: str, placement: Placement, **names: str) -> Claim | Refused:
        named = {which: {placement: said.split()} for which, said in names.items()}
        given: dict[str, Any] = {
            **named,
            "placements": [placement],
            "token": "t",
            "dispatcher": "d",
            "ttl_s": 30,
            "pool": "default",
        }
        return await stores.runs.claim(node=node, run=str(uuid4()), **given)

    async def submit(placement: Placement) -> str:
        new = new_job(placement=placement, models=((FAMILY, 9 * GIB),))
        return (await stores.jobs.submit(new, idempotency=None, depth_limit=10)).job.id

    await submit(Placement())
    got = await claim("small", Placement())
    assert isinstance(got, Claim)
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1)
    job = await submit(above)
    for names in ({"able": "small large"}, {"unable": "mid"}):
        assert isinstance(found := await claim("large", above, **names), Refused)
        assert found.why == "nothing"  # a node has its models
    assert isinstance(found := await claim("large", above, **names_without_small), Claim)
    assert found.job.id == job


# -- by HTTP -----------------------------------------------------------------------------------------------


async def with_cards(api: Api) -> None:
    info = object_info()
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["m.safetensors"]
    for name, size in CARDS.items():
        api.info.serve(name, info)
        device = {"type": "cuda", "name": "GPU", "vram_total": size * GIB, "vram_free": size * GIB}
        api.info.stats[name] = {"system": {"comfyui_version": "0.3.64"}, "devices": [device]}
        await api.add_node(name, info=False)


async def test_a_job_tells_what_is_predicted_of_it(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        await with_cards(api)
        made = await api.submit(sampled(512))
        assert (made["memory_bytes"], made["card_above_bytes"]) == (2 * GIB, None)  # a guess: no node told it
        work = Workload(family=FAMILY, model_bytes=2 * GIB, pixels=512 * 512)
        await api.stores.memory.note(work, owner="local", room=12 * GIB, fits=False, ttl_s=60)
        async with asyncio.timeout(60):
            while not (made := await api.submit(sampled(512)))["card_above_bytes"]:
                await asyncio.sleep(0.05)
        assert (made["memory_bytes"], made["card_above_bytes"]) == (12 * GIB + 1, 12 * GIB)
        smaller = await api.submit(sampled(256))
        assert (smaller["memory_bytes"], smaller["card_above_bytes"]) == (3 * GIB, None)
        shown = (await api.client.get(f"/api/v1/jobs/{made['id']}")).json()
        assert (shown["memory_bytes"], shown["card_above_bytes"]) == (12 * GIB + 1, 12 * GIB)
        argv = ["job", "show", made["id"], "--api", api.url]
        told = await asyncio.to_thread(CliRunner().invoke, build(argv), argv)
        assert "about 12 GiB, on cards above 12 GiB" in " ".join(told.stdout.split())


@pytest.mark.parametrize("width", [10**30, -8, 2.5e300, "wide", [1], {"a": 1}, None, True])
async def test_no_size_makes_a_job_fail_that_could_run(
    redis_port: int, tmp_path: Path, width: object
) -> None:
    graph = sampled(512)
    graph["9"] = {
        "class_type": "OfAPack",
        "inputs": {"model": ["1", 0], "width": width, "height": 8, "steps": 1},
    }
    graph["4"]["inputs"]["latent_image"] = ["9", 0]
    async with running(redis_port, tmp_path) as api:
        await with_cards(api)
        info = object_info()
        info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["m.safetensors"]
        info["OfAPack"] = {"input": {}, "output": ["LATENT"], "python_module": "custom_nodes.pack"}
        api.info.serve("pack", info)
        await api.add_node("pack", info=False)
        async with asyncio.timeout(60):
            while (
                answer := await api.client.post("/api/v2/jobs", json={"workflow": graph})
            ).status_code != 201:
                await asyncio.sleep(0.05)
        assert answer.json()["card_above_bytes"] is None
