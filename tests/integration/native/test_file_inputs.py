"""Inputs of graphs that name one's own files: uploads, outputs and previews."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.integration.api_kit import Api, code, object_info, running

ANN, BOB = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    keys.write_text(f"ann {ANN}\nbob {BOB}\n")
    card = tmp_path / "workflows" / "card"
    card.mkdir(parents=True)
    (card / "workflow.json").write_text(json.dumps(loading("")))
    (card / "workflow.toml").write_text(
        '[parameters.image]\ntype = "image"\ntarget = { class = "LoadImage", input = "image" }\n'
    )
    async with running(redis_port, tmp_path, keys_file=keys, workflows=card.parent) as started:
        started.client.headers["Authorization"] = f"Bearer {ANN}"
        await started.add_node()
        yield started


def loading(image: object, class_type: str = "LoadImage", name: str = "image") -> dict[str, Any]:
    return {
        "1": {"class_type": class_type, "inputs": {name: image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


async def sent(api: Api, data: bytes, name: str = "a.png", key: str = ANN, **fields: str) -> str:
    answer = await api.client.post(
        "/upload/image",
        data=fields,
        files={"image": (name, data, "image/png")},
        headers={"Authorization": f"Bearer {key}"},
    )
    found: str = answer.json()["name"]
    return found


async def staged(api: Api, image: object) -> bytes:
    """Return the bytes that a job gets in place of a name."""
    job = await api.stores.jobs.get((await api.submit(loading(image)))["id"])
    assert job is not None
    asset = await api.assets.get(job.uploads["1/image"])
    assert asset is not None
    assert asset.owner == "ann"
    return b"".join([chunk async for chunk in await api.assets.open(asset)])


@pytest.mark.parametrize("subfolder", ["", "threed/x"])
async def test_each_folder_is_named_by_its_note(api: Api, subfolder: str) -> None:
    for kind in ("input", "output", "temp"):
        await sent(api, kind.encode(), type=kind, subfolder=subfolder)
        await sent(api, b"bobs", key=BOB, type=kind, subfolder=subfolder, overwrite="true")
    name = f"{subfolder}/a.png".lstrip("/")
    for text, data in (
        (name, b"input"),
        (f"{name} [input]", b"input"),
        (f"{name} [output]", b"output"),
        (f"{name} [temp]", b"temp"),
    ):
        assert await staged(api, text) == data


async def test_a_job_keeps_the_bytes_that_its_name_meant(api: Api) -> None:
    await sent(api, b"old", type="temp")
    job = await api.stores.jobs.get((await api.submit(loading("a.png [temp]")))["id"])
    assert job is not None
    await sent(api, b"new", type="temp", overwrite="true")
    asset = await api.assets.get(job.uploads["1/image"])
    assert asset is not None
    assert b"".join([chunk async for chunk in await api.assets.open(asset)]) == b"old"
    assert await staged(api, "a.png [temp]") == b"new"


async def test_what_a_job_needs_is_held_until_its_end(api: Api) -> None:
    await sent(api, b"x", type="output")
    made = await api.submit(loading("a.png [output]"))
    job = await api.stores.jobs.get(made["id"])
    assert job is not None
    asset_id = job.uploads["1/image"]
    assert code(await api.client.delete(f"/api/v2/assets/{asset_id}")) == (409, "asset_in_use")
    await api.finish(await api.claim(job.id), JobStatus.SUCCEEDED)
    assert (await api.client.delete(f"/api/v2/assets/{asset_id}")).status_code == 204


@pytest.mark.parametrize(
    "text", ["bobs.png [output]", "bobs.png [temp]", "bobs.png", "bobs.png [input]", "none.png"]
)
async def test_nobody_elses_file_is_read_and_the_refusal_names_the_input(api: Api, text: str) -> None:
    for kind in ("input", "output", "temp"):
        await sent(api, kind.encode(), "bobs.png", key=BOB, type=kind)
    answer = await api.client.post("/api/v2/jobs", json={"workflow": loading(text)})
    assert code(answer) == (422, "invalid_workflow")
    (defect,) = answer.json()["error"]["details"]["node_errors"]["1"]
    shown = text.removesuffix(" [input]")
    assert defect == {
        "field": "image",
        "reason": "custom_validation_failed",
        "message": f"Invalid image file: {shown}",
        "value": shown,
    }


async def test_a_file_that_an_operator_has_put_there_is_taken(api: Api) -> None:
    async def status_of(name: str) -> int:
        answer = await api.client.post("/api/v2/jobs", json={"workflow": loading(name)})
        return answer.status_code

    await api.add_node("g2", info=False)
    assert await status_of("x.png") == 201, "one of the nodes does not say what it has"
    info = object_info()
    info["LoadImage"]["input"]["required"]["image"][0].append("y.png")
    api.info.serve("g2", info)
    assert [await status_of(name) for name in ("y.png", "y.png [input]", "z.png")] == [201, 201, 422]


async def test_stored_workflows_take_names_of_own_outputs(api: Api) -> None:
    await sent(api, b"x", type="output", subfolder="s")
    for text, status in (("s/a.png [output]", 201), ("s/b.png [output]", 422), ("s/a.png", 422)):
        answer = await api.client.post("/api/v1/workflows/card/jobs", json={"params": {"image": text}})
        assert answer.status_code == status, answer.text
        if status == 422:
            assert answer.json()["error"]["details"]["field"] == "params.image"
