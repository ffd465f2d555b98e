"""Comfy API v2: assets over HTTP, and jobs that refer to them."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from comfy_low.models import Asset as SdkAsset
from redis.asyncio import Redis

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running, upload

LOAD: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


def hash_of(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


async def test_upload_and_read_back(api: Api) -> None:
    data = b"\x89PNG" + bytes(range(256)) * 1000
    answer = await upload(api, data, expected_hash=hash_of(data), tags=["input", "face"], expires_in="60")
    assert answer.status_code == 201
    asset = answer.json()
    SdkAsset.model_validate(asset)
    assert asset["created_new"] is True
    assert (asset["hash"], asset["size_bytes"], asset["file_path"]) == (hash_of(data), len(data), "a.png")
    assert asset["tags"] == ["face", "input"]
    joined = await upload(api, data, tags=["input,face", "b"])  # generated clients send a field only once
    assert joined.json()["tags"] == ["b", "face", "input"]
    assert asset["expires_at"] == asset["url_expires_at"]
    assert "job_id" not in asset

    again = await upload(api, data)
    assert (again.status_code, again.json()["created_new"]) == (200, False)
    assert again.json()["id"] != asset["id"]

    got = (await api.client.get(f"/api/v2/assets/{asset['id']}")).json()
    assert got["url"] == asset["url"]
    content = await api.client.get(asset["url"])
    assert content.content == data
    assert content.headers["content-type"] == "image/png"
    assert content.headers["x-content-type-options"] == "nosniff"


async def test_allow_names_the_methods_of_the_path_itself(api: Api) -> None:
    wrong = await api.client.put("/api/v2/assets/from-hash")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    one = await api.client.put("/api/v2/assets/x")
    assert one.status_code == 405 and one.headers["allow"] == "DELETE, GET, HEAD"


async def test_fields_may_come_after_the_file(api: Api) -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nab\r\n--B-\r\nc\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file_path"\r\n\r\ndir/p.txt\r\n'
        b'--B\r\nContent-Disposition: form-data; name="content_type"\r\n\r\ntext/plain\r\n--B--\r\n'
    )

    async def slowly() -> AsyncIterator[bytes]:
        for byte in body:  # every possible cut
            yield bytes([byte])

    answer = await api.client.post(
        "/api/v2/assets", content=slowly(), headers={"Content-Type": "multipart/form-data; boundary=B"}
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["file_path"] == "dir/p.txt"
    assert (await api.client.get(answer.json()["url"])).content == b"ab\r\n--B-\r\nc"


@pytest.mark.parametrize(
    ("filename", "path"),
    [
        ("x.png", "x.png"),
        ("dir/x.png", "x.png"),
        ("C:\\\\fakepath\\\\x.png", "x.png"),
        ("gr\u00fcn.png", "gr\u00fcn.png"),
    ],
)
async def test_a_file_without_a_path_keeps_its_own_name(api: Api, filename: str, path: str) -> None:
    part = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\nx\r\n--B--\r\n'
    answer = await api.client.post(
        "/api/v2/assets",
        content=part.encode(),
        headers={"Content-Type": "multipart/form-data; boundary=B"},
    )
    assert answer.status_code == 201, answer.text
    assert (answer.json()["file_path"], answer.json()["content_type"]) == (path, "image/png")


@pytest.mark.parametrize(
    "disposition", ['name="file"', 'name="file"; filename=""', 'name="file"; filename="a/.."']
)
async def test_a_file_without_any_name_says_so(api: Api, disposition: str) -> None:
    answer = await api.client.post(
        "/api/v2/assets",
        content=f"--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\nx\r\n--B--\r\n".encode(),
        headers={"Content-Type": "multipart/form-data; boundary=B"},
    )
    assert code(answer) == (422, "invalid_request")
    assert answer.json()["error"]["details"]["field"] == "file_path"


@pytest.mark.parametrize("data", [b"text", b"\x89PNG\xff", b"a" * 100_000])
async def test_a_file_in_another_field_says_which_one_it_belongs_into(api: Api, data: bytes) -> None:
    answer = await api.client.post("/api/v2/assets", files={"image": ("x.png", data)})
    assert code(answer) == (422, "invalid_request")
    error = answer.json()["error"]
    assert error["details"]["field"] == "file"
    assert "'image'" in error["message"] and "`file`" in error["message"]


@pytest.mark.parametrize(
    ("encoding", "status"), [("base64", 422), ("quoted-printable", 422), ("Binary", 201)]
)
async def test_parts_are_taken_as_they_are(api: Api, encoding: str, status: int) -> None:
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file_path"\r\n\r\na.txt\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"\r\n'
        b"Content-Transfer-Encoding: " + encoding.encode() + b"\r\n\r\nREFUQQ==\r\n--B--\r\n"
    )
    answer = await api.client.post(
        "/api/v2/assets", content=form, headers={"Content-Type": "multipart/form-data; boundary=B"}
    )
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["error"]["details"] == {"field": "file"}
        assert encoding in answer.json()["error"]["message"]


@pytest.mark.parametrize("boundary", ["----=_Part_0_1.2", "a/b:c", '"a b"'])
async def test_odd_boundaries_and_names_that_are_no_utf_8_are_taken(api: Api, boundary: str) -> None:
    """As some mail libraries send them: without the quotes that these characters would need."""
    mark = b"--" + boundary.strip('"').encode()
    part = b'Content-Disposition: form-data; name="file"; filename="gr\xfcn.png"'
    answer = await api.client.post(
        "/api/v2/assets",
        content=mark + b"\r\n" + part + b"\r\n\r\nx\r\n" + mark + b"--\r\n",
        headers={"Content-Type": f"multipart/form-data;\tboundary={boundary}"},
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["file_path"] == "gr\ufffdn.png"


def peak_kib(*, anew: bool = False) -> int:
    """The most memory that this process, the API's as well, has had since it was asked ``anew``."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak)


