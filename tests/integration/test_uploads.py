"""Uploads that may be resumed: tus over HTTP, by hand and by a published client, with breaks at any place."""

import asyncio
import base64
import contextlib
import io
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from redis.asyncio import Redis
from tusclient.client import TusClient

from comfy_fleet.domain.errors import NoRoom
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import until
from tests.integration import haproxy_kit
from tests.integration.api_kit import Api, code, running
from tests.integration.api_process import api_process
from tests.key_files import write_keys
from tests.stream_server import StreamServer

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
MIB = 1 << 20
ANN, BOB = "ann-key-0123456789", "bob-key-0123456789"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_body_bytes=4 * MIB) as started:
        yield started


def said(**metadata: str) -> dict[str, str]:
    pairs = [f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items()]
    return {"Upload-Metadata": ",".join(pairs)}


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def hash_of(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


async def begin(client: httpx.AsyncClient, length: int, **headers: str) -> str:
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Length": str(length), **headers})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


async def send(client: httpx.AsyncClient, url: str, offset: int, data: Any, **headers: str) -> httpx.Response:
    return await client.patch(url, headers={**PART, "Upload-Offset": str(offset), **headers}, content=data)


async def offset_of(client: httpx.AsyncClient, url: str) -> int:
    answer = await client.head(url, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def files_of(folder: Path) -> list[Path]:
    return list((folder / "files" / "uploads").iterdir())


async def left(redis: Redis) -> list[Any]:
    return [key for key in await redis.keys("fleet:upload*") if key != b"fleet:uploads:listed"]


async def test_a_file_comes_in_parts_and_is_an_asset_like_any_other(
    api: Api, redis: Redis, tmp_path: Path
) -> None:
    data = os.urandom(3 * MIB + 5)
    asked = await api.client.options(UPLOADS)
    assert asked.status_code == 204
    assert asked.headers["tus-version"] == asked.headers["tus-resumable"] == "1.0.0"
    assert set(asked.headers["tus-extension"].split(",")) >= {"creation", "expiration", "termination"}
    assert asked.headers["tus-max-size"] == str(api.deps.settings.max_upload_bytes)

    metadata = said(filename="photos/ä.png", filetype="image/png", lens="50mm")
    url = await begin(api.client, len(data), **metadata)
    id_ = url.rpartition("/")[2]
    assert url == f"{api.url}{UPLOADS}/{id_}"
    first = await send(api.client, url, 0, data[:MIB])
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(MIB))
    assert "upload-expires" in first.headers and "x-fleet-asset" not in first.headers
    look = await api.client.head(url, headers=TUS)
    assert look.headers["upload-length"] == str(len(data))
    assert look.headers["upload-metadata"] == metadata["Upload-Metadata"]
    shown = (await api.client.get(url)).json()
    assert (shown["id"], shown["offset"], shown["asset"]) == (id_, MIB, None)

    last = await send(api.client, url, MIB, data[MIB:])
    assert last.headers["x-fleet-asset"] == id_
    assert files_of(tmp_path) == []
    asset = (await api.client.get(f"/api/v2/assets/{id_}")).json()
    assert asset["hash"] == hash_of(data)
    assert (asset["file_path"], asset["content_type"], asset["size_bytes"]) == (
        "photos/ä.png",
        "image/png",
        len(data),
    )
    assert (await api.client.get(asset["url"])).content == data
    assert (await api.client.get(url)).json()["asset"] == asset
    assert await offset_of(api.client, url) == len(data)
    again = await send(api.client, url, len(data), b"")
    assert (again.status_code, again.headers["x-fleet-asset"]) == (204, id_)
    beyond = await send(api.client, url, len(data), b"x")
    assert code(beyond) == (413, "payload_too_large")

    assert (await api.client.delete(url, headers=TUS)).status_code == 204
    assert (await api.client.head(url, headers=TUS)).status_code == 404
    assert (await api.client.get(asset["url"])).status_code == 200
    assert await left(redis) == []


async def test_the_first_bytes_may_come_along_and_a_file_may_be_empty(api: Api) -> None:
    both = {**PART, "Upload-Length": "6", **said(name="a.txt")}
    answer = await api.client.post(UPLOADS, headers=both, content=b"abc")
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "3")
    url = answer.headers["location"]
    assert (await send(api.client, url, 3, b"def")).headers["x-fleet-asset"]
    shown = (await api.client.get(url)).json()["asset"]
    assert (shown["content_type"], (await api.client.get(shown["url"])).content) == ("text/plain", b"abcdef")

    nothing = await begin(api.client, 0)
    empty = (await api.client.get(nothing)).json()
    assert empty["asset"]["size_bytes"] == 0
    assert empty["asset"]["file_path"] == empty["id"]


