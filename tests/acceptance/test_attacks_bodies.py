"""Attacks by what a request carries: bodies, forms, ranges, and bodies that never end."""

import contextlib
import gzip
import json
import re
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.acceptance.up import Up
from tests.acceptance.wire import (
    ANN,
    END,
    FILE,
    HUGE,
    KEYED_LIMIT,
    PLACE,
    Answer,
    ask,
    console_of,
    converse,
    ends,
    graph,
    parsed,
    part,
    port_of,
    post_json,
    refused,
    still_well,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", autouse=True)
def slow_head(fleet: Up) -> Iterator[socket.socket]:
    """A request whose head never ends; it is looked at last, when its time is over."""
    with socket.create_connection(("127.0.0.1", port_of(fleet)), 20) as sock:
        sock.sendall(b"GET /api/v2/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow:")
        yield sock


SLOW = 300
"""Bodies that trickle at the same time, while all other tests of this file go on."""


@pytest.fixture(scope="module", autouse=True)
def slow_bodies(fleet: Up, keyed: Up) -> Iterator[dict[str, list[bytes]]]:
    """Bodies of which a byte comes now and then, and what each was answered; looked at last, too."""
    ended = threading.Event()
    said: dict[str, list[bytes]] = {"taken": [], "refused": []}

    def trickle(up: Up, name: str, count: int) -> None:
        with selectors.DefaultSelector() as waiting:
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", port_of(up)), 20)
                sock.sendall(b"POST /api/v2/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n")
                waiting.register(sock, selectors.EVENT_READ, (sock, bytearray()))
            while waiting.get_map() and not ended.is_set():
                for key, _ in waiting.select(1):
                    sock, heard = key.data
                    with contextlib.suppress(ConnectionError):
                        if data := sock.recv(65536):
                            heard.extend(data)
                            continue
                    said[name].append(bytes(heard))
                    waiting.unregister(sock)
                    sock.close()
                for key in list(waiting.get_map().values()):
                    with contextlib.suppress(ConnectionError):
                        key.data[0].sendall(b" ")
            for key in waiting.get_map().values():
                key.data[0].close()

    with ThreadPoolExecutor() as pool:
        done = [pool.submit(trickle, fleet, "taken", SLOW), pool.submit(trickle, keyed, "refused", 1)]
        yield said
        ended.set()
    for one in done:
        one.result()


# -- bodies ------------------------------------------------------------------

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
    "5000 digits": b'{"workflow":{"1":{"class_type":"X","inputs":{"a":' + HUGE + b"}}}}",
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
    for path in ("/api/v1/workflows/image_card/jobs", "/api/v1/generate", "/api/submit"):
        refused(post_json(fleet, path, BODIES[name]), 400, 404, 413, 422)
    refused(post_json(console_of(fleet), "/api/v1/nodes", BODIES[name]), 400, 404, 413, 422)


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


FORMS: dict[str, bytes] = {
    "nothing": b"",
    "only the end": END,
    "no file": PLACE + END,
    "neither path nor name": part("file", b"hello") + END,
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
    "5000 digits of hash": FILE + PLACE + part("expected_hash", b"blake3:" + HUGE) + END,
    "another hash": FILE + PLACE + part("expected_hash", b"blake3:" + b"0" * 64) + END,
    "5000 digits of seconds": FILE + PLACE + part("expires_in", HUGE) + END,
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
    assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in stored - {"records", "id"})


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
    ("node", "reason"),
    [
        ({"class_type": "LoadImage", "inputs": {"image": ["2", 0]}}, "linked_path"),
        ({"class_type": "LoadImage", "inputs": {"image": {"__value__": ["2", 0]}}}, "linked_path"),
        ({"class_type": "LoadImage", "inputs": {"image": {"__value__": "x_[temp]"}}}, "bad_path"),
        ({"class_type": "LoadImage", "inputs": {"image": "fleet"}}, "bad_path"),
        ({"class_type": "WebcamCapture", "inputs": {"image": "x.png [temp]"}}, "custom_validation_failed"),
        ({"class_type": "Load3D", "inputs": {"image": {"mask": "x.png [temp]"}}}, "custom_validation_failed"),
        ({"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "fleet"}}, "bad_path"),
        ({"class_type": "Unheard", "inputs": {"some_directory": "/etc"}}, "bad_path"),
        ({"class_type": "Unheard", "inputs": {"anything": {"deep": ["x.png [output]"]}}}, "bad_path"),
        ({"class_type": "SaveTrainingDataset", "inputs": {"folder_name": "x"}}, "class_denied"),
    ],
)
def test_no_graph_names_what_may_be_somebody_elses(fleet: Up, node: dict[str, Any], reason: str) -> None:
    text = {"class_type": "PrimitiveString", "inputs": {"value": "x"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    workflow = {"1": node, "2": text, "3": save}
    answer = post_json(fleet, "/api/v2/jobs", json.dumps({"workflow": workflow}).encode())
    assert refused(answer, 422)["details"]["node_errors"]["1"][0]["reason"] == reason


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


def test_a_head_that_never_ends_is_given_up(slow_head: socket.socket) -> None:
    slow_head.settimeout(20)
    received = b""
    while chunk := slow_head.recv(65536):
        received += chunk
    assert parsed(received).status == 408


def test_bodies_that_trickle_are_given_up_and_hurt_nobody(slow_bodies: dict[str, list[bytes]]) -> None:
    deadline = time.monotonic() + 60
    while (len(slow_bodies["taken"]), len(slow_bodies["refused"])) != (SLOW, 1):
        assert time.monotonic() < deadline, {name: len(said) for name, said in slow_bodies.items()}
        time.sleep(0.1)
    for name, status in (("taken", 408), ("refused", 401)):
        for answer in slow_bodies[name]:
            refused(parsed(answer), status)


def test_the_fleet_works_on_and_nothing_went_wrong_inside(fleet: Up, keyed: Up) -> None:
    still_well(fleet, keyed)
