"""Attacks by where a request goes, and by what is no proper request at all."""

import json
import re

import httpx
import pytest

from tests.acceptance.up import Up
from tests.acceptance.wire import (
    ANN,
    ask,
    console_of,
    converse,
    ends,
    graph,
    parsed,
    port_of,
    refused,
    still_well,
)

pytestmark = pytest.mark.timeout(180)


# -- paths and methods -------------------------------------------------------

CLOSED = ["userdata/a%2F..%2Fb.json", "internal/logs", "internal/folder_paths",
          "manager/reboot", "assets/../queue",
          "view/..%2f..%2fsecret.key"]  # fmt: skip
"""ComfyUI's routes that a fleet does not have."""
FORBIDDEN_PATHS = [
    *(f"/{path}" for path in CLOSED),
    *(f"/api/{path}" for path in CLOSED),
    *(f"/k/some-key-0123456789/{path}" for path in CLOSED),
    "*",
    "/.",
    "/metrics",
    "/haproxy?stats",
    "/api/v1",
    "/api/v1/../../metrics",
    "/api/v2/jobs/../../../metrics",
    "/api/v1/..;/..;/metrics",
    "/api/v1/%2e%2e/%2e%2e/metrics",
    "/api/v1/%2E%2E%2f%2e%2e%2fmetrics",
    "/api/v1/%252e%252e/%252e%252e/metrics",
    "/api/v1/..%c0%af..%c0%afmetrics",
    "/api/v1\\..\\metrics",
    "/api/v1/..%5c..%5cmetrics",
    "//metrics",
    "/api/v1//metrics",
    "/./metrics",
    "/api/v1/nodes/%00",
    "/api/v1/workflows/..",
    "/api/v1/workflows/a%0d%0ab",
    "/api/v1/workflows/%C3%A4",
    "/api/v1/workflows/" + "a" * 300,
    "/api/v1/nodes/g1%0aserver%20evil",
    "/api/v2/jobs/" + "a" * 300,
    "/api/v2/jobs/%ff%fe",
    "/api/v2/jobs/*",
    "/api/v2/jobs/fleet:job:x",
    "/api/v2/assets/..%2f..%2fsecret.key/content",
    "/api/v2/assets/%2e%2e/content",
    "/api/v2/assets/" + "0" * 64 + "/content",
    "/docs/../metrics",
    "/openapi.json/",
]


@pytest.mark.parametrize("path", FORBIDDEN_PATHS)
def test_nothing_but_the_api_answers(fleet: Up, path: str) -> None:
    where = console_of(fleet) if "/nodes/" in path else fleet
    assert refused(ask(where, "GET", path), 404)["code"] == "not_found"
    assert refused(ask(where, "POST", path, body=b"{}"), 404, 405)


@pytest.mark.parametrize("path", ["/userdata/%2Fetc%2Fx", "/api/userdata/%2Fetc%2Fx"])
def test_an_absolute_path_is_no_name_of_a_file(fleet: Up, path: str) -> None:
    for method in ("GET", "POST"):
        assert refused(ask(fleet, method, path, body=b"{}"), 400)["code"] == "invalid_request"


