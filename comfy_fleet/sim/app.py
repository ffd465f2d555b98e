"""ComfyUI's native HTTP routes, each with and without the prefix ``/api``, and ``/sim/...``."""

import ipaddress
import json
import logging
import mimetypes
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Container, Mapping
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image

from comfy_fleet.sim import editor
from comfy_fleet.sim.catalogue import Catalogue
from comfy_fleet.sim.engine import Engine
from comfy_fleet.sim.execution import Item
from comfy_fleet.sim.faults import BadFault, Faults
from comfy_fleet.sim.files import OutsideFolder, SimFiles, annotated
from comfy_fleet.sim.jobs import Jobs, is_canonical
from comfy_fleet.sim.memory import Vram
from comfy_fleet.sim.messages import Request, Response, json_response
from comfy_fleet.sim.model_files import file_infos, folder_infos
from comfy_fleet.sim.options import Models, NodeOptions
from comfy_fleet.sim.replacements import replace
from comfy_fleet.sim.uploads import Uploads
from comfy_fleet.sim.validation import check

logger = logging.getLogger(__name__)

EMPTY = Response()
#: aiohttp's answer when a handler raises.
TROUBLE = Response(
    status=500,
    body=b"500 Internal Server Error\n\nServer got itself in trouble",
    headers={"Content-Type": "text/plain; charset=utf-8"},
)
ASSETS_OFF = json_response(
    {
        "error": {
            "code": "SERVICE_DISABLED",
            "message": (
                "Assets system is disabled. Start the server with --enable-assets to use this feature."
            ),
            "details": {},
        }
    },
    503,
)
BAD_PROMPT_ID = (
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
    "omit it to let the server generate one"
)
#: Routes with only one of the two forms: these below ``/api``, those without it.
UNDER_API = ("/jobs", "/assets", "/tags")
NOT_UNDER_API = ("/internal/",)
CANCEL = re.compile("/api/jobs/([^/]+)/cancel")
PAGE = (
    b"<!doctype html><title>SIMULATED ComfyUI</title><p>This is a simulated ComfyUI node without an editor."
)

Route = Callable[[Request], Awaitable[Response] | Response]
Parent = Callable[[str], Response]


class Served(Protocol):
    """What the routes need of a node: its parts, and its controls."""

    options: NodeOptions
    faults: Faults
    vram: Vram
    files: SimFiles
    models: Models
    catalogue: Catalogue
    engine: Engine

    def describe_stats(self) -> dict[str, Any]:
        """Return what the GPU did as JSON."""

    def describe_faults(self) -> dict[str, Any]:
        """Return all switches as JSON."""

    async def set_faults(self, values: Mapping[str, Any]) -> None:
        """Switch faults; raises BadFault."""

    def reset(self) -> None:
        """Reset the account and forget history, cache, loaded models and faults."""