async def test_an_upload_never_stands_in_memory(api: Api, tmp_path: Path) -> None:
    piece = b"x" * (1 << 20)

    async def body() -> AsyncIterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="file_path"\r\n\r\nbig\r\n'
        yield b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(90):
            yield piece
        yield b"\r\n--B--\r\n"

    before = peak_kib(anew=True)
    answer = await api.client.post(
        "/api/v2/assets", content=body(), headers={"Content-Type": "multipart/form-data; boundary=B"}
    )
    assert answer.status_code == 201
    grown = peak_kib() - before
    assert grown < 40_000, f"{grown} KiB"
    assert (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"expected_hash": "blake3:" + "0" * 64}, (409, "hash_mismatch")),
        ({"expected_hash": "md5:0"}, (422, "invalid_request")),
        ({"name": "../etc/passwd"}, (422, "invalid_request")),
        ({"name": "/etc/passwd"}, (422, "invalid_request")),
        ({"name": "a\\b"}, (422, "invalid_request")),
        ({"name": "a\x00b"}, (422, "invalid_request")),
        ({"name": "x" * 1025}, (422, "invalid_request")),
        ({"content_type": "no type"}, (422, "invalid_request")),
        ({"content_type": ["a/b", "c/d"]}, (422, "invalid_request")),
        ({"expires_in": "59"}, (422, "invalid_request")),
        ({"expires_in": "604801"}, (422, "invalid_request")),
        ({"expires_in": "soon"}, (422, "invalid_request")),
        ({"expires_in": "\N{ARABIC-INDIC DIGIT NINE}" * 3}, (422, "invalid_request")),
        ({"tags": ["a b"]}, (422, "invalid_request")),
        ({"tags": "a,,b"}, (422, "invalid_request")),
        ({"tags": ",".join(map(str, range(33)))}, (422, "invalid_request")),
    ],
)
async def test_bad_uploads_keep_nothing(
    api: Api, more: dict[str, Any], expected: tuple[int, str], tmp_path: Path, redis: Redis
) -> None:
    assert code(await upload(api, b"x", **more)) == expected
    assert not [p for p in (tmp_path / "files").rglob("*") if p.is_file() and p.name != "records"]
    assert not await redis.keys("fleet:asset:*")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"--B--\r\n", "multipart/form-data; boundary=B"),
        (b"garbage", "multipart/form-data; boundary=B"),
        (b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', "multipart/form-data; boundary=B"),
        (
            b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n' * 2 + b"--B--\r\n",
            "multipart/form-data; boundary=B",
        ),
        (
            b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--B--\r\n',
            "multipart/form-data; boundary=B",
        ),
    ],
)
async def test_broken_forms_are_refused(api: Api, body: bytes, kind: str, tmp_path: Path) -> None:
    answer = await api.client.post("/api/v2/assets", content=body, headers={"Content-Type": kind})
    assert code(answer) == (422, "invalid_request")
    assert not [p for p in (tmp_path / "files").rglob("*") if p.is_file() and p.name != "records"]


