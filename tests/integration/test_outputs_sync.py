"""``fleet outputs sync``: a folder that mirrors outputs."""

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.adapters.system.folders import take_lock
from comfy_fleet.cli import mirror as mirrors
from comfy_fleet.cli import outputs
from comfy_fleet.cli.client import Client
from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

ANN, BOB = "ann-key-0123456789", "bob-key-0123456789"
entry = import_module("comfy_fleet.cli.main")  # the package has a function of this name


@pytest.fixture
async def api(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    write_keys(tmp_path / "keys", f"ann {ANN} operator\nbob {BOB}\n")
    monkeypatch.setattr(entry, "_start_quickly", lambda: None)
    monkeypatch.setattr(entry, "_open_standard_streams", lambda: None)
    async with running(redis_port, tmp_path / "data", keys_file=tmp_path / "keys") as started:
        started.client.headers["X-API-Key"] = ANN
        await started.add_node()
        yield started


def png(color: int) -> bytes:
    drawn = BytesIO()
    Image.new("RGB", (32, 16), (color, 0, 0)).save(drawn, "PNG")
    return drawn.getvalue()


async def done(api: Api, color: int, *files: tuple[str, bytes], claims: str = "g1", **more: Any) -> str:
    job = await api.submit(picture(color), **more)
    run = await api.claim(job["id"], claims)
    for place, (name, data) in enumerate(files or [("a.png", png(color))]):
        await api.output(run, data, name=name, node=str(place))
    await api.finish(run)
    return str(job["id"])


async def sync(api: Api, folder: Path, *more: str, key: str = ANN) -> tuple[list[str], int]:
    """Run the command as its process would; return the lines that it writes, and its exit code."""

    def run() -> tuple[list[str], int]:
        written, code = io.StringIO(), 0
        before = sys.argv
        sys.argv = ["fleet", "outputs", "sync", str(folder), *more, "--api", api.url, "--key", key]
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                entry.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.argv = before
        return written.getvalue().splitlines(), code

    return await asyncio.to_thread(run)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and mirrors.OWN not in path.parts
    }


