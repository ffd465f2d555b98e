"""The Redis of `fleet up` and of the containers: its answers outlive it, however slow the disk is."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.up import programs
from comfy_fleet.cli.up.programs import OwnRedis, sync_files, wait_for_redis
from tests.conftest import free_port
from tests.container_files import COMPOSE, STACK, services
from tests.stream_server import StreamServer

SLOW_DISK = Path(__file__).parents[1] / "native" / "slow_disk.c"
WRITING_S = 1.25  # a sync begins within the first second and takes 1.5 s: it is under way then


@asynccontextmanager
async def started(plan: OwnRedis, **env: str) -> AsyncIterator[tuple[subprocess.Popen[bytes], Redis]]:
    """Run it; whatever is left of it in the end is killed."""
    server = subprocess.Popen(plan.argv, env=os.environ | env, stdout=subprocess.DEVNULL)
    try:
        await wait_for_redis(plan.url, timeout_s=10)
        client = Redis.from_url(plan.url)
        yield server, client
        await client.aclose()
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def slow_disk(tmp_path: Path) -> Path:
    """What makes a process's disk slow, once it is preloaded."""
    compiler = shutil.which("cc") or pytest.fail("there is no C compiler: scripts/setup --tests")
    made = tmp_path / "slow_disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, SLOW_DISK], check=True, timeout=60)
    return made


async def test_what_it_has_answered_outlives_kill_9_while_the_disk_is_slow(
    tmp_path: Path, slow_disk: Path
) -> None:
    plan = OwnRedis.plan(tmp_path, port=1234)
    answered = 0
    async with started(plan, LD_PRELOAD=str(slow_disk)) as (server, client):
        until = time.monotonic() + WRITING_S
        while time.monotonic() < until:
            await client.set(f"key-{answered}", "1")
            answered += 1
        server.kill()
        server.wait()
    async with started(plan) as (_, client):
        assert await client.dbsize() == answered > 0


async def test_data_of_which_files_are_missing_are_not_begun_anew(tmp_path: Path) -> None:
    plan = OwnRedis.plan(tmp_path, port=1234)
    async with started(plan) as (_, client):
        await client.set("job", "x" * 1000)
    whole = tmp_path / "redis" / "appendonlydir"
    for number, name in enumerate(path.name for path in whole.iterdir()):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole, copy / "redis" / "appendonlydir")
        missing = copy / "redis" / "appendonlydir" / name
        missing.unlink()
        with pytest.raises(Fail, match=f"{name} is missing"):
            OwnRedis.plan(copy, port=1234)
        assert not missing.exists()
    begun = tmp_path / "begun" / "redis" / "appendonlydir"  # killed before its first manifest
    begun.mkdir(parents=True)
    (begun / "appendonly.aof.1.base.rdb").write_bytes(b"x" * 89)
    OwnRedis.plan(tmp_path / "begun", port=1234)
    async with started(OwnRedis.plan(tmp_path, port=1234)) as (_, client):
        assert await client.get("job") == b"x" * 1000


def in_container(path: Path, folder: Path) -> OwnRedis:
    """Return the Redis of a Compose file: its own command line, with a folder in place of the volume."""
    name, *arguments = services(path)["redis"]["command"]
    assert name == "redis-server" and "/data" in arguments
    port = free_port()
    inside = [str(folder) if word == "/data" else word for word in arguments]
    return OwnRedis(
        argv=(program(), *inside, "--bind", "127.0.0.1", "--port", str(port)),
        url=f"redis://127.0.0.1:{port}/0",
        folder=folder,
    )


@pytest.mark.parametrize("path", [COMPOSE, STACK], ids=lambda path: path.stem)
async def test_the_containers_redis_keeps_what_it_has_answered(
    tmp_path: Path, slow_disk: Path, path: Path
) -> None:
    plan = in_container(path, tmp_path)
    answered = 0
    async with started(plan, LD_PRELOAD=str(slow_disk)) as (server, client):
        assert await client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        until = time.monotonic() + WRITING_S
        while time.monotonic() < until:
            await client.set(f"key-{answered}", "1")
            answered += 1
        server.kill()
        server.wait()
    async with started(plan) as (_, client):
        assert await client.dbsize() == answered > 0


async def test_its_file_reaches_the_disk_again_and_again_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    refused = [OSError("the disk is ill")]
    told: list[OSError] = []

    def fdatasync(file: int) -> None:
        if refused:
            raise refused.pop()
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(programs, "SYNC_S", 0.01)
    plan = OwnRedis.plan(tmp_path, port=1234)
    async with started(plan) as (_, client):
        await client.set("a", "1")
        syncing = asyncio.create_task(plan.sync(told.append))
        async with asyncio.timeout(60):
            while not synced:
                await asyncio.sleep(0.01)
        syncing.cancel()
        written = [str(path) for path in plan.folder.rglob("*.aof") if path.stat().st_size]
        assert written and set(written) <= set(synced)
        assert [str(error) for error in told] == ["the disk is ill"]  # and it was tried again


def test_the_one_file_of_an_older_redis_is_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    sync_files(tmp_path)
    (tmp_path / "appendonly.aof").write_text("x")
    sync_files(tmp_path)
    assert synced == [str(tmp_path / "appendonly.aof")]


@pytest.mark.parametrize(
    ("version", "fine"), [("6.0.16", False), ("6.2.0", True), ("10.0.1", True), ("", True)]
)
async def test_a_redis_that_is_too_old_is_told_at_once(version: str, fine: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2].upper())
            info = f"redis_version:{version}\r\n".encode()
            bulk = b"$%d\r\n%s\r\n" % (len(info), info)
            writer.write({b"PING": b"+PONG\r\n", b"INFO": bulk}.get(words[0], b"+OK\r\n"))

    async with StreamServer(serve) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        if fine:
            await programs.wait_for_redis(url, timeout_s=10)
        else:
            with pytest.raises(Fail, match=r"version 6\.0\.16, which is too old"):
                await programs.wait_for_redis(url, timeout_s=10)
