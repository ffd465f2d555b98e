"""Which files folder belongs to a Redis: mix-ups are refused, and what only looks like one is not."""

import asyncio
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.bootstrap import Stores, check_files
from comfy_fleet.cli.doctor_checks import Severity
from comfy_fleet.cli.doctor_files import stored_files
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sealed_check import check_secret
from comfy_fleet.settings import Settings


async def start(stores: Stores, data: Path) -> None:
    await check_files(Settings(data=data), stores)


async def test_another_folder_is_refused_with_the_ways_out(stores: Stores, tmp_path: Path) -> None:
    await start(stores, tmp_path / "one")
    with pytest.raises(ConfigError, match="FLEET_NAMESPACE") as refused:
        await start(stores, tmp_path / "two")
    told = str(refused.value)
    assert str(tmp_path / "one" / "files") in told and "--data DIR" in told
    await start(stores, tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "files")  # by mistake, or to make room
    with pytest.raises(ConfigError):
        await start(stores, tmp_path / "one")
    id_, path = told.rpartition("echo ")[2].split(" > ")
    named = tmp_path / "two" / "files" / "id"
    assert path == str(named)
    named.write_text(f"{id_}\n")  # as the shell does it
    await start(stores, tmp_path / "two")


async def test_a_folder_stays_the_same_wherever_it_is(stores: Stores, redis: Redis, tmp_path: Path) -> None:
    await start(stores, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    await start(stores, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "restored")
    await start(stores, tmp_path / "restored")
    (tmp_path / "link").symlink_to(tmp_path / "moved")  # on another machine it is mounted elsewhere
    await start(stores, tmp_path / "link")
    await redis.flushall()  # an emptied Redis knows no folder
    await start(stores, tmp_path / "moved")


async def test_data_of_earlier_versions_is_taken_as_it_is(
    stores: Stores, redis: Redis, tmp_path: Path
) -> None:
    (tmp_path / "files" / "blobs").mkdir(parents=True)
    (tmp_path / "files" / "records").write_text("of an earlier version")
    await redis.set("fleet:store", "of an earlier version")
    await start(stores, tmp_path)
    await start(stores, tmp_path)
    await redis.delete("fleet:files")  # a backup that was made before comes back
    await start(stores, tmp_path)


async def test_processes_that_start_at_once_agree(stores: Stores, tmp_path: Path) -> None:
    await asyncio.gather(*(start(stores, tmp_path) for _ in range(20)))
    assert {path.name for path in (tmp_path / "files").iterdir() if path.is_file()} == {"id"}
    assert not list((tmp_path / "files" / "tmp").iterdir())


async def test_a_folder_that_can_t_be_written_keeps_nobody_from_starting(
    stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "files").write_text("no folder")
    await start(stores, tmp_path)
    assert "files folder not checked" in caplog.messages


async def test_a_strange_value_keeps_nobody_from_starting(
    stores: Stores, redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.hset("fleet:files", "somebody", "else's")
    await start(stores, tmp_path)
    assert "files folder not checked" in caplog.messages


async def test_a_fleet_without_files_has_none_that_are_missing(
    stores: Stores, redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path / "data", redis_url=f"redis://127.0.0.1:{redis_port}/0")

    async def found() -> tuple[Severity, str]:
        (one,) = await asyncio.to_thread(stored_files, settings)
        return one.verdict, one.found

    assert (await found())[0] is Severity.FAIL  # no such folder
    settings.data.mkdir()
    assert await found() == (Severity.OK, "no uploads and outputs yet")
    assert not settings.files_dir.exists()
    await redis.hset(f"fleet:asset:{uuid4()}", "name", "x.png")
    verdict, words = await found()
    assert verdict is Severity.FAIL and "Redis knows some" in words
    assert not settings.files_dir.exists()


async def test_a_lost_key_is_refused_with_what_it_sealed_and_the_ways_out(
    stores: Stores, redis: Redis, tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path)
    path = settings.secret_key_file

    async def begin() -> str:
        return await check_secret(settings, stores)

    assert not any(await asyncio.gather(begin(), begin()))
    first = path.read_bytes()
    path.unlink()
    assert "signed URLs" in await begin()  # nothing is sealed: the new one is taken, and told of
    assert path.read_bytes() != first

    second = path.read_bytes()
    box = SecretBox.open(path)
    node = Node(name="g1", url="http://127.0.0.1:1", sealed=box.seal(b"a:b").decode())
    await stores.nodes.add(node)
    await redis.hset("fleet:webhook:secrets", "ada", box.seal(b"{}"))
    await redis.set(f"fleet:job:{uuid4()}:secret", box.seal(b"{}"))
    await begin()
    path.unlink()
    with pytest.raises(ConfigError, match=r"passwords of nodes g1, .* webhooks, partner"):
        await begin()
    with pytest.raises(ConfigError) as refused:  # the key that was made meanwhile is no way in
        await begin()
    third = path.read_bytes()
    path.write_bytes(second)  # from the backup
    await begin()
    path.write_bytes(third)
    mark, _, place = str(refused.value).rpartition("echo ")[2].partition(" > ")
    assert place == str(tmp_path / "lost-key")
    (tmp_path / "lost-key").write_text(f"{mark}\n")  # as the shell does it
    assert "g1" in await begin()
    assert not await begin()
    path.unlink()
    with pytest.raises(ConfigError):  # what was given up was that key's, not this one's
        await begin()
