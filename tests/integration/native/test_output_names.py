"""Names of outputs in a whole fleet: one client's jobs on several nodes, with dispatchers that die."""

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from comfy_fleet.domain.jobs.job import Job, JobStatus, Output
from comfy_fleet.domain.jobs.output_names import SavedFile, place_of
from comfy_fleet.domain.jobs.shown_ui import shown_ui
from comfy_fleet.sim import SimTiming
from tests.assets_kit import assets_on, content_of
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until

pytestmark = pytest.mark.usefixtures("redis")

NODES = ("g1", "g2", "g3", "g4")


def colour(at: int) -> int:
    return 0x0A0B0C * at


async def bytes_of(fleet: Fleet, owner: str, file: SavedFile) -> bytes:
    """Return what is under a name, as its owner gets it."""
    store = assets_on(fleet.stores.redis, fleet.settings.files_dir)
    asset = await fleet.stores.jobs.saved(owner, file)
    assert asset is not None and asset.owner == owner
    assert asset.file_path == file.filename
    return await content_of(store, asset)


def colour_of(data: bytes) -> int:
    red, green, blue = Image.open(BytesIO(data)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red) << 16 | int(green) << 8 | int(blue)


def names(outputs: Iterable[Output]) -> list[str]:
    return [place_of(output).path for output in outputs]


@pytest.mark.parametrize("killed", [False, True], ids=["calm", "killed"])
async def test_twenty_jobs_on_four_nodes_save_twenty_files(redis_port: int, killed: bool) -> None:
    async with fleet_of(
        redis_port, *NODES, sim={"timing": SimTiming(job_s=0.05)}, lease_ttl_s=0.8, beat_s=0.1
    ) as fleet:
        await fleet.dispatcher("d2")
        jobs = [
            await fleet.submit(picture(colour(at), filename_prefix="ComfyUI"), owner="ann")
            for at in range(20)
        ]
        others = await fleet.submit(picture(colour(20), filename_prefix="ComfyUI"), owner="bob")
        if killed:
            await fleet.ended(jobs[3].id)
            await fleet.dispatchers[0].kill()
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        found = {names(job.outputs)[0]: colour(at) for at, job in enumerate(ended)}
        assert sorted(found) == [f"output/ComfyUI_{n:05}_.png" for n in range(1, 21)]
        for path, its_own in found.items():
            assert colour_of(await bytes_of(fleet, "ann", SavedFile.parse(path))) == its_own
        assert names((await fleet.ended(others.id)).outputs) == ["output/ComfyUI_00001_.png"]
        assert colour_of(
            await bytes_of(fleet, "bob", SavedFile.parse("output/ComfyUI_00001_.png"))
        ) == colour(20)
        listed = await fleet.stores.jobs.saved_files("ann", "output", limit=100)
        assert {f"output/{name}" for name, _ in listed} == set(found)


async def test_a_name_that_was_told_stays_when_the_job_runs_again(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=0.2)}) as fleet:
        graph = picture(colour(1), filename_prefix="a/ComfyUI")
        graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        first = await fleet.ended((await fleet.submit(picture(colour(9), filename_prefix="a/ComfyUI"))).id)
        assert names(first.outputs) == ["output/a/ComfyUI_00001_.png"]
        job = await fleet.submit(graph)

        async def told() -> list[str]:
            return names((await fleet.job(job.id)).outputs)

        await until(told, what="an output is committed")
        early = await told()
        await fleet.sims["g1"].stop()  # the node dies before the prompt's end
        await fleet.add_sim("g2")
        done = await fleet.ended(job.id)
        assert (done.status, done.node) == (JobStatus.SUCCEEDED, "g2")
        assert set(early) <= set(names(done.outputs))
        assert "output/a/ComfyUI_00002_.png" in names(done.outputs)
        assert len(done.outputs) == 2


async def test_the_interface_is_told_the_same_names(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        graph = picture(colour(1), filename_prefix="sub/ComfyUI")
        graph["1"]["inputs"]["batch_size"] = 3
        graph["5"] = {**graph["1"], "inputs": {**graph["1"]["inputs"], "color": colour(2)}}
        other = {"images": ["5", 0], "filename_prefix": "sub/ComfyUI"}
        graph["3"] = {"class_type": "SaveImage", "inputs": other}
        graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        seen: list[dict[str, Any]] = []
        for _ in range(2):
            done: Job = await fleet.ended((await fleet.submit(graph)).id)
            seen.append(shown_ui((await fleet.stores.jobs.with_ui(done.id))[1], done.outputs))
            for node in seen[-1].values():
                for file in node["images"]:
                    assert await bytes_of(fleet, "local", SavedFile(**file))
        saved = [sorted(f["filename"] for one in ("2", "3") for f in ui[one]["images"]) for ui in seen]
        assert saved == [[f"ComfyUI_{n:05}_.png" for n in ns] for ns in (range(1, 7), range(7, 13))]
        for ui in seen:  # each node's files follow each other
            for node in ("2", "3"):
                numbers = [int(file["filename"][8:13]) for file in ui[node]["images"]]
                assert numbers == list(range(numbers[0], numbers[0] + 3))
        assert [f["filename"][-10:-5] for ui in seen for f in ui["4"]["images"]] == [
            f"0000{n}" for n in range(1, 7)
        ]
        assert {file["type"] for ui in seen for file in ui["4"]["images"]} == {"temp"}
        assert {file["subfolder"] for ui in seen for file in ui["2"]["images"]} == {"sub"}
