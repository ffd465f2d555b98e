"""Inputs that jobs read from stores: only where operators allow it, and with the limits of inputs by URL."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.outbound import OutboundAnswer
from comfy_fleet.services.store_inputs import StoreInputs
from tests.fleet import until
from tests.integration.api_kit import code
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.store_kit import Bucket, served_bucket
from tests.integration.test_input_urls import MANIFEST, PICTURE, graph, pixel, png, send
from tests.integration.test_people import OPS, bearer, call, keyed, new_key


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
async def world(redis_port: int, redis: Any, tmp_path: Path, bucket: Bucket) -> AsyncIterator[Sharing]:
    options = {"fetch_bytes": 100_000, "store_folders": str(tmp_path / "stores")}
    (tmp_path / "stores").mkdir()
    async with sharing(redis_port, tmp_path, "g1", manifest=MANIFEST, graph=PICTURE, api=options) as made:
        yield made


async def add(world: Sharing, record: dict[str, Any]) -> None:
    added = await world.client.post("/api/v1/stores", json=record)
    assert added.status_code == 201, added.text


async def test_graphs_parameters_and_batches_read_from_a_store(
    world: Sharing, bucket: Bucket, tmp_path: Path
) -> None:
    await add(world, bucket.record(inputs=True))
    folder = tmp_path / "stores" / "in"
    folder.mkdir()
    await add(world, {"name": "disk", "url": f"file://{folder}", "inputs": True})
    bucket.put("pictures/photos/red fox?.png", png(7))
    (folder / "a.png").write_bytes(png(11))

    job = await send(world, "s3://shop/photos/red fox?.png")
    done = await world.done(job)
    assert await pixel(world, done) == (7, 2, 3)
    shown = (await world.client.get(f"/api/v1/jobs/{job['id']}/workflow")).json()["workflow"]
    assert shown["0"]["inputs"]["image"] == "s3://shop/photos/red fox?.png"
    one = await world.done(await world.submit(params={"picture": "store://disk/a.png"}))
    assert await pixel(world, one) == (11, 2, 3)

    items = [{"custom_id": n, "params": {"picture": f"s3://shop/{n}.png"}} for n in ("there", "missing")]
    bucket.put("pictures/there.png", png(5))
    path = "/api/v1/workflows/noise/batches"
    batch = await world.client.post(path, json={"items": items})
    assert batch.status_code == 201, batch.text

    async def over() -> bool:
        found = await world.client.get(batch.json()["urls"]["self"])
        return bool(found.json()["status"] == "completed")

    await until(over, what="the batch has ended")
    found = (await world.client.get(batch.json()["urls"]["self"])).json()["items"]
    assert {one["custom_id"]: one["status"] for one in found} == {"there": "succeeded", "missing": "failed"}
    error = next(one["error"] for one in found if one["custom_id"] == "missing")
    assert error["code"] == "input_not_fetched" and "s3://shop/missing.png" in error["message"]


async def test_what_changed_is_read_again_and_what_did_not_is_not(world: Sharing, bucket: Bucket) -> None:
    await add(world, bucket.record(inputs=True))
    bucket.put("pictures/a.png", png(7))
    url = "s3://shop/a.png"
    assert await pixel(world, await world.done(await send(world, url))) == (7, 2, 3)

    async def stale() -> None:
        client: Any = world.fleet.stores.redis
        for key in [key async for key in client.scan_iter(match="fleet:fetched:*:fresh")]:
            await client.delete(key)

    await stale()
    assert await pixel(world, await world.done(await send(world, url))) == (7, 2, 3)
    bucket.put("pictures/a.png", png(9))
    await stale()
    assert await pixel(world, await world.done(await send(world, url))) == (9, 2, 3)


async def test_what_may_not_be_read_is_refused_by_its_field(
    world: Sharing, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(world, bucket.record(inputs=True))
    await add(world, bucket.record("outputs"))
    (tmp_path / "stores" / "in").mkdir()
    await add(world, {"name": "disk", "url": f"file://{tmp_path / 'stores' / 'in'}", "inputs": True})
    (tmp_path / "stores" / "secret.png").write_bytes(png(3))
    for url, why in (
        ("s3://outputs/a.png", "not for inputs"),
        ("s3://nowhere/a.png", "no store"),
        ("az://shop/a.png", "store://shop/"),
        ("s3://shop", "SCHEME://STORE/KEY"),
        ("s3://shop/", "SCHEME://STORE/KEY"),
        ("store://disk/../secret.png", "'..'"),
        ("s3://shop/a//b.png", "empty parts"),
        ("s3://shop/a\\b.png", "backslashes"),
        ("s3://shop/a\nb.png", "control"),
    ):
        answer = await world.client.post("/api/v2/jobs", json={"workflow": graph(url)})
        assert code(answer) == (422, "url_refused"), (url, answer.text)
        assert answer.json()["error"]["details"]["field"] == "workflow.0.inputs.image"
        assert why in answer.text, (url, answer.text)
    refused = await world.client.post(
        "/api/v1/workflows/noise/jobs", json={"params": {"picture": "s3://nowhere/a.png"}}
    )
    assert refused.json()["error"]["details"]["field"] == "params.picture"
    answer = await world.client.post("/api/v2/jobs", json={"workflow": graph("file:///etc/passwd")})
    assert answer.status_code == 422

    bucket.put("pictures/page.png", b"<!doctype html><html><body>x</body></html>")
    bucket.put("pictures/large.png", b"\x89PNG" + bytes(100_001))
    for name, why in (("page.png", "text/html"), ("large.png", "100000")):
        failed = await world.done(await send(world, f"s3://shop/{name}"), JobStatus.FAILED)
        assert why in failed["error"]["message"], failed["error"]
    (tmp_path / "stores" / "in" / "link.png").symlink_to(tmp_path / "stores" / "secret.png")
    await world.done(await send(world, "store://disk/link.png"), JobStatus.FAILED)

    # What is allowed no more when the job's turn comes is not read.
    bucket.put("pictures/late.png", png(1))
    gate, get = asyncio.Event(), StoreInputs.get

    @asynccontextmanager
    async def held(*args: Any, **more: Any) -> AsyncIterator[OutboundAnswer]:
        await gate.wait()
        async with get(*args, **more) as found:
            yield found

    monkeypatch.setattr(StoreInputs, "get", held)
    job = await send(world, "s3://shop/late.png")
    await add(world, bucket.record(inputs=False, replace=True))
    gate.set()
    failed = await world.done(job, JobStatus.FAILED)
    assert failed["error"]["code"] == "input_not_fetched" and "not for inputs" in failed["error"]["message"]


async def test_a_tenant_reads_from_its_own_stores_only(
    redis_port: int, redis: Redis, tmp_path: Path, bucket: Bucket
) -> None:
    async with keyed(redis_port, tmp_path) as api:
        await api.add_node()
        assert (await call(api, "POST", "tenants", {"name": "lab"})).status_code == 201
        ann = (await new_key(api, "ann", tenant="lab"))["key"]
        bob = (await new_key(api, "bob"))["key"]
        record = bucket.record(inputs=True, tenants=["lab"])
        added = await api.client.post("/api/v1/stores", json=record, headers=bearer(OPS))
        assert added.status_code == 201, added.text
        body = {"workflow": graph("s3://shop/a.png")}
        assert (await api.client.post("/api/v2/jobs", json=body, headers=bearer(ann))).status_code == 201
        other = await api.client.post("/api/v2/jobs", json=body, headers=bearer(bob))
        assert code(other) == (422, "url_refused") and "lab" not in other.text
