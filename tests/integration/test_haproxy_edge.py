"""The public port: what comes in, what is refused, and what the API gets to see."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.api.v1.routes import routes as v1_routes
from comfy_fleet.api.v2.routes import routes as v2_routes
from tests.integration.edge_kit import LIMIT, Edge, edge_of
from tests.integration.haproxy_kit import (
    counted,
    eventually,
)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_of(tmp_path) as it:
        yield it


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "details"}
    return int(head.split()[1]), error["code"]


PASS = [
    "/api/v1/jobs",
    "/api/v1/workflows/image_card/jobs?limit=5&x=%2F",
    "/v1/images/generations",
    "/v1/models/image_card@production",
    "/api/submit",
    "/api/status?task_id=7f3d",
    "/api/status/7f3d-2c1b",
    "/api/v2/assets/by-hash/blake3:00ff",
    "/api/v2/jobs/a%20b",
    "/api/v1/openapi.json",
    "/api/v2/openapi.json",
    "/openapi.json",
    "/health",
    "/login",
    "/logout",
    "/enter?code=x",
    "/",
]
NATIVE = [
    "/prompt",
    "/queue",
    "/interrupt",
    "/free",
    "/history?max_items=64&offset=0",
    "/history/0f9c7d2e-7b0c-4d6a-9c44-2a0f8f3c1d11",
    "/view?filename=ComfyUI_00001_.png&subfolder=a%2Fb&type=output&rand=0.5",
    "/upload/image",
    "/upload/mask",
    "/object_info",
    "/object_info/Image%20Resize%20(it's)+",
    "/models",
    "/models/checkpoints",
    "/experiment/models",
    "/experiment/models/checkpoints",
    "/experiment/models/preview/checkpoints/0/a%20b.safetensors",
    "/experiment/models/preview/loras/0/sub/b.safetensors",
    "/view_metadata/loras?filename=sub%2Fb.safetensors",
    "/embeddings",
    "/node_replacements",
    "/system_stats",
    "/features",
    "/userdata?dir=workflows&recurse=true",
    "/userdata/comfy.templates.json",
    "/userdata/workflows%2Fcat.json?overwrite=true",
    "/userdata/workflows%2fa%2Fb.json/move/workflows%2Fc%20d.json",
    "/v2/userdata",
    "/settings",
    "/settings/Comfy.Workflow.Persist",
    "/settings/pack%2Fa%20b",
    "/users",
    "/extensions",
    "/extensions/core/a%20b.js",
    "/i18n",
    "/workflow_templates",
    "/global_subgraphs",
    "/global_subgraphs/0f9c7d2e",
]
NATIVE_API = [
    "/api/jobs?status=pending",
    "/api/jobs/cancel",
    "/api/jobs/7f3d",
    "/api/jobs/7f3d/cancel",
    "/api/assets",
    "/api/assets/from-hash",
    "/api/assets/hash/blake3:00",
    "/api/tags",
]
NATIVE_PLAIN = ["/internal/files/input", "/internal/files/output"]
STOP = [
    "/.",
    "/metrics",
    "/metrics/fleet",
    "/api/v1",
    "/v1",
    "/v1/../metrics",
    "/v1/models/..%2fmetrics",
    "/v1//models",
    "/api/v1x/models",
    "/api/v3/jobs",
    "/api/submit/x",
    "/api/status/../metrics",
    "/api/status/a/b",
    "/api/statusx",
    "/api/v1/../metrics",
    "/api/v1/jobs/..",
    "/api/v1/jobs/./x",
    "/api/v1/%2e%2e/metrics",
    "/api/v1/%2E%2E%2Fmetrics",
    "/api/v1/..%2fmetrics",
    "/api/v1/..%5cmetrics",
    "/api/v1/x%00",
    "/api/v1//jobs",
    "//api/v1/jobs",
    "/openapi.json/",
    "/healthz",
    "/x/api/v1/jobs",
    "//prompt",
    "/api/api/prompt",
    "/prompt/x",
    "/prompts",
    "/view/../metrics",
    "/history/a/b",
    "/history/a%2Fb",
    "/history/%2e%2e",
    "/object_info/a%2Fb",
    "/models/a%2f..%2fb",
    "/experiment/models/preview/loras/0/a%2Fb.safetensors",
    "/upload/x",
    "/jobs",
    "/api/jobs/a/b/c",
    "/assets/x",
    "/tags",
    "/internal/logs",
    "/internal/files/secret",
    "/internal/folder_paths",
    "/api/internal/files/input",
    "/settings/a/b",
    "/settings/..%2Fb",
    "/settings/",
    "/users/x",
    "/extensions/",
    "/extensions/a%2Fb.js",
    "/api/i18n/x",
    "/global_subgraphs/a/b",
    "/workflow_templates/pack/a.json",
    "/api/workflow_templates/pack/a.json",
    "/assets/index.js",
    "/scripts/app.js",
    "/user.css",
    "/favicon.ico",
    "/chooser",
    "/workflows",
    "/publish/a",
    "/manager/reboot",
    "/userdata/a/b",
    "/userdata/..%2Fsecret.key",
    "/userdata/a%2F..%2F..%2Fb",
    "/userdata/a%2f..",
    "/userdata/..",
    "/userdata/a%2F.%2Fb",
    "/userdata/%2e%2e%2fb",
    "/userdata/a%5c..%5cb",
    "/userdata/a/move/..%2Fb",
    "/userdata/a/move/b/c",
    "/api/userdata/..%2Fb",
    "/api/v1/workflows/..%2Fb",
    "/api/v1/workflows/a%2F..%2F..%2Fmetrics",
    "/api/v1/workflows/a%5c..%5cb",
    "/api/v1/workflows/card/labels/a%2Fb",  # the workflow's name is right
    "/api/v1/workflows/card/versions/x%5Cy/thumbnail",
]
ODD_NAMES = {
    "workflow": (
        422,
        [
            "/api/v1/workflows/a%2Fb",
            "/api/v1/workflows/a%2fb/draft",
            "/api/v1/workflows/%3Cb%3Ex%3C%2Fb%3E",
            "/api/v1/workflows/a%5Cb",
            "/api/v1/workflows/a%00b/versions",
            "/api/v1/workflows//versions",
        ],
    ),
    "file": (
        400,
        [
            "/userdata/a%5Cb",
            "/userdata/a%00b",
            "/userdata/a%2F%2Fb",
            "/userdata/%2Fetc%2Fpasswd",
            "/api/userdata/a/move/b%5Cc",
        ],
    ),
}


def native() -> list[str]:
    return [*NATIVE, *(f"/api{path}" for path in NATIVE), *NATIVE_API, *NATIVE_PLAIN]


@pytest.mark.parametrize("front", ["", "/k/ann-key-0123456789", "/k/a%2Fb%3D=+"])
async def test_only_whole_public_paths_pass(edge: Edge, front: str) -> None:
    for path in (*PASS, *native()):
        answer = await edge.raw(front + path)
        assert answer.startswith(b"HTTP/1.1 200 "), (path, answer)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == front + path
    for path in STOP:
        assert error_of(await edge.raw(front + path)) == (404, "not_found"), path


@pytest.mark.parametrize("front", ["", "/k/ann-key-0123456789"])
@pytest.mark.parametrize("field", ODD_NAMES)
async def test_a_name_that_can_not_be_is_told_by_its_field(edge: Edge, front: str, field: str) -> None:
    status, paths = ODD_NAMES[field]
    for path in paths:
        for method in ("GET", "PUT"):
            reply = await edge.http.request(method, front + path)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (status, "invalid_request"), path
            assert error["details"] == {"field": field}
    assert edge.api.requests == []


async def test_a_key_stands_in_front_once_and_is_one_segment(edge: Edge) -> None:
    assert (await edge.raw("/k/ann-key-0123456789")).startswith(b"HTTP/1.1 200 ")
    for path in (
        "/k/",
        "/k",
        "/k//prompt",
        "/k/../metrics",
        "/k/%2e%2e/prompt",
        "/k/a%00b/prompt",
        "/k/a%5cb/prompt",
        "/k/a/k/b/prompt",
        "/K/ann-key-0123456789/prompt",
        "/api/k/ann-key-0123456789/prompt",
        "/k/ann-key-0123456789/metrics",
        "/k/ann-key-0123456789/..",
        "/x/k/ann-key-0123456789/prompt",
    ):
        assert error_of(await edge.raw(path)) == (404, "not_found"), path


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["path"] for record in caplog.records if record.msg == "haproxy request"]


async def test_no_log_shows_a_signature(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await edge.api.__aexit__()  # the edge logs what it could not have answered
    await edge.raw("/api/v2/jobs/j/events?expires=1&signature=5f0c")
    await eventually("it is logged", lambda: len(logged(caplog)) == 1)
    assert logged(caplog) == ["/api/v2/jobs/j/events"]
    assert not any(
        "5f0c" in str(vars(record)) for record in caplog.records if record.msg == "haproxy request"
    )
    await edge.api.__aenter__()


async def test_no_log_shows_a_key_in_the_path(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = "ann-key-0123456789"
    await edge.api.__aexit__()  # the edge logs what it could not have answered
    for path in (f"/k/{key}/prompt", f"/k/{key}", f"/k/{key}/api/v2/jobs?x=/k/{key}/"):
        assert error_of(await edge.raw(path)) == (503, "unavailable")
    await eventually("all are logged", lambda: len(logged(caplog)) == 3)
    assert logged(caplog) == ["/k/***/prompt", "/k/***", "/k/***/api/v2/jobs"]
    assert key not in caplog.text
    await edge.api.__aenter__()


@pytest.mark.parametrize("path", ["/internal/logs", "/api/manager/queue", "/no/such/thing"])
async def test_clients_of_comfyui_learn_where_they_are(edge: Edge, path: str) -> None:
    for method in ("GET", "POST"):
        reply = await edge.http.request(method, path)
        assert reply.status_code == 404
        error = reply.json()["error"]
        assert "comfy_fleet" in error["message"] and "/prompt" in error["message"]
        assert error["details"] == {"api": ["/api/v1", "/api/v2"], "docs": "/api/v1/openapi.json"}
    assert edge.api.requests == []


async def test_every_answer_keeps_where_it_was_to_itself(edge: Edge) -> None:
    for path in ("/api/v1/jobs", "/no/such/thing", "/k/ann-key-0123456789/prompt"):
        assert b"referrer-policy: no-referrer" in (await edge.raw(path)).lower()


@contextlib.asynccontextmanager
async def asking_for_a_websocket(
    edge: Edge, path: str
) -> AsyncIterator[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.port)
    asked = (
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", *asked, "", ""]).encode())
    try:
        yield await reader.readuntil(b"\r\n\r\n"), reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/prompt", "/k/ann-key-0123456789/queue"])
async def test_nothing_but_the_websocket_is_upgraded(edge: Edge, path: str) -> None:
    async with asking_for_a_websocket(edge, path) as (head, _, _):
        assert head.startswith(b"HTTP/1.1 200 ")
    assert "upgrade" not in edge.api.requests[-1]["headers"]


@pytest.mark.parametrize("path", ["/ws?clientId=1", "/api/ws", "/k/ann-key-0123456789/ws"])
async def test_a_websocket_passes_both_ways(edge: Edge, path: str) -> None:
    async with asking_for_a_websocket(edge, path) as (head, reader, writer):
        assert head.startswith(b"HTTP/1.1 101 ")
        for number in range(3):
            writer.write(b"%d" % number)
            assert await reader.readexactly(1) == b"%d" % number


async def test_a_strange_method_is_told_those_that_there_are(edge: Edge) -> None:
    reply = await edge.http.request("TRACE", "/api/v1/pools/big")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    known = {method for route in (*v1_routes(), *v2_routes()) for method in route.methods or ()}
    assert set(reply.headers["allow"].split(", ")) == known


async def test_what_only_the_fleet_may_say_is_stripped(edge: Edge) -> None:
    answer = await edge.raw(
        "/api/v1/jobs",
        "X-Fleet-Node: g1",
        "x-fleet-anything: 1",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil.test",
        "X-Forwarded-Prefix: /evil",
        "Forwarded: for=1.2.3.4",
        "X-Real-IP: 1.2.3.4",
        "Authorization: Bearer k",
    )
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]
    assert {k: v for k, v in seen.items() if k.startswith("x-fleet-")} == {"x-fleet-origin": "editor"}
    assert {name: value for name, value in seen.items() if "forward" in name or "real" in name} == {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-host": "fleet.test",
    }
    assert seen["authorization"] == "Bearer k"


async def test_a_body_over_the_limit_is_413_before_it_is_read(edge: Edge) -> None:
    fits = await edge.http.post("/api/v2/assets", content=b"x" * LIMIT)
    assert fits.json()["bytes"] == LIMIT
    refused = await edge.http.post("/api/v2/assets", content=b"x" * (LIMIT + 1))
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "payload_too_large"
    assert str(LIMIT) in refused.json()["error"]["message"]
    for length in (2**31, 2**32, 2**32 + 1, 2**33 - 1, 99999999999999):
        huge = await edge.raw("/api/v2/assets", f"Content-Length: {length}", method="POST")
        assert error_of(huge) == (413, "payload_too_large"), length
        huge = await edge.raw("/v1/images/edits", f"Content-Length: {length}", method="POST")
        told = json.loads(huge.partition(b"\r\n\r\n")[2])["error"]
        assert huge.startswith(b"HTTP/1.1 413 ") and set(told) == {"message", "type", "param", "code"}
    assert [request["bytes"] for request in edge.api.requests] == [LIMIT]


async def test_events_arrive_one_by_one(edge: Edge) -> None:
    async with edge.http.stream("GET", "/api/v2/jobs/j1/events", timeout=5) as reply:
        lines = reply.aiter_lines()
        for number in range(3):
            edge.api.events.put_nowait(str(number))
            assert await anext(lines) == f"data: {number}"
            assert await anext(lines) == ""
        edge.api.events.put_nowait(None)


async def test_an_api_that_is_away_is_503_in_the_envelope(edge: Edge) -> None:
    await edge.api.__aexit__()
    answer = await edge.raw("/api/v1/jobs")
    assert error_of(answer) == (503, "unavailable")
    assert b"retry-after: 1" in answer.lower()
    for path in ("/v1/models", "/k/some-key/v1/models"):
        head, _, body = (await edge.raw(path)).partition(b"\r\n\r\n")
        assert b" 503 " in head and b"retry-after: 1" in head.lower()
        error = json.loads(body)["error"]
        assert error.pop("message")
        assert error == {"type": "server_error", "param": None, "code": "unavailable"}
    await edge.api.__aenter__()
    assert (await edge.http.get("/api/v1/jobs")).status_code == 200


async def test_a_restart_of_the_api_is_waited_for(edge: Edge) -> None:
    await edge.api.__aexit__()
    asked = asyncio.create_task(edge.http.get("/api/v1/jobs"))
    runtime = Runtime(files(edge.settings).edge_socket)

    async def met_a_closed_port() -> bool:
        return await counted(runtime, "be_api", "wretr") > 0

    await eventually("HAProxy has met a closed port", met_a_closed_port)
    assert not asked.done()
    await edge.api.__aenter__()
    assert (await asked).status_code == 200


SUBMITS = (
    *("/api/v2/jobs", "/api/v1/generate", "/api/submit"),
    *("/api/v1/jobs/x/retry", "/api/v1/workflows/x/jobs"),
)


@pytest.mark.parametrize(
    ("method", "key", "paths"),
    [("GET", False, SUBMITS[:1]), ("POST", True, SUBMITS)],
    ids=["reads", "submits with a key"],
)
async def test_what_may_be_repeated_is_asked_again_if_the_api_dies_over_it(
    edge: Edge, method: str, key: bool, paths: Sequence[str]
) -> None:
    for path in paths:
        edge.api.breaks = 1
        answer = await edge.raw(path, *["Idempotency-Key: a"] * key, method=method, body=b"{}")
        assert edge.api.breaks == 0
        assert answer.startswith(b"HTTP/1.1 200 "), path


@pytest.mark.parametrize(
    ("path", "key"),
    [("/api/v2/jobs", False), ("/prompt", True), ("/api/v1/keys", True), ("/api/v1/jobs/x/cancel", True)],
)
async def test_what_would_be_done_twice_is_not_asked_again(edge: Edge, path: str, key: bool) -> None:
    edge.api.breaks = 1
    answer = await edge.raw(path, *["Idempotency-Key: a"] * key, method="POST", body=b"{}")
    assert edge.api.breaks == 0
    assert error_of(answer) == (502, "bad_gateway")
    assert b"retry-after: 1" in answer.lower()


async def test_what_is_not_http_never_reaches_the_api(edge: Edge) -> None:
    for headers in (["Content-Length: -1"], ["Content-Length: 1", "Content-Length: 2"], ["no colon"]):
        answer = await edge.raw("/api/v1/jobs", *headers)
        assert answer.startswith(b"HTTP/1.1 400 "), (headers, answer)
    assert edge.api.requests == []


async def test_the_rate_limit_counts_per_address(tmp_path: Path) -> None:
    async with edge_of(tmp_path, rate_limit=5) as edge:
        replies = [await edge.http.get("/api/v1/jobs") for _ in range(8)]
        assert [reply.status_code for reply in replies] == [200] * 5 + [429] * 3
        assert replies[-1].json()["error"]["code"] == "rate_limited"
        assert replies[-1].headers["Retry-After"] == "10"
        reply = await edge.http.get("/v1/models")
        told = {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
        assert (reply.status_code, reply.headers["Retry-After"]) == (429, "10")
        assert reply.json()["error"] == {"message": "Too many requests from this address; slow down.", **told}


async def test_a_killed_edge_comes_back(edge: Edge) -> None:
    worker = await Runtime(files(edge.settings).edge_socket).pid()
    os.kill(worker, signal.SIGKILL)

    async def answers() -> bool:
        try:
            return (await edge.http.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually("the edge answers", answers)