def test_the_page_at_the_root_runs_nothing_and_tells_nothing(fleet: Up) -> None:
    page = httpx.get(f"{fleet.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["default-src 'none'", "style-src 'unsafe-inline'"]
    assert set(policy[2:]) == {"form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"}
    assert "comfy_fleet" in page.text
    assert "sim-1" not in page.text
    assert "<script" not in page.text
    assert httpx.get(f"{fleet.url}/?x=<script>alert(1)</script>").text == page.text
    assert refused(ask(fleet, "POST", "/", body=b"{}"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "query",
    [
        "cursor=%00",
        "cursor=" + "A" * 600,
        "cursor=../../x",
        "limit=0",
        "limit=1e3",
        "limit=" + "9" * 5000,
        "limit=-1",
        "status=queued,nonsense",
        "status=%F0%9F%92%A9",
        "metadata=x",
        "metadata[]=x",
        "metadata[a%00b]=x",
        "metadata[*]=x",
        "metadata[a]=x&metadata[a]=y",
        "&".join(f"metadata[k{n}]=v" for n in range(17)),
        "metadata[a]=" + "v" * 257,
    ],
)
def test_queries(fleet: Up, query: str) -> None:
    for face in ("v1", "v2"):
        refused(ask(fleet, "GET", f"/api/{face}/jobs?{query}"), 400)


@pytest.mark.parametrize("method", ["TRACE", "FOO", "PROPFIND", "TRACK", "get"])
def test_strange_methods_end_at_the_edge(fleet: Up, method: str) -> None:
    error = refused(ask(fleet, method, "/api/v2/jobs"), 405)
    assert error["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "DELETE"])
def test_methods_that_a_path_lacks(fleet: Up, method: str) -> None:
    answer = ask(fleet, method, "/api/v2/jobs", "Access-Control-Request-Method: POST")
    assert refused(answer, 405)["code"] == "method_not_allowed"
    assert "allow" in answer.headers


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_a_header_is_no_method(fleet: Up, picture: str, name: str) -> None:
    meta = picture.removesuffix("/content")
    assert ask(fleet, "GET", f"{meta}?_method=DELETE", f"{name}: DELETE").status == 200
    assert ask(fleet, "GET", meta).status == 200


def test_heads_have_no_bodies_and_hold_no_stream(keyed: Up) -> None:
    headers = {"Authorization": f"Bearer {ANN}"}
    job = httpx.post(f"{keyed.url}/api/v2/jobs", json={"workflow": graph(77)}, headers=headers).json()
    ends(keyed, job, headers)
    for _ in range(5):  # more than there may be streams
        answer = ask(keyed, "HEAD", f"/api/v2/jobs/{job['id']}/events", f"Authorization: Bearer {ANN}")
        assert (answer.status, answer.body) == (200, b"")
    for path in ("/api/v2/jobs", f"/api/v2/jobs/{job['id']}", "/api/v2/nothing", "/metrics"):
        assert ask(keyed, "HEAD", path, f"Authorization: Bearer {ANN}").body == b""


# -- the wire ----------------------------------------------------------------


def smuggled(*lines: bytes, method: bytes = b"POST", version: bytes = b"1.1") -> bytes:
    head = [method + b" /api/v2/jobs HTTP/" + version, b"Host: 127.0.0.1", *lines]
    return b"\r\n".join(head) + b"\r\n\r\n"


INNER = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLING = {
    "CL.TE": smuggled(b"Content-Length: 4", CHUNKED) + INNER,
    "TE.CL": smuggled(CHUNKED, b"Content-Length: 4") + INNER,
    "TE.TE": smuggled(CHUNKED, b"Transfer-Encoding: identity") + INNER,
    "TE, obscured": smuggled(b"Transfer-Encoding: xchunked") + INNER,
    "TE, vertical tab": smuggled(b"Transfer-Encoding:\x0bchunked") + INNER,
    "TE, blank before the colon": smuggled(b"Transfer-Encoding : chunked") + INNER,
    "TE in HTTP/1.0": smuggled(CHUNKED, version=b"1.0") + INNER,
    "TE, folded": smuggled(b"X: y", b" Transfer-Encoding: chunked", b"Content-Length: 0") + INNER,
    "two lengths": smuggled(b"Content-Length: 0", b"Content-Length: 50") + INNER,
    "a list of lengths": smuggled(b"Content-Length: 0, 50") + INNER,
    "a signed length": smuggled(b"Content-Length: +0") + INNER,
    "a negative length": smuggled(b"Content-Length: -1") + INNER,
    "a chunk of negative size": smuggled(CHUNKED) + b"-1\r\n" + INNER,
    "a chunk of endless size": smuggled(CHUNKED) + b"ffffffffffffffff\r\n" + INNER,
    "a chunk's extension": smuggled(CHUNKED) + b"2;a=\nb\r\n{}\r\n" + INNER,
    "a GET with a body": smuggled(b"Content-Length: 62", method=b"GET") + INNER,
    "two hosts": smuggled(b"Host: evil.test") + INNER,
    "an absolute target": b"GET http://evil.test/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "NUL in a header": smuggled(b"X: a\0b") + INNER,
    "a bare CR": smuggled(b"X: a\rGET /metrics HTTP/1.1") + INNER,
    "HTTP/2 by surprise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "h2c": smuggled(b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", method=b"GET"),
    "a websocket": smuggled(b"Connection: Upgrade", b"Upgrade: websocket", method=b"GET"),
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
    "HTTP/0.9": b"GET /metrics\r\n\r\n",
    "HTTP/9.9": b"GET /metrics HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "a header of 20 kB": smuggled(b"X: " + b"a" * 20_000),
    "500 headers": smuggled(*[b"X: y"] * 500),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
}


# Whoever has kept the connection open until here answers this one, by a 404, and closes it.
LAST = b"GET /api/v2/jobs/last HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("name", SMUGGLING)
def test_nothing_is_smuggled_past_the_edge(fleet: Up, name: str) -> None:
    received = converse(port_of(fleet), SMUGGLING[name] + LAST)
    assert received.startswith(b"HTTP/1.")
    assert b"fleet_http_requests_total" not in received and b"python_info" not in received
    assert b"101 Switching" not in received
    assert not re.search(rb"HTTP/1.1 50[0-4]", received), received[:300]
    # At most the outer request was answered, and nothing was taken for a request of its own.
    assert len(re.findall(rb"HTTP/1\.[01] 2", received)) <= 1
    assert httpx.get(f"{fleet.url}/api/v2/health").status_code == 200


@pytest.mark.parametrize("name", SMUGGLING)
def test_nothing_is_smuggled_past_the_apis_own_port(fleet: Up, name: str) -> None:
    port = json.loads((fleet.data / "run" / "up.json").read_text())["ports"][0]
    # Behind a request for another protocol nothing is read at all; a body that lacks its end is waited for.
    quiet_s = 3 if name in ("h2c", "a chunk of endless size") else None
    received = converse(port, SMUGGLING[name] + LAST, quiet_s=quiet_s)
    assert b"python_info" not in received
    assert not re.search(rb"HTTP/1.1 (101|50[0-4])", received), received[:300]
    assert len(re.findall(rb"HTTP/1\.[01] 2", received)) <= 1
    assert ask(port, "GET", "/api/v2/health").status == 200


TO_A_NODE = b"X-Fleet-Node: sim-1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize("name", SMUGGLING)
def test_nothing_is_smuggled_past_the_broker(fleet: Up, name: str) -> None:
    """What a process of the fleet's sends for a client is one request, whatever that client sent."""
    direct = fleet.data / "run" / "direct.sock"
    said = SMUGGLING[name].replace(b" /api/v2/jobs ", b" /queue ")
    said = said.replace(INNER, INNER.replace(b" /metrics ", b" /system_stats "))
    said = said.replace(b"Host: 127.0.0.1\r\n", TO_A_NODE)
    received = converse(direct, said + LAST.replace(b"Host: 127.0.0.1\r\n", TO_A_NODE))
    assert b'"devices"' not in received, received
    assert not re.search(rb"HTTP/1.1 (101|50[1-4])", received), received[:300]  # 500 is the node's own
    assert len(re.findall(rb"HTTP/1\.[01] 2", received)) <= 1
    for _ in range(3):  # nor is it the answer to somebody else's question
        asked = b"GET /queue HTTP/1.1\r\n%sConnection: close\r\n\r\n" % TO_A_NODE
        assert b"queue_running" in parsed(converse(direct, asked)).body


def test_the_fleet_works_on_and_nothing_went_wrong_inside(fleet: Up, keyed: Up) -> None:
    still_well(fleet, keyed)
