"""People's files in the editor on a real Redis: whole or not at all, whoever writes at the same moment."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfy_fleet.adapters.redis.client import FleetRedis, connect
from comfy_fleet.adapters.redis.userdata import RedisUserData
from comfy_fleet.domain.errors import BadInput, NotFound
from comfy_fleet.domain.user_data import (
    MOST_FILE_BYTES,
    MOST_FILES,
    BadUserPath,
    Moved,
    UserDataFull,
    UserFile,
    UserFileExists,
    graph_file,
    user_path,
)
from comfy_fleet.services.editor_settings import EditorSettings
from comfy_fleet.services.user_files import UserFiles
from tests.children import mortal

MOST = 1_000_000


@pytest.fixture
def store(redis: FleetRedis) -> RedisUserData:
    return RedisUserData(redis, most_bytes=MOST)


async def kept(redis: FleetRedis, owner: str = "ann") -> tuple[int, list[str]]:
    """Return the counted bytes of an owner, and the names of the contents that are there."""
    counted = await redis.get(redis.keyspace.user_bytes(owner))
    names = [key.decode() async for key in redis.scan_iter(match=redis.keyspace.user_content(owner, "*"))]
    return int(counted or 0), sorted(names)


async def consistent(redis: FleetRedis, store: RedisUserData, owner: str = "ann") -> dict[str, bytes]:
    """Return the contents by path; there is nothing else of the owner's, and it is counted rightly."""
    tree = await store.tree(owner)
    files = {}
    for path in tree.files:
        found = await store.read(owner, path)
        assert found is not None, path
        files[path] = found[1]
    expected = sorted(redis.keyspace.user_content(owner, file.version) for file in tree.files.values())
    assert await kept(redis, owner) == (sum(map(len, files.values())), expected)
    return files


async def test_a_file_is_what_was_written_last(redis: FleetRedis, store: RedisUserData) -> None:
    first = await store.save("ann", "workflows/cat.json", b"{}")
    again = await store.save("ann", "workflows/cat.json", b"{1}")
    assert again == UserFile(
        path="workflows/cat.json",
        size_bytes=3,
        created=first.created,
        modified=again.modified,
        version=again.version,
    )
    assert again.modified > first.modified
    assert await store.read("ann", "workflows/cat.json") == (again, b"{1}")
    assert await store.read("bob", "workflows/cat.json") is None
    assert (await store.tree("bob")).files == {}
    assert (await store.tree("ann")).folders == {"workflows"}
    assert await consistent(redis, store) == {"workflows/cat.json": b"{1}"}


async def test_only_one_of_many_makes_a_file_that_must_be_new(store: RedisUserData) -> None:
    async def write(text: bytes) -> bytes | None:
        with contextlib.suppress(UserFileExists):
            await store.save("ann", "a", text, overwrite=False)
            return text
        return None

    wrote = [text for text in await asyncio.gather(*(write(b"%d" % n) for n in range(40))) if text]
    assert len(wrote) == 1
    found = await store.read("ann", "a")
    assert found is not None
    assert found[1] == wrote[0]


async def test_a_write_that_is_sent_again_is_no_conflict_with_itself(redis: FleetRedis) -> None:
    store = RedisUserData(redis, most_bytes=MOST, new_version=lambda: "the same")
    first = await store.save("ann", "a", b"x", overwrite=False)
    assert await store.save("ann", "a", b"x", overwrite=False) == first
    moved = RedisUserData(redis, most_bytes=MOST, new_version=lambda: "another")
    there = await moved.move("ann", "a", "b", overwrite=False)
    assert there == await moved.move("ann", "a", "b", overwrite=False)
    assert await consistent(redis, store) == {"b": b"x"}


async def test_an_empty_file_is_deleted_and_replaced(redis: FleetRedis, store: RedisUserData) -> None:
    await store.save("ann", "a", b"")
    assert await store.delete("ann", "a")
    await store.save("ann", "a", b"")
    await store.save("ann", "b", b"x")
    await store.move("ann", "b", "a")
    assert await consistent(redis, store) == {"a": b"x"}


async def test_a_move_takes_content_and_times_along(redis: FleetRedis, store: RedisUserData) -> None:
    written = await store.save("ann", "a", b"x")
    await store.save("ann", "b", b"long")
    with pytest.raises(UserFileExists):
        await store.move("ann", "a", "b", overwrite=False)
    moved = (await store.move("ann", "a", "b")).file
    assert moved is not None
    assert (moved.created, moved.modified, moved.size_bytes) == (written.created, written.modified, 1)
    assert await consistent(redis, store) == {"b": b"x"}
    with pytest.raises(NotFound):
        await store.move("ann", "a", "c")
    with pytest.raises(NotFound):
        await store.move("bob", "b", "c")