async def test_uploads_have_a_limit(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, max_body_bytes=5000) as api:
        assert code(await upload(api, b"x" * 6000)) == (413, "payload_too_large")
        assert (await upload(api, b"x" * 3000)).status_code == 201


async def test_upload_keys_are_single_use(api: Api) -> None:
    key = {"Idempotency-Key": "u1"}
    assert (await upload(api, b"x", name="../x", headers=key)).status_code == 422  # claims nothing
    made = await upload(api, b"x", headers=key)
    assert made.status_code == 201
    again = await upload(api, b"x", headers=key)
    assert code(again) == (422, "idempotency_key_reuse")
    assert again.json()["error"]["details"]["asset_id"] == made.json()["id"]
    assert (await upload(api, b"x", headers=key)).status_code == 422  # the first refusal leaves no mark


async def test_an_upload_whose_process_is_gone_is_no_asset(api: Api) -> None:
    key = {"Idempotency-Key": "u2"}
    assert await api.deps.replays.begin("v2asset:local", "u2")  # and nobody will ever end it
    early = await upload(api, b"x", headers=key)
    assert code(early) == (503, "upload_under_way") and int(early.headers["Retry-After"]) > 0
    await api.deps.replays.end("v2asset:local", "u2", answer=None)  # as Redis does after a minute
    assert (await upload(api, b"x", headers=key)).status_code == 201


async def test_from_hash(api: Api) -> None:
    made = (await upload(api, b"x")).json()
    assert (await api.client.head(f"/api/v2/assets/by-hash/{made['hash']}")).status_code == 200
    assert (await api.client.head(f"/api/v2/assets/by-hash/{hash_of(b'y')}")).status_code == 404
    assert (await api.client.head("/api/v2/assets/by-hash/x:y")).status_code == 404

    def mint(**body: Any) -> Any:
        return api.client.post("/api/v2/assets/from-hash", json=body)

    same = await mint(hash=made["hash"], file_path="a.png")
    assert (same.status_code, same.json()["id"], same.json()["created_new"]) == (200, made["id"], False)
    other = await mint(hash=made["hash"], file_path="b.png")
    assert (other.status_code, other.json()["created_new"]) == (201, False)
    assert code(await mint(hash=hash_of(b"y"))) == (404, "blob_not_found")
    wrong: list[dict[str, Any]] = [{"tags": "t"}, {"expires_in": True}, {"file_path": ".."}]
    bads: list[dict[str, Any]] = [{}, {"hash": 5}, {"hash": "x"}]
    for bad in (*bads, *({"hash": made["hash"], **more} for more in wrong)):
        assert code(await mint(**bad)) == (422, "invalid_request")


async def test_ranges(api: Api) -> None:
    url = (await upload(api, b"0123456789")).json()["url"]

    async def get(**headers: str) -> tuple[int, bytes, str | None]:
        answer = await api.client.get(url, headers=headers)
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert await get(Range="bytes=2-4") == (206, b"234", "bytes 2-4/10")
    assert await get(Range="bytes=7-") == (206, b"789", "bytes 7-9/10")
    assert await get(Range="bytes=-3") == (206, b"789", "bytes 7-9/10")
    assert await get(Range="bytes=-30") == (206, b"0123456789", "bytes 0-9/10")
    assert await get(Range="bytes=5-100") == (206, b"56789", "bytes 5-9/10")
    assert await get(Range="Bytes=2-4") == (206, b"234", "bytes 2-4/10")
    for whole in ("bytes=4-2", "bytes=0-1,3-4", "bytes=-", "lines=1-2", "x", "bytes=0-" + "9" * 5000):
        assert (await get(Range=whole))[:2] == (200, b"0123456789")
    for beyond in ("bytes=10-", "bytes=99999999999999999999-"):
        answer = await api.client.get(url, headers={"Range": beyond})
        assert code(answer) == (416, "range_not_satisfiable")
        assert answer.headers["content-range"] == "bytes */10"
    assert (await get(Range="bytes=-0"))[0] == 416

    etag = f'"{hash_of(b"0123456789")}"'
    assert (await get(**{"If-None-Match": etag}))[0] == 304
    assert (await get(**{"If-None-Match": f'"x", W/{etag}'}))[0] == 304
    assert (await get(**{"If-None-Match": '"x"'}))[0] == 200
    assert (await get(**{"Range": "bytes=1-1", "If-Range": etag}))[0] == 206
    assert (await get(**{"Range": "bytes=1-1", "If-Range": '"old"'}))[0] == 200
    head = await api.client.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")


