"""When bytes are deleted, and that nothing that has a record ever is: on a real Redis and a real folder.

Crashes are played by raising in between two steps; other processes by stores of their own on the same folder.
"""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from blake3 import blake3

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.domain.errors import NoRoom, Outdated, StoreDown
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.blobs import Blob
from comfy_fleet.ports.runs import StoredOutput
from tests.assets_kit import add_output, assets_on, begun, content_of, new_id
from tests.factories import an_output

HOUR = 3600.0
JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    async def __call__(self) -> float:
        return self.now


class Killed(BaseException):
    """Plays a process that ends here."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(redis: FleetRedis, tmp_path: Path, clock: Clock) -> RedisAssets:
    return assets_on(redis, tmp_path, clock=clock, grace_s=6 * HOUR)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def put(store: RedisAssets, data: bytes, owner: str = "ann") -> Asset:
    asset, _ = await store.upload(owner=owner, chunks=chunks(data), content_type="a/b", file_path="a.bin")
    return asset


async def output(
    redis: FleetRedis, store: RedisAssets, data: bytes, name: str = "o.png", job: str = JOB
) -> Asset:
    return await add_output(redis, store, await begun(redis, job), data, name)


def files(root: Path) -> list[str]:
    found = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return [name for name in found if name != "records"]


def aged(root: Path) -> None:
    """Let every file be a day old."""
    for name in files(root):
        os.utime(root / name, (1e9, 1e9))


async def swept(store: RedisAssets, redis: FleetRedis) -> None:
    """Sweep, and look at all files."""
    await redis.delete("fleet:blob:walked")
    await store.sweep()


async def test_bytes_go_some_hours_after_their_last_record(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    one, two = await put(store, b"x"), await put(store, b"x", owner="bob")
    made = await output(redis, store, b"o")
    assert await store.forget_job(JOB)
    await store.delete(owner="ann", asset_id=one.id)
    clock.now += 5 * HOUR
    await store.sweep()
    assert files(tmp_path) == sorted([one.path, made.path])
    await store.delete(owner="bob", asset_id=two.id)
    clock.now += 2 * HOUR
    await store.sweep()
    assert files(tmp_path) == [one.path]  # whose last record went two hours ago
    clock.now += 5 * HOUR
    await store.sweep()
    assert files(tmp_path) == []
    left: Any = set(await redis.keys("fleet:blob:*"))
    assert {key.split(b":")[2] for key in left} == {b"gone", b"walked"}  # both end by themselves


async def test_bytes_that_are_wanted_again_meanwhile_stay(
    store: RedisAssets, tmp_path: Path, clock: Clock
) -> None:
    one = await put(store, b"x")
    await store.delete(owner="ann", asset_id=one.id)
    clock.now += 5 * HOUR
    again = await put(store, b"x")
    assert again.path == one.path and files(tmp_path) == [one.path]
    clock.now += 20 * HOUR
    await store.sweep()
    assert await content_of(store, again) == b"x"


async def test_an_upload_that_is_given_more_time_while_the_sweep_looks_stays(
    redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = (assets_on(redis, tmp_path, clock=clock) for _ in range(2))

    one, _ = await store.upload(
        owner="ann", chunks=chunks(b"x"), content_type="a/b", file_path="a.bin", expires_in_s=60
    )
    clock.now += 61
    call = Scripts.call

    async def late(self: Scripts, script: str, /, *texts: Any, **args: Any) -> Any:
        if script == "drop_asset":  # the sweep has just read what has ended
            again, _ = await other.from_hash(owner="ann", hash_=one.hash, file_path="a.bin", expires_in_s=600)
            assert again.id == one.id
        return await call(self, script, *texts, **args)

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "call", late)
        assert await store.sweep() == 0
    assert await store.get(one.id) is not None
    clock.now += 601
    assert await store.sweep() == 1


async def test_deleting_makes_room_on_a_full_disk(
    redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, floor_bytes=0)
    store = assets_on(redis, tmp_path, clock=clock, grace_s=6 * HOUR, disk=disk)
    gone, kept = await put(store, b"gone"), await put(store, b"kept")
    stray = tmp_path / "blobs" / "ab" / "stray"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of a Redis that was emptied by mistake, perhaps")
    aged(tmp_path)
    await store.delete(owner="ann", asset_id=gone.id)
    await swept(store, redis)
    assert gone.path in files(tmp_path)
    full = Disk(tmp_path, floor_bytes=10**18)
    await swept(assets_on(redis, tmp_path, clock=clock, grace_s=6 * HOUR, disk=full), redis)
    assert files(tmp_path) == sorted([kept.path, "blobs/ab/stray"])


async def test_a_disk_that_can_t_be_looked_at_is_not_a_full_one(
    redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = assets_on(redis, tmp_path, clock=clock, grace_s=6 * HOUR)
    gone = await put(store, b"gone")
    await store.delete(owner="ann", asset_id=gone.id)

    def broken(path: Path) -> os.statvfs_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", broken)
        with pytest.raises(NoRoom, match="can't be written"):
            store.check_room()
        await store.sweep()
    assert files(tmp_path) == [gone.path]
    clock.now += 7 * HOUR
    await store.sweep()
    assert files(tmp_path) == []


async def test_broken_bytes_are_mended_by_the_next_upload_of_them(store: RedisAssets, tmp_path: Path) -> None:
    one = await put(store, b"x")
    (tmp_path / one.path).unlink()
    two = await put(store, b"x", owner="bob")
    assert await content_of(store, one) == await content_of(store, two) == b"x"


@pytest.mark.parametrize("kind", ["upload", "output"])
async def test_a_process_that_dies_between_bytes_and_record_leaves_what_the_sweep_finds(
    store: RedisAssets,
    redis: FleetRedis,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    kept = await put(store, b"kept")

    written = DiskBlobs.put

    async def killed(blobs: DiskBlobs, chunks: AsyncIterator[bytes], **options: Any) -> Blob:
        await written(blobs, chunks, **options)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(DiskBlobs, "put", killed)
        with pytest.raises(Killed):
            await (put(store, b"lost") if kind == "upload" else output(redis, store, b"lost"))
    assert len(files(tmp_path)) == 2
    await swept(store, redis)
    clock.now += 7 * HOUR
    await swept(store, redis)
    assert len(files(tmp_path)) == 2  # it may be written right now
    aged(tmp_path)
    await swept(store, redis)
    clock.now += 5 * HOUR
    await swept(store, redis)
    assert len(files(tmp_path)) == 2
    clock.now += 2 * HOUR
    await swept(store, redis)
    assert files(tmp_path) == [kept.path]


@pytest.mark.parametrize("other", ["a Redis that was emptied", "another fleet"])
async def test_bytes_of_which_another_redis_may_have_records_are_not_taken_for_strays(
    store: RedisAssets,
    redis: FleetRedis,
    tmp_path: Path,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    theirs = await put(store, b"theirs")
    await swept(store, redis)
    backup: Any = {key: await redis.dump(key) for key in await redis.keys("*")}
    if other == "another fleet":
        monkeypatch.setattr(redis, "keyspace", Keyspace("other"))
        store = assets_on(redis, tmp_path, clock=clock, grace_s=0)
    else:
        await redis.flushall()
    ours = await put(store, b"ours")
    aged(tmp_path)
    for _ in range(3):
        await redis.delete("fleet:blob:walked", "other:blob:walked")
        await store.sweep()
        clock.now += 7 * HOUR
    assert files(tmp_path) == sorted([theirs.path, ours.path])
    assert "no search for bytes without a record" in caplog.messages
    if other == "a Redis that was emptied":  # and is restored after days
        await redis.flushall()
        for key, value in backup.items():
            await redis.restore(key, 0, value)
        assert await content_of(store, theirs) == b"theirs"
        await store.delete(owner="ann", asset_id=theirs.id)
        for _ in range(2):
            clock.now += 7 * HOUR
            await swept(store, redis)
        assert files(tmp_path) == []


async def test_half_written_files_go(store: RedisAssets, redis: FleetRedis, tmp_path: Path) -> None:
    (tmp_path / "tmp" / "half").write_bytes(b"x")
    await store.sweep()
    assert files(tmp_path) == ["tmp/half"]
    aged(tmp_path)
    await store.sweep()
    assert files(tmp_path) == []


async def test_a_sweeper_that_dies_is_followed_by_the_next_one(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await put(store, b"one"), await put(store, b"two")
    for asset in (one, two):
        await store.delete(owner="ann", asset_id=asset.id)
    clock.now += 7 * HOUR
    real = DiskBlobs.delete

    async def killed(blobs: DiskBlobs, key: str) -> None:
        if key == two.path:
            raise Killed
        await real(blobs, key)

    with monkeypatch.context() as patched:
        patched.setattr(DiskBlobs, "delete", killed)
        with pytest.raises(Killed):
            await store.sweep()
    again = await put(store, b"two")
    assert again.path != two.path  # the old place is being deleted, whoever does it
    await store.sweep()
    assert files(tmp_path) == [again.path]
    assert await content_of(store, again) == b"two"


async def test_a_file_that_can_not_be_deleted_holds_up_no_other(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = [await put(store, str(number).encode()) for number in range(3)]
    for asset in assets:
        await store.delete(owner="ann", asset_id=asset.id)
    clock.now += 7 * HOUR
    real = DiskBlobs.delete

    async def stuck(blobs: DiskBlobs, key: str) -> None:
        if key == assets[0].path:
            raise NoRoom("the fleet's disk can't be written")
        await real(blobs, key)

    with monkeypatch.context() as patched:
        patched.setattr(DiskBlobs, "delete", stuck)
        await store.sweep()
    assert files(tmp_path) == [assets[0].path]
    await store.sweep()
    assert files(tmp_path) == []


def lose_answers(patched: pytest.MonkeyPatch, script: str) -> None:
    """Let every answer of a script get lost."""
    real = Scripts.call

    async def lost(scripts: Scripts, name: str, *blobs: str | bytes, **args: Any) -> Any:
        answer = await real(scripts, name, *blobs, **args)
        if name != script:
            return answer
        raise StoreDown("no answer", retry_after_s=1)

    patched.setattr(Scripts, "call", lost)


async def test_a_record_whose_answer_got_lost_keeps_its_bytes(
    store: RedisAssets, redis: FleetRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        lose_answers(patched, "add_asset")
        for _ in range(3):
            with pytest.raises(StoreDown):
                await put(store, b"x")
    asset = await put(store, b"x")
    assert await content_of(store, asset) == b"x"
    records: Any = await redis.keys("fleet:asset:????????-*")
    assert records
    for key in records:
        found = await store.get(key.decode().removeprefix("fleet:asset:"))
        assert found and await content_of(store, found) == b"x"


async def test_an_output_whose_answer_got_lost_is_committed_once(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs = await begun(redis, JOB), RedisRunStore(redis)
    asset = await store.put_output(
        owner="ann", job_id=JOB, chunks=chunks(b"x"), name="o.png", content_type="a/b", expires_at=2e9
    )
    stored = StoredOutput(output=an_output(asset_id=asset.id), asset=asset)
    with monkeypatch.context() as patched:
        lose_answers(patched, "commit_output")
        for _ in range(3):
            with pytest.raises(StoreDown):
                await runs.commit(made, stored)
    assert await runs.commit(made, stored) == asset == await store.get(asset.id)
    known: Any = await redis.hvals(f"fleet:asset:job:{JOB}")
    assert known == [asset.id.encode()]
    assert files(tmp_path) == [asset.path] and await content_of(store, asset) == b"x"
    assert await redis.hget(f"fleet:job:{JOB}", "seq") == b"1"  # told once


async def test_an_older_process_deletes_nothing_and_takes_no_uploads(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    kept, gone = await put(store, b"kept"), await put(store, b"gone")
    await store.delete(owner="ann", asset_id=gone.id)
    await redis.set("fleet:schema", SCHEMA + 1)
    clock.now += 7 * HOUR
    for step in (
        store.sweep(),
        put(store, b"new"),
        store.delete(owner="ann", asset_id=kept.id),
        store.from_hash(owner="ann", hash_=kept.hash, file_path="b.bin"),
    ):
        with pytest.raises(Outdated):
            await step
    made = await output(redis, store, b"o")  # of a run that it has begun
    assert await content_of(store, made) == b"o"
    assert files(tmp_path) == sorted([gone.path, kept.path, made.path])


def _steps(store: RedisAssets, redis: FleetRedis, held: list[Asset], rng: random.Random) -> Sequence[Any]:
    async def add() -> None:
        held.append(await put(store, b"same", owner=rng.choice(["ann", "bob"])))

    async def again() -> None:
        if held:
            one = rng.choice(held)
            asset, fresh = await store.from_hash(owner=one.owner, hash_=one.hash, file_path=f"{new_id()}.bin")
            held.extend([asset] if fresh else [])

    async def made() -> None:
        held.append(await output(redis, store, b"same", job=str(uuid4())))

    async def drop() -> None:
        while held:
            asset = held.pop()
            await store.delete(owner=asset.owner, asset_id=asset.id)

    async def sweep() -> None:
        await swept(store, redis)

    return add, again, made, drop, drop, drop, sweep, sweep


@pytest.mark.parametrize("seed", range(6))
async def test_no_order_of_steps_loses_bytes_that_have_a_record(
    redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several processes put, drop and sweep the same bytes; every pause is a chance for the others."""
    real, rng = DiskBlobs.delete, random.Random(seed)

    async def late(blobs: DiskBlobs, key: str) -> None:
        for _ in range(rng.randrange(30)):  # chosen already, deleted much later
            await redis.ping()
        await real(blobs, key)

    monkeypatch.setattr(DiskBlobs, "delete", late)

    async def process() -> list[Asset]:
        store = assets_on(redis, tmp_path, clock=clock, grace_s=0)
        held: list[Asset] = []
        steps = _steps(store, redis, held, rng)
        for _ in range(40):
            clock.now += 1
            await rng.choice(steps)()
            for asset in held:
                assert await content_of(store, asset) == b"same"
        return held

    left = [asset for held in await asyncio.gather(*(process() for _ in range(3))) for asset in held]
    store = assets_on(redis, tmp_path, clock=clock, grace_s=0)
    clock.now += 1
    await store.sweep()
    for asset in left:
        assert await content_of(store, asset) == b"same"
    aged(tmp_path)
    await swept(store, redis)
    clock.now += 1
    await swept(store, redis)
    assert files(tmp_path) == sorted({asset.path for asset in left})


