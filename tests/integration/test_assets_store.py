"""The asset store on a real Redis and a real folder."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from blake3 import blake3

from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.errors import (
    AssetInUse,
    BlobNotFound,
    HashMismatch,
    LeaseLost,
    MissingAsset,
    NotFound,
)
from comfy_fleet.domain.jobs.asset import Asset
from tests.assets_kit import add_output, assets_on, begun, content_of

JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    async def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis: FleetRedis, tmp_path: Path, clock: Clock) -> RedisAssets:
    return assets_on(redis, tmp_path, clock=clock)


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def files(root: Path) -> list[Path]:
    return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file() and p.name != "records")


async def put(
    store: RedisAssets,
    data: bytes,
    owner: str = "ann",
    name: str = "a.png",
    *,
    expected_hash: str | None = None,
    tags: tuple[str, ...] = (),
    expires_in_s: float | None = None,
) -> tuple[Asset, bool]:
    return await store.upload(
        owner=owner,
        chunks=chunks(data),
        content_type="image/png",
        file_path=name,
        expected_hash=expected_hash,
        tags=tags,
        expires_in_s=expires_in_s,
    )


async def test_upload_is_hashed_and_read_back(store: RedisAssets, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than one buffer
    asset, fresh = await put(store, data, tags=("input",), expires_in_s=60)
    assert fresh
    assert asset.hash == f"blake3:{blake3(data).hexdigest()}"
    assert asset.size_bytes == len(data)
    assert await content_of(store, asset) == data
    assert await store.get(asset.id) == asset
    assert files(tmp_path) == [Path(asset.path)]


async def test_same_bytes_are_one_file_and_two_records(store: RedisAssets, tmp_path: Path) -> None:
    one, fresh_one = await put(store, b"x")
    two, fresh_two = await put(store, b"x")
    other, fresh_other = await put(store, b"x", owner="bob")
    assert (fresh_one, fresh_two, fresh_other) == (True, False, True)  # bob must not learn that ann has it
    assert len({one.id, two.id, other.id}) == 3
    assert len(files(tmp_path)) == 1
    await store.delete(owner="ann", asset_id=one.id)
    await store.delete(owner="bob", asset_id=other.id)
    assert await content_of(store, two) == b"x"
    await store.delete(owner="ann", asset_id=two.id)
    with pytest.raises(NotFound):
        await store.delete(owner="ann", asset_id=two.id)


async def test_wrong_hash_keeps_nothing(store: RedisAssets, tmp_path: Path, redis: FleetRedis) -> None:
    with pytest.raises(HashMismatch):
        await put(store, b"x", expected_hash="blake3:" + "0" * 64)
    assert files(tmp_path) == []
    assert await redis.keys("*") == []


async def test_broken_upload_keeps_nothing(store: RedisAssets, tmp_path: Path, redis: FleetRedis) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.upload(owner="ann", chunks=broken(), content_type="a/b", file_path="f")
    assert files(tmp_path) == []
    assert await redis.keys("*") == []


async def test_an_upload_is_on_the_disk_before_it_has_a_record_and_an_output_is_not_waited_for(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[object] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(files(path) if path.is_dir() else path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    asset, _ = await put(store, b"an upload")
    name = Path(Path(asset.path).name)
    assert synced == [b"an upload", [name]], "its bytes, then its name"
    again, _ = await put(store, b"an upload")
    assert again.path == asset.path and synced[-1] == [name], "the name of those that took its place"
    synced.clear()
    await add(redis, store, JOB, b"an output")
    assert synced == []


async def test_from_hash_is_the_owners_only(store: RedisAssets) -> None:
    asset, _ = await put(store, b"x")
    assert await store.has_hash(owner="ann", hash_=asset.hash)
    assert not await store.has_hash(owner="bob", hash_=asset.hash)
    with pytest.raises(BlobNotFound):
        await store.from_hash(owner="bob", hash_=asset.hash, file_path="b.png")
    same, fresh = await store.from_hash(owner="ann", hash_=asset.hash, file_path="a.png")
    assert (same.id, fresh) == (asset.id, False)
    other, fresh = await store.from_hash(owner="ann", hash_=asset.hash, file_path="b.png", tags=("t",))
    assert (other.file_path, other.size_bytes, other.tags, fresh) == ("b.png", 1, ("t",), True)
    assert other.id != asset.id


async def test_from_hash_extends_retention_and_never_shortens(store: RedisAssets, clock: Clock) -> None:
    asset, _ = await put(store, b"x", expires_in_s=100)
    longer, _ = await store.from_hash(owner="ann", hash_=asset.hash, file_path="a.png", expires_in_s=500)
    assert longer.expires_at == clock.now + 500
    same, _ = await store.from_hash(owner="ann", hash_=asset.hash, file_path="a.png", expires_in_s=60)
    assert same.expires_at == clock.now + 500
    clock.now += 400
    assert await store.sweep() == 0
    clock.now += 101
    assert await store.sweep() == 1
    assert await store.get(asset.id) is None


async def test_an_upload_without_an_end_gets_the_fleets(
    redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    store = assets_on(redis, tmp_path, clock=clock, retention_s=1000)
    ours, _ = await put(store, b"x")
    theirs, _ = await put(store, b"y", name="b.png", expires_in_s=100)
    assert (ours.expires_at, ours.renews) == (clock.now + 1000, True)
    assert (theirs.expires_at, theirs.renews) == (clock.now + 100, False)
    assert await store.get(ours.id) == ours
    clock.now += 500
    again, fresh = await store.from_hash(owner="ann", hash_=ours.hash, file_path="a.png")
    assert (again.id, again.expires_at, fresh) == (ours.id, clock.now + 1000, False)
    assert await store.sweep() == 1  # theirs
    clock.now += 999
    assert await store.sweep() == 0
    clock.now += 2
    assert await store.sweep() == 1
    clock.now += 3601
    assert await store.sweep() == 0
    assert files(tmp_path) == []


async def test_asking_for_the_bytes_again_makes_a_clients_end_the_fleets(
    redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    store = assets_on(redis, tmp_path, clock=clock, retention_s=1000)
    asset, _ = await put(store, b"x", expires_in_s=100)
    again, _ = await store.from_hash(owner="ann", hash_=asset.hash, file_path="a.png")
    assert (again.id, again.expires_at, again.renews) == (asset.id, clock.now + 1000, True)


async def test_newest_upload_of_a_name_wins(store: RedisAssets, clock: Clock) -> None:
    await put(store, b"old")
    clock.now += 1
    new, _ = await put(store, b"new")
    found = await store.by_path(owner="ann", file_path="a.png")
    assert found == new
    assert await store.by_path(owner="bob", file_path="a.png") is None


@pytest.mark.parametrize(
    ("uploaded", "asked"),
    [
        ("e\u0301.png", "é.png"),
        ("é.png", "e\u0301.png"),
        ("pasted/image (5).png", "pasted\\image (5).png"),
        ("pasted\\a.png", "pasted/a.png"),
        ("pasted/a.png", "pasted//a.png"),
        ("a.png", "./a.png"),
        ("e\u0301/e\u0301.png", "é\\é.png"),
    ],
)
async def test_an_upload_is_found_under_every_spelling_of_its_name(
    store: RedisAssets, redis: FleetRedis, clock: Clock, uploaded: str, asked: str
) -> None:
    asset, _ = await put(store, b"x", name=uploaded)
    assert await store.by_path(owner="ann", file_path=asked) == asset
    assert await store.by_path(owner="ann", file_path=uploaded) == asset
    assert asset.file_path == uploaded
    clock.now += 1
    newer, _ = await put(store, b"y", name=asked)
    for name in (uploaded, asked):
        assert await store.by_path(owner="ann", file_path=name) == newer
    for one in (asset, newer):
        await store.delete(owner="ann", asset_id=one.id)
    assert await redis.keys("fleet:asset:names:*") == []


async def add(
    redis: FleetRedis, store: RedisAssets, job: str, data: bytes, name: str = "o.png", owner: str = "ann"
) -> Asset:
    return await add_output(redis, store, await begun(redis, job, owner), data, name)


async def test_equal_outputs_of_one_job_are_one_file(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path
) -> None:
    one = await add(redis, store, JOB, b"x")
    again = await add(redis, store, JOB, b"x")
    named = await add(redis, store, JOB, b"x", name="p.png")
    other = await add(redis, store, str(uuid4()), b"x", owner="bob")
    assert again.id == one.id
    assert named.id != one.id
    assert one.path == named.path != other.path
    assert sorted(files(tmp_path)) == sorted([Path(one.path), Path(other.path)])
    assert await store.by_path(owner="ann", file_path="o.png") is None  # names belong to uploads


@pytest.mark.parametrize("why", ["taken over", "given back", "another run's", "over"])
async def test_an_output_that_comes_late_is_not_added_to_a_job_that_another_run_has(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, why: str
) -> None:
    """Whoever lost the run may store its last output long after."""
    first = await begun(redis, JOB)
    kept = await add(redis, store, JOB, b"in time")
    await redis.hset(f"fleet:job:{JOB}", "status", "running")
    match why:
        case "taken over":
            await redis.hset(f"fleet:run:{first.run}", "token", "of another dispatcher")
        case "given back":
            await redis.delete(f"fleet:run:{first.run}")
            await redis.hset("fleet:run:second", mapping={"job": JOB, "token": "t2"})
        case "another run's":
            await redis.hset(f"fleet:run:{first.run}", "job", str(uuid4()))
        case "over":
            await redis.delete(f"fleet:run:{first.run}")
    before = await redis.hgetall(f"fleet:asset:job:{JOB}")
    for data in (b"late", b"in time"):
        with pytest.raises(LeaseLost, match=first.run):
            await add_output(redis, store, first, data)
    assert await redis.hgetall(f"fleet:asset:job:{JOB}") == before
    assert await content_of(store, kept) == b"in time"
    assert await redis.keys("fleet:blob:refs:*") == [f"fleet:blob:refs:{kept.path}".encode()]  # the sweep's


async def test_from_hash_over_an_output_outlives_the_job(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    output = await add(redis, store, JOB, b"x")
    kept, fresh = await store.from_hash(owner="ann", hash_=output.hash, file_path="mine.png")
    assert fresh
    assert await store.forget_job(JOB)
    assert await store.get(output.id) is None
    clock.now += 10_000
    await store.sweep()
    assert await content_of(store, kept) == b"x"
    assert files(tmp_path) == [Path(kept.path)]


async def test_a_job_id_is_never_a_path(store: RedisAssets, redis: FleetRedis) -> None:
    with pytest.raises(NotFound):
        await add(redis, store, "../../etc", b"x")


async def test_what_a_live_job_needs_stays(store: RedisAssets, redis: FleetRedis) -> None:
    asset, _ = await put(store, b"x")
    await store.hold(owner="ann", asset_ids=[asset.id], job_id=JOB)
    with pytest.raises(AssetInUse):  # the job is about to be written
        await store.delete(owner="ann", asset_id=asset.id)
    await redis.hset(f"fleet:job:{JOB}", "status", "running")
    with pytest.raises(AssetInUse):
        await store.delete(owner="ann", asset_id=asset.id)
    await redis.hset(f"fleet:job:{JOB}", "status", "succeeded")
    await store.delete(owner="ann", asset_id=asset.id)


async def test_released_and_forgotten_holds_count_for_nothing(store: RedisAssets, redis: FleetRedis) -> None:
    asset, _ = await put(store, b"x")
    other, _ = await put(store, b"y")
    await store.hold(owner="ann", asset_ids=[asset.id, other.id], job_id=JOB)
    await store.release(asset_ids=[asset.id], job_id=JOB)
    await store.delete(owner="ann", asset_id=asset.id)
    await redis.delete(f"fleet:asset:hold:{JOB}")  # what its end does
    await store.delete(owner="ann", asset_id=other.id)


async def test_what_is_no_job_holds_no_asset(store: RedisAssets, redis: FleetRedis) -> None:
    asset, _ = await put(store, b"x")
    await store.hold(owner="ann", asset_ids=[asset.id], job_id=JOB)
    await redis.set(f"fleet:job:{JOB}", "somebody's own")
    await store.delete(owner="ann", asset_id=asset.id)
    assert await store.get(asset.id) is None


async def test_hold_is_all_or_nothing(store: RedisAssets) -> None:
    mine, _ = await put(store, b"x")
    theirs, _ = await put(store, b"y", owner="bob")
    with pytest.raises(MissingAsset) as caught:
        await store.hold(owner="ann", asset_ids=[mine.id, theirs.id], job_id=JOB)
    assert caught.value.details["id"] == theirs.id
    await store.delete(owner="ann", asset_id=mine.id)


async def test_outputs_of_a_live_job_stay(store: RedisAssets, redis: FleetRedis) -> None:
    output = await add(redis, store, JOB, b"x")
    await redis.hset(f"fleet:job:{JOB}", "status", "running")
    with pytest.raises(AssetInUse):
        await store.delete(owner="ann", asset_id=output.id)
    await redis.hset(f"fleet:job:{JOB}", "status", "failed")
    await store.delete(owner="ann", asset_id=output.id)


async def test_an_output_that_another_job_needs_delays_forgetting(
    store: RedisAssets, redis: FleetRedis
) -> None:
    output, other = await add(redis, store, JOB, b"x"), str(uuid4())
    await store.hold(owner="ann", asset_ids=[output.id], job_id=other)
    await redis.hset(f"fleet:job:{other}", "status", "queued")
    assert not await store.forget_job(JOB)
    assert await store.get(output.id) == output
    await redis.hset(f"fleet:job:{other}", "status", "canceled")
    assert await store.forget_job(JOB)
    assert await store.get(output.id) is None


async def test_each_record_is_compared_with_the_bytes_that_there_are(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path
) -> None:
    whole, short, gone = [await add(redis, store, JOB, data) for data in (b"whole", b"short", b"gone")]
    os.truncate(tmp_path / short.path, 2)
    (tmp_path / gone.path).unlink()
    found = {asset.id: size async for asset, size in store.stored_sizes()}
    assert found == {whole.id: 5, short.id: 2, gone.id: None}