async def test_large_contents_are_streamed(api: Api) -> None:
    data = bytes(range(251)) * 10_000
    url = (await upload(api, data)).json()["url"]
    assert (await api.client.get(url)).content == data
    part = await api.client.get(url, headers={"Range": "bytes=7-2000000"})
    assert (part.status_code, part.content) == (206, data[7:2_000_001])


async def test_empty_files_are_files(api: Api) -> None:
    made = (await upload(api, b"")).json()
    assert made["size_bytes"] == 0
    assert (await api.client.get(made["url"])).content == b""


async def test_content_never_runs_in_our_origin(api: Api) -> None:
    made = (await upload(api, b"<script>", name="é ü.html", content_type="text/html")).json()
    headers = (await api.client.get(made["url"])).headers
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A9%20%C3%BC.html"
    assert "sandbox" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", "text/html"),
        ("x.svg", "image/svg+xml"),
        ("x.xml", "text/xml"),
        ("x.js", "text/javascript"),
        ("x.pdf", "application/pdf"),
        ("x.png", "text/html; charset=image/png"),
    ],
)
async def test_no_output_of_a_node_runs_in_our_origin(api: Api, name: str, kind: str) -> None:
    await api.add_node()
    claim = await api.claim((await api.submit(GRAPH))["id"])
    made = await api.output(claim, b"<script>", name=name, content_type=kind, saved=True)
    await api.finish(claim)
    for path in (f"/api/v2/assets/{made.asset_id}/content", f"/view?filename={made.name}"):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.content) == (200, b"<script>")
        # ComfyUI's route goes by the name alone, and shows what a browser does not run.
        shown = "view" in path and name in ("x.pdf", "x.png")
        assert answer.headers["content-type"] in ("application/pdf", "image/png") or not shown
        assert answer.headers["content-disposition"].startswith("attachment;") != shown
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_delete(api: Api) -> None:
    made = (await upload(api, b"x")).json()
    path = f"/api/v2/assets/{made['id']}"
    assert (await api.client.delete(path)).status_code == 204
    for answer in (
        await api.client.delete(path),
        await api.client.get(path),
        await api.client.get(made["url"]),
    ):
        assert code(answer) == (404, "not_found")
    assert (await api.client.head(f"/api/v2/assets/by-hash/{made['hash']}")).status_code == 404


async def test_jobs_refer_to_assets(api: Api) -> None:
    await api.add_node()
    made = (await upload(api, b"x", name="photo.png")).json()
    reference = {"__type": "core/ASSET", "info": {"id": made["id"], "file_path": "ignored.png"}}
    graph = copy.deepcopy(LOAD)
    graph["1"]["inputs"]["image"] = reference
    job = await api.submit(graph)
    record = await api.stores.jobs.get(job["id"])
    assert record is not None
    assert record.uploads == {"1/image": made["id"]}
    got = (await api.client.get(f"/api/v2/jobs/{job['id']}/workflow")).json()["workflow"]
    assert got == graph

    refused = await api.client.delete(f"/api/v2/assets/{made['id']}")
    assert code(refused) == (409, "asset_in_use")
    await api.client.post(job["urls"]["cancel"])
    assert (await api.client.delete(f"/api/v2/assets/{made['id']}")).status_code == 204

    answer = await api.client.post("/api/v2/jobs", json={"workflow": graph})
    assert code(answer) == (422, "missing_asset")
    details = answer.json()["error"]["details"]
    assert (details["node_id"], details["input"], details["id"]) == ("1", "image", made["id"])
    for odd in ("expiry", f"{made['id']}:jobs", "x" * 10_000):
        graph["1"]["inputs"]["image"] = {"__type": "core/ASSET", "info": {"id": odd}}
        assert code(await api.client.post("/api/v2/jobs", json={"workflow": graph})) == (422, "missing_asset")
    graph["1"]["inputs"]["image"] = {"__type": "core/ASSET", "info": {}}
    assert code(await api.client.post("/api/v2/jobs", json={"workflow": graph})) == (422, "missing_asset")