async def test_methods_that_a_proxy_does_not_know_may_be_told_in_a_header(api: Api) -> None:
    url = await begin(api.client, 2)
    more = {**PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert (await api.client.post(url, headers=more, content=b"a")).status_code == 204
    gone = await api.client.post(url, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})
    assert gone.status_code == 204
    assert code(await api.client.post(url, headers=TUS)) == (405, "method_not_allowed")
    assert (await api.client.head(url, headers=TUS)).status_code == 404


async def test_what_is_wrong_is_named_and_changes_nothing(api: Api, tmp_path: Path) -> None:
    url = await begin(api.client, 4)
    await send(api.client, url, 0, b"ab")
    for headers in ({}, {"Tus-Resumable": "0.2.2"}):
        for method in ("HEAD", "PATCH", "DELETE"):
            other = await api.client.request(method, url, headers=headers)
            assert (other.status_code, other.headers["tus-version"]) == (412, "1.0.0")
        assert (await api.client.post(UPLOADS, headers=headers)).status_code == 412
    wrong = await send(api.client, url, 3, b"d")
    assert code(wrong) == (409, "wrong_offset") and wrong.headers["upload-offset"] == "2"
    assert wrong.headers["tus-resumable"] == "1.0.0"
    assert code(await send(api.client, url, 2, b"cde")) == (413, "payload_too_large")
    plain = {**TUS, "Upload-Offset": "2", "Content-Type": "application/octet-stream"}
    assert code(await api.client.patch(url, headers=plain, content=b"c")) == (
        415,
        "unsupported_media_type",
    )
    packed = await send(api.client, url, 2, b"c", **{"Content-Encoding": "gzip"})
    assert code(packed) == (415, "unsupported_media_type")
    for offset in ("", "-1", "1e3", "0x2", "9" * 20, "٢"):
        odd = await api.client.patch(url, headers=raw({**PART, "Upload-Offset": offset}), content=b"c")
        assert code(odd) == (400, "invalid_request") and "Upload-Offset" in odd.text
    assert await offset_of(api.client, url) == 2

    for longest in (api.deps.settings.max_upload_bytes + 1, 10**20):
        refused = await api.client.post(UPLOADS, headers={**TUS, "Upload-Length": str(longest)})
        assert code(refused) == (413, "payload_too_large") and "FLEET_MAX_UPLOAD_BYTES" in refused.text
    for bad in ({}, {"Upload-Length": "-1"}, {"Upload-Length": "4", "Upload-Defer-Length": "1"}):
        assert code(await api.client.post(UPLOADS, headers={**TUS, **bad})) == (400, "invalid_request")
    for text in ("a b c", "filename !", "a YQ==,a YQ==", "filename /w==", ",", "é YQ==", "a " + "A" * 4096):
        sent = {**TUS, "Upload-Length": "1", "Upload-Metadata": text}
        odd = await api.client.post(UPLOADS, headers=raw(sent))
        assert code(odd) == (400, "invalid_request") and "Upload-Metadata" in odd.text, text
    for name in ("../../etc/passwd", "/etc/passwd", "a\\b", "a\x00b", "a//b", "x" * 1025):
        odd = await api.client.post(UPLOADS, headers={**TUS, "Upload-Length": "1", **said(filename=name)})
        assert code(odd) == (422, "invalid_request") and "filename" in odd.text, name
    for kind in ("text/html\r\nX: y", "x", "a/b;" + "c" * 300):
        odd = await api.client.post(UPLOADS, headers={**TUS, "Upload-Length": "1", **said(filetype=kind)})
        assert code(odd) == (422, "invalid_request") and "filetype" in odd.text
    with_form = {**TUS, "Upload-Length": "1", "Content-Type": "text/plain"}
    assert code(await api.client.post(UPLOADS, headers=with_form, content=b"x")) == (
        415,
        "unsupported_media_type",
    )
    for id_ in ("x", "..%2f", "00000000-0000-4000-8000-000000000000"):
        assert (await api.client.head(f"{UPLOADS}/{id_}", headers=TUS)).status_code == 404
    assert len(files_of(tmp_path)) == 1


