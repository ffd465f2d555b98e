"""A node whose editor is hostile: it looks like a ComfyUI, and its extension calls all that there is."""

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

SCRIPT = Path(__file__).with_name("evil.js")
PAGE = b"""<!doctype html><html><head><title>evil</title>
<script src="assets/index.js"></script>
<script type="module" src="extensions/evil/evil.js"></script></head><body>evil</body></html>"""
WORKER = b"self.addEventListener('fetch', (event) => event.respondWith(new Response('evil worker')));"
STRANGE = {
    "Set-Cookie": "fleet_session=evil; Path=/",
    "Clear-Site-Data": '"*"',
    "Access-Control-Allow-Origin": "*",
    "Strict-Transport-Security": "max-age=31536000",
    "Service-Worker-Allowed": "/",
    "Link": "<https://evil.test/x.js>; rel=preload; as=script",
    "Alt-Svc": 'h2="evil.test:443"',
    "Cache-Control": "public, max-age=31536000, immutable",
}
CLASSES = {
    "EmptyImage": {
        "input": {"required": {"width": ["INT", {"default": 64, "min": 1, "max": 4096}]}},
        "output": ["IMAGE"],
        "output_is_list": [False],
        "output_name": ["IMAGE"],
        "name": "EmptyImage",
        "display_name": "EmptyImage",
        "description": "",
        "category": "image",
        "output_node": False,
    }
}
ANSWERS: dict[str, Any] = {
    "/system_stats": {
        "system": {"os": "posix", "comfyui_version": "0.33.0", "python_version": "3.11", "argv": []},
        "devices": [{"name": "cpu", "type": "cpu", "index": 0, "vram_total": 2**34, "vram_free": 2**33}],
    },
    "/queue": {"queue_running": [], "queue_pending": []},
    "/prompt": {"exec_info": {"queue_remaining": 0}},
    "/object_info": CLASSES,
    "/extensions": ["/extensions/evil/evil.js"],
    "/i18n": {},
    "/models": [],
    "/embeddings": [],
}


class EvilNode:
    """The server.

    Attributes:
        url: Its address.
        heard: Path and headers of each request, in lower case.
        told: What the script calls: routes, and the console's address.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.told: dict[str, Any] = {"routes": [], "console": "", "session": ""}
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                node.heard.append((self.path, headers))
                path = self.path.partition("?")[0]
                status, kind, body = node.answer(path)
                self.send_response(status)
                for name, value in STRANGE.items():
                    self.send_header(name, value)
                if status == 302:
                    self.send_header("Location", "https://evil.test/")
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.do_GET()

            do_HEAD = do_PUT = do_DELETE = do_PATCH = do_POST  # noqa: N815 - the base class names them

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def attack(self, routes: Sequence[tuple[str, str, bool]], console: str, session: str) -> None:
        """Say what the script is to call: methods and paths, at the page's own origin and at the console.

        Args:
            routes: The methods and paths, and whether they are operators': these are called in more ways.
            console: The console's address.
            session: A session that the script's author has at the console; empty if there is none.
        """
        self.told = {"routes": list(routes), "console": console, "session": session}

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body of an answer."""
        if path == "/":
            return 200, "text/html", PAGE
        if path == "/extensions/evil/evil.js":
            told = f"const told = {json.dumps(self.told)};\n".encode()
            return 200, "text/javascript", told + SCRIPT.read_bytes()
        if path.endswith("sw.js"):
            return 200, "text/javascript", WORKER
        if path == "/assets/index.js":
            return 200, "text/javascript", b"window.assets = true;"
        if path in ("/assets/leads-away.js", "/extensions/evil/leads-away.js"):
            return 302, "text/javascript", b""
        if path == "/assets/endless.js":
            return 200, "text/javascript", b"x" * 1000
        found = ANSWERS.get(path.removeprefix("/api"))
        if found is None:
            return 404, "application/json", b"{}"
        return 200, "application/json", json.dumps(found).encode()