async def test_folders_move_whole_and_go_when_they_are_empty(redis: FleetRedis, store: RedisUserData) -> None:
    for path in ("a/1", "a/b/2", "ab/3", "c/4"):
        await store.save("ann", path, path.encode())
    assert await store.move("ann", "a", "x/y") == Moved(path="x/y", file=None)
    assert await store.move("ann", "ab", "c") == Moved(path="c/ab", file=None)
    tree = await store.tree("ann")
    assert set(tree.files) == {"x/y/1", "x/y/b/2", "c/ab/3", "c/4"}
    assert tree.folders == {"x", "x/y", "x/y/b", "c", "c/ab"}
    for source, dest in (("x", "x/y"), ("x", "x/z"), ("x", "x")):
        with pytest.raises(BadUserPath, match="itself"):
            await store.move("ann", source, dest)
    with pytest.raises(BadUserPath, match="delete these first"):
        await store.delete("ann", "x/y/b")
    assert await store.delete("ann", "x/y/b/2")
    assert await store.delete("ann", "x/y/b")
    assert not await store.delete("ann", "x/y/b")
    assert "x/y/b" not in (await store.tree("ann")).folders
    with pytest.raises(BadUserPath, match="too long"):
        await store.move("ann", "x", "/".join(["d" * 200] * 5 + ["e" * 18]))
    assert await consistent(redis, store) == {"x/y/1": b"a/1", "c/ab/3": b"ab/3", "c/4": b"c/4"}


async def test_limits(redis: FleetRedis, store: RedisUserData) -> None:
    await store.save("ann", "a", b"x" * (MOST - 10))
    with pytest.raises(UserDataFull, match="FLEET_USERDATA_BYTES"):
        await store.save("ann", "b", b"y" * 11)
    await store.save("ann", "b", b"y" * 10)
    await store.save("bob", "b", b"y" * MOST)
    with pytest.raises(UserDataFull):
        await store.save("ann", "b", b"y" * 11)
    await store.save("ann", "a", b"")  # smaller always fits
    with pytest.raises(UserDataFull, match=str(MOST_FILE_BYTES)):
        await store.save("ann", "c", bytes(MOST_FILE_BYTES + 1))
    too_long = ("d" * 256, "/".join(["d" * 200] * 6), "a\nb", "", "a\0b")
    for path in too_long:
        with pytest.raises(BadUserPath):
            await store.save("ann", path, b"")
    with pytest.raises(BadUserPath, match="a is a file"):
        await store.save("ann", "a/b", b"")
    assert set(await consistent(redis, store)) == {"a", "b"}


async def test_a_person_has_at_most_so_many_files(redis: FleetRedis, store: RedisUserData) -> None:
    names: dict[Any, Any] = {f"folder{n}/": "" for n in range(MOST_FILES - 2)}
    await redis.hset(redis.keyspace.user_files("ann"), mapping=names)
    await store.save("ann", "f/last", b"")
    for path in ("one more", "folder1/x"):
        with pytest.raises(UserDataFull, match="10000 files and folders"):
            await store.save("ann", path, b"")
    with pytest.raises(UserDataFull):
        await store.move("ann", "f/last", "g/last")
    await store.move("ann", "f/last", "folder1/last")
    await store.delete("ann", "folder2")
    assert await store.save("ann", "one more", b"") is not None


async def test_records_that_nobody_can_read_harm_no_other_file(
    redis: FleetRedis, store: RedisUserData
) -> None:
    await store.save("ann", "a", b"1")
    for path, junk in {"j1": "{", "j2": "[]", "j3": "{}", "j4": '{"version":1}', "j5": ""}.items():
        await redis.hset(redis.keyspace.user_files("ann"), path, junk)
    assert set((await store.tree("ann")).files) == {"a"}
    assert await store.read("ann", "j1") is None
    assert (await store.save("ann", "j1", b"new")).size_bytes == 3
    assert await store.delete("ann", "j3")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.sampled_from(["a", "b", "c/d", "c/e", "c"]), st.binary(max_size=9)),
        st.tuples(st.just("move"), st.sampled_from(["a", "c", "c/d"]), st.sampled_from(["b", "c", "f/g"])),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", "c", "c/d", "f/g"]), st.just(b"")),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_done_counts_and_contents_stay_true(redis_port: int, steps: Any) -> None:
    async def play() -> None:
        client = connect(f"redis://127.0.0.1:{redis_port}/0")
        try:
            await client.flushall()
            store = RedisUserData(client, most_bytes=30)

            async def step(kind: str, path: str, with_: Any) -> None:
                with contextlib.suppress(UserFileExists, BadUserPath, NotFound, UserDataFull):
                    if kind == "save":
                        await store.save("ann", path, with_)
                    elif kind == "move":
                        await store.move("ann", path, with_)
                    else:
                        await store.delete("ann", path)

            await asyncio.gather(*(step(*one) for one in steps))
            await consistent(client, store)
        finally:
            await client.aclose()

    asyncio.run(play())


WRITER = """
import asyncio, sys
from comfy_fleet.adapters.redis.client import connect
from comfy_fleet.adapters.redis.userdata import RedisUserData

async def main():
    store = RedisUserData(connect(sys.argv[1]), most_bytes=10**9)
    n = 0
    while True:
        n += 1
        await asyncio.gather(*(store.save("ann", f"f{k}", b"%d" % n * 3000) for k in range(4)))
        await store.move("ann", "f0", "g0")
        if n == 3:
            print("well under way", flush=True)

asyncio.run(main())
"""


