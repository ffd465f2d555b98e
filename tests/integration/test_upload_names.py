"""Names of uploads on a real Redis: three folders, numbers as ComfyUI counts, and lists of one's own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.redis import assets as asset_store
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import Asset
from tests.assets_kit import assets_on, content_of


class Ticking:
    """A clock of which no two answers are equal."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    async def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def store(redis: FleetRedis, tmp_path: Path) -> RedisAssets:
    return assets_on(redis, tmp_path, clock=Ticking(), retention_s=3600)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def put(store: RedisAssets, data: bytes, name: str = "a.png", owner: str = "ann", **more: Any) -> Asset:
    async with store.receive(chunks(data)) as received:
        asset, _ = await store.keep(received, owner=owner, content_type="image/png", file_path=name, **more)
    return asset


async def names(store: RedisAssets, folder: Folder = Folder.INPUT, owner: str = "ann") -> list[str]:
    return [name for name, _ in await store.uploads(owner=owner, folder=folder, limit=100)]


async def test_other_bytes_get_the_next_number_and_the_same_bytes_their_name(store: RedisAssets) -> None:
    made = [await put(store, data, numbered=True) for data in (b"1", b"2", b"1", b"3", b"2")]
    assert [asset.file_path for asset in made] == ["a.png", "a (1).png", "a.png", "a (2).png", "a (1).png"]
    assert [await content_of(store, asset) for asset in made] == [b"1", b"2", b"1", b"3", b"2"]
    assert made[2].id == made[0].id
    assert made[4].id == made[1].id
    other = await put(store, b"9", owner="bob", numbered=True)
    assert other.file_path == "a.png"


async def test_long_lists_are_read_in_parts(
    store: RedisAssets, redis: FleetRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asset_store, "_LISTED_AT_ONCE", 3)
    for number in range(10):
        await put(store, b"%d" % number, f"{number}.png")
    client: Any = redis
    await client.delete(*[redis.keyspace.asset_names("ann", f"{number}.png") for number in (9, 8, 5, 1)])
    for limit in range(1, 9):
        expected = ["7.png", "6.png", "4.png", "3.png", "2.png", "0.png"][:limit]
        rows = await store.uploads(owner="ann", folder=Folder.INPUT, limit=limit)
        assert [name for name, _ in rows] == expected
    await client.config_resetstat()
    await store.uploads(owner="ann", folder=Folder.INPUT, limit=100)
    stats = (await client.info("commandstats"))["cmdstat_exists"]
    assert stats["calls"] == 6


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("a", "a (1)"),
        (".a", ".a (1)"),
        ("a.tar.gz", "a.tar (1).gz"),
        ("s.t/a", "s.t/a (1)"),
        ("a (1).png", "a (1) (1).png"),
    ],
)
async def test_the_number_stands_before_the_last_extension(
    store: RedisAssets, name: str, second: str
) -> None:
    await put(store, b"1", name, numbered=True)
    assert (await put(store, b"2", name, numbered=True)).file_path == second


async def test_a_number_that_is_free_again_is_used_first(store: RedisAssets) -> None:
    first, second, third = [await put(store, data, numbered=True) for data in (b"1", b"2", b"3")]
    await store.delete(owner="ann", asset_id=second.id)
    assert (await put(store, b"4", numbered=True)).file_path == "a (1).png"
    assert first.file_path, third.file_path


async def test_uploads_at_the_same_time_get_different_names(store: RedisAssets) -> None:
    made = await asyncio.gather(*(put(store, b"%d" % i, numbered=True) for i in range(20)))
    assert len({asset.file_path for asset in made}) == 20


async def test_very_many_files_of_one_name_find_a_free_number(store: RedisAssets, redis: FleetRedis) -> None:
    for number in range(5000):
        name = f"a ({number}).png" if number else "a.png"
        redis_key = redis.keyspace.asset_names("ann", name)
        await redis.zadd(redis_key, {"somebody": 1})
    assert (await put(store, b"1", numbered=True)).file_path == "a (5000).png"


async def test_a_replaced_name_means_the_new_bytes_and_leaves_the_old_ones_alone(store: RedisAssets) -> None:
    old = await put(store, b"1", numbered=True)
    new = await put(store, b"2")
    found = await store.by_path(owner="ann", file_path="a.png")
    assert found is not None
    assert found.id == new.id
    assert await content_of(store, old) == b"1"
    # Compared with what the name means now.
    assert (await put(store, b"2", numbered=True)).id == new.id
    assert (await put(store, b"1", numbered=True)).file_path == "a (1).png"


async def test_folders_share_no_names(store: RedisAssets) -> None:
    made = {
        folder: await put(store, folder.encode(), "s/a.png", folder=folder, numbered=True)
        for folder in Folder
    }
    for folder, asset in made.items():
        assert (asset.file_path, asset.folder) == ("s/a.png", folder)
        found = await store.by_path(owner="ann", file_path="s//./a.png", folder=folder)
        assert found == asset
        assert await names(store, folder) == ["s/a.png"]
    for name in ("/temp/s/a.png", "temp/s/a.png", "/output/s/a.png"):
        assert await store.by_path(owner="ann", file_path=name) is None
        assert await store.by_path(owner="bob", file_path=name, folder=Folder.TEMP) is None
    assert await names(store, Folder.TEMP, "bob") == []


async def test_the_latest_upload_is_listed_first_and_a_deleted_one_not_at_all(store: RedisAssets) -> None:
    for name in ("b.png", "a.png", "s/c.png"):
        await put(store, name.encode(), name)
    again = await put(store, b"new", "b.png")
    assert await names(store) == ["b.png", "s/c.png", "a.png"]
    await store.delete(owner="ann", asset_id=again.id)
    assert "b.png" in await names(store), "an older upload has the name"
    older = await store.by_path(owner="ann", file_path="b.png")
    assert older is not None
    await store.delete(owner="ann", asset_id=older.id)
    assert await names(store) == ["s/c.png", "a.png"]


async def test_a_name_whose_records_an_earlier_version_removed_is_not_listed(
    store: RedisAssets, redis: FleetRedis
) -> None:
    await put(store, b"1")
    await redis.delete(redis.keyspace.asset_names("ann", "a.png"))
    assert await names(store) == []
    assert not await redis.exists(redis.keyspace.asset_uploads("ann", "input"))


async def test_uploads_of_earlier_versions_are_listed_after_a_sweep(
    store: RedisAssets, redis: FleetRedis
) -> None:
    await put(store, b"1", "a:b.png", owner="an:n")
    await put(store, b"2", "[c]*?.png", owner="an:n")
    await redis.delete(redis.keyspace.asset_uploads("an:n", "input"))
    assert await names(store, owner="an:n") == []
    await store.sweep()
    assert await names(store, owner="an:n") == ["[c]*?.png", "a:b.png"]


async def test_the_same_bytes_again_stay_longer(store: RedisAssets) -> None:
    first = await put(store, b"1", numbered=True)
    again = await put(store, b"1", numbered=True)
    assert again.id == first.id
    assert first.expires_at is not None
    assert again.expires_at is not None
    assert again.expires_at > first.expires_at


async def test_bytes_are_found_by_their_hash_by_their_owner_alone(store: RedisAssets) -> None:
    asset = await put(store, b"1", folder=Folder.TEMP)
    assert await store.by_hash(owner="ann", hash_=asset.hash) == asset
    assert await store.by_hash(owner="bob", hash_=asset.hash) is None
    for hash_ in ("", "blake3:", "blake3:*", asset.hash.upper(), asset.hash + ":x"):
        assert await store.by_hash(owner="ann", hash_=hash_) is None
