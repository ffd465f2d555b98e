"""What attacks say to a fleet over the wire, and what every refusal has to be."""

import contextlib
import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.acceptance.footprint import footprint
from tests.acceptance.up import Up

ANN, BOB, OPS, AGENT = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"
CLEO, DAN = "cleo-key-0123456789", "dan-key-0123456789"
"""Two who have nothing yet: one test alone speaks for them."""
INSIDE = re.compile(r"Traceback|File \"|site-packages|comfy_fleet[/.]|\.py\b|redis|\.sock|/tmp/|/root|/home/")
GENERATE = {"FLEET_GENERATE_WORKFLOW": "qwen_image_kids_animal"}
KEYED_LIMIT = 1024 * 1024
REFUSED = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429)
HUGE = b"9" * 5000


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


def converse(where: int | Path, data: bytes, *, quiet_s: float | None = None) -> bytes:
    """Send bytes as they are and return what comes back until the other side closes, which it has to do.

    Args:
        where: A port of this machine, or a socket.
        data: What is said.
        quiet_s: After so long a silence it need not close; None: it has to.
    """
    with socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX) as sock:
        sock.settimeout(quiet_s or 30)
        sock.connect(("127.0.0.1", where) if isinstance(where, int) else str(where))
        received = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        with contextlib.suppress(ConnectionError, *([TimeoutError] if quiet_s else [])):
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


def console_of(fleet: Up) -> int:
    """Return the console's port."""
    port = urlsplit(fleet.console).port
    assert port is not None
    return port


def signed_in(browser: httpx.Client, fleet: Up, key: str) -> None:
    """Sign in as a browser does: at the console, and from there on to the editor's origin."""
    shown = browser.get(f"{fleet.url}/login", follow_redirects=True)
    assert str(shown.url).startswith(f"{fleet.console}/login?editor="), shown.url
    (editor,) = re.findall('name="editor" value="([0-9a-f]{64})"', shown.text)
    done = browser.post(f"{fleet.console}/login", data={"key": key, "editor": editor}, follow_redirects=True)
    assert (done.status_code, str(done.url).partition("?")[0]) == (200, f"{fleet.url}/enter"), done.text


def post_json(fleet: Up | int, path: str, body: bytes, *headers: str) -> Answer:
    return ask(fleet, "POST", path, "Content-Type: application/json", *headers, body=body)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ends(
    fleet: Up, job: dict[str, Any], headers: dict[str, str] | None = None, *, within_s: float = 60
) -> dict[str, Any]:
    """Wait until a job has ended."""
    deadline = time.monotonic() + within_s
    while not job["completed_at"]:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
        job = httpx.get(f"{fleet.url}/api/v2/jobs/{job['id']}", headers=headers).json()
    return job


def pid_of(up: Up, process: str) -> int:
    """Return the pid of one of a fleet's processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if process.encode() in words and str(up.data).encode() in (folder / "environ").read_bytes():
                return int(folder.name)
    raise AssertionError(f"no process {process}")


def peak_bytes(up: Up, process: str) -> int:
    """Return the most memory that one of a fleet's processes has had."""
    status = Path(f"/proc/{pid_of(up, process)}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def still_well(*fleets: Up) -> None:
    """Hold fleets against what an attack must not have done: ended, hung or upset anything."""
    for up in fleets:
        assert up.process.poll() is None
        headers = bearer(ANN)
        job = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": graph(4242)}, headers=headers).json()
        assert ends(up, job, headers)["status"] == "succeeded"
        for name in ("api", "dispatch", "agent", "haproxy"):
            lines = [json.loads(line) for line in (up.data / "logs" / f"{name}.log").read_text().splitlines()]
            assert [line for line in lines if line["level"] == "error" or "traceback" in line] == []
        deadline = time.monotonic() + 60  # what ended a moment ago is still being closed and removed
        while left := [*(up.data / "files" / "tmp").rglob("*"), *_grown(up)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


def _grown(up: Up) -> list[str]:
    return [] if up.before is None else footprint(up.process.pid, up.data).grown(up.before)


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, value)


FILE = part("file", b"hello", b'; filename="a.png"')
PLACE = part("file_path", b"a.png")
END = b"--b--\r\n"
