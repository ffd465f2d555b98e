"""A small HTTP server with canned answers, and the command line that talks to it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typer.testing import CliRunner

from comfy_fleet.cli.app import build

JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"
DONE: dict[str, Any] = {
    "id": JOB,
    "status": "succeeded",
    "created_at": "2030-01-01T00:00:00Z",
    "started_at": "2030-01-01T00:00:01Z",
    "completed_at": "2030-01-01T00:00:03Z",
    "workflow": "image_card",
    "node": "sim-1",
    "simulated": True,
    "params": {"seed": 42},
    "outputs": [
        {"name": "../../evil\\card.png", "type": "image", "size_bytes": 4, "url": "http://x/files/a"}
    ],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "steps": {"type": "integer"},
        "cfg": {"type": "number"},
        "fast": {"type": "boolean"},
        "face": {"type": "string", "x-fleet-type": "image"},
    },
    "required": ["prompt"],
}


@dataclass
class Canned:
    """Answers by method and path; every request is kept."""

    url: str = ""
    answers: dict[tuple[str, str], Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def on(self, method: str, path: str, body: Any, status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(raw)))
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(raw)

        self.answers[method, path] = answer

    def stream(self, path: str, *streams: bytes) -> None:
        """Each connection gets the next stream, then is closed."""
        left = list(streams)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(left.pop(0) if len(left) > 1 else left[0])
            handler.close_connection = True

        self.answers["GET", path] = answer

    def bodies(self, method: str, path: str) -> list[Any]:
        return [
            json.loads(body or b"null")
            for verb, where, _, body in self.seen
            if (verb, where) == (method, path)
        ]


@contextmanager
def canned_server() -> Iterator[Canned]:
    """Serve until the block ends; `image_card` is a workflow."""
    known = Canned()
    known.on("GET", "/api/v1/workflows/image_card", {"name": "image_card", "parameters": SCHEMA})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            known.seen.append((self.command, path, dict(self.headers), body))
            answer = known.answers.get((self.command, path))
            if answer is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                answer(self)

        def log_message(self, *args: object) -> None:
            pass

    for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{verb}", Handler.handle_any)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield known
    server.shutdown()
    server.server_close()
    thread.join()


def error(code: str, message: str, **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": details or None}}


def run(canned: Canned, *argv: str) -> Any:
    return CliRunner().invoke(build(argv), [*argv, "--api", canned.url])
