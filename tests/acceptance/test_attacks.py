"""What a hostile client, a web page or another user of the machine may try, against a whole fleet.

Everything goes through the public port unless a test says otherwise. An attack has failed when the answer is
an ordinary refusal in the envelope, says nothing about the inside, and the fleet works on.
"""

import contextlib
import gzip
import json
import re
import socket
import string
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.conftest import Up, start_fleet, stop_fleet

ANN, BOB, OPS, AGENT = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"
INSIDE = re.compile(r"Traceback|File \"|site-packages|comfy_fleet[/.]|\.py\b|redis|\.sock|/tmp/|/root|/home/")
KEYED_LIMIT = 1024 * 1024
REFUSED = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429)

pytestmark = pytest.mark.timeout(90)


def graph(color: int = 255) -> dict[str, Any]:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


@dataclass(frozen=True)
class Answer:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


def parsed(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return Answer(
        int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, body, raw
    )


def port_of(fleet: Up) -> int:
    port = urlsplit(fleet.url).port
    assert port is not None
    return port


def converse(port: int, data: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send bytes as they are and return what comes back until the other side closes, or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as sock:
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            sock.sendall(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := sock.recv(65536):
                received += chunk
        return received


def ask(
    fleet: Up | int,
    method: str,
    target: str,
    *headers: str,
    body: bytes | None = None,
    host: str | None = None,
) -> Answer:
    port = fleet if isinstance(fleet, int) else port_of(fleet)
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{port}'}",
        "Connection: close",
        *headers,
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("latin-1")
    return parsed(converse(port, head + b"\r\n\r\n" + (body or b"")))


def refused(answer: Answer, *statuses: int) -> dict[str, Any]:
    """Hold an answer against what every refusal has to be, and return its error."""
    assert answer.status in (statuses or REFUSED), answer.raw[:500]
    assert answer.headers["content-type"].startswith("application/json"), answer.raw[:500]
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert set(error) == {"code", "message", "details"}
    assert re.fullmatch(r"[a-z_]{3,40}", error["code"]) and 0 < len(error["message"]) < 1000
    assert error["details"] is None or isinstance(error["details"], dict)
    assert not INSIDE.search(error["message"]), error
    return error


def post_json(fleet: Up, path: str, body: bytes, *headers: str) -> Answer:
    return ask(fleet, "POST", path, "Content-Type: application/json", *headers, body=body)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of several users."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    keys.write_text(f"ann {ANN}\nbob {BOB}\nops {OPS} admin\n")
    env = {
        "FLEET_KEYS_FILE": str(keys),
        "FLEET_AGENT_TOKEN": AGENT,
        "FLEET_MAX_BODY_BYTES": str(KEYED_LIMIT),
        "FLEET_MAX_STREAMS": "2",
    }
    up = start_fleet(folder / "data", "--nodes", "1", "--job-seconds", "0.2", env=env)
    yield up
    stop_fleet(up)


@pytest.fixture(scope="module", autouse=True)
def slow_head(fleet: Up) -> Iterator[tuple[float, socket.socket]]:
    """A request whose head never ends; it is looked at last, when its time is over."""
    with socket.create_connection(("127.0.0.1", port_of(fleet)), 20) as sock:
        sock.sendall(b"GET /api/v2/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow:")
        yield time.monotonic(), sock


@pytest.fixture(scope="module", autouse=True)
def slow_bodies(fleet: Up, keyed: Up) -> Iterator[dict[str, list[tuple[float, bytes]]]]:
    """Bodies of which a byte comes now and then, and what was answered when; looked at last, too."""
    ended = threading.Event()
    said: dict[str, list[tuple[float, bytes]]] = {"taken": [], "refused": []}

    def trickle(up: Up, name: str) -> None:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port_of(up)), 1) as sock:
            sock.sendall(b"POST /api/v2/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n")
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    data = sock.recv(65536)
                    said[name].append((time.monotonic() - began, data))
                    if not data:
                        return
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b" ")

    with ThreadPoolExecutor() as pool:
        done = [pool.submit(trickle, fleet, "taken"), pool.submit(trickle, keyed, "refused")]
        yield said
        ended.set()
    for one in done:
        one.result()


