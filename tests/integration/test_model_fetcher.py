"""An agent fetches model files: only what was ordered, only where models are, whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from aiohttp import web

from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp
from comfy_fleet.agent.model_fetcher import ModelFetcher, ModelLimits
from comfy_fleet.agent.model_folders import stamp
from comfy_fleet.agent.model_place import sweep
from comfy_fleet.domain.nodes.model_fetch import ENDS, FetchState, HostFetch, ModelOrder
from comfy_fleet.domain.outbound import parse_allowed
from tests.fleet import until
from tests.web_site import Sends, Site, page, site

BODY = b"tensors" * 300_000
HASH = hashlib.sha256(BODY).hexdigest()
LIMITS = ModelLimits(most_bytes=10_000_000, within_s=60, keep_free=0, stall_s=60)


@dataclass
class Place:
    """An agent's part that fetches, its folders, and a site."""

    fetcher: ModelFetcher
    roots: dict[str, Path]
    site: Site

    def order(self, path: str = "/kids.safetensors", **more: Any) -> ModelOrder:
        fields = {"id": str(uuid4()), "url": self.site.url(path), "folder": "loras", "sha256": HASH}
        name = path.rpartition("/")[2]
        return ModelOrder(**{**fields, "name": name, "nodes": tuple(self.roots), **more})

    async def end(self, order: ModelOrder) -> HostFetch:
        self.fetcher.take([order])
        await until(lambda: self.state(order).state in ENDS, what="it has ended")
        return self.state(order)

    def state(self, order: ModelOrder) -> HostFetch:
        return self.fetcher.reports().get(order.id, HostFetch())

    def files(self, node: str = "n1") -> list[str]:
        root = self.roots[node]
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def models(folder: Path) -> Path:
    (folder / "models" / "loras").mkdir(parents=True)
    (folder / "models" / "checkpoints").mkdir()
    return folder / "models"


@asynccontextmanager
async def place(folder: Path, limits: ModelLimits = LIMITS, allow: str = "127.0.0.1") -> AsyncIterator[Place]:
    roots = {"n1": models(folder)}
    calls = OutboundHttp(allowed=parse_allowed("FLEET_MODEL_ALLOW", allow), purpose="model")
    fetcher = ModelFetcher(lambda: roots, calls, limits, told=lambda: None)
    async with site() as served:
        served.pages["/kids.safetensors"] = page(BODY)
        yield Place(fetcher, roots, served)
        await fetcher.stop()
    calls.close()


def stalling(first: bytes, *, says: int | None = None) -> Sends:
    async def send(writer: asyncio.StreamWriter) -> None:
        length = f"Content-Length: {says}\r\n" if says is not None else ""
        writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\n".encode() + first)
        await writer.drain()
        await asyncio.sleep(3600)

    return send


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:10])
    await writer.drain()
    writer.close()