async def test_a_folder_gets_what_it_lacks_and_nothing_twice(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mirror"
    made = (("a.png", png(1)), ("a.png", png(2)), ("b.txt", b"words"))
    first = await done(api, 1, *made, metadata={"sku": "1"})
    many = await done(api, 2, *((f"{n}.png", png(n)) for n in range(12)), metadata={"sku": "2"})
    day = (await api.client.get(f"/api/v1/jobs/{first}")).json()["completed_at"][:10]
    lines, code = await sync(api, folder)
    wanted = {
        **{f"{day}/{first}/{name}": data for name, data in (made[0], ("a-2.png", png(2)), made[2])},
        **{f"{day}/{many}/{n}.png": png(n) for n in range(12)},
    }
    assert (files(folder), code) == (wanted, 0)
    assert sorted(lines) == sorted(wanted)
    assert sorted(one.name for one in (folder / mirrors.OWN).iterdir()) == ["lock", "reached.json"]

    calls = []
    content = Client.content

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return content(*args, **more)

    monkeypatch.setattr(Client, "content", counted)
    assert await sync(api, folder, "--again") == (["0 new, 15 there already"], 0)
    # A file that was copied has another time: its bytes tell.
    os.utime(folder / day / first / "a-2.png", (1, 1))
    (folder / day / first / "b.txt").unlink()
    assert (await sync(api, folder, "--json"))[1] == 0
    assert "b.txt" not in str(files(folder).keys())  # that job was looked through
    lines, _ = await sync(api, folder, "--again")
    assert lines == [f"{day}/{first}/b.txt"] and len(calls) == 1
    assert files(folder) == wanted

    only, code = await sync(api, tmp_path / "other", "--metadata", "sku=1", "--since", "1h")
    assert (len(only), code) == (3, 0)
    assert await sync(api, tmp_path / "none", "--workflow", "nothing") == (["0 new, 0 there already"], 0)
    # A run with --since says nothing of older jobs.
    assert len((await sync(api, tmp_path / "other", "--metadata", "sku=1", "--again"))[0]) == 1


async def test_jobs_that_end_later_come_later(api: Api, tmp_path: Path) -> None:
    waits = await api.submit(picture(1))
    claim = await api.claim(waits["id"])
    await api.add_node("g2")
    second = await done(api, 2, claims="g2")
    failed = await api.submit(picture(3))
    run = await api.claim(failed["id"], "g2")
    await api.output(run, png(3))
    await api.finish(run, JobStatus.FAILED)
    folder = tmp_path / "mirror"
    lines, _ = await sync(api, folder)
    assert [line.split("/")[1] for line in lines] == [second]
    await api.output(claim, png(1), name="late.png")
    await api.finish(claim)
    lines, _ = await sync(api, folder)
    assert [line.split("/")[1:] for line in lines] == [[waits["id"], "late.png"]]
    skipped = "0 new, 0 there already, 2 not looked at again (--again does)"
    assert (await sync(api, folder))[0] == [skipped]  # only the newest job is looked at again
    assert (await sync(api, folder))[0] == [skipped]
    assert (await sync(api, folder, "--again"))[0] == ["0 new, 2 there already"]


async def test_names_that_were_asked_for_and_formats(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {}
    for color, key in ((1, "products/SKU-1.webp"), (2, "products/SKU-1.webp"), (3, "../../../up.png"),
                       (4, "/abs/.hidden/x.jpg"), (5, ".fleet-sync/lock"), (6, "a/" * 40 + "b.png"),
                       (7, "c\\..\\..\\d.png"), (8, "x" * 3000)):  # fmt: skip
        keys[await done(api, color)] = key
    asked = Client.get

    def stored(self: Client, path: str, **more: Any) -> Any:
        answer = asked(self, path, **more)
        for job in answer.get("jobs", []):
            job["output"] = {"store": "shop"}
            for output in job["outputs"]:
                output["stored"] = {"key": keys[job["id"]]}
        return answer

    monkeypatch.setattr(Client, "get", stored)
    folder = tmp_path / "in" / "mirror"
    lines, code = await sync(api, folder)
    found = files(folder)
    assert code == 0 and set(found) == set(lines)
    names = set(found)
    assert names >= {"products/SKU-1.webp", "products/SKU-1-2.webp", "up.png", "abs/_hidden/x.jpg", "c/d.png"}
    assert "_fleet-sync/lock" in names and len(names) == 8
    assert found["products/SKU-1.webp"] != found["products/SKU-1-2.webp"]
    assert Image.open(BytesIO(found["products/SKU-1.webp"])).format == "WEBP"
    assert Image.open(BytesIO(found["abs/_hidden/x.jpg"])).format == "JPEG"
    assert sorted(one.name for one in (tmp_path / "in").iterdir()) == ["mirror"]
    assert await sync(api, folder, "--again") == (["0 new, 8 there already"], 0)

    lines, _ = await sync(api, tmp_path / "webp", "--format", "webp")
    assert {"up.webp", "c/d.webp", "products/SKU-1-2.webp"} <= set(lines)
    assert Image.open(BytesIO((tmp_path / "webp" / "up.webp").read_bytes())).format == "WEBP"


async def test_no_link_leads_out_and_what_is_in_the_way_stays(api: Api, tmp_path: Path) -> None:
    first, second = await done(api, 1), await done(api, 2)
    day = (await api.client.get(f"/api/v1/jobs/{first}")).json()["completed_at"][:10]
    folder, outside = tmp_path / "mirror", tmp_path / "outside"
    outside.mkdir()
    (folder / day / second).mkdir(parents=True)
    (folder / day / first).symlink_to(outside)
    (folder / day / second / "a.png").symlink_to(outside / "there")
    lines, code = await sync(api, folder)
    assert code == 1 and any("is a link" in line for line in lines)
    assert list(outside.iterdir()) == []
    assert (folder / day / second / "a-2.png").read_bytes() == png(2)
    (folder / day / first).unlink()
    assert (await sync(api, folder)) == ([f"{day}/{first}/a.png"], 0)  # what failed is tried again

    other = tmp_path / "linked"
    other.mkdir()
    (other / mirrors.OWN).symlink_to(outside)
    assert (await sync(api, other))[1] == 2
    lock = take_lock(folder / mirrors.OWN / "lock")
    assert lock is not None
    with lock:
        lines, code = await sync(api, folder)
    assert code == 8 and "another command" in lines[0]


async def test_what_others_may_not_read_is_told_and_what_broke_off_goes_on(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.client.headers["X-API-Key"] = BOB
    await done(api, 1)
    api.client.headers["X-API-Key"] = ANN
    mine = await done(api, 2, ("large.bin", os.urandom(3_000_000)))
    lines, code = await sync(api, tmp_path / "all", "--all")
    assert code == 0
    assert [line.split("/")[1] for line in lines if line.endswith("large.bin")] == [mine]
    assert any("no asset" in line for line in lines)

    content = Client.content
    starts = []

    def breaks(self: Client, url: str, *, start: int = 0, restart: Callable[[], object]) -> Any:
        starts.append(start)
        for piece in content(self, url, start=start, restart=restart):
            yield piece
            if len(starts) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Client, "content", breaks)
    folder = tmp_path / "mirror"
    assert (await sync(api, folder))[1] == 130
    assert files(folder) == {}
    assert (await sync(api, folder))[1] == 0
    assert starts[0] == 0 < starts[1]
    assert len(files(folder)) == 1


async def test_it_follows(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "LOOK_S", 0.05)
    over = threading.Event()
    follow_once = outputs._follow_once  # noqa: SLF001

    def until_over(*args: Any) -> None:
        if over.is_set():
            raise KeyboardInterrupt
        follow_once(*args)

    monkeypatch.setattr(outputs, "_follow_once", until_over)
    folder = tmp_path / "mirror"
    following = asyncio.create_task(sync(api, folder, "--follow"))
    for color in (1, 2):
        job_id = await done(api, color)

        def there(job_id: str = job_id) -> bool:
            return any(job_id in name for name in files(folder))

        await until(there, what="it is there")
    over.set()
    lines, code = await following
    assert code == 130 and len([line for line in lines if line.endswith("a.png")]) == 2


def test_the_name_of_an_output_is_one_inside() -> None:
    job = {"id": "J", "created_at": "2026-01-02T03:04:05.678Z"}
    for name, kind, form, wanted in (
        ("a/b.png", "image/png", None, (("2026-01-02", "J", "b.png"), None)),
        ("..", "image/png", None, (("2026-01-02", "J", "_"), None)),
        ("a.png", "image/png", "jpeg", (("2026-01-02", "J", "a.jpg"), "jpeg")),
        ("a.jpg", "image/jpeg", "jpeg", (("2026-01-02", "J", "a.jpg"), None)),
        ("a.mp4", "video/mp4", "webp", (("2026-01-02", "J", "a.mp4"), None)),
    ):
        assert mirrors.wanted(job, {"name": name, "content_type": kind}, form) == wanted