class App:
    """The routes of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node
        self._version = version = node.catalogue.version
        self._number = 0
        self._cancel: Parent | None = None
        uploads = Uploads(node.files)
        self._routes: dict[tuple[str, str], Route] = {
            ("GET", "/"): lambda _: Response(body=PAGE, headers={"Content-Type": "text/html"}),
            ("GET", "/ws"): lambda _: Response(status=101),
            ("GET", "/prompt"): lambda _: json_response(node.engine.queue_info()),
            ("POST", "/prompt"): self.post_prompt,
            ("GET", "/queue"): self.get_queue,
            ("POST", "/queue"): self.post_queue,
            ("GET", "/history"): self.get_history,
            ("POST", "/history"): self.post_history,
            ("POST", "/interrupt"): self.interrupt,
            ("POST", "/free"): self.free,
            ("GET", "/view"): self.view,
            ("POST", "/upload/image"): uploads.image,
            ("POST", "/upload/mask"): uploads.mask,
            ("GET", "/object_info"): lambda _: json_response(node.catalogue.object_info()),
            ("GET", "/system_stats"): self.system_stats,
            ("GET", "/internal/logs/raw"): self.log,
            ("GET", "/features"): lambda _: json_response(version.features),
            ("GET", "/embeddings"): self.embeddings,
            ("GET", "/models"): lambda _: json_response(version.folders),
            ("GET", "/experiment/models"): lambda _: json_response(folder_infos(version)),
            ("GET", "/extensions"): lambda _: json_response(editor.scripts(version)),
            ("GET", "/i18n"): lambda _: json_response({}),
            ("GET", "/workflow_templates"): lambda _: json_response({}),
            ("GET", "/sim/stats"): self.stats,
            ("POST", "/sim/reset"): self.reset,
            ("GET", "/sim/faults"): lambda _: json_response(node.describe_faults()),
            ("POST", "/sim/faults"): self.set_faults,
        }
        self._parents: dict[str, Parent] = {
            "/history/": self.one_history,
            "/object_info/": lambda name: json_response(node.catalogue.object_info([name])),
            "/models/": self.one_folder,
            "/experiment/models/": self.one_folders_files,
            "/internal/files/": self.listed_files,
        }
        self._add_parts(version.parts)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if not same_origin(request.headers):
            return Response(status=403)
        if request.method == "OPTIONS":
            return EMPTY
        if self._version.refuses_cross_site and request.headers.get("sec-fetch-site") == "cross-site":
            return Response(status=403)
        path = _plain(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, path))
        if route is None:
            return self._other(request.method, path)
        if path.startswith("/sim/") and not is_loopback(request.peer):
            return Response(status=403, body=b"Only this machine may steer the simulation.\n")
        try:
            answer = route(request)
            return answer if isinstance(answer, Response) else await answer
        except Exception:
            logger.debug("request failed as ComfyUI's would", exc_info=True)
            return TROUBLE

    def _add_parts(self, parts: Container[str]) -> None:
        """Add the routes that not every version has."""
        if "node_replacements" in parts:
            replacements = self._node.catalogue.replacements
            self._routes["GET", "/node_replacements"] = lambda _: json_response(replacements)
        if "jobs" in parts:
            jobs = Jobs(self._node.engine)
            self._routes["GET", "/api/jobs"] = jobs.many
            self._routes["POST", "/api/jobs/cancel"] = jobs.cancel_many
            self._parents["/api/jobs/"] = jobs.one
            self._cancel = jobs.cancel
        if "blueprints" in parts:
            version = self._version
            self._routes["GET", "/global_subgraphs"] = lambda _: json_response(editor.blueprints(version))
            self._parents["/global_subgraphs/"] = lambda id_: json_response(editor.blueprint(version, id_))
        if "assets" in parts:
            for method, path in (("GET", "/api/assets"), ("POST", "/api/assets"), ("GET", "/api/tags")):
                self._routes[method, path] = lambda _: ASSETS_OFF
            self._routes["GET", "/api/assets/seed/status"] = lambda _: ASSETS_OFF

    def _other(self, method: str, path: str) -> Response:
        if method == "POST" and self._cancel and (found := CANCEL.fullmatch(path)):
            return self._cancel(found[1])
        for parent, answer in self._parents.items():
            if path.startswith(parent) and method == "GET":
                return answer(path.removeprefix(parent))
        allowed = sorted({known for known, place in self._routes if place == path})
        if allowed:
            body = b"405: Method Not Allowed"
            return Response(status=405, body=body, headers={"Allow": ",".join(allowed)})
        return Response(status=404)

    # prompts

    def post_prompt(self, request: Request) -> Response:
        """Check a graph and queue it."""
        data = request.json()
        number: float = self._number
        if "number" in data:
            number = float(data["number"])
        else:
            if "front" in data and bool(data["front"]):
                number = -number
            self._number += 1
        if "prompt" not in data:
            return _refusal("no_prompt", "No prompt provided", "No prompt provided")
        graph, faults = data["prompt"], self._node.faults
        prompt_id = data.get("prompt_id")
        if not self._version.canonical_ids:
            prompt_id = str(data.get("prompt_id", uuid.uuid4()))
        elif prompt_id is None:
            prompt_id = str(uuid.uuid4())
        elif not is_canonical(prompt_id):
            return _refusal("invalid_prompt_id", "prompt_id must be a valid UUID", BAD_PROMPT_ID)
        replace(graph, self._node.catalogue)
        verdict = check(
            graph, self._node.catalogue, self._node.files.exists, data.get("partial_execution_targets")
        )
        extra_data = data.get("extra_data", {})
        if "client_id" in data:
            extra_data["client_id"] = data["client_id"]
        if self._version.stamps_prompts:
            extra_data["create_time"] = int(time.time() * 1000)
            if source := request.headers.get("comfy-usage-source"):
                extra_data["comfy_usage_source"] = source
        if verdict.error is None and faults.take("reject"):
            verdict.error = _asked_for("invalid_prompt", "Simulated rejection")
        if verdict.error is not None:
            return json_response({"error": verdict.error, "node_errors": verdict.node_errors}, 400)
        if faults.take("partial"):
            first = verdict.outputs[0]
            entry = {"errors": [_asked_for("value_not_in_list", "Simulated partial error")]}
            verdict.node_errors[first] = {
                **entry,
                "dependent_outputs": [first],
                "class_type": graph[first]["class_type"],
            }
            verdict.outputs = verdict.outputs[1:] or verdict.outputs
        item = Item(
            number=number, prompt_id=prompt_id, graph=graph, extra_data=extra_data, outputs=verdict.outputs
        )
        self._node.engine.put(item)
        answer = {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}
        return json_response(answer)

    def get_queue(self, _: Request) -> Response:
        """List what runs and what waits."""
        engine = self._node.engine
        running = [item.as_json() for item in engine.running]
        return json_response(
            {"queue_running": running, "queue_pending": [i.as_json() for i in engine.pending]}
        )

    def post_queue(self, request: Request) -> Response:
        """Remove waiting prompts."""
        data = request.json()
        if data.get("clear"):
            self._node.engine.clear_queue()
        for prompt_id in data.get("delete", []):
            self._node.engine.delete(prompt_id)
        return EMPTY

    def get_history(self, request: Request) -> Response:
        """List finished prompts, oldest first."""
        entries = list(self._node.engine.history.items())
        limit = request.query.get("max_items")
        offset = int(request.query.get("offset", -1))
        if limit is not None and offset < 0:
            offset = len(entries) - int(limit)
        chosen = entries[max(0, offset) :]
        return json_response(dict(chosen if limit is None else chosen[: max(1, int(limit))]))

    def one_history(self, prompt_id: str) -> Response:
        """Show one finished prompt; nothing for any other."""
        history = self._node.engine.history
        return json_response({prompt_id: history[prompt_id]} if prompt_id in history else {})

    def post_history(self, request: Request) -> Response:
        """Forget finished prompts."""
        data = request.json()
        if data.get("clear"):
            self._node.engine.history.clear()
        for prompt_id in data.get("delete", []):
            self._node.engine.history.pop(prompt_id, None)
        return EMPTY

    def interrupt(self, request: Request) -> Response:
        """Stop the running prompt; a body that is not JSON counts as missing."""
        try:
            data = request.json()
        except json.JSONDecodeError:
            data = {}
        self._node.engine.interrupt(data.get("prompt_id") or None)
        return EMPTY

    def free(self, request: Request) -> Response:
        """Drop models or all memory after the current prompt."""
        data = request.json()
        self._node.engine.free(
            unload_models=bool(data.get("unload_models")), free_memory=bool(data.get("free_memory"))
        )
        return EMPTY

    # files

    async def view(self, request: Request) -> Response:
        """Return a file."""
        if "filename" not in request.query:
            return Response(status=404)
        name, kind = annotated(request.query["filename"])
        if not name or name.startswith("/") or ".." in name:
            return Response(status=400)
        kind = kind or request.query.get("type", "output")
        files = self._node.files
        if files.folder(kind) is None:
            return Response(status=400)
        try:
            path = files.inside(kind, request.query.get("subfolder", ""), name.rpartition("/")[2])
        except OutsideFolder:
            return Response(status=403)
        if not path.is_file():
            return Response(status=404)
        version = self._version
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        shown = f'filename="{path.name}"'
        if content_type in version.unsafe_types:
            content_type = "application/octet-stream"
            shown = f"attachment; {shown}" if version.attaches_unsafe else shown
        headers = {**version.view_headers, "Content-Disposition": shown, "Content-Type": content_type}
        body = path.read_bytes()
        if "preview" in request.query:
            wanted = request.query["preview"].split(";")[0]
            kind = wanted if wanted in ("webp", "jpeg") else "webp"
            body, headers["Content-Type"] = _converted(body, kind), f"image/{kind}"
        return Response(body=body, headers=headers)

    def listed_files(self, kind: str) -> Response:
        """List the files at the top of one of the folders, the newest first."""
        folder = self._node.files.folder(kind)
        if folder is None:
            return json_response({"error": "Invalid directory type"}, 400)
        found = [path for path in folder.iterdir() if path.is_file()]
        found.sort(key=lambda path: -path.stat().st_mtime_ns)
        return json_response([self._version.listed_file.format(name=path.name, kind=kind) for path in found])

    # the node

    def log(self, _: Request) -> Response:
        """Return the last lines of its log."""
        entries = [{"t": "2026-01-01T00:00:00", "m": text} for text in self._node.engine.log]
        return json_response({"entries": entries, "size": {"cols": 80, "rows": 24}})

    def system_stats(self, _: Request) -> Response:
        """Return versions and memory; shows in three places that it is simulated."""
        options, vram = self._node.options, self._node.vram
        system = {
            "os": "posix",
            "ram_total": 64 * 2**30,
            "ram_free": 48 * 2**30,
            "comfyui_version": f"sim-{self._version.name}",
            **self._version.system,
            "python_version": sys.version,
            "pytorch_version": "simulated",
            "embedded_python": False,
            "argv": ["comfy_fleet.sim", "SIMULATED", options.name],
        }
        device = {
            "name": f"cuda:0 SIMULATED GPU ({options.name}) : native",
            "type": "cuda",
            "index": 0,
            "vram_total": vram.total,
            "vram_free": vram.free,
            "torch_vram_total": vram.reserved,
            "torch_vram_free": vram.cached,
        }
        return json_response({"system": system, "devices": [device]})

    def embeddings(self, _: Request) -> Response:
        """List embeddings without their suffix."""
        return json_response(
            [name.rpartition(".")[0] or name for name in self._node.models.get("embeddings", {})]
        )

    def one_folder(self, folder: str) -> Response:
        """List the files of one model folder."""
        if folder not in self._version.folders:
            return Response(status=404)
        return json_response(sorted(self._node.models.get(folder, {})))

    def one_folders_files(self, folder: str) -> Response:
        """List the files of one model folder with their sizes."""
        if folder not in self._version.folders:
            return Response(status=404)
        return json_response(file_infos(self._node.models, folder))

    # steering

    def stats(self, _: Request) -> Response:
        """Return what the GPU did."""
        return json_response(self._node.describe_stats())

    def reset(self, _: Request) -> Response:
        """Reset the account; forget history, cache, models and faults."""
        self._node.reset()
        return EMPTY

    async def set_faults(self, request: Request) -> Response:
        """Switch faults."""
        try:
            values = request.json()
            if not isinstance(values, dict):
                raise BadFault("expected an object of switches")  # noqa: TRY301 - one place answers
            await self._node.set_faults(values)
        except (BadFault, ValueError) as error:
            return json_response({"error": str(error)}, 400)
        return json_response(self._node.describe_faults())


def _plain(path: str) -> str:
    """Return a path without the prefix ``/api``, if there is also a route without it."""
    if not path.startswith("/api/"):
        return path
    plain = path.removeprefix("/api")
    return path if plain.startswith((*UNDER_API, *NOT_UNDER_API)) else plain


def is_loopback(host: str | None) -> bool:
    """Return whether a host's name or address is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a browser's request comes from the node's own page; only loopback hosts are guarded."""
    if "host" not in headers or "origin" not in headers:
        return True
    host = urlsplit(f"//{headers['host'].lower()}")
    origin = urlsplit(headers["origin"].lower())
    if not is_loopback(host.hostname) or not origin.netloc:
        return True
    if origin.port is None or host.port is None:
        return host.hostname == origin.hostname
    return host.netloc == origin.netloc


def _refusal(kind: str, message: str, details: str) -> Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return json_response({"error": error, "node_errors": {}}, 400)


def _asked_for(kind: str, message: str) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": "asked for by a fault switch", "extra_info": {}}


def _converted(data: bytes, kind: str) -> bytes:
    with Image.open(BytesIO(data)) as picture:
        buffer = BytesIO()
        (picture.convert("RGB") if kind == "jpeg" else picture).save(buffer, kind.upper(), quality=90)
        return buffer.getvalue()
