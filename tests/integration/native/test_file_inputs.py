"""Inputs of graphs that name one's own files: uploads, outputs and previews."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, object_info, running
from tests.integration.redis_kit import past_retention
from tests.key_files import write_keys

ANN, BOB = "ann-key-0123456789-0123456789", "bob-key-0123456789-0123456789"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
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


async def made(api: Api, data: bytes, name: str, **more: Any) -> str:
    """Let a job of ann's save a file; returns the job's id."""
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    await api.output(claim, data, name=name, saved=True, **more)
    await api.finish(claim)
    return str(job["id"])


async def test_outputs_and_previews_of_ones_own_are_inputs(api: Api) -> None:
    await made(api, b"saved", "x_00001_.png", subfolder="s")
    await made(api, b"shown", "x_temp_00001_.png", temporary=True)
    assert await staged(api, "s/x_00001_.png [output]") == b"saved"
    assert await staged(api, "x_temp_00001_.png [temp]") == b"shown"
    for text in ("x_00001_.png [output]", "s/x_00001_.png [temp]", "s/x_00001_.png"):
        answer = await api.client.post("/api/v2/jobs", json={"workflow": loading(text)})
        assert answer.status_code == (201 if text.startswith("s/") and "[" not in text else 422), text
    api.client.headers["Authorization"] = f"Bearer {BOB}"
    for text in ("s/x_00001_.png [output]", "x_temp_00001_.png [temp]"):
        answer = await api.client.post("/api/v2/jobs", json={"workflow": loading(text)})
        assert code(answer) == (422, "invalid_workflow")


async def test_an_output_stays_until_the_jobs_that_read_it_end(api: Api) -> None:
    first = await made(api, b"saved", "x_00001_.png")
    reader = await api.submit(loading("x_00001_.png [output]"))
    await past_retention(api.stores, first)
    assert not await api.assets.forget_job(first)
    await api.finish(await api.claim(reader["id"]))
    assert await api.assets.forget_job(first)


async def test_outputs_are_seen_and_listed_by_name(api: Api) -> None:
    for number in range(3):
        await made(api, b"%d" % number, f"x_0000{number}_.png")
    await made(api, b"deep", "y_00001_.png", subfolder="s")
    await made(api, b"shown", "t_00001_.png", temporary=True)
    await sent(api, b"mine", "up.png", type="output")
    await made(api, b"4", "x_00004_.png")
    names = ["x_00004_.png [output]", "up.png [output]", *(f"x_0000{n}_.png [output]" for n in (2, 1, 0))]
    assert (await api.client.get("/internal/files/output")).json() == names
    assert (await api.client.get("/internal/files/temp")).json() == ["t_00001_.png [temp]"]
    bobs = {"Authorization": f"Bearer {BOB}"}
    for query, data in (
        ({"filename": "x_00001_.png"}, b"1"),
        ({"filename": "x_00001_.png", "type": "output", "subfolder": ""}, b"1"),
        ({"filename": "y_00001_.png", "subfolder": "s"}, b"deep"),
        ({"filename": "y_00001_.png [output]", "subfolder": "/s/".strip("/")}, b"deep"),
        ({"filename": "t_00001_.png", "type": "temp"}, b"shown"),
        ({"filename": "up.png"}, b"mine"),
    ):
        seen = await api.client.get("/view", params=query)
        assert (seen.status_code, seen.content) == (200, data), query
        assert (await api.client.get("/view", params=query, headers=bobs)).status_code == 404
    assert (await api.client.get("/internal/files/output", headers=bobs)).json() == []


async def test_an_upload_takes_no_outputs_name_unless_it_shall(api: Api) -> None:
    await made(api, b"saved", "x_00001_.png")
    assert await sent(api, b"other", "x_00001_.png", type="output") == "x_00001_ (1).png"
    assert await sent(api, b"saved", "x_00001_.png", type="output") == "x_00001_.png"
    assert await staged(api, "x_00001_.png [output]") == b"saved"
    assert await sent(api, b"mine", "x_00001_.png", type="output", overwrite="true") == "x_00001_.png"
    assert await staged(api, "x_00001_.png [output]") == b"mine"


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
    await api.deps.inventories.look()
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
