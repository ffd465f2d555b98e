"""The fleet's own full disk: finished work is kept until there is room, and nothing new is taken before that.

A quota takes the part of the full disk: the same free space is enough or not, as the floor says, and a limit
on the size of files makes the writing itself fail.
"""

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.bootstrap import open_assets
from comfy_fleet.domain.errors import NoRoom, NotFound
from comfy_fleet.domain.graphs.graph import asset_reference
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.services import collector
from tests.assets_kit import assets_on
from tests.factories import GRAPH, picture
from tests.fleet import fleet_of, until
from tests.integration.api_kit import code, running, upload

NEVER = 10**18  # a floor that no disk reaches


@pytest.fixture(autouse=True)
def clean(redis: FleetRedis) -> None:
    """Every test begins with an empty database."""


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


class Quota:
    """Fills every disk of this process, and makes room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        look = Disk.room

        def room(disk: Disk) -> object:
            return replace(look(disk), floor_bytes=NEVER if self.full else 0)

        monkeypatch.setattr(Disk, "room", room)
        monkeypatch.setattr(collector, "ROOM_GAP_S", 0.02)


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch) -> Quota:
    return Quota(monkeypatch)


async def test_a_run_waits_for_room_and_is_not_run_again(redis_port: int, quota: Quota) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        quota.full = True
        job = await fleet.submit(GRAPH)

        async def waits() -> bool:
            return "disk is full" in ((await fleet.job(job.id)).waiting_for or "")

        await until(waits, what="the job says that it waits for room")
        assert (await fleet.job(job.id)).status is JobStatus.RUNNING

        async def free() -> bool:
            return await fleet.stores.runs.lease_of("g1") is None

        await until(free, what="its node works for others meanwhile")
        quota.full = False
        done = await fleet.ended(job.id)
        assert (done.status, done.attempt, len(done.outputs)) == (JobStatus.SUCCEEDED, 0, 1)
        assert (done.waiting_for, fleet.sims["g1"].stats.done) == (None, 1)


async def test_a_run_that_waits_for_room_can_be_canceled_and_others_go_on(
    redis_port: int, quota: Quota
) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        quota.full = True
        job = await fleet.submit(GRAPH)

        async def waits() -> bool:
            return (await fleet.job(job.id)).waiting_for is not None

        await until(waits, what="it waits for room")
        other = await fleet.submit(picture(5))
        await until(lambda: fleet.sims["g1"].stats.done == 2, what="the other one runs")
        await fleet.stores.jobs.request_cancel(job.id)
        assert (await fleet.ended(job.id)).status is JobStatus.CANCELED
        quota.full = False
        assert (await fleet.ended(other.id)).status is JobStatus.SUCCEEDED


async def test_not_more_runs_than_memory_holds_wait_for_room(
    redis_port: int, quota: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.dispatcher.WAITING", 2)
    async with fleet_of(redis_port, "g1") as fleet:
        quota.full = True
        jobs = [await fleet.submit(picture(n)) for n in range(30)]
        dispatcher = fleet.dispatchers[0].dispatcher

        def all_wait() -> bool:
            now = dispatcher.snapshot()
            return 2 <= now.waiting_for_room == now.runs

        await until(all_wait, what="whatever was begun waits")
        dispatcher.look_again()
        assert await fleet.stores.jobs.depth() > 10
        assert all_wait()
        quota.full = False
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 0)}
        assert dispatcher.snapshot().waiting_for_room == 0


async def test_a_run_that_waits_for_room_outlives_its_dispatcher(redis_port: int, quota: Quota) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        quota.full = True
        job = await fleet.submit(GRAPH)

        async def waits() -> bool:
            return (await fleet.job(job.id)).waiting_for is not None

        await until(waits, what="it waits for room")
        await fleet.dispatchers[0].kill()
        await fleet.dispatcher("d2")
        await until(lambda: fleet.dispatchers[1].dispatcher.flying, what="it is taken over")
        quota.full = False
        done = await fleet.ended(job.id)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 0)
        assert fleet.sims["g1"].stats.done == 1


async def test_a_full_disk_refuses_what_is_new_on_every_route_and_lets_room_be_made(
    redis_port: int, tmp_path: Path, quota: Quota
) -> None:
    async with running(redis_port, tmp_path) as api:
        await api.add_node()
        kept = (await upload(api, b"old")).json()
        hash_ = kept["hash"]
        first = await api.submit(GRAPH)
        quota.full = True
        refusals = [
            await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}),
            await api.client.post("/api/v1/generate", json={"prompt": "a fox"}),
            await api.client.post("/api/v1/workflows/image_card/jobs", json={"params": {"prompt": "a fox"}}),
            await upload(api, b"new"),
            await upload(api, b"new", headers={"Idempotency-Key": "k"}),
            await api.client.post("/api/v2/assets/from-hash", json={"hash": hash_, "file_path": "b.png"}),
        ]
        words = ""
        for answer in refusals:
            assert code(answer) == (503, "insufficient_storage")
            assert int(answer.headers["Retry-After"]) >= 1
            words = answer.json()["error"]["message"]
            assert words.startswith("the fleet's disk is full: ") and f" left at {tmp_path}, needs " in words
        ready = await api.client.get("/api/v1/ready")
        assert ready.status_code == 503
        assert {"part": "disk", "why": words} in ready.json()["reasons"]
        assert (await api.client.get("/api/v2/jobs")).status_code == 200
        assert (await api.client.post(f"/api/v2/jobs/{first['id']}/cancel")).status_code < 300
        assert (await api.client.delete(f"/api/v2/assets/{kept['id']}")).status_code == 204
        quota.full = False
        assert (await upload(api, b"new", headers={"Idempotency-Key": "k"})).status_code == 201
        await api.submit(GRAPH)
        assert "disk" not in (await api.client.get("/api/v1/ready")).text
    assert not files(tmp_path / "files" / "tmp")


JOBS = [
    ("/api/v1/generate", {"prompt": "a fox"}),
    ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "a fox"}}),
]


@pytest.mark.parametrize(("path", "body"), JOBS)
@pytest.mark.parametrize("trouble", ["disk", "no node", "no workflow", "Redis takes nothing"])
async def test_what_was_accepted_is_answered_again_whatever_keeps_new_jobs_out(
    redis: FleetRedis,
    redis_port: int,
    tmp_path: Path,
    quota: Quota,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, str],
    trouble: str,
) -> None:
    def gone(_: object, name: str, __: str) -> None:
        raise NotFound(f"no workflow {name}")

    key = {"Idempotency-Key": "k"}
    async with running(redis_port, tmp_path) as api:
        await api.add_node()
        first = await api.client.post(path, json=body, headers=key)
        assert first.status_code < 300, first.text
        # The answer was lost: its process died, or Redis took nothing.
        for name in await redis.keys("fleet:replay:*"):
            await redis.delete(name)
        if trouble == "disk":
            quota.full = True
        elif trouble == "no node":
            await api.stores.nodes.remove("g1")
            await until(lambda: not api.deps.inventories.known, what="the API knows that the node is gone")
        elif trouble == "no workflow":
            monkeypatch.setattr(type(api.deps.catalog), "get", gone)
        else:
            await redis.config_set("min-replicas-to-write", "1")
        try:
            fresh = await api.client.post(path, json=body, headers={"Idempotency-Key": "other"})
            again = await api.client.post(path, json=body, headers=key)
            other = await api.client.post(path, json={**body, "priority": 3}, headers=key)
        finally:
            await redis.config_set("min-replicas-to-write", "0")
        assert fresh.status_code >= 400
        assert (again.status_code, again.headers["idempotency-replayed"]) == (first.status_code, "true"), (
            again.text
        )
        name = "task_id" if "task_id" in first.json() else "id"
        assert again.json()[name] == first.json()[name]
        assert code(other) == (422, "idempotency_key_reuse")
        assert await api.stores.jobs.depth() == 1


async def test_an_asset_that_is_there_is_found_by_its_hash_on_a_full_disk(
    redis_port: int, tmp_path: Path, quota: Quota
) -> None:
    async with running(redis_port, tmp_path) as api:
        kept = (await upload(api, b"old")).json()
        quota.full = True
        wanted = {"hash": kept["hash"], "file_path": kept["file_path"]}
        for body in (wanted, {"hash": kept["hash"]}):
            same = await api.client.post("/api/v2/assets/from-hash", json=body)
            assert (same.status_code, same.json()["id"]) == (200, kept["id"])
        for body in ({**wanted, "file_path": "b.png"}, {**wanted, "tags": ["new"]}):
            fresh = await api.client.post("/api/v2/assets/from-hash", json=body)
            assert code(fresh) == (503, "insufficient_storage")


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [200_000, 3_000_000], ids=["one write", "several writes"])
async def test_a_write_that_fails_leaves_nothing_behind(redis: FleetRedis, tmp_path: Path, size: int) -> None:
    disk = Disk(tmp_path, floor_bytes=0)
    store = assets_on(redis, tmp_path, disk=disk)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // 1000):
            yield bytes(1000)

    with files_of_at_most(100_000):
        with pytest.raises(NoRoom, match="the fleet's disk is full"):
            await store.put_output(
                owner="o",
                job_id=str(uuid4()),
                chunks=chunks(),
                name="a.bin",
                content_type="x/y",
                expires_at=2e9,
            )
        with pytest.raises(NoRoom, match="the fleet's disk is full"):
            await store.upload(owner="o", chunks=chunks(), content_type="x/y", file_path="a.bin")
    assert not files(tmp_path)
    assert not [key async for key in redis.scan_iter("fleet:asset*")]


async def test_an_input_that_the_disk_does_not_give_is_no_fault_of_the_node(redis_port: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"picture"

    async with fleet_of(redis_port, "g1") as fleet:
        store = open_assets(fleet.settings, fleet.stores)
        asset, _ = await store.upload(
            owner="local", chunks=chunks(), content_type="image/png", file_path="a.png"
        )
        place = fleet.settings.files_dir / asset.path
        place.unlink()
        place.mkdir()
        load = {"class_type": "LoadImage", "inputs": {"image": asset_reference(asset.id)}}
        graph = {**GRAPH, "9": load}
        done = await fleet.ended((await fleet.submit(graph, uploads={"9/image": asset.id})).id)
        assert (done.status, done.attempt) == (JobStatus.FAILED, done.max_attempts)
        assert done.error is not None and done.error.code == "insufficient_storage"
        assert "the fleet's disk can't be read" in done.error.message
        assert await fleet.stores.nodes.errors("g1") == []
        place.rmdir()
        gone = await fleet.ended((await fleet.submit(graph, uploads={"9/image": asset.id})).id)
        assert gone.error is not None and gone.error.code == "missing_asset"


async def test_an_upload_ends_where_it_would_pass_the_floor(redis: FleetRedis, tmp_path: Path) -> None:
    free = Disk(tmp_path).room().free_bytes
    disk = Disk(tmp_path, floor_bytes=free - 64 * 2**20)  # others may write here meanwhile
    store = assets_on(redis, tmp_path, disk=disk)
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(2**20)

    with pytest.raises(NoRoom, match="left at"):
        await store.upload(owner="o", chunks=chunks(), content_type="x/y", file_path="a.bin")
    assert 1 < sent <= 1024
    assert not files(tmp_path)