async def _earlier(client: Any, root: Path, asset_id: str, data: bytes, job: str = "") -> str:
    """Write an asset as a version without the sweep did; returns its path."""
    digest = blake3(data).hexdigest()
    path = f"jobs/{job}/{digest}" if job else f"blobs/{digest[:2]}/{digest}"
    record = {
        "id": asset_id, "owner": "ann", "hash": f"blake3:{digest}", "size_bytes": str(len(data)),
        "content_type": "a/b", "file_path": "a.bin", "path": path, "created_at": "1.0",
    }  # fmt: skip
    if job:
        record["job_id"] = job
        await client.hset(f"fleet:asset:job:{job}", f"blake3:{digest}\0a.bin", asset_id)
    else:
        await client.hset(f"fleet:blob:same:ann:blake3:{digest}", "a.bin", asset_id)
        await client.zadd("fleet:asset:names:ann:a.bin", {asset_id: 1.0})
    await client.hset(f"fleet:asset:{asset_id}", mapping=record)
    await client.sadd(f"fleet:blob:refs:{path}", asset_id)
    await client.sadd(f"fleet:blob:owner:ann:blake3:{digest}", asset_id)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)
    return path


async def test_files_of_an_earlier_version_stay_where_they_are_and_go_with_their_records(
    store: RedisAssets, redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    upload_id, output_id = new_id(), new_id()
    uploaded = await _earlier(redis, tmp_path, upload_id, b"upload")
    made = await _earlier(redis, tmp_path, output_id, b"output", JOB)
    # What processes left that were killed: a writer's mark, a file to delete, and an output without a record.
    for name in ("blobs/ab/marked", "blobs/ab/doomed", f"jobs/{JOB}/stray"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    await redis.sadd("fleet:blob:refs:blobs/ab/marked", "pin:1")
    await redis.zadd("fleet:blob:pins", {"blobs/ab/marked\0pin:1": clock.now})
    await redis.zadd("fleet:blob:doomed", {"blobs/ab/doomed": clock.now})
    aged(tmp_path)

    upload, picture = await store.get(upload_id), await store.get(output_id)
    assert upload and picture
    assert (await content_of(store, upload), await content_of(store, picture)) == (b"upload", b"output")
    kept, _ = await store.from_hash(owner="ann", hash_=picture.hash, file_path="b.bin")
    assert await content_of(store, kept) == b"output"
    for _ in range(2):
        clock.now += 7 * HOUR
        await swept(store, redis)
    assert files(tmp_path) == sorted([uploaded, made, kept.path])
    assert await store.forget_job(JOB)
    await store.delete(owner="ann", asset_id=upload_id)
    clock.now += 7 * HOUR
    await swept(store, redis)
    assert files(tmp_path) == [kept.path]
    assert not (tmp_path / "jobs" / JOB).exists()
    assert len(list((tmp_path / "blobs").glob("*/*"))) == 1  # no empty folders
    assert await redis.keys("fleet:blob:[pd]*") == []


@pytest.mark.parametrize("trouble", ["no file", "unreadable", "no place", "cut short"])
async def test_what_the_disk_does_not_give_is_the_fleets_own_trouble(tmp_path: Path, trouble: str) -> None:
    blobs = DiskBlobs(tmp_path, new_id=new_id)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "short").write_bytes(b"x")
    key = {"no file": "blobs", "unreadable": "/proc/self/mem", "no place": "loop", "cut short": "short"}[
        trouble
    ]
    with pytest.raises(NoRoom, match=f"the fleet's disk can't be read: {tmp_path / key}: [A-Za-z]"):
        await blobs.open(key, 0, 2)
    with pytest.raises(FileNotFoundError):
        await blobs.open("missing")


async def test_a_range_of_a_large_file(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path, new_id=new_id)
    data = random.Random(1).randbytes(3_000_001)
    blob = await blobs.put(chunks(data), durable=True)
    for start, length in (
        (0, None),
        (0, len(data)),
        (5, 2_000_000),
        (2_999_999, None),
        (7, 0),
        (3_000_001, None),
    ):
        found = b"".join([chunk async for chunk in await blobs.open(blob.key, start, length)])
        assert found == data[start:][:length]
    (tmp_path / blob.key).write_bytes(data[:2_500_000])
    with pytest.raises(NoRoom, match="shorter than its record says"):
        async for _ in await blobs.open(blob.key, 0, len(data)):
            pass


async def test_bytes_that_were_found_as_strays_too_are_not_used_again_while_they_are_deleted(
    redis: FleetRedis, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob may wait for the sweep twice: for its last record, and because a walk found it without one."""
    store = assets_on(redis, tmp_path, clock=clock, grace_s=6 * HOUR)
    assets = [await put(store, str(number).encode()) for number in range(4)]
    for asset in sorted(assets, key=lambda one: one.path, reverse=True):  # a walk finds them in another order
        clock.now += 1
        await store.delete(owner="ann", asset_id=asset.id)
    aged(tmp_path)
    await swept(store, redis)
    clock.now += 7 * HOUR
    again: list[Asset] = []
    real = DiskBlobs.delete

    async def late(blobs: DiskBlobs, key: str) -> None:
        if not again:  # one is being deleted right now: the same bytes come again
            again.extend([await put(store, str(n).encode(), owner="bob") for n in range(4)])
        await real(blobs, key)

    with monkeypatch.context() as patched:
        patched.setattr(DiskBlobs, "delete", late)
        await store.sweep(limit=2)
    for number, asset in enumerate(again):
        assert await content_of(store, asset) == str(number).encode()


async def test_without_any_grace_bytes_that_are_about_to_get_their_record_stay(
    redis: FleetRedis, tmp_path: Path, clock: Clock
) -> None:
    """How old a file is the file server's clock says, or a client that sent its last bytes an hour late."""
    store = assets_on(redis, tmp_path, clock=clock, grace_s=0)
    async with store.receive(chunks(b"x")) as received:
        aged(tmp_path)
        await swept(store, redis)
        asset, _ = await store.keep(received, owner="ann", content_type="a/b", file_path="a.bin")
    await store.sweep()
    assert await content_of(store, asset) == b"x"
