"""Outputs in stores: asked for by every face, put there once, told of, tried again."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from comfy_sdk import Comfy
from PIL import Image
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.redis.transfers import RedisTransfers
from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import Client as FleetCommand
from comfy_fleet.client import AsyncFleetClient
from comfy_fleet.domain.jobs.job import JobStatus, OutputKind
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services import transferrer
from comfy_fleet.services.picture_work import PictureWork
from comfy_fleet.services.transferrer import Transferrer
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.redis_kit import past_retention
from tests.integration.rq_kit import Client
from tests.integration.store_kit import SECRET, Bucket, served_bucket
from tests.integration.test_people import OPS, bearer, call, keyed, new_key
from tests.integration.webhook_kit import receiver

KEY = "products/{metadata.sku}/{index}.{ext}"


@pytest.fixture(scope="module")
def running_bucket() -> Iterator[Bucket]:
    with served_bucket() as found:
        yield found


@pytest.fixture
def bucket(running_bucket: Bucket) -> Bucket:
    running_bucket.start()
    running_bucket.empty()
    return running_bucket


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path, bucket: Bucket) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, webhook_allow="127.0.0.1") as made:
        await made.add_node()
        added = await made.client.post("/api/v1/stores", json=bucket.record())
        assert added.status_code == 201, added.text
        yield made


def png(color: str = "red", side: int = 16) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), color).save(written, "PNG")
    return written.getvalue()


async def made(api: Api, job_id: str, *pictures: bytes, **more: Any) -> None:
    """Let a job succeed with these pictures."""
    claim = await api.claim(job_id)
    for number, data in enumerate(pictures or (png(),), 1):
        await api.output(claim, data, name=f"out_{number:05}_.png", node=str(number + 1), **more)
    await api.finish(claim)


async def all_made(api: Api, ids: list[str]) -> None:
    """Let jobs succeed with a picture each, in whichever order they are to run."""
    left = set(ids)
    while left:
        jobs = [job for job in await api.stores.jobs.load(sorted(left)) if job is not None]
        found = await api.stores.runs.claim(
            node="g1",
            placements=list({job.placement.key: job.placement for job in jobs}.values()),
            run=str(uuid4()),
            token=str(uuid4()),
            dispatcher="d1",
            ttl_s=30,
        )
        assert isinstance(found, Claim), found
        await api.output(found, png())
        await api.finish(found)
        left.remove(found.job.id)


async def outputs(api: Api, job_id: str, **more: Any) -> list[dict[str, Any]]:
    answer = await api.client.get(f"/api/v2/jobs/{job_id}", **more)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["outputs"]
    return found


async def settled(api: Api, job_id: str, **more: Any) -> list[dict[str, Any]]:
    """Wait until nothing of a job waits for its store; return what has become of its outputs."""
    found: list[dict[str, Any]] = []

    async def over() -> bool:
        nonlocal found
        found = [one["stored"] for one in await outputs(api, job_id, **more) if one["stored"]]
        return bool(found) and all(one["state"] != "waiting" for one in found)

    await until(over, what="the store has it", timeout_s=60)
    return found


def lose(folder: Path, data: bytes) -> None:
    """Delete the file that has these bytes."""
    (path,) = (one for one in folder.rglob("*") if one.is_file() and one.read_bytes() == data)
    path.unlink()


def asked(**more: Any) -> dict[str, Any]:
    return {"metadata": {"sku": "A-1"}, "output": {"store": "shop", "key": KEY, **more}}


async def test_outputs_get_their_names_and_are_told_of(api: Api, bucket: Bucket) -> None:
    async with receiver() as hooks:
        body = asked(format="webp") | {"webhook_url": f"{hooks.url}/done"}
        job = await api.submit(GRAPH, **body)
        assert job["output"] == {"store": "shop", "key": KEY, "format": "webp", "on_conflict": "replace"}
        await made(api, job["id"], png("red"), png("blue"))
        first, second = await settled(api, job["id"])
        assert [first["key"], second["key"]] == ["products/A-1/1.webp", "products/A-1/2.webp"]
        assert sorted(bucket.names()) == [f"pictures/products/A-1/{n}.webp" for n in (1, 2)]
        there = bucket.read("pictures/products/A-1/1.webp")
        assert Image.open(io.BytesIO(there)).format == "WEBP"
        about = bucket.about("pictures/products/A-1/1.webp")
        assert (about["type"], about["fleetjob"]) == ("image/webp", job["id"])
        assert first["url"] == "s3://shop/pictures/products/A-1/1.webp"
        async with httpx.AsyncClient() as client:
            assert (await client.get(first["signed_url"])).content == there
        await until(lambda: len(hooks.taken) == 2, what="both ends are told")
        told = [one.message for one in hooks.taken]
        assert [one["type"] for one in told] == ["job.succeeded", "job.stored"]
        assert [one["stored"]["state"] for one in told[1]["data"]["outputs"]] == ["stored", "stored"]
        plain = await api.client.get(f"/api/v1/jobs/{job['id']}/outputs")
        assert plain.json()["outputs"][0]["stored"]["state"] == "stored"
        listed = (await api.client.get("/api/v2/jobs")).json()
        assert "A-1" in str(listed)
        assert not (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()["storing"]


async def test_downloads_are_sent_to_the_store_where_asked_and_never_to_another_object(
    api: Api, bucket: Bucket
) -> None:
    job = await api.submit(GRAPH, **asked())
    picture = png("red")
    await made(api, job["id"], picture)
    await settled(api, job["id"])
    (output,) = await outputs(api, job["id"])
    url = output["url"]
    key = "pictures/products/A-1/1.png"

    async def got(**query: Any) -> httpx.Response:
        return await api.client.get(url, params=query)

    assert (await got()).content == picture
    sent = await got(redirect="true")
    assert (sent.status_code, sent.headers["cache-control"]) == (302, "private, no-store")
    there = sent.headers["location"]
    assert there.startswith(f"{bucket.url}/shop/{key}?")
    assert 0 < int(httpx.URL(there).params["X-Amz-Expires"]) <= 300
    assert SECRET not in there
    async with httpx.AsyncClient() as client:
        assert (await client.get(there)).content == picture
        part = await client.get(there, headers={"Range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, picture[1:4])
    known = await api.client.get(url, params={"redirect": "true"}, headers={"If-None-Match": "*"})
    assert known.status_code == 304
    assert (await got(redirect="true", format="webp")).headers["content-type"] == "image/webp"
    assert (await got(redirect="perhaps")).status_code == 422
    view = {"filename": output["hash"], "redirect": "true"}
    assert (await api.client.get("/view", params=view)).status_code == 302

    changed = await api.client.post("/api/v1/stores", json=bucket.record(redirect=True, replace=True))
    assert changed.json()["redirect"] is True
    assert (await got()).status_code == 302
    assert (await api.client.head(url)).status_code == 302
    assert (await got(redirect="false")).content == picture
    assert (await api.client.get("/view", params={**view, "redirect": ""})).content == picture
    signed = (await api.client.get(f"/api/v2/jobs/{job['id']}?signed=60")).json()["outputs"][0]["url"]
    short = await api.client.get(signed)
    assert 0 < int(httpx.URL(short.headers["location"]).params["X-Amz-Expires"]) <= 60

    bucket.put(key, b"of somebody else")
    later = await api.client.post(
        "/api/v1/stores", json=bucket.record(redirect=True, replace=True, signed_s=90)
    )
    assert later.status_code == 201  # with another record, nothing is known of the object
    assert (await got()).content == (await got(redirect="true")).content == picture
    bucket.stop()
    assert (await got()).content == picture


async def test_clients_get_files_whatever_the_store_says_of_redirects(
    api: Api, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFY_BASE_URL", api.url)
    told = await api.client.post("/api/v1/stores", json=bucket.record(redirect=True, replace=True))
    assert told.status_code == 201
    job = await api.submit(GRAPH, **asked())
    await made(api, job["id"], png("red"))
    await settled(api, job["id"])
    (output,) = await outputs(api, job["id"])
    assert (await api.client.get(output["url"])).status_code == 302

    def by_command() -> bytes:
        with FleetCommand(api.url) as command:
            return b"".join(command.content(output["url"], restart=lambda: None))

    def by_sdk() -> bytes:
        with Comfy(api_key="any") as sdk:
            (found,) = sdk.jobs.get(job["id"]).outputs
            return found.to_bytes()

    assert await asyncio.to_thread(by_sdk) == png("red"), "it follows"
    bucket.stop()  # ours ask the fleet
    assert await asyncio.to_thread(by_command) == png("red")
    async with AsyncFleetClient(api.url) as client:
        assert await client.read(output["id"]) == png("red")
        file = await client.file(output["id"])
        assert (await client.save(file, tmp_path / "saved.png")).read_bytes() == png("red")


async def test_what_the_fleet_has_lost_is_given_by_the_store(
    api: Api, bucket: Bucket, tmp_path: Path
) -> None:
    job = await api.submit(GRAPH, **asked())
    await made(api, job["id"], png("red"))
    await settled(api, job["id"])
    (output,) = await outputs(api, job["id"])
    lose(tmp_path, png("red"))
    assert (await api.client.get(output["url"])).status_code == 302
    assert (await api.client.get(output["url"], params={"redirect": "false"})).status_code == 404
    bucket.empty()


async def test_objects_go_with_their_jobs_where_the_store_says_so_and_others_stay(
    api: Api, bucket: Bucket
) -> None:
    kept = await stored_as(api, "kept")
    told = await api.client.post("/api/v1/stores", json=bucket.record(on_delete="delete", replace=True))
    assert told.json()["on_delete"] == "delete"
    removed = await stored_as(api, "removed")
    over = await stored_as(api, "over")
    first = await stored_as(api, "twice")
    last = await stored_as(api, "twice")
    foreign = await stored_as(api, "foreign")
    bucket.put("pictures/foreign.png", b"of somebody else")
    await api.client.post("/api/v1/stores", json=bucket.record(replace=True))
    assert (await api.client.delete(f"/api/v1/jobs/{kept}")).status_code == 204
    await api.client.post("/api/v1/stores", json=bucket.record(on_delete="delete", replace=True))
    bucket.stop()
    for job_id in (removed, first, foreign):
        assert (await api.client.delete(f"/api/v1/jobs/{job_id}")).status_code == 204
    await past_retention(api.stores, over)
    await api.stores.runs.forget(over)
    await past_retention(api.stores, removed)
    await api.stores.runs.forget(removed)
    waiting: Any = api.stores.redis
    assert await waiting.zcard("fleet:transfers:erasures") == 4, "each waits once"
    bucket.start()

    async def all_done() -> bool:
        # What was tried in vain is due again after a minute: not here.
        for member in await waiting.zrange("fleet:transfers:erasures", 0, -1):
            await waiting.zadd("fleet:transfers:erasures", {member: 0}, xx=True)
        return not await waiting.exists("fleet:transfers:erasures")

    await until(all_done, what="nothing is to be deleted any more", timeout_s=60)
    assert sorted(bucket.names()) == [f"pictures/{name}.png" for name in ("foreign", "kept", "twice")]
    assert (await api.client.delete(f"/api/v1/jobs/{last}")).status_code == 204
    await until(all_done, what="the last writer's object is deleted", timeout_s=60)
    assert sorted(bucket.names()) == [f"pictures/{name}.png" for name in ("foreign", "kept")]


async def stored_as(api: Api, name: str) -> str:
    """Return a job whose picture is in the store under this name."""
    job = await api.submit(GRAPH, output={"store": "shop", "key": f"{name}.png"})
    await made(api, job["id"])
    assert [one["state"] for one in await settled(api, job["id"])] == ["stored"]
    return str(job["id"])


async def test_converted_outputs_are_never_given_by_the_store(api: Api) -> None:
    job = await api.submit(GRAPH, **asked(format="webp"))
    await made(api, job["id"], png("red"))
    await settled(api, job["id"])
    (output,) = await outputs(api, job["id"])
    found = await api.client.get(output["url"], params={"redirect": "true"})
    assert (found.status_code, found.content) == (200, png("red"))


async def test_what_is_not_to_be_shown_is_not_stored_and_equal_names_are_told_apart(
    api: Api, bucket: Bucket
) -> None:
    where = {"store": "shop", "key": "{metadata.sku}.{ext}"}
    job = await api.submit(GRAPH, metadata={"sku": "é"}, output=where)
    claim = await api.claim(job["id"])
    await api.output(claim, png("red"), name="a.png", node="2")
    await api.output(claim, b"preview", name="b.png", node="3", temporary=True)
    await api.output(claim, png("blue"), name="c.png", node="4")
    await api.output(claim, b"words", name="d.txt", node="5", content_type="text/plain", kind=OutputKind.TEXT)
    await api.finish(claim)
    await settled(api, job["id"])
    assert sorted(bucket.names()) == ["pictures/é-2.png", "pictures/é.png", "pictures/é.txt"]
    states = {one["name"]: one["stored"] and one["stored"]["key"] for one in await outputs(api, job["id"])}
    assert states == {"a.png": "é.png", "b.png": None, "c.png": "é-2.png", "d.txt": "é.txt"}


@pytest.mark.parametrize(
    ("output", "field", "words"),
    [
        ({"store": "nowhere"}, "output.store", "shop"),
        ({}, "output.store", "no default store"),
        ({"store": "shop", "key": "{metadata.color}"}, "output.key", "no 'color'"),
        ({"store": "shop", "key": "{metadata.path}"}, "output.key", "slashes"),
        ({"store": "shop", "key": "{metadata.dots}/x"}, "output.key", "dots"),
        ({"store": "shop", "key": "{metadata.empty}"}, "output.key", "empty"),
        ({"store": "shop", "key": "{params.seed}"}, "output.key", "parameters are"),
        ({"store": "shop", "key": "{custom_id}"}, "output.key", "batch"),
        ({"store": "shop", "key": "{workflow}"}, "output.key", "graph of its own"),
        ({"store": "shop", "key": "{secret}"}, "output.key", "{job_id}"),
        ({"store": "shop", "key": "../x"}, "output.key", ".."),
        ({"store": "shop", "key": "/x"}, "output.key", "slashes"),
        ({"store": "shop", "key": "a//b"}, "output.key", "slashes"),
        ({"store": "shop", "key": "a\nb"}, "output.key", "control"),
        ({"store": "shop", "key": "a{"}, "output.key", "single"),
        ({"store": "shop", "key": "{metadata.__class__}"}, "output.key", "no '__class__'"),
        ({"store": "shop", "key": "x" * 999 + "/{name}"}, "output.key", "characters"),
        ({"store": "shop", "key": ("y" * 200 + "/") * 4 + "{name}{name}"}, "output.key", "bytes"),
        ({"store": "shop", "format": "gif"}, "output.format", ""),
        ({"store": "shop", "on_conflict": "perhaps"}, "output.on_conflict", ""),
        ({"store": "shop", "width": 0}, "output.width", ""),
        ({"store": "shop", "credentials": "x"}, "output.credentials", "on_conflict"),
        ("shop", "output", "object"),
    ],
)
async def test_what_can_not_be_is_refused_by_its_field_at_the_submit(
    api: Api, output: Any, field: str, words: str
) -> None:
    metadata = {"sku": "a", "path": "../../etc", "dots": "..", "empty": " "}
    answer = await api.client.post(
        "/api/v2/jobs", json={"workflow": GRAPH, "metadata": metadata, "output": output}
    )
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["details"]["field"] == field
    assert words in error["message"]


async def test_every_face_takes_it(api: Api, bucket: Bucket, redis_port: int) -> None:
    where = {"store": "shop", "key": "faces/{params.prompt}-{metadata.face}.{ext}"}
    params, labels = {"prompt": "fox"}, {"metadata": {"face": "v1"}}
    ids = []

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await api.client.post(path, json=body)
        assert answer.status_code in (200, 201, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    body = {"params": params, "output": where, **labels}
    ids.append((await post("/api/v1/workflows/image_card/jobs", body))["id"])
    for path in ("/api/v1/generate", "/api/submit"):
        task = {"prompt": "fox", "output": where, "metadata": {"face": path.rpartition("/")[2]}}
        ids.append((await post(path, task))["task_id"])
    where = {"store": "shop", "key": "faces/{index}-{job_id}.{ext}"}
    native = await post("/prompt", {"prompt": picture(1), "extra_data": {"fleet": {"output": where}}})
    ids.append(native["prompt_id"])
    refused = await api.client.post(
        "/prompt", json={"prompt": picture(1), "extra_data": {"fleet": {"output": {"store": "nowhere"}}}}
    )
    assert refused.status_code in (400, 422) and "nowhere" in refused.text
    items = [{"custom_id": "one", "params": params, "output": {"key": "faces/{custom_id}.{ext}"}}]
    batch = await post(
        "/api/v1/workflows/image_card/batches", {"items": items, "defaults": {"output": {"store": "shop"}}}
    )
    table = "custom_id,prompt,output.store,output.key\ntwo,fox,shop,faces/{custom_id}.{ext}\n"
    lines = await api.client.post(
        "/api/v1/workflows/image_card/batches", content=table, headers={"content-type": "text/csv"}
    )
    assert lines.status_code == 201, lines.text
    wrong = await api.client.post(
        "/api/v1/workflows/image_card/batches",
        json={"items": [{"custom_id": "x", "params": params, "output": {"store": "none"}}]},
    )
    assert wrong.status_code == 422 and "output.store" in wrong.text
    rq = await Client(redis_port).run(
        {"workflow": "image_card", "params": params, "output": {"store": "shop", "key": "faces/rq.{ext}"}}
    )
    assert rq.id

    async def all_queued() -> bool:
        return await api.stores.jobs.depth() == 7

    await until(all_queued, what="all are queued", timeout_s=60)
    page = (await api.client.get("/api/v2/jobs")).json()
    names = [one["id"] for one in page.get("jobs") or page["data"]]
    await all_made(api, names)
    for job_id in names:
        await settled(api, job_id)
    names = [f"fox-{face}.png" for face in ("v1", "generate", "submit")]
    names += [f"1-{ids[-1]}.png", "one.png", "two.png", "rq.png"]
    assert sorted(bucket.names()) == sorted(f"pictures/faces/{name}" for name in names)
    shown = (await api.client.get(f"/api/v1/batches/{batch['id']}")).json()
    assert shown["items"][0]["outputs"][0]["stored"]["key"] == "faces/one.png"


async def test_a_conflict_is_told_and_the_job_has_succeeded(api: Api, bucket: Bucket) -> None:
    bucket.put("pictures/products/A-1/1.png", b"somebody else's")
    job = await api.submit(GRAPH, **asked(on_conflict="fail"))
    await made(api, job["id"])
    (found,) = await settled(api, job["id"])
    assert found["state"] == "failed" and "another object" in found["error"]
    assert bucket.read("pictures/products/A-1/1.png") == b"somebody else's"
    shown = (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["storing"]) == ("succeeded", False)
    assert (await api.client.get(shown["outputs"][0]["url"])).content == png()
    stores = (await api.client.get("/api/v1/stores")).json()["stores"]
    assert stores[0]["not_stored"] == 1
    bucket.empty()
    again = await api.client.post(f"/api/v1/jobs/{job['id']}/store")
    assert again.status_code == 200, again.text
    (found,) = await settled(api, job["id"])
    assert found["state"] == "stored"
    assert (await api.client.post(f"/api/v1/jobs/{job['id']}/store")).status_code == 409
    second = await api.submit(picture(2), **asked(on_conflict="fail"))
    await made(api, second["id"])
    assert (await settled(api, second["id"]))[0]["state"] == "failed"
    bucket.empty()
    assert (await api.client.post("/api/v1/stores/shop/retry")).json() == {"jobs": 1}
    assert (await settled(api, second["id"]))[0]["state"] == "stored"


async def test_what_can_not_be_converted_is_told(api: Api, bucket: Bucket) -> None:
    job = await api.submit(GRAPH, **asked(format="webp"))
    await made(api, job["id"], b"no picture at all")
    (found,) = await settled(api, job["id"])
    assert found["state"] == "failed" and found["error"]
    assert bucket.names() == []


async def test_a_store_that_is_away_gets_everything_once_it_is_back(
    api: Api, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.stop()
    jobs = [await api.submit(picture(color), **asked(key=f"away/{color}.{{ext}}")) for color in range(6)]
    for job in jobs:
        await made(api, job["id"])

    async def failing() -> bool:
        (store,) = (await api.client.get("/api/v1/stores")).json()["stores"]
        return bool(store["error"]) and store["waiting"] == 6

    await until(failing, what="the store is missed", timeout_s=60)
    found = await outputs(api, jobs[0]["id"])
    assert found[0]["stored"]["state"] == "waiting"
    assert (await api.client.get(found[0]["url"])).content == png(), "the fleet has it meanwhile"
    assert (await api.client.get(f"/api/v1/jobs/{jobs[0]['id']}")).json()["storing"]
    await past_retention_in_vain(api, jobs[0]["id"])
    removed = await api.client.delete("/api/v1/stores/shop")
    assert removed.status_code == 409 and "wait for it" in removed.text
    assert (await api.client.delete(f"/api/v1/jobs/{jobs[5]['id']}")).status_code == 204
    looks = sum("output not stored" in one.message for one in caplog.records)
    assert looks <= 10, "one look at it decides for all"
    bucket.start()
    for job in jobs[:5]:
        assert [one["state"] for one in await settled(api, job["id"])] == ["stored"]
    left = [f"pictures/away/{color}.png" for color in range(5)]  # one is deleted
    await until(lambda: sorted(bucket.names()) == left, what="only what has a job is there", timeout_s=60)
    (store,) = (await api.client.get("/api/v1/stores")).json()["stores"]
    assert (store["waiting"], store["waiting_bytes"], store["error"]) == (0, 0, None)


async def test_the_command_line_shows_what_waits_and_gives_it_up_if_it_must(api: Api, bucket: Bucket) -> None:
    async def fleet(*words: str) -> tuple[int, str]:
        app, line = build([words[0]]), [*words, "--api", api.url]
        told = await asyncio.to_thread(CliRunner().invoke, app, line, env={"COLUMNS": "300"})
        return told.exit_code, told.output + str(told.exception or "")

    bucket.stop()
    job = await api.submit(GRAPH, **asked(key="given-up.png"))
    await made(api, job["id"])
    done, shown = await fleet("job", "show", job["id"])
    assert done == 0 and "given-up.png" in shown and "waiting" in shown, shown
    shown = (await fleet("job", "show", job["id"], "--timeline"))[1]
    assert "shop: 1 output" in shown and "1 outputs" not in shown, shown
    assert "wait for it" in (await fleet("store", "rm", "shop"))[1]
    assert (await api.client.get("/api/v1/stores/shop")).status_code == 200
    done, told = await fleet("store", "rm", "shop", "--force")
    assert done == 0, told
    (found,) = await settled(api, job["id"])
    assert found["state"] == "failed"
    assert found["error"] in (await fleet("job", "show", job["id"]))[1]


async def past_retention_in_vain(api: Api, job_id: str) -> None:
    with pytest.raises(AssertionError):
        await past_retention(api.stores, job_id)


async def test_too_much_that_waits_is_refused_with_the_reason(
    redis_port: int, redis: Redis, tmp_path: Path, bucket: Bucket
) -> None:
    async with running(redis_port, tmp_path, spool_bytes=100) as api:
        await api.add_node()
        assert (await api.client.post("/api/v1/stores", json=bucket.record())).status_code == 201
        bucket.stop()
        job = await api.submit(GRAPH, **asked())
        await made(api, job["id"], png(side=200))

        async def missed() -> bool:
            answer = await api.client.post("/api/v2/jobs", json={"workflow": picture(3), **asked()})
            assert answer.status_code in (201, 503)
            error = answer.json().get("error") or {}
            return "FLEET_SPOOL_BYTES" in error.get("message", "") and "shop" in error["message"]

        await until(missed, what="the spool is full", timeout_s=60)
        plain = await api.client.post("/api/v2/jobs", json={"workflow": picture(4)})
        assert plain.status_code == 201, "what goes to no store is taken"
        bucket.start()
        await settled(api, job["id"])
        assert (await api.client.post("/api/v2/jobs", json={"workflow": picture(5), **asked()})).is_success


async def test_a_store_that_stays_away_is_given_up_in_the_end(
    redis_port: int, redis: Redis, tmp_path: Path, bucket: Bucket
) -> None:
    async with running(redis_port, tmp_path, store_patience_s=1.5, webhook_allow="127.0.0.1") as api:
        await api.add_node()
        assert (await api.client.post("/api/v1/stores", json=bucket.record())).status_code == 201
        bucket.stop()
        async with receiver() as hooks:
            job = await api.submit(GRAPH, **asked(), webhook_url=hooks.url, webhook_events=["job.stored"])
            await made(api, job["id"])
            (found,) = await settled(api, job["id"])
            assert found["state"] == "failed" and "shop" in found["error"]
            await until(lambda: len(hooks.taken) == 1, what="it is told")
            told = hooks.taken[0].message
            assert told["type"] == "job.stored"
            assert told["data"]["outputs"][0]["stored"]["state"] == "failed"


async def test_tenants_use_their_stores_and_have_a_default(
    redis_port: int, redis: Redis, tmp_path: Path, bucket: Bucket
) -> None:
    async with keyed(redis_port, tmp_path) as api:
        await api.add_node()
        await call(api, "POST", "tenants", {"name": "studio"})
        shop = bucket.record(tenants=["studio"], default_for=["studio"])
        assert (await call(api, "POST", "stores", shop)).status_code == 201
        ada, bob = (await new_key(api, "ada", tenant="studio"))["key"], (await new_key(api, "bob"))["key"]
        refused = await api.client.post(
            "/api/v2/jobs", json={"workflow": GRAPH, "output": {"store": "shop"}}, headers=bearer(bob)
        )
        assert refused.status_code == 422 and refused.json()["error"]["details"]["field"] == "output.store"
        ids = []
        asks: list[dict[str, Any]] = [{}, {"output": {}}, {"output": {"key": "own/{date}.{ext}"}}]
        for more in asks:
            body: dict[str, Any] = {"workflow": GRAPH, **more}
            answer = await api.client.post("/api/v2/jobs", json=body, headers=bearer(ada))
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["id"])
        plain = await api.client.post("/api/v2/jobs", json={"workflow": picture(1)}, headers=bearer(bob))
        assert plain.json()["output"] is None
        page = await api.client.get("/api/v2/jobs", headers=bearer(OPS))
        assert page.status_code == 200
        await all_made(api, [*ids, plain.json()["id"]])
        for job_id in ids:
            await settled(api, job_id, headers=bearer(ada))
        names = {key.removeprefix("pictures/") for key in bucket.names()}
        day = (await api.client.get(f"/api/v2/jobs/{ids[2]}", headers=bearer(ada))).json()["created_at"][:10]
        assert names == {f"{ids[0]}/1-out_00001_.png", f"{ids[1]}/1-out_00001_.png", f"own/{day}.png"}
        again = await api.client.post(f"/api/v1/jobs/{ids[2]}/store", headers=bearer(bob))
        assert again.status_code == 404, "it is somebody else's"
        retried = await api.client.post(f"/api/v1/jobs/{ids[2]}/retry", headers=bearer(ada))
        assert retried.status_code == 201, retried.text
        assert retried.json()["output"]["key"] == "own/{date}.{ext}"
        (there,) = await outputs(api, ids[2], headers=bearer(ada))
        content = f"/api/v2/assets/{there['id']}/content?redirect=true"
        assert (await api.client.get(content, headers=bearer(ada))).status_code == 302
        changed = {**bucket.record(tenants=["default"]), "replace": True}
        assert (await call(api, "POST", "stores", changed)).status_code == 201
        await all_made(api, [retried.json()["id"]])
        (found,) = await settled(api, retried.json()["id"], headers=bearer(ada))
        assert found["state"] == "failed" and "may not use store shop any more" in found["error"]
        before = [one["stored"] for one in await outputs(api, ids[2], headers=bearer(ada))]
        assert [(one["state"], one["signed_url"]) for one in before] == [("stored", None)]
        assert (await api.client.get(content, headers=bearer(ada))).status_code == 200


async def test_what_the_fleet_can_not_do_ends_all_the_same(
    api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(transferrer, "ALONE_S", (0.1,))
    monkeypatch.setattr(PictureWork, "rendered", broken)
    job, plain = await api.submit(GRAPH, **asked(format="webp")), await api.submit(picture(2), **asked())
    await all_made(api, [job["id"], plain["id"]])
    (found,) = await settled(api, job["id"])
    assert found["state"] == "failed" and "see its log" in found["error"]
    (found,) = await settled(api, plain["id"])
    assert found["state"] == "stored", "its store is well"


async def test_who_dies_between_two_steps_leaves_each_output_stored_once(api: Api, bucket: Bucket) -> None:
    """The put, the note and the end are cut off one after the other; on_conflict is fail all the time."""
    deps: Any = api.deps
    others = [run for run in deps.background if getattr(run, "__self__", None).__class__ is Transferrer]
    parts = vars(others[0].__self__)
    real = parts["_transfers"]
    died: list[str] = []

    class Dies(RedisTransfers):
        def __init__(self) -> None:
            self.__dict__ |= real.__dict__

        async def note(self, one: Any, stored: Any, *, lease_s: float) -> bool:
            if stored and "put" not in died:
                died.append("put")
                raise asyncio.CancelledError
            return await super().note(one, stored, lease_s=lease_s)

        async def end(self, one: Any) -> None:
            if "noted" not in died:
                died.append("noted")
                raise asyncio.CancelledError
            await super().end(one)

    parts["_limits"] = replace(parts["_limits"], lease_s=1.0)
    parts["_transfers"] = Dies()
    job = await api.submit(GRAPH, **asked(on_conflict="fail"))
    await made(api, job["id"], png("red"), png("blue"))
    found = await settled(api, job["id"])
    assert [one["state"] for one in found] == ["stored", "stored"]

    async def over() -> bool:
        return not (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()["storing"]

    await until(over, what="it has ended", timeout_s=60)
    assert died == ["put", "noted"]
    assert len(bucket.names()) == 2


async def test_a_job_that_an_earlier_version_has_ended_is_stored(api: Api, bucket: Bucket) -> None:
    job = await api.submit(GRAPH, **asked())
    claim = await api.claim(job["id"])
    await api.output(claim, png())
    client: Any = api.stores.redis
    plan = await client.hget(f"fleet:job:{job['id']}", "output")
    await client.hdel(f"fleet:job:{job['id']}", "output")  # as it looks to a version that knows of no stores
    await api.finish(claim)
    await client.hset(f"fleet:job:{job['id']}", "output", plan)
    await client.zadd("fleet:transfers:jobs", {job["id"]: 0})
    assert await RedisTransfers(api.stores.redis, api.stores.events).tend() == 1
    assert (await settled(api, job["id"]))[0]["state"] == "stored"


async def test_jobs_that_get_an_equal_ones_result_have_objects_of_their_own(api: Api, bucket: Bucket) -> None:
    body = {"params": {"prompt": "fox", "seed": 7}, "output": {"store": "shop", "key": "{job_id}.{ext}"}}
    first = (await api.client.post("/api/v1/workflows/image_card/jobs", json=body)).json()["id"]
    await made(api, first)
    second = (await api.client.post("/api/v1/workflows/image_card/jobs", json=body)).json()
    if not second["cached"]:
        await made(api, second["id"])
    for one in (first, second["id"]):
        assert (await settled(api, one))[0]["state"] == "stored"
    assert sorted(bucket.names()) == sorted(f"pictures/{one}.png" for one in (first, second["id"]))


async def test_a_job_that_fails_has_nothing_in_its_store(api: Api, bucket: Bucket) -> None:
    job = await api.submit(GRAPH, **asked())
    claim = await api.claim(job["id"])
    await api.output(claim, png())
    await api.finish(claim, JobStatus.FAILED)
    shown = (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["storing"]) == ("failed", False)
    assert [one["stored"] for one in shown["outputs"]] == [None]
    client: Any = api.stores.redis
    assert not await client.exists("fleet:transfers:jobs", "fleet:transfers", "fleet:transfers:bytes")
    assert bucket.names() == []