async def test_a_writer_that_is_killed_leaves_whole_files(
    redis: FleetRedis, redis_port: int, store: RedisUserData, tmp_path: Path
) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            mortal([sys.executable, "-c", WRITER, f"redis://127.0.0.1:{redis_port}/0"]),
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        assert writer.stdout is not None
        try:
            assert await asyncio.to_thread(writer.stdout.readline) == b"well under way\n"
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        for content in (await consistent(redis, store)).values():
            text = content.decode()
            assert text == text[: len(text) // 3000] * 3000


# -- settings, and what follows from a save ----------------------------------------------------------------


async def test_no_change_of_a_setting_undoes_another(redis: FleetRedis, redis_port: int) -> None:
    others = [connect(f"redis://127.0.0.1:{redis_port}/0") for _ in range(3)]
    processes = [EditorSettings(RedisUserData(one, most_bytes=MOST)) for one in others]
    try:
        await asyncio.gather(*(processes[n % 3].change("ann", {f"s{n}": n}) for n in range(60)))
        assert await processes[0].all("ann") == {f"s{n}": n for n in range(60)}
        assert await processes[0].all("bob") == {}
    finally:
        for one in others:
            await one.aclose()


async def test_settings_have_a_limit_together(redis: FleetRedis) -> None:
    store = RedisUserData(redis, most_bytes=10**8)
    kept = EditorSettings(store)
    await kept.change("ann", {"a": "x" * 3_000_000})
    with pytest.raises(UserDataFull, match="all settings"):
        await kept.change("ann", {"b": "x" * 3_000_000})
    await store.save("ann", "comfy.settings.json", b'{"a": "%s"}' % (b"x" * 5_000_000))
    assert await kept.all("ann") == {}


async def test_settings_that_can_be_read_and_not_written_count_as_unreadable(redis: FleetRedis) -> None:
    store = RedisUserData(redis, most_bytes=10**8)
    kept = EditorSettings(store)
    deep = b"[" * 300 + b"]" * 300
    with pytest.raises(BadInput, match="levels"):
        await kept.change("ann", {"a": orjson.loads(deep)})
    await store.save("ann", "comfy.settings.json", b'{"a": %s}' % deep)
    assert await kept.all("ann") == {}
    await kept.change("ann", {"b": 1})
    assert await kept.all("ann") == {"b": 1}


async def test_whether_somebody_has_anything_is_known_without_reading_it(
    redis: FleetRedis, store: RedisUserData
) -> None:
    assert not await store.has_any("ann")
    await redis.hset(redis.keyspace.user_files("ann"), "a", "junk")
    assert await store.has_any("ann")


class Told:
    """Is told of saves."""

    def __init__(self) -> None:
        self.saves: list[tuple[str, str]] = []
        self.gone: list[tuple[str, ...]] = []

    async def saved(self, owner: str, name: str) -> None:
        self.saves.append((owner, name))

    async def moved(self, owner: str) -> None:
        self.gone.append((owner,))

    async def deleted(self, owner: str, name: str) -> None:
        self.gone.append((owner, name))


async def test_graphs_that_are_saved_or_renamed_are_told(store: RedisUserData) -> None:
    told = Told()
    files = UserFiles(store, told)
    for path in (
        "workflows/a b.json",
        "workflows/p/c.json",
        "workflows/.index.json",
        "subgraphs/x.json",
        "y",
    ):
        await files.save("ann", path, path.encode(), overwrite=True)
    await files.move("ann", "workflows/a b.json", "workflows/new.json", overwrite=False)
    await files.move("ann", "workflows/new.json", "elsewhere.json", overwrite=False)
    await files.delete("ann", "workflows/p/c.json")
    assert not await files.delete("ann", "workflows/p/c.json")
    await files.save("ann", "workflows/q/d.json", b"", overwrite=True)
    await files.move("ann", "workflows/q", "workflows/r", overwrite=False)
    await files.move("ann", "workflows", "old", overwrite=False)
    await files.move("ann", "old", "workflows", overwrite=False)
    assert told.gone == [("ann",), ("ann",), ("ann", "p/c.json"), ("ann",), ("ann",), ("ann",)]
    saves = ["a b.json", "p/c.json", "q/d.json"]
    assert told.saves == [("ann", name) for name in saves]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", "a"),
        ("a/../b", "b"),
        ("./a//b/", "a/b"),
        (".", ""),
        ("a%2Fb", "a/b"),
        ("100%", "100%"),
        ("..", None),
        ("a/../../b", None),
        ("%2e%2e/x", None),
        ("/etc/passwd", None),
        ("//x", None),
    ],
)
def test_a_name_means_a_path_below_ones_own_folder(name: str, path: str | None) -> None:
    assert user_path(name) == path


def test_which_files_are_graphs() -> None:
    assert graph_file("workflows/a/b.json") == "a/b.json"
    others = ("a.json", "workflows/a.txt", "workflows/.index.json", "workflows/.x/a.json", "workflows/.json")
    assert [graph_file(path) for path in others] == [None] * 5
