"""Stores: who names them, what is told of them, and what they refuse, with a real server of S3's protocol."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.objects.obstore_objects import ObstoreObjects
from comfy_fleet.cli.app import build
from comfy_fleet.domain.errors import ObjectError, ObjectTaken
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.ports.stores import ObjectSource
from tests.integration.api_kit import Api, code
from tests.integration.store_kit import ACCESS, SECRET, Bucket, served_bucket
from tests.integration.test_people import OPS, call, keyed, new_key


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with served_bucket() as found:
        yield found


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "allowed").mkdir()
    async with keyed(redis_port, tmp_path, store_folders=str(tmp_path / "allowed")) as started:
        yield started


async def test_a_store_is_tried_before_it_is_kept_and_its_secret_is_told_to_nobody(
    api: Api, bucket: Bucket, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.empty()
    made = await call(api, "POST", "stores", bucket.record(tenants=["default"], default_for=["default"]))
    assert made.status_code == 201, made.text
    assert made.json()["credentials"] is True
    assert bucket.names() == [], "what it was tried with is gone"
    shown = await call(api, "GET", "stores/shop")
    listed = await call(api, "GET", "stores")
    trail = await call(api, "GET", "audit")
    assert "store.added" in trail.text
    client: Any = redis
    record = await client.hget("fleet:stores", "shop")
    for text in (made.text, shown.text, listed.text, trail.text, caplog.text, record.decode()):
        assert SECRET not in text and ACCESS not in text
    tried = await call(api, "POST", "stores/shop/test")
    assert tried.json() == {"name": "shop", "ok": True, "error": None}
    again = await call(api, "POST", "stores", bucket.record())
    assert code(again) == (409, "conflict")
    other = await call(api, "POST", "stores", bucket.record("other", default_for=["default"]))
    assert other.status_code == 409 and "shop" in other.text
    changed = await call(
        api, "POST", "stores", {**bucket.record(), "credentials": None, "replace": True, "inputs": True}
    )
    assert changed.status_code == 201 and changed.json()["inputs"] and changed.json()["credentials"]
    moved = {**bucket.record(), "credentials": None, "replace": True, "endpoint": "http://127.0.0.1:9"}
    refused = await call(api, "POST", "stores", moved)
    assert refused.status_code == 400 and "credentials" in refused.text, "no endpoint gets the old ones"
    assert (await call(api, "DELETE", "stores/shop")).status_code == 204
    assert code(await call(api, "GET", "stores/shop")) == (404, "not_found")


async def test_a_store_that_does_not_take_an_object_is_not_kept(api: Api, bucket: Bucket) -> None:
    away = {**bucket.record(), "endpoint": "http://127.0.0.1:9"}
    answer = await call(api, "POST", "stores", away)
    assert code(answer) == (502, "store_failed") and SECRET not in answer.text
    assert "store shop: nothing listens at its endpoint" in answer.text
    unknown = await call(api, "POST", "stores", {**away, "endpoint": "http://no-such-host.invalid"})
    assert "name of its endpoint's host is not known here" in unknown.text
    plain = await call(api, "POST", "stores", {**away, "endpoint": bucket.url.replace("http:", "https:")})
    assert "does not speak TLS" in plain.text
    missing = await call(api, "POST", "stores", {**bucket.record(), "url": "s3://no-such-bucket"})
    assert missing.status_code == 502 and "NoSuchBucket" in missing.text
    assert (await call(api, "GET", "stores")).json() == {"stores": []}
    assert (await call(api, "POST", "stores", {**away, "probe": False})).status_code == 201
    tried = (await call(api, "POST", "stores/shop/test")).json()
    assert not tried["ok"] and tried["error"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"url": "http://127.0.0.1/x"}, "url"),
        ({"url": "s3://user:secret@shop/x"}, "url"),
        ({"url": "s3://shop/../other"}, "url"),
        ({"url": "s3://shop/x?versionId=1"}, "url"),
        ({"url": "file://host/x"}, "url"),
        ({"url": "az://shop/x"}, "account"),
        ({"endpoint": "https://a:b@host"}, "endpoint"),
        ({"endpoint": "ftp://host"}, "endpoint"),
        ({"public_url": "javascript:alert(1)"}, "public_url"),
        ({"signed_s": 1e9}, "signed_s"),
        ({"credentials": {"access_key_id": "only"}}, "credentials"),
        ({"credentials": {"password": "hunter2hunter2"}}, "credentials"),
        ({"tenants": ["a"], "default_for": ["default"]}, "tenant"),
        ({"tenants": ["nobody-knows-it"]}, "tenant"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_what_is_no_store_is_refused_by_its_field(
    api: Api, bucket: Bucket, wrong: dict[str, Any], field: str
) -> None:
    answer = await call(api, "POST", "stores", {**bucket.record(), **wrong})
    assert answer.status_code in (400, 404, 422), answer.text
    assert field in answer.json()["error"]["details"] or field in str(answer.json()["error"]["details"])
    assert "hunter2" not in answer.text


async def test_a_folder_is_a_store_only_where_operators_of_the_machine_allow_it(
    api: Api, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "allowed" / "shop", tmp_path / "elsewhere"
    made = await call(api, "POST", "stores", {"name": "disk", "url": f"file://{inside}"})
    assert made.status_code == 201, made.text
    assert list(inside.iterdir()) == []
    outside.mkdir()
    (tmp_path / "allowed" / "link").symlink_to(outside)
    for folder in (outside, tmp_path / "allowed" / "link", Path("/etc")):
        answer = await call(api, "POST", "stores", {"name": "other", "url": f"file://{folder}"})
        assert answer.status_code == 502 and "FLEET_STORE_FOLDERS" in answer.text
    (inside / "way-out").symlink_to(outside)
    store = NamedStore(name="disk", url=f"file://{inside}")
    objects = ObstoreObjects(bytes, folders=(tmp_path / "allowed",))
    with pytest.raises(ObjectError, match="out of its folder"):
        await objects.put(store, "way-out/a.png", source(tmp_path, b"a"), replace=True)
    with pytest.raises(ObjectError):
        await objects.put(store, "../a.png", source(tmp_path, b"a"), replace=True)
    assert list(outside.iterdir()) == []


async def test_only_operators_see_and_change_stores(api: Api, bucket: Bucket) -> None:
    ada = (await new_key(api, "ada", "artist"))["key"]
    await call(api, "POST", "stores", bucket.record())
    for method, path in (
        ("GET", "stores"),
        ("POST", "stores"),
        ("GET", "stores/shop"),
        ("POST", "stores/shop/test"),
        ("DELETE", "stores/shop"),
    ):
        assert (await call(api, method, path, bucket.record("x"), key=ada)).status_code == 403, path
    assert (await api.client.get("/api/v1/stores")).status_code == 401


async def test_the_command_line_takes_secrets_from_elsewhere_than_its_arguments(
    api: Api, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)

    async def fleet(*words: str, given: str | None = None) -> tuple[int, str]:
        import asyncio

        app, line = build(["store"]), ["store", *words, "--api", api.url, "--key", OPS]
        told = await asyncio.to_thread(CliRunner().invoke, app, line, given)
        return told.exit_code, told.output + str(told.exception or "")

    url, where = f"s3://{bucket.name}/x", ("--endpoint", bucket.url)
    lines = f"# of the shop\naccess_key_id={ACCESS}\nsecret_access_key={SECRET}\n"
    done, output = await fleet("add", "one", url, *where, "--secrets", "-", given=lines)
    assert done == 0 and SECRET not in output, output
    (tmp_path / "secrets").write_text(lines)
    assert (await fleet("add", "two", url, *where, "--secrets", str(tmp_path / "secrets")))[0] == 0
    assert "AWS_ACCESS_KEY_ID" in (await fleet("add", "three", url, *where, "--secrets", "env"))[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert (await fleet("add", "three", url, *where, "--secrets", "env", "--default-for", "default"))[0] == 0
    done, output = await fleet("ls")
    assert done == 0 and all(one in output for one in ("one", "two", "three", url))
    assert "takes objects" in (await fleet("test", "two"))[1]
    done, output = await fleet("show", "three")
    assert done == 0 and "kept, encrypted" in output and SECRET not in output
    assert (await fleet("rm", "three"))[0] == 0
    assert "no store" in (await fleet("show", "three"))[1]


# -- what is done with objects -----------------------------------------------------


def source(folder: Path, data: bytes, **metadata: str) -> ObjectSource:
    path = folder / "source"
    path.write_bytes(data)
    return ObjectSource(content=path, size=len(data), content_type="image/webp", metadata=metadata)


@pytest.fixture(params=["s3", "file"])
def objects(
    request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path
) -> tuple[ObstoreObjects, NamedStore]:
    bucket.empty()
    if request.param == "file":
        store = NamedStore(name="disk", url=f"file://{tmp_path}/allowed")
        return ObstoreObjects(bytes, folders=(tmp_path,)), store
    secrets = f'{{"access_key_id":"{ACCESS}","secret_access_key":"{SECRET}"}}'.encode()
    store = NamedStore(name="shop", url="s3://shop/pictures", endpoint=bucket.url, sealed="x")
    return ObstoreObjects(lambda sealed: secrets), store


async def test_an_object_of_others_is_not_replaced_and_ones_own_counts_as_written(
    objects: tuple[ObstoreObjects, NamedStore], tmp_path: Path
) -> None:
    asked, store = objects
    for size in (10, 17 * 2**20):  # the second one goes in parts
        key = f"a b/ü-{size}.webp"
        first = source(tmp_path, b"a" * size, **{"fleet-job": "1"})
        await asked.put(store, key, first, replace=False)
        await asked.put(store, key, first, replace=False)
        for other in (source(tmp_path, b"b" * size, **{"fleet-job": "2"}), source(tmp_path, b"bb")):
            with pytest.raises(ObjectTaken, match="another object"):
                await asked.put(store, key, other, replace=False)
        await asked.put(store, key, source(tmp_path, b"b" * size, **{"fleet-job": "2"}), replace=True)
        await asked.put(store, key, source(tmp_path, b"b" * size, **{"fleet-job": "2"}), replace=False)
        await asked.delete(store, key)
        await asked.delete(store, key)
        await asked.probe(store, write=False)


async def test_a_name_that_a_store_can_not_have_is_no_fault_of_the_stores(tmp_path: Path) -> None:
    store = NamedStore(name="disk", url=f"file://{tmp_path}/allowed")
    asked = ObstoreObjects(bytes, folders=(tmp_path,))
    await asked.put(store, "a.png", source(tmp_path, b"a"), replace=True)
    await asked.put(store, "folder/b.png", source(tmp_path, b"b"), replace=True)
    for key in ("a.png#1", "n" * 300, "a.png/b.png", "folder"):
        for replaces in (True, False):
            with pytest.raises(ObjectError) as error:
                await asked.put(store, key, source(tmp_path, b"c"), replace=replaces)
            assert error.value.alone, key
    (tmp_path / "allowed").chmod(0o500)
    try:
        if not os.access(tmp_path / "allowed", os.W_OK):  # root may write everywhere
            with pytest.raises(ObjectError) as error:
                await asked.put(store, "c.png", source(tmp_path, b"c"), replace=True)
            assert not error.value.alone
    finally:
        (tmp_path / "allowed").chmod(0o700)
    shutil.rmtree(tmp_path / "allowed")
    (tmp_path / "allowed").write_bytes(b"no folder")
    with pytest.raises(ObjectError) as error:
        await asked.put(store, "c.png", source(tmp_path, b"c"), replace=True)
    assert not error.value.alone


async def test_urls_are_signed_for_reading_alone(
    bucket: Bucket, objects: tuple[ObstoreObjects, NamedStore], tmp_path: Path
) -> None:
    import httpx

    asked, store = objects
    await asked.put(store, "a/1 ü.webp", source(tmp_path, b"picture"), replace=True)
    url = await asked.signed_url(store, "a/1 ü.webp")
    if url is None:
        assert not store.signs
        return
    assert SECRET not in url
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
        assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/webp")
    assert store.url_of("a/1 ü.webp") == "s3://shop/pictures/a/1%20%C3%BC.webp"