async def test_jobs_name_uploaded_files(api: Api) -> None:
    await api.add_node()
    made = (await upload(api, b"x", name="photo.png")).json()
    graph = copy.deepcopy(LOAD)
    graph["1"]["inputs"]["image"] = "photo.png"
    job = await api.submit(graph)
    record = await api.stores.jobs.get(job["id"])
    assert record is not None
    assert record.uploads == {"1/image": made["id"]}


async def test_outputs_of_a_live_job_stay(api: Api) -> None:
    await api.add_node()
    job = await api.submit(GRAPH)
    claim = await api.claim(job["id"])
    output = await api.output(claim, b"x")
    path = f"/api/v2/assets/{output.asset_id}"
    assert code(await api.client.delete(path)) == (409, "asset_in_use")
    assert (await api.client.get(path)).json()["job_id"] == job["id"]
    await api.finish(claim)
    assert (await api.client.delete(path)).status_code == 204


async def test_parallel_uploads_of_one_file(api: Api) -> None:
    answers = await asyncio.gather(*(upload(api, b"same" * 1000) for _ in range(12)))
    assert sorted({a.status_code for a in answers}) in ([200, 201], [201])
    assert sum(a.json()["created_new"] for a in answers) == 1


async def test_an_upload_stays_as_long_as_the_jobs_that_used_it(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, upload_retention_s=0.05, retention_s=3600.0) as api:
        await api.add_node()
        ours, unused = await upload(api, b"x", "a"), await upload(api, b"y", "b")
        client = (await upload(api, b"z", "c", expires_in="60")).json()
        graph = copy.deepcopy(LOAD)
        graph["1"]["inputs"]["image"] = {"__type": "core/ASSET", "info": {"id": ours.json()["id"]}}
        graph["3"] = {"class_type": "LoadImage", "inputs": {"image": "c"}}
        job = await api.submit(graph)
        async with asyncio.timeout(60):
            while not await api.assets.sweep():  # what no job used
                await asyncio.sleep(0.01)
        assert (await api.client.get(f"/api/v2/assets/{unused.json()['id']}")).status_code == 404

        claim = await api.claim(job["id"])
        assert await api.assets.sweep() == 0
        await api.finish(claim)
        kept = (await api.client.get(f"/api/v2/assets/{ours.json()['id']}")).json()
        done = (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()
        assert kept["expires_at"] == done["expires_at"]
        assert await api.assets.sweep() == 0
        asset = (await api.client.get(f"/api/v2/assets/{client['id']}")).json()
        assert asset["expires_at"] == client["expires_at"]  # the client's own word


async def test_uploads_end_by_themselves_unless_the_operator_wants_to_keep_them(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path / "usual") as api:
        asset = (await upload(api, b"x")).json()
        created, ends = (datetime.fromisoformat(asset[name]) for name in ("created_at", "expires_at"))
        assert ends - created == timedelta(days=30)
    async with running(redis_port, tmp_path / "kept", upload_retention_s=0) as api:
        assert (await upload(api, b"x")).json()["expires_at"] is None


async def test_a_store_that_serves_bytes_itself_gets_clients(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def url(_: DiskBlobs, key: str) -> str:
        return f"https://store.example/{key}?signed"

    asset = (await upload(api, b"x")).json()
    monkeypatch.setattr(DiskBlobs, "url", url)
    answer = await api.client.get(f"/api/v2/assets/{asset['id']}/content")
    assert answer.status_code == 302 and answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"].endswith(f"/{asset['hash'].removeprefix('blake3:')}?signed")