async def test_uploads_are_their_owners_and_bounded(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    write_keys(tmp_path / "keys", f"ann {ANN}\nbob {BOB}\n")
    async with running(
        redis_port,
        tmp_path,
        keys_file=tmp_path / "keys",
        max_open_uploads=2,
        max_upload_bytes=1000,
        open_upload_bytes=2500,
        limits="submit: stored=900 body=800",
    ) as api:
        ann, bob = {"X-API-Key": ANN}, {"X-API-Key": BOB}
        url = await begin(api.client, 500, **ann)
        for method in ("HEAD", "GET", "PATCH", "DELETE"):
            theirs = await api.client.request(method, url, headers={**PART, **bob, "Upload-Offset": "0"})
            assert theirs.status_code == 404
        capped = await api.client.options(UPLOADS, headers=ann)
        assert capped.headers["tus-max-size"] == "800"

        async def refused(length: int, **who: str) -> tuple[int, str, str]:
            answer = await api.client.post(UPLOADS, headers={**TUS, "Upload-Length": str(length), **who})
            return *code(answer), answer.text

        assert (await refused(801, **ann))[:2] == (413, "payload_too_large")
        # What has begun counts as kept.
        assert (await refused(401, **ann))[:2] == (507, "storage_limit")
        second = await begin(api.client, 400, **ann)
        status, error, text = await refused(0, **ann)
        assert (status, error) == (429, "limit_reached") and "give it up with DELETE" in text
        assert (await api.client.delete(second, headers={**TUS, **ann})).status_code == 204

        await send(api.client, url, 0, b"x" * 500, **ann)
        assert (await refused(401, **ann))[:2] == (507, "storage_limit")
        await begin(api.client, 400, **ann)
        await begin(api.client, 800, **bob)
        assert (await refused(101, **bob))[:2] == (507, "storage_limit")


async def test_the_bytes_that_may_be_announced_are_bounded_for_one_and_for_all(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys", f"ann {ANN}\nbob {BOB}\n")
    sizes: dict[str, Any] = {"max_upload_bytes": 1000, "open_upload_bytes": 1500}
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys", **sizes) as api:
        for who, lengths in ((ANN, (600, 401)), (BOB, (900, 1))):
            await begin(api.client, lengths[0], **{"X-API-Key": who})
            headers = {**TUS, "X-API-Key": who, "Upload-Length": str(lengths[1])}
            answer = await api.client.post(UPLOADS, headers=headers)
            assert code(answer) == (429, "limit_reached")
            assert answer.json()["error"]["details"]["scope"] == {ANN: "user", BOB: "fleet"}[who]
            assert answer.json()["error"]["details"]["limit"] == "upload_bytes"


async def test_an_upload_is_forgotten_when_its_time_is_over(
    redis_port: int, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: object) -> None:
        raise NoRoom("the disk is full")

    async with running(redis_port, tmp_path, open_upload_s=60) as api:
        url, done = await begin(api.client, 4), await begin(api.client, 1)
        await send(api.client, url, 0, b"ab")
        await send(api.client, done, 0, b"x")
        await api.deps.uploads.sweep()
        assert await offset_of(api.client, url) == 2
        ids = [one.rpartition("/")[2] for one in (url, done)]
        stuck = await begin(api.client, 1)
        with monkeypatch.context() as broken:
            broken.setattr(api.deps.assets, "keep_grown", full)
            await send(api.client, stuck, 0, b"x")
            await redis.zadd("fleet:uploads", dict.fromkeys(ids, time.time() - 1))
            await api.deps.uploads.sweep()  # one that can't be an asset now holds none of them up
        assert [one.name for one in files_of(tmp_path)] == [stuck.rpartition("/")[2]]
        await api.deps.uploads.sweep()
        assert files_of(tmp_path) == []
        await redis.zadd("fleet:uploads", {stuck.rpartition("/")[2]: time.time() - 1})
        await api.deps.uploads.sweep()
        assert [(await api.client.head(one, headers=TUS)).status_code for one in (url, done)] == [404, 404]
        assert files_of(tmp_path) == []
        assert (await api.client.get(f"/api/v2/assets/{ids[1]}")).status_code == 200
        assert await left(redis) == []

        stray = tmp_path / "files" / "uploads" / "left"
        stray.touch()
        os.utime(stray, (time.time() - 8000,) * 2)
        await api.deps.uploads.sweep()
        assert files_of(tmp_path) == []


async def test_one_upload_is_written_by_one_and_who_comes_later_goes_on(api: Api) -> None:
    data = os.urandom(2 * MIB)
    url = await begin(api.client, len(data))
    hangs = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield data[:MIB]
        await hangs.wait()
        yield b"never"

    first = asyncio.create_task(send(api.client, url, 0, stalls()))

    async def written() -> bool:
        return any(one.stat().st_size >= MIB for one in files_of(api.deps.settings.data))

    await until(written, what="the first bytes are written")
    # Its offset is not noted yet; the client takes nothing to be there, and is told better.
    wrong = await send(api.client, url, 0, data)
    assert code(wrong) == (409, "wrong_offset")
    at = await offset_of(api.client, url)
    assert at == MIB
    rest = await send(api.client, url, at, data[at:])
    assert rest.status_code == 204
    with contextlib.suppress(httpx.TransportError):
        hangs.set()
        assert (await first).status_code == 423
    shown = (await api.client.get(url)).json()["asset"]
    assert shown["hash"] == hash_of(data)


async def test_many_at_once_on_one_upload_leave_every_byte_once(api: Api) -> None:
    data = os.urandom(600_000)
    url = await begin(api.client, len(data))

    async def persistent() -> None:
        while (at := await offset_of(api.client, url)) < len(data):
            answer = await send(api.client, url, at, data[at : at + 100_000])
            assert answer.status_code in (204, 409, 423), answer.text

    await asyncio.gather(*(persistent() for _ in range(3)))
    assert (await api.client.get(url)).json()["asset"]["hash"] == hash_of(data)


async def test_whole_bytes_whose_process_died_become_an_asset(api: Api, redis: Redis, tmp_path: Path) -> None:
    data = b"abcd"
    for ask in ("HEAD", "sweep", "PATCH"):
        url = await begin(api.client, len(data), **said(filename=f"{ask}.bin"))
        id_ = url.rpartition("/")[2]
        (tmp_path / "files" / "uploads" / id_).write_bytes(data + b"not noted")
        await redis.hset(f"fleet:upload:{id_}", "offset", "4")
        await redis.sadd("fleet:uploads:whole", id_)
        if ask == "HEAD":
            # Died after the record was written, too, and before that was noted.
            upload = await api.deps.uploads._records.get(id_)  # noqa: SLF001
            assert upload is not None
            (tmp_path / "files" / "uploads" / id_).write_bytes(data)
            await api.assets.keep_grown(upload)
            assert await offset_of(api.client, url) == 4
        elif ask == "sweep":
            await api.deps.uploads.sweep()
        else:
            assert (await send(api.client, url, 4, b"")).headers["x-fleet-asset"] == id_
        asset = (await api.client.get(url)).json()["asset"]
        assert asset["hash"] == hash_of(data)
        assert (await api.client.get(asset["url"])).content == data
    assert await redis.hget("fleet:stored:bytes", "local") == b"12"
    assert files_of(tmp_path) == []


async def test_a_file_that_is_gone_or_shorter_than_was_noted(api: Api, tmp_path: Path) -> None:
    url = await begin(api.client, 10)
    await send(api.client, url, 0, b"abcdef")
    path = tmp_path / "files" / "uploads" / url.rpartition("/")[2]
    path.write_bytes(b"abc")  # as from a backup
    wrong = await send(api.client, url, 6, b"ghij")
    assert code(wrong) == (409, "wrong_offset") and wrong.headers["upload-offset"] == "3"
    assert (await send(api.client, url, 3, b"def")).headers["upload-offset"] == "6"
    path.unlink()
    assert code(await send(api.client, url, 6, b"ghij")) == (404, "not_found")


async def test_what_was_noted_is_there_after_the_api_was_killed(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    data = os.urandom(24 * MIB)
    async with api_process(redis_port, tmp_path) as (client, process):
        url = httpx.URL(await begin(client, len(data))).path

        async def noted() -> bool:
            record = f"fleet:upload:{url.rpartition('/')[2]}"
            return int(await redis.hget(record, "offset") or 0) > 0

        async def until_killed() -> AsyncIterator[bytes]:
            yield data[: 18 * MIB]
            await until(noted, what="some of it is noted")
            process.kill()
            yield data[18 * MIB :]

        with pytest.raises(httpx.TransportError):
            await send(client, url, 0, until_killed())
    async with api_process(redis_port, tmp_path) as (client, _):
        at = await offset_of(client, url)
        assert 16 * MIB <= at < len(data)
        answer = await send(client, url, at, data[at:])
        assert answer.status_code == 204, answer.text
        asset = (await client.get(url)).json()["asset"]
        assert asset["hash"] == hash_of(data)


class Cutter:
    """Passes bytes on to a port, and breaks each connection off after some of them."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port = port
        self.cuts = cuts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection("127.0.0.1", self._port)

        async def answers() -> None:
            while data := await back.read(65536):
                writer.write(data)
                await writer.drain()

        answering = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                if self.cuts and len(data) == 65536:
                    self.cuts[0] -= len(data)
                    if self.cuts[0] <= 0:
                        self.cuts.pop(0)
                        return
                out.write(data)
                await out.drain()
            await answering
        finally:
            answering.cancel()
            out.close()


async def test_a_published_client_goes_on_after_breaks_through_the_edge(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    data = os.urandom(9 * MIB + 1)
    write_keys(tmp_path / "keys", f"ann {ANN}\n")
    folder = tmp_path / "edge"
    folder.mkdir()
    page = "https://shop.test"
    async with running(
        redis_port, tmp_path / "data", keys_file=tmp_path / "keys", max_body_bytes=MIB, cors_origins=page
    ) as api:
        settings = haproxy_kit.make_settings(
            folder, api_port=httpx.URL(api.url).port, max_body_bytes=MIB, cors_origins=page
        )
        async with haproxy_kit.running(folder, FakeNodeRegistry([]), settings=settings):
            cutter = Cutter(settings.port, [MIB, 2 * MIB, MIB])
            port = await (line := StreamServer(cutter.serve)).start()
            client = TusClient(f"http://127.0.0.1:{port}{UPLOADS}", headers={"X-API-Key": ANN})
            # Parts larger than a request's body may be otherwise.
            uploader = client.uploader(
                file_stream=io.BytesIO(data),
                chunk_size=5 * MIB,
                metadata={"filename": "large.bin"},
                retries=20,
                retry_delay=1,
            )
            await asyncio.to_thread(uploader.upload)
            assert cutter.cuts == []
            async with httpx.AsyncClient(headers={"X-API-Key": ANN}, timeout=60) as http:
                url = str(uploader.url)
                asset = (await http.get(url)).json()["asset"]
                assert (asset["hash"], asset["file_path"]) == (hash_of(data), "large.bin")

                edge = f"http://127.0.0.1:{settings.port}"
                asked = {
                    "Origin": page,
                    "Access-Control-Request-Method": "PATCH",
                    "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type,x-api-key",
                }
                allowed = await http.options(f"{edge}{UPLOADS}", headers=asked)
                names = allowed.headers["access-control-allow-headers"].lower()
                assert {"tus-resumable", "upload-length", "upload-metadata", "upload-offset"} <= set(
                    names.replace(" ", "").split(",")
                )
                seen = await http.head(url, headers={**TUS, "Origin": page})
                shown = seen.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
                assert {"upload-offset", "upload-length", "location", "x-fleet-asset"} <= set(shown)

                in_path = await http.post(f"{edge}/k/{ANN}{UPLOADS}", headers={**TUS, "Upload-Length": "1"})
                where = httpx.URL(str(in_path.url)).join(in_path.headers["location"])
                assert where.path.startswith(f"/k/{ANN}{UPLOADS}/")
                largest = {**PART, "Upload-Offset": "0", "Content-Length": "1" + "0" * 12}
                too_large = await haproxy_kit.raw_request(
                    settings.port, "PATCH", where.path, *(f"{k}: {v}" for k, v in largest.items())
                )
                assert b" 413 " in too_large.split(b"\r\n")[0]
            await line.stop()