async def test_a_file_is_there_once_all_of_it_is_right(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        before = stamp(it.roots["n1"])
        order = it.order(name="sub/kids.safetensors")
        told = await it.end(order)
        assert (told.state, told.words, told.bytes, told.total) == (
            *(FetchState.DONE, "from 127.0.0.1", len(BODY), len(BODY)),
        )
        assert (it.roots["n1"] / "loras/sub/kids.safetensors").read_bytes() == BODY
        assert it.files() == ["loras/sub/kids.safetensors"]
        assert stamp(it.roots["n1"]) != before
        again = await it.end(it.order(name="sub/kids.safetensors"))
        assert (again.state, again.words) == (FetchState.DONE, "was there already")
        assert it.site.asked("/kids.safetensors") == 1


async def test_one_download_for_each_different_folder_at_most(tmp_path: Path) -> None:
    async with place(tmp_path / "a") as it:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "models").symlink_to(it.roots["n1"])
        it.roots |= {"n2": tmp_path / "b" / "models", "n3": models(tmp_path / "c")}
        it.fetcher.take([first := it.order(), second := it.order()])
        await until(lambda: {it.state(first).state, it.state(second).state} <= ENDS, what="both have ended")
        assert {it.state(first).state, it.state(second).state} == {FetchState.DONE}
        assert it.files("n1") == it.files("n2") == it.files("n3") == ["loras/kids.safetensors"]
        assert it.site.asked("/kids.safetensors") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "SHA-256 is"),
        ({"url": "/gone.safetensors"}, "status 404"),
        ({"url": "/endless.safetensors"}, "more than"),
        ({"url": "/large.safetensors"}, "FLEET_MODEL_BYTES"),
        ({"url": "/slow.safetensors"}, "nothing more came for 1 s"),
        ({"url": "/silent.safetensors"}, "does not answer within 1 s"),
        ({"url": "/cut.safetensors"}, "broke the connection off"),
        ({"url": "/private.safetensors"}, "not public"),
        ({"url": "/away.safetensors"}, "neither http"),
        ({"url": "file:///etc/passwd"}, "neither http"),
        ({"folder": "nothing"}, "folder nothing"),
        ({"folder": ".."}, "folder"),
        ({"folder": "custom_nodes"}, "folder"),
        ({"folder": "loras/../.."}, "folder"),
        ({"name": "../up.safetensors"}, "name"),
        ({"name": "/etc/x.safetensors"}, "name"),
        ({"name": "link/x.safetensors"}, "link"),
        ({"name": "taken.safetensors"}, "another file called"),
        ({"name": "linked.safetensors"}, "no file"),
        ({"name": "code.py", "pickles": True}, "must end like a model"),
        ({"name": "old.ckpt"}, "allow pickles"),
        ({"nodes": ("n9",)}, "none of its nodes"),
    ],
)
async def test_what_is_refused_leaves_nothing(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    async with place(tmp_path, replace(LIMITS, stall_s=1)) as it:
        at = "http://169.254.169.254/latest"
        it.site.pages |= {
            "/endless.safetensors": endless,
            "/large.safetensors": stalling(b"", says=10**12),
            "/slow.safetensors": stalling(b"x", says=100),
            "/silent.safetensors": silent,
            "/cut.safetensors": cut,
            "/private.safetensors": page(head=f"Location: {at}\r\n", status="302 Found"),
            "/away.safetensors": page(head="Location: ftp://x/y\r\n", status="302 Found"),
        }
        loras, outside = it.roots["n1"] / "loras", tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_text("s")
        (loras / "link").symlink_to(outside)
        (loras / "taken.safetensors").write_bytes(b"mine")
        (loras / "linked.safetensors").symlink_to(outside / "secret")
        before = it.files()
        if str(change.get("url", "")).startswith("/"):
            change = {**change, "url": it.site.url(change["url"])}
        told = await it.end(it.order(**change))
        assert told.state is FetchState.FAILED
        assert words in told.words, told.words
        assert it.files() == before
        assert [path.name for path in outside.iterdir()] == ["secret"]
        assert (loras / "taken.safetensors").read_bytes() == b"mine"


async def test_private_hosts_are_asked_only_where_an_operator_allows_them(tmp_path: Path) -> None:
    async with place(tmp_path, allow="") as it:
        told = await it.end(it.order())
        assert (told.state, it.site.heads) == (FetchState.FAILED, [])


async def test_a_full_disk_is_seen_before_it_is_full(tmp_path: Path) -> None:
    async with place(tmp_path, replace(LIMITS, keep_free=2**62)) as it:
        told = await it.end(it.order())
        assert told.state is FetchState.FAILED
        assert "the disk has no room" in told.words


async def test_cancel_and_what_a_killed_agent_leaves(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        it.site.pages["/kids.safetensors"] = stalling(BODY[:1_500_000], says=len(BODY))
        order = it.order()
        it.fetcher.take([order])
        await until(lambda: it.state(order).bytes > 0, what="some of it is there")
        (part,) = it.files()
        assert part.endswith(".part")
        assert sweep(it.roots["n1"]) == 0  # somebody writes it
        it.fetcher.take([replace(order, canceled=True)])
        assert it.state(order).state is FetchState.CANCELED
        await until(lambda: it.files() == [], what="the temporary file is gone")
        (it.roots["n1"] / part).write_bytes(b"half")  # as after a kill
        assert sweep(it.roots["n1"]) == 1
        (it.roots["n1"] / part).write_bytes(b"half")
        it.site.pages["/kids.safetensors"] = page(BODY)
        assert (await it.end(it.order())).state is FetchState.DONE
        assert it.files() == ["loras/kids.safetensors"]


async def test_a_site_s_token_goes_nowhere_else(tmp_path: Path) -> None:
    heads: list[tuple[str, str]] = []

    class Calls:
        def get(self, url: str, *, headers: Any = None, most_bytes: int, within_s: float) -> Any:
            heads.append((url, (headers or {}).get("Authorization", "")))
            raise OSError(most_bytes, within_s)

        def post(self, url: str, body: bytes, **_: Any) -> Any:
            raise OSError(url, body)

    limits = replace(LIMITS, tokens={"huggingface.co": "hf_secret"})
    async with place(tmp_path) as it:
        fetcher = ModelFetcher(lambda: it.roots, Calls(), limits, told=lambda: None)
        urls = [
            "https://huggingface.co/a/b.safetensors",
            "http://huggingface.co/a/b.safetensors",
            "https://huggingface.co:8443/a/b.safetensors",
            "https://huggingface.co.evil.test/a/b.safetensors",
        ]
        for url in urls:
            fetcher.take([it.order(url=url)])
            await until(lambda: all(one.state in ENDS for one in fetcher.reports().values()), what="ended")
        assert dict(heads) == dict(zip(urls, ["Bearer hf_secret", "", "", ""], strict=True))
        assert "hf_secret" not in repr(limits)


@asynccontextmanager
async def giving(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/models/{id}", handler)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_neighbour_gives_a_file_to_who_has_the_ticket_and_only_that_file(tmp_path: Path) -> None:
    async with place(tmp_path / "a") as has, place(tmp_path / "b") as lacks:
        order = has.order(ticket="secret-ticket")
        async with giving(has.fetcher.give) as address, httpx.AsyncClient() as http:
            url = f"http://{address}/models/{order.id}"
            assert (await http.get(url, headers={"Authorization": "Bearer secret-ticket"})).status_code == 404
            assert (await has.end(order)).state is FetchState.DONE
            has.fetcher.take([replace(order, serve=True)])
            for shown in ("", "Bearer other", "secret-ticke"):
                assert (await http.get(url, headers={"Authorization": shown})).status_code == 403
            mine = replace(order, neighbours=(address,), nodes=("n1",))
            told = await lacks.end(mine)
            assert (told.state, told.words) == (FetchState.DONE, f"from the agent at {address}")
            assert lacks.files() == ["loras/kids.safetensors"]
            assert lacks.site.heads == []
            (has.roots["n1"] / "loras/kids.safetensors").unlink()
            (has.roots["n1"] / "loras/kids.safetensors").symlink_to("/etc/passwd")
            assert (await http.get(url, headers={"Authorization": "Bearer secret-ticket"})).status_code == 404


async def test_a_neighbour_that_hangs_costs_a_download_and_nothing_else(tmp_path: Path) -> None:
    async with place(tmp_path, replace(LIMITS, stall_s=1)) as it:
        order = it.order(ticket="t")
        it.site.pages[f"/models/{order.id}"] = silent
        address = it.site.url("").removeprefix("http://")
        told = await it.end(replace(order, neighbours=(address,)))
        assert (told.state, told.words) == (FetchState.DONE, "from 127.0.0.1")
        assert it.site.asked(f"/models/{order.id}") == 1


async def test_a_neighbour_that_lies_costs_a_download_and_nothing_else(tmp_path: Path) -> None:
    async def lies(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"something else")

    async with place(tmp_path) as it, giving(lies) as address:
        told = await it.end(it.order(neighbours=("127.0.0.1:1", address), ticket="t"))
        assert (told.state, told.words) == (FetchState.DONE, "from 127.0.0.1")
        assert (it.roots["n1"] / "loras/kids.safetensors").read_bytes() == BODY