def ends(fleet: Up, job: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Wait until a job has ended."""
    deadline = time.monotonic() + 15
    while not job["completed_at"]:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
        job = httpx.get(f"{fleet.url}/api/v2/jobs/{job['id']}", headers=headers).json()
    return job


# -- bodies ------------------------------------------------------------------

_HUGE = b"9" * 5000
BODIES = {
    "empty": b"",
    "not JSON": b"workflow=1",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "NaN": b'{"workflow":NaN}',
    "infinity": b'{"workflow":{},"deadline_s":1e999}',
    "100k brackets": b'{"workflow":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100k objects": b'{"a":' * 100_000,
    "invalid UTF-8": b'{"workflow":"\xff\xfe"}',
    "UTF-16": '{"workflow":{}}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a lone surrogate": b'{"workflow":{"1":{"class_type":"\\ud800","inputs":{}}}}',
    "5000 digits": b'{"workflow":{"1":{"class_type":"X","inputs":{"a":' + _HUGE + b"}}}}",
    "a huge priority": b'{"workflow":{},"priority":99999999999999999999}',
    "priority true": b'{"workflow":{},"priority":true}',
    "a duplicate key": b'{"workflow":{},"workflow":[]}',
    "gzip": gzip.compress(b'{"workflow":{}}'),
    "no workflow": b"{}",
    "workflow true": b'{"workflow":true}',
    "an empty workflow": b'{"workflow":{}}',
    "the editor's format": b'{"workflow":{"nodes":[],"links":[]}}',
    "NUL in names": b'{"workflow":{"1\\u0000":{"class_type":"X\\u0000","inputs":{}}}}',
    "a webhook": b'{"workflow":{},"webhook_url":"http://169.254.169.254/"}',
    "extra_data too open": b'{"workflow":{},"extra_data":{"client_id":"x"}}',
    "extra_data too long": b'{"workflow":{},"extra_data":{"api_key_comfy_org":"' + b"k" * 5000 + b'"}}',
    "metadata with a line break": b'{"workflow":{},"metadata":{"a\\r\\nX: y":"b"}}',
    "a link to itself": b'{"workflow":{"1":{"class_type":"SaveImage","inputs":{"images":["1",0]}}}}',
}


@pytest.mark.parametrize("name", BODIES)
def test_no_body_gets_through_or_breaks_anything(fleet: Up, name: str) -> None:
    error = refused(post_json(fleet, "/api/v2/jobs", BODIES[name]), 400, 422)
    assert "kkkk" not in error["message"]
    for path in ("/api/v1/workflows/image_card/jobs", "/api/v1/generate", "/api/v1/nodes"):
        refused(post_json(fleet, path, BODIES[name]), 400, 404, 422)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_body_is_json_whatever_its_type_says(fleet: Up, kind: str) -> None:
    answer = ask(fleet, "POST", "/api/v2/jobs", f"Content-Type: {kind}", body=b"a=b")
    assert refused(answer, 400)["code"] == "invalid_request"


def chunked(fleet: Up, path: str, kind: str, first: bytes, total: int, *headers: str) -> Answer:
    """Send a body without an announced length, as much of it as is taken."""
    port = port_of(fleet)
    piece = b"x" * 65536
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Transfer-Encoding: chunked"]
    head = "\r\n".join([*lines, f"Content-Type: {kind}", *headers, "\r\n"]).encode()
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(head)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"%x\r\n%s\r\n" % (len(first), first))
            for _ in range(total // len(piece)):
                sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
        received = b""
        with contextlib.suppress(ConnectionError):
            while b"}}" not in received and (data := sock.recv(65536)):
                received += data
    return parsed(received)


def test_bodies_over_the_limit_are_refused_with_and_without_a_length(fleet: Up, keyed: Up) -> None:
    port = port_of(fleet)
    announced = f"POST /api/v2/jobs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 99999999999\r\n\r\n"
    assert refused(parsed(converse(port, announced.encode())), 413)["code"] == "payload_too_large"
    text = chunked(fleet, "/api/v2/jobs", "application/json", b'{"workflow":"', 17 * 1024 * 1024)
    assert refused(text, 413)["code"] == "payload_too_large"
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    file = chunked(
        keyed,
        "/api/v2/assets",
        "multipart/form-data; boundary=b",
        form,
        2 * KEYED_LIMIT,
        f"Authorization: Bearer {ANN}",
    )
    assert refused(file, 413)["code"] == "payload_too_large"
    assert not list((keyed.data / "files" / "tmp").iterdir())  # nothing of it stays


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "ä", "a\tb", "a\x7f"])
def test_keys_of_a_wrong_shape_are_refused(fleet: Up, key: str) -> None:
    for path, body in (("/api/v2/jobs", {"workflow": graph()}), ("/api/v1/generate", {"prompt": "x"})):
        answer = post_json(fleet, path, json.dumps(body).encode(), f"Idempotency-Key: {key}")
        assert refused(answer, 400)["code"] == "invalid_request"


# -- uploads -----------------------------------------------------------------


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, value)


FILE = part("file", b"hello", b'; filename="a.png"')
PLACE = part("file_path", b"a.png")
END = b"--b--\r\n"
FORMS: dict[str, bytes] = {
    "nothing": b"",
    "only the end": END,
    "no file": PLACE + END,
    "no path": FILE + END,
    "two files": FILE + FILE + PLACE + END,
    "two paths": FILE + PLACE + PLACE + END,
    "cut short": FILE[:-10],
    "no end": FILE + PLACE,
    "a part without a disposition": b"--b\r\n\r\nhello\r\n" + END,
    "a part without a name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
    "10k parts": part("a", b"") * 10_000 + END,
    "5k headers": b"--b\r\n" + b"".join(b"h%d: x\r\n" % n for n in range(5000)) + b"\r\nx\r\n" + END,
    "a long header": b"--b\r\nh: " + b"x" * 100_000 + b"\r\n\r\nx\r\n" + END,
    "a long field": FILE + part("tags", b"x" * 100_000) + END,
    "a field that is no text": FILE + part("file_path", b"\xff\xfe") + END,
    "a type with a line break": FILE + PLACE + part("content_type", b"a/b\r\nX-Evil: 1") + END,
    "a type that is none": FILE + PLACE + part("content_type", b"<script>") + END,
    "a garbled hash": FILE + PLACE + part("expected_hash", b"blake3:xyz") + END,
    "5000 digits of hash": FILE + PLACE + part("expected_hash", b"blake3:" + _HUGE) + END,
    "another hash": FILE + PLACE + part("expected_hash", b"blake3:" + b"0" * 64) + END,
    "5000 digits of seconds": FILE + PLACE + part("expires_in", _HUGE) + END,
    "negative seconds": FILE + PLACE + part("expires_in", b"-60") + END,
    "a tag with a line break": FILE + PLACE + part("tags", b"a\r\nb") + END,
    "33 tags": FILE + PLACE + b"".join(part("tags", b"t%d" % n) for n in range(33)) + END,
}
PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "a//b",
    "a/",
    "",
    "a\\..\\b",
    "a\0b",
    "a\nb",
]
FORMS |= {f"path {path!r}": FILE + part("file_path", path.encode()) + END for path in [*PATHS, "x" * 1025]}


@pytest.mark.parametrize("name", FORMS)
def test_no_form_leaves_its_lines(fleet: Up, name: str) -> None:
    answer = ask(
        fleet, "POST", "/api/v2/assets", "Content-Type: multipart/form-data; boundary=b", body=FORMS[name]
    )
    refused(answer, 409, 422)
    assert "x-evil" not in answer.headers
    assert not list((fleet.data / "files" / "tmp").iterdir())


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 300,
        "multipart/mixed; boundary=b",
        "application/json",
        "multipart/form-data; boundary=c",
    ],
)
def test_uploads_need_their_type(fleet: Up, kind: str) -> None:
    answer = ask(fleet, "POST", "/api/v2/assets", f"Content-Type: {kind}", body=FILE + PLACE + END)
    refused(answer, 422)


def test_a_name_is_never_a_path_on_the_disk(fleet: Up) -> None:
    names = ["C:/Windows/x", "x" * 300, "a\u202egnp.exe", "~root", "$(id)", "a b;c|d&e", "CON", "%2e%2e%2fx"]
    for name in names:
        files = {"file": ("x", uuid.uuid4().bytes)}
        answer = httpx.post(f"{fleet.url}/api/v2/assets", files=files, data={"file_path": name})
        assert (answer.status_code, answer.json()["file_path"]) == (201, name)
        shown = httpx.get(answer.json()["url"])
        assert shown.headers["content-disposition"].endswith(quote(name.rpartition("/")[2], safe=""))
    stored = {path.name for path in (fleet.data / "files").rglob("*") if path.is_file()}
    assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in stored)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", "text/html"),
        ("x.svg", "image/svg+xml"),
        ("x.xml", "text/xml"),
        ("x.js", "text/javascript"),
        ("x.pdf", "application/pdf"),
        ("x.xhtml", "application/xhtml+xml; charset=utf-8"),
        ("x.png", "text/html;charset=image/png"),
    ],
)
def test_no_upload_runs_as_a_page_of_the_apis(fleet: Up, name: str, kind: str) -> None:
    page = b"<script>fetch('/api/v1/nodes')</script>" + name.encode()
    asset = httpx.post(
        f"{fleet.url}/api/v2/assets",
        files={"file": (name, page, kind)},
        data={"file_path": name, "content_type": kind},
    ).json()
    shown = httpx.get(asset["url"])
    assert shown.content == page
    assert shown.headers["content-disposition"].startswith("attachment;")
    assert shown.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert "private" in shown.headers["cache-control"]


@pytest.mark.parametrize(
    "name", ["../../../etc/motd.png", "/etc/motd.png", "..\\x.png", "../output/x.png [output]"]
)
def test_a_graph_reads_no_file_outside_a_nodes_folders(fleet: Up, name: str) -> None:
    looking = graph()
    looking["1"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    answer = post_json(fleet, "/api/v2/jobs", json.dumps({"workflow": looking}).encode())
    assert refused(answer, 422)["details"]["node_errors"]["1"][0]["reason"] == "bad_path"


def test_a_graph_writes_no_file_outside_a_runs_folder(fleet: Up) -> None:
    writing = graph(0x123456)
    writing["2"]["inputs"]["filename_prefix"] = "../../../../../../tmp/fleet-escape"
    job = httpx.post(f"{fleet.url}/api/v2/jobs", json={"workflow": writing}).json()
    assert ends(fleet, job)["status"] == "succeeded"
    saved = list((fleet.data / "sim").rglob("*fleet-escape*"))
    assert saved and all(job["id"] in path.parts for path in saved)
    assert not list(Path("/tmp").glob("fleet-escape*"))


# -- ranges ------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(fleet: Up) -> str:
    answer = httpx.post(
        f"{fleet.url}/api/v2/assets", files={"file": ("r", b"0123456789")}, data={"file_path": "r"}
    )
    return str(urlsplit(answer.json()["url"]).path)


@pytest.mark.parametrize(
    ("value", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-" + "9" * 15, 206, b"89"),
        ("bytes=0-" + "9" * 5000, 200, b"0123456789"),
        ("bytes=" + "9" * 5000 + "-", 200, b"0123456789"),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=--1", 200, b"0123456789"),
        ("bytes=", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=0-0,2-2", 200, b"0123456789"),
        ("bytes=" + ",".join(["0-"] * 1000), 200, b"0123456789"),
        ("bytes=\xb2-\xb3", 200, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("bytes=-0", 416, b""),
    ],
)
def test_ranges(fleet: Up, picture: str, value: str, status: int, content: bytes) -> None:
    answer = ask(fleet, "GET", picture, f"Range: {value}")
    if status == 416:
        assert refused(answer, 416)["code"] == "range_not_satisfiable"
        assert answer.headers["content-range"] == "bytes */10"
    else:
        assert (answer.status, answer.body) == (status, content)


@pytest.mark.parametrize("value", ["*", '"x"', "W/" + '"' * 1000, ",,,", "x" * 5000])
def test_validators(fleet: Up, picture: str, value: str) -> None:
    answer = ask(fleet, "GET", picture, f"If-None-Match: {value}")
    assert (answer.status, answer.body) == ((304, b"") if value == "*" else (200, b"0123456789"))


# -- paths and methods -------------------------------------------------------

COMFYUI = ["prompt", "view", "system_stats", "ws", "userdata", "queue", "interrupt", "object_info", "history",
           "upload/image", "free", "internal/logs", "extensions", "settings", "manager/reboot"]  # fmt: skip
FORBIDDEN_PATHS = [
    *(f"/{path}" for path in COMFYUI),
    *(f"/api/{path}" for path in COMFYUI),
    "/",
    "*",
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
    assert refused(ask(fleet, "GET", path), 404)["code"] == "not_found"
    assert refused(ask(fleet, "POST", path, body=b"{}"), 404, 405)


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


# -- who asks ----------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "127.0.0.1@evil.test",
             "evil.test:8188", "[::2]", "0.0.0.0", "localhost/evil", "localhost evil",
             "localhost:99x", "<b>"],
)  # fmt: skip
def test_a_rebound_name_gets_nothing(fleet: Up, host: str) -> None:
    for method, path in (("GET", "/api/v1/nodes"), ("POST", "/api/v2/jobs"), ("GET", "/api/v1/docs")):
        raw = ask(fleet, method, path, host=host)
        assert raw.status in (400, 403), raw.raw
        assert b"sim-1" not in raw.raw


def test_a_forwarded_host_vouches_for_nothing(fleet: Up) -> None:
    note = json.loads((fleet.data / "run" / "up.json").read_text())
    for headers in (
        ("X-Forwarded-Host: localhost",),
        ("X-Forwarded-Host: localhost", "Forwarded: host=localhost"),
    ):
        refused(ask(fleet, "GET", "/api/v1/nodes", *headers, host="evil.test"), 403)
        inner = ask(note["ports"][0], "GET", "/api/v1/nodes", *headers, host="evil.test")
        refused(inner, 403)
    inner = ask(note["ports"][0], "GET", "/api/v1/nodes", "X-Forwarded-Host: evil.test", host="localhost")
    refused(inner, 403)


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", "http://127.0.0.1:1", "http://localhost", "x"]
)
def test_a_page_of_another_site_changes_nothing(fleet: Up, origin: str) -> None:
    job = httpx.post(f"{fleet.url}/api/v2/jobs", json={"workflow": graph(3)}).json()
    form = json.dumps({"name": "evil", "url": "http://10.0.0.9:8188"}).encode()
    for method, path, body in (
        ("POST", "/api/v2/jobs", json.dumps({"workflow": graph()}).encode()),
        ("POST", "/api/v1/generate", b'{"prompt":"x"}'),
        ("POST", "/api/v1/nodes", form),
        ("POST", "/api/v1/nodes/sim-1/drain", b""),
        ("DELETE", "/api/v1/nodes/sim-1?force=true", None),
        ("POST", f"/api/v2/jobs/{job['id']}/cancel", b""),
        ("POST", "/api/v2/assets", FILE + PLACE + END),
    ):
        answer = ask(fleet, method, path, f"Origin: {origin}", "Content-Type: text/plain", body=body)
        assert refused(answer, 403)["code"] == "forbidden"
    assert ends(fleet, job)["status"] == "succeeded"
    assert [n["name"] for n in httpx.get(f"{fleet.url}/api/v1/nodes").json()["nodes"]] == ["sim-1", "sim-2"]


def test_no_other_site_may_read(fleet: Up, picture: str) -> None:
    for method in ("GET", "OPTIONS"):
        for path in ("/api/v2/jobs", "/api/v1/nodes", picture, "/api/v1/docs", "/prompt", "/api/v2/health"):
            asked = ("Origin: https://evil.test", "Access-Control-Request-Method: GET")
            headers = ask(fleet, method, path, *asked).headers
            assert not [name for name in headers if name.startswith("access-control-")]
            assert headers["x-content-type-options"] == "nosniff"


def test_what_only_a_proxy_may_say_does_nothing_from_outside(keyed: Up) -> None:
    told = (
        f"Authorization: Bearer {ANN}",
        "X-Forwarded-Host: evil.test",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /evil",
        "X-Original-URL: /metrics",
        "X-Rewrite-URL: /metrics",
        "Forwarded: host=evil.test",
        "X-Fleet-Owner: ops",
        "X-Fleet-Node: sim-1",
        "X-Fleet-Pool: default",
    )
    body = json.dumps({"workflow": graph(5)}).encode()
    job = json.loads(ask(keyed, "POST", "/api/v2/jobs", *told, body=body).body)
    assert job["urls"]["self"] == f"{keyed.url}/api/v2/jobs/{job['id']}"
    refused(ask(keyed, "GET", "/api/v1/nodes", *told), 403)


@pytest.mark.parametrize("host", ["a/b", "a?b", "[::1", "a b", "a:b:c", "", "\xff"])
def test_a_host_that_is_none_makes_no_urls(keyed: Up, host: str) -> None:
    body = json.dumps({"workflow": graph(), "metadata": {"host": "none"}}).encode()
    answer = ask(keyed, "POST", "/api/v2/jobs", f"Authorization: Bearer {ANN}", body=body, host=host or " ")
    assert answer.status == 400
    found = httpx.get(
        f"{keyed.url}/api/v2/jobs?metadata[host]=none", headers={"Authorization": f"Bearer {ANN}"}
    )
    assert found.json()["jobs"] == []  # refused before anything was made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(ANN[:-1]),
        bearer(ANN + "0"),
        bearer(ANN.upper()),
        {"Authorization": f"Basic {ANN}"},
        {"Authorization": ANN},
        {"Cookie": f"api_key={ANN}"},
        bearer("x" * 8000),
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_a_key_there_is_nothing(keyed: Up, headers: dict[str, str]) -> None:
    raw = [f"{name}: {value}" for name, value in headers.items()]
    for method, path in (
        ("GET", f"/api/v2/jobs?api_key={ANN}"),
        ("POST", "/api/v2/jobs"),
        ("POST", "/api/v2/assets"),
        ("HEAD", "/api/v2/assets/by-hash/blake3:" + "0" * 64),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/workflows"),
        ("GET", "/api/v1/docs"),
        ("GET", "/api/v1/queue"),
    ):
        answer = ask(keyed, method, path, *raw)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", answer.raw
        if method != "HEAD":
            assert refused(answer, 401)["code"] == "unauthorized"
        assert b"ann" not in answer.raw.lower().replace(b"bearer", b"")


@pytest.fixture(scope="module")
def anns(keyed: Up) -> dict[str, Any]:
    """A job and an upload of Ann's."""
    with httpx.Client(base_url=keyed.url, headers=bearer(ANN)) as ann:
        upload = ann.post(
            "/api/v2/assets", files={"file": ("a.png", b"of ann's")}, data={"file_path": "ann.png"}
        ).json()
        label = {"metadata": {"who": "ann"}}
        job = ann.post(
            "/api/v2/jobs", json={"workflow": graph(9), **label}, headers={"Idempotency-Key": "k1"}
        )
        return {"upload": upload, "job": ends(keyed, job.json(), bearer(ANN))}


@pytest.mark.parametrize("who", [BOB, OPS])
def test_what_is_anns_is_nobody_elses(keyed: Up, anns: dict[str, Any], who: str) -> None:
    job, upload = anns["job"], anns["upload"]
    at = f"/api/v2/jobs/{job['id']}"
    output = f"/api/v2/assets/{job['outputs'][0]['id']}"
    with httpx.Client(base_url=keyed.url, headers=bearer(who)) as other:
        for method, path in (
            *(("GET", f"{at}{tail}") for tail in ("", "/workflow", "/events")),
            ("POST", f"{at}/cancel"),
            *(
                ("GET", f"/api/v1/jobs/{job['id']}{tail}")
                for tail in ("", "/outputs", "/workflow", "/events")
            ),
            ("POST", f"/api/v1/jobs/{job['id']}/cancel"),
            ("GET", f"/api/v1/status/{job['id']}"),
            *(
                (method, f"{output}{tail}")
                for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
            ),
            ("GET", f"/api/v2/assets/{upload['id']}/content"),
            ("DELETE", f"/api/v2/assets/{upload['id']}"),
        ):
            answer = other.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        assert other.head(f"/api/v2/assets/by-hash/{upload['hash']}").status_code == 404
        assert other.post("/api/v2/assets/from-hash", json={"hash": upload["hash"]}).status_code == 404
        for listing in ("/api/v2/jobs", "/api/v1/jobs", "/api/v2/jobs?metadata[who]=ann"):
            assert other.get(listing).json()["jobs"] == []
        for value in ({"__type": "core/ASSET", "info": {"id": upload["id"]}}, "ann.png"):
            looking = graph(1)
            looking["1"] = {"class_type": "LoadImage", "inputs": {"image": value}}
            tried = other.post("/api/v2/jobs", json={"workflow": looking})
            if isinstance(value, dict):
                assert (tried.status_code, tried.json()["error"]["code"]) == (422, "missing_asset")
            else:  # a name means the caller's own file, or one that the node has
                assert ends(keyed, tried.json(), bearer(who))["status"] == "failed"
                other.post(f"/api/v2/jobs/{tried.json()['id']}/cancel")
        # The same key of somebody else is another key.
        again = other.post("/api/v2/jobs", json={"workflow": graph(9)}, headers={"Idempotency-Key": "k1"})
        assert again.status_code == 201 and again.json()["id"] != job["id"]
        assert ends(keyed, again.json(), bearer(who))["outputs"][0]["id"] != job["outputs"][0]["id"]


def test_only_admins_change_nodes_and_agents_do_nothing_else(keyed: Up) -> None:
    node = {"name": "meta", "url": "http://169.254.169.254:80"}
    for key in (ANN, AGENT):
        with httpx.Client(base_url=keyed.url, headers=bearer(key)) as client:
            for method, path in (
                ("POST", "/api/v1/nodes"),
                ("DELETE", "/api/v1/nodes/sim-1?force=true"),
                ("POST", "/api/v1/nodes/sim-1/drain"),
                ("POST", "/api/v1/nodes/sim-1/resume"),
                ("GET", "/api/v1/workflows/image_card/check"),
            ):
                answer = client.request(method, path, json=node if path.endswith("nodes") else None)
                assert answer.status_code == 403, path
    with httpx.Client(base_url=keyed.url, headers=bearer(AGENT)) as agent:
        assert agent.get("/api/v1/nodes").status_code == 200
        for method, path in (("GET", "/api/v2/jobs"), ("GET", "/api/v1/jobs"), ("POST", "/api/v2/assets")):
            assert agent.request(method, path).status_code == 403


NODES: dict[str, dict[str, Any]] = {
    url: {"name": "x", "url": url}
    for url in (
        "file:///etc/passwd",
        "https://10.0.0.1",
        "gopher://10.0.0.1:6379",
        "http://user:secret@10.0.0.1",
        "http://10.0.0.1/prompt",
        "http://10.0.0.1?x=y",
        "http://10.0.0.1#x",
        "http://10.0.0.1:99999",
        "http://10.0.0.1\n    server evil 10.0.0.2:80",
        "http://a\r\nb",
        "http://a b",
        "http://a;quit",
        "unix@/run/x",
        "http://unix@/x",
        "http://fd@3",
        "http://\u0431.test",
        "http://",
        "",
    )
}
NODES |= {
    f"name {name!r}": {"name": name, "url": "http://10.0.0.9:1"}
    for name in ("", "A", "a b", "a\nb", "../x", "a/b", "a;b", "-a", "x" * 64, "\u0430")
}
NODES |= {
    f"agent {agent!r}": {"name": "x", "url": "http://10.0.0.9:1", "agent": agent}
    for agent in ("h", "h:0", "h:99999", "h:1\nserver", "u@h:1", "h:1/x", ":1", "unix@/x:1")
}
NODES |= {
    "a pool": {"name": "x", "url": "http://10.0.0.9:1", "pool": "a b\n"},
    "a weight": {"name": "x", "url": "http://10.0.0.9:1", "weight": 10**30},
    "more": {"name": "x", "url": "http://10.0.0.9:1", "cordoned": False},
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_can_smuggle_nothing_into_the_configuration(fleet: Up, name: str) -> None:
    refused(post_json(fleet, "/api/v1/nodes", json.dumps(NODES[name]).encode()), 400, 422)
    assert "evil" not in (fleet.data / "run" / "broker.cfg").read_text()


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


@pytest.mark.parametrize("name", SMUGGLING)
def test_nothing_is_smuggled_past_the_edge(fleet: Up, name: str) -> None:
    received = converse(port_of(fleet), SMUGGLING[name], timeout_s=0.4)
    assert b"fleet_http_requests_total" not in received and b"python_info" not in received
    assert b"101 Switching" not in received
    assert not re.search(rb"HTTP/1.1 50[0-4]", received), received[:300]
    # At most the outer request was answered, and nothing was taken for a request of its own.
    assert len(re.findall(rb"HTTP/1\.[01] 2", received)) <= 1
    assert httpx.get(f"{fleet.url}/api/v2/health").status_code == 200


# -- what lies around --------------------------------------------------------


def test_no_secret_is_written_down(fleet: Up) -> None:
    secret = f"comfyui-{uuid.uuid4().hex}"
    bodies: list[dict[str, Any]] = [
        {"workflow": graph(11), "extra_data": {"api_key_comfy_org": secret}},
        {"workflow": graph(12), "extra_data": {"api_key_comfy_org": secret, "more": 1}},
        {"workflow": "none", "extra_data": {"api_key_comfy_org": secret}},
        {"workflow": graph(13), "extra_data": {"api_key_comfy_org": [secret]}},
        {
            "workflow": {"1": {"class_type": "Nope", "inputs": {}}},
            "extra_data": {"api_key_comfy_org": secret},
        },
    ]
    done = [httpx.post(f"{fleet.url}/api/v2/jobs", json=body) for body in bodies]
    assert [answer.status_code for answer in done] == [201, 422, 422, 422, 422]
    assert all(secret not in answer.text for answer in done)
    job = ends(fleet, done[0].json())
    assert job["status"] == "succeeded"
    for path in ("", "/workflow", "/events"):
        assert secret not in httpx.get(f"{fleet.url}/api/v2/jobs/{job['id']}{path}").text
    assert secret not in httpx.get(f"{fleet.url}/api/v2/jobs?token={secret}").text
    files = [path for path in fleet.data.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert any(path.suffix == ".aof" and job["id"].encode() in path.read_bytes() for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret.encode() not in (fleet.data.parent / f"{fleet.data.name}.log").read_bytes()


def test_other_users_of_the_machine_see_nothing(fleet: Up) -> None:
    assert fleet.data.stat().st_mode & 0o077 == 0
    for name in ("redis", "logs", "run", "files"):
        assert (fleet.data / name).stat().st_mode & 0o077 == 0, name
    for path in (fleet.data / "secret.key", *(fleet.data / "run").glob("*.cfg"), *fleet.data.rglob("*.sock")):
        assert path.stat().st_mode & 0o077 == 0, path


def family(pid: int) -> set[int]:
    """Return a process and all of its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[str]:
    """Return the addresses that these processes listen on, as in /proc/net."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[9] in inodes and row[3] in ("0A", "07")}


def test_everything_listens_on_loopback(fleet: Up) -> None:
    found = listening(family(fleet.process.pid))
    assert len(found) >= 5  # the edge, the API, the broker's two, the agent, the nodes
    assert {address.rpartition(":")[0] for address in found} == {"0100007F"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_an_open_fleet_does_not_leave_loopback(tmp_path: Path, host: str) -> None:
    from comfy_fleet.api.auth import Keys
    from comfy_fleet.domain.errors import ConfigError
    from comfy_fleet.settings import Settings

    for outside in (Settings(data=tmp_path, host=host), Settings(data=tmp_path, api_host=host)):
        with pytest.raises(ConfigError, match="FLEET_KEYS_FILE"):
            Keys.load(outside)


def test_the_reference_fetches_nothing(fleet: Up) -> None:
    page = httpx.get(f"{fleet.url}/docs", follow_redirects=True)
    assert page.status_code == 200 and "<details>" in page.text
    fetching = r"<(script|link|img|iframe|form|base|object)|(src|href)=[\"']?(https?:)?//|@import|url\("
    assert not re.search(fetching, page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    where = httpx.get(f"{fleet.url}/docs", headers={"Host": f"localhost:{port_of(fleet)}"})
    assert where.headers["location"] == "/api/v1/docs"


# -- fuzz --------------------------------------------------------------------

_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    _LEAF | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_NODE = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["EmptyImage", "SaveImage", "LoadImage", "PreviewImage"]) | _TEXT,
        "inputs": st.dictionaries(
            st.sampled_from(["width", "height", "batch_size", "color", "images", "image", "filename_prefix"])
            | _TEXT,
            _JSON | st.tuples(st.sampled_from("123"), st.integers(-1, 2)).map(list),
            max_size=5,
        ),
    }
)
_GRAPH = st.dictionaries(st.sampled_from("123") | _TEXT, _NODE | _JSON, max_size=4)
_BODY = st.fixed_dictionaries(
    {"workflow": _GRAPH | _JSON},
    optional={
        "priority": _LEAF,
        "metadata": _JSON,
        "extra_data": _JSON,
        "deadline_s": _LEAF,
        "params": _JSON,
        "prompt": _JSON,
        "name": _JSON,
        "url": _JSON,
    },
)
_CALM = settings(
    max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def client(fleet: Up) -> Iterator[Callable[..., httpx.Response]]:
    with httpx.Client(base_url=fleet.url, timeout=10) as http:

        def send(method: str, path: str, **more: Any) -> httpx.Response:
            answer = http.request(method, path, **more)
            assert answer.status_code < 500, (method, path, more, answer.text)
            if answer.status_code >= 400 and method != "HEAD" and answer.text.startswith("{"):
                assert set(answer.json()["error"]) == {"code", "message", "details"}
                assert not INSIDE.search(answer.json()["error"]["message"].replace(path, ""))
            return answer

        yield send


@_CALM
@given(_BODY)
def test_fuzzed_bodies(client: Callable[..., httpx.Response], body: Any) -> None:
    data = json.dumps(body).encode()
    for path in ("/api/v2/jobs", "/api/v1/workflows/image_card/jobs", "/api/v1/generate",
                 "/api/v2/assets/from-hash"):  # fmt: skip
        answer = client("POST", path, content=data)
        if answer.status_code in (201, 202):
            client("POST", f"/api/v2/jobs/{answer.json().get('id') or answer.json()['task_id']}/cancel")


@_CALM
@given(st.binary(max_size=200))
def test_fuzzed_bytes(client: Callable[..., httpx.Response], body: bytes) -> None:
    for path in ("/api/v2/jobs", "/api/v1/generate", "/api/v1/nodes", "/api/v1/nodes/sim-1/drainx"):
        assert client("POST", path, content=body).status_code in (400, 404, 422)
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    for content in (body, b"--b\r\n" + body, FILE[:40] + body + END, FILE + part("tags", body) + END):
        assert client("POST", "/api/v2/assets", content=content, headers=form).status_code in (400, 409, 422)


@_CALM
@given(
    st.sampled_from(
        ["/api/v2/jobs/", "/api/v2/assets/", "/api/v1/workflows/", "/api/v1/nodes/", "/api/v1/status/"]
    ),
    st.text(max_size=30),
    st.sampled_from(["", "/content", "/events", "/workflow", "/jobs", "/check", "/outputs"]),
)
def test_fuzzed_paths(client: Callable[..., httpx.Response], root: str, name: str, tail: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        quoted = quote(name, safe="")
        if quoted in ("", ".", ".."):
            return
        answer = client("GET", f"{root}{quoted}{tail}")
        assert answer.status_code in (400, 404, 405), (root, name, tail)


@_CALM
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["limit", "cursor", "status", "workflow", "metadata", "metadata[a]", "x"]),
            st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
        ),
        max_size=6,
    ),
    st.text(string.printable.strip() + "äß", min_size=1, max_size=40),
)
def test_fuzzed_queries_and_headers(
    client: Callable[..., httpx.Response], query: list[tuple[str, str]], value: str
) -> None:
    raw = value.encode("latin-1")
    for face in ("v1", "v2"):
        answer = client(
            "GET", f"/api/{face}/jobs", params=query, headers={"If-None-Match": raw, "Range": raw}
        )
        assert answer.status_code in (200, 400)
    content = json.dumps({"workflow": {}}).encode()
    for name in ("Idempotency-Key", "Authorization", "X-API-Key", "Accept", "Content-Type", "X-Fleet-Node"):
        answer = client("POST", "/api/v2/jobs", content=content, headers={name: raw})
        assert answer.status_code in (400, 422)


# -- at the end --------------------------------------------------------------


def test_a_head_that_never_ends_is_given_up(slow_head: tuple[float, socket.socket]) -> None:
    since, sock = slow_head
    sock.settimeout(20)
    received = b""
    while chunk := sock.recv(65536):
        received += chunk
    assert parsed(received).status == 408
    assert time.monotonic() - since < 60


def test_bodies_that_trickle_are_given_up(slow_bodies: dict[str, list[tuple[float, bytes]]]) -> None:
    deadline = time.monotonic() + 40
    while not all(said and said[-1][1] == b"" for said in slow_bodies.values()):
        assert time.monotonic() < deadline, slow_bodies
        time.sleep(0.1)
    for name, status in (("taken", 408), ("refused", 401)):
        answer = b"".join(data for _, data in slow_bodies[name])
        refused(parsed(answer), status)


def test_the_fleet_works_on_and_nothing_went_wrong_inside(fleet: Up, keyed: Up) -> None:
    assert fleet.process.poll() is None and keyed.process.poll() is None
    job = httpx.post(f"{fleet.url}/api/v2/jobs", json={"workflow": graph(4242)}).json()
    assert ends(fleet, job)["status"] == "succeeded"
    for up in (fleet, keyed):
        for name in ("api", "dispatch", "agent", "haproxy"):
            lines = [json.loads(line) for line in (up.data / "logs" / f"{name}.log").read_text().splitlines()]
            assert [line for line in lines if line["level"] == "error" or "traceback" in line] == []
