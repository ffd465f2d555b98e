"""Graphs in files on this machine: API format, pictures made by ComfyUI, and the editor's own format.

ComfyUI runs only the API format. A graph in the editor's format is converted by ``comfy-cli``, if that is
installed: it knows the classes from a server's ``/object_info``, and gets the fleet's through a small server
that lives as long as the conversion. So it needs neither the fleet's key nor a ComfyUI on this machine.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_fleet.cli.exits import Exit, Fail

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file with a graph, in bytes; of pictures only a small part is read."""
CONVERT_S = 180.0
"""Longest conversion, in seconds."""
_MAX_INFO_BYTES = 256 * 1024 * 1024
_PICTURES = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff")
EXPORT = "in ComfyUI's editor use Workflow > Export (API), and add that file"
"""How to get a graph that needs no conversion."""


@dataclass(frozen=True, kw_only=True)
class GraphOfFile:
    """A graph from a file.

    Attributes:
        graph: In API format; nothing is checked but that it looks like one.
        ui: The same graph in the editor's format, if the file has it.
        picture: The whole file, if it is a picture.
        converted: Whether comfy-cli has made ``graph`` of ``ui``.
    """

    graph: dict[str, Any]
    ui: Mapping[str, Any] | None = None
    picture: bytes | None = None
    converted: bool = False


def content_of(path: Path) -> bytes:
    """Read a file.

    Raises:
        Fail: It can't be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}", code=Exit.USAGE) from error
    if len(content) > MAX_FILE_BYTES:
        raise Fail(f"{path} is larger than {MAX_FILE_BYTES} bytes", code=Exit.USAGE)
    return content


def graph_of_file(client: "Client", path: Path) -> GraphOfFile:
    """Read a graph from a file, and convert it if it is in the editor's format only.

    Raises:
        Fail: The file can't be read, or holds no graph; the hint says how to get one.
    """
    from comfy_fleet.domain.errors import BadInput
    from comfy_fleet.domain.graphs.graph_file import read_graph_file
    from comfy_fleet.domain.graphs.structure import carried

    content = content_of(path)
    try:
        found = read_graph_file(content)
        if is_editor_graph(found.graph):
            return GraphOfFile(graph=converted(client, found.graph, path), ui=found.graph, converted=True)
        picture = content if content.startswith(_PICTURES) else None
        return GraphOfFile(graph=carried(found.graph), ui=found.ui, picture=picture)
    except BadInput as error:
        raise Fail(f"{path} {error}", hint=EXPORT, code=Exit.USAGE) from None


def is_editor_graph(graph: object) -> bool:
    """Return whether a graph is in the editor's own format."""
    return isinstance(graph, dict) and isinstance(graph.get("nodes"), list)


def converter() -> str | None:
    """Return the program that converts graphs, comfy-cli's ``comfy``; None if it is not installed."""
    beside = Path(sys.executable).with_name("comfy")
    return shutil.which("comfy") or (str(beside) if os.access(beside, os.X_OK) else None)


def converted(client: "Client", ui: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a graph in the editor's format as comfy-cli converts it to API format.

    Args:
        client: The fleet, whose classes count.
        ui: The graph.
        path: Where it comes from, for messages.

    Raises:
        Fail: comfy-cli is not installed, or can't convert it.
    """
    program = converter()
    if program is None:
        raise Fail(
            f"{path} is in the editor's own format, which only the editor and comfy-cli can convert",
            hint=f"{EXPORT}; or install comfy-cli: pip install comfy-cli",
            code=Exit.USAGE,
        )
    with tempfile.TemporaryDirectory(prefix="fleet-convert-") as folder, _object_info(client) as port:
        file = Path(folder) / "workflow.json"
        file.write_text(json.dumps(ui), encoding="utf-8")
        what = ["run", "--workflow", str(file), "--print-prompt"]
        where = ["--where", "local", "--host", "127.0.0.1", "--port", str(port)]
        command = [program, "--json", "--skip-prompt", *what, *where]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**_without_keys(), "DO_NOT_TRACK": "1", "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CONVERT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _not_converted(path, f"it took longer than {CONVERT_S:.0f} s") from None
        except OSError as error:
            raise _not_converted(path, f"{program}: {error.strerror}") from error
    prompt, why = _prompt_in(done.stdout)
    if prompt is None:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        raise _not_converted(path, why or (last[-1] if last else f"it ended with {done.returncode}"))
    return prompt


def _without_keys() -> dict[str, str]:
    """Return the environment without the fleet's own variables: its key is nobody else's business."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}


def _prompt_in(stdout: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the graph in comfy-cli's answer, or why there is none."""
    why = ""
    for line in reversed(stdout.decode(errors="replace").splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if not isinstance(answer, dict):
            continue
        data, error = answer.get("data"), answer.get("error")
        if isinstance(data, dict) and isinstance(prompt := data.get("prompt"), dict) and prompt:
            return prompt, ""
        if isinstance(error, dict):
            why = why or str(error.get("message") or error.get("code") or "")
    return None, why


def _not_converted(path: Path, why: str) -> Fail:
    return Fail(
        f"comfy-cli can't convert {path}: {why[:500]}",
        hint=f"{EXPORT}; a newer comfy-cli may help: pip install --upgrade comfy-cli",
    )


@contextlib.contextmanager
def _object_info(client: "Client") -> Iterator[int]:
    """Serve the fleet's ``/object_info`` on a port of this machine that the kernel chose, and yield that."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    info = client.fetch("/object_info", most_bytes=_MAX_INFO_BYTES)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.partition("?")[0] in ("/object_info", "/api/object_info")
            body = info if known else b"{}"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
