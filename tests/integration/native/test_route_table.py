"""Every route that a ComfyUI of either version has, and what a fleet answers on it.

``SERVED`` is the table: each method and path, in which forms ComfyUI has it, and status, content type and
shape of a fleet's answer. A route that the API serves and the table lacks fails a test, and so does the other
way round. ``ABSENT`` is what a fleet answers with 404, as a ComfyUI that has no such route: routes of an
editor, which no node serves to clients, and those that tell of a machine or change it, which stay closed.
"""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis as sync_redis
from PIL import Image

from comfy_fleet.api.native import routes as native
from tests.integration.native.socket_kit import faced
from tests.integration.shapes import Each, With, has_shape
from tests.native_client import NativeClient

BOTH, API, PLAIN = ("", "/api"), ("/api",), ("",)
JSON, TEXT, HTML, PNG, WEBP, NO_BODY = (
    *("application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8", "image/png", "image/webp"),
    None,
)
UUID = "5e1b5a7e-0000-4000-8000-000000000000"
HASH = "blake3:" + "0" * 64
NUMBER = (int, float)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What is asked, and what a fleet answers.

    Attributes:
        route: Method and path, as the table of routes names it.
        ask: The path and query that is asked, where it is not the route itself.
        forms: What may stand in front of the path; without it, the route is not there.
        body: JSON that is sent.
        upload: Fields that are sent as a form, with a picture.
        headers: Headers that are sent.
        status: Of the answer.
        kind: The answer's content type; None: it has no body.
        shape: Of the answer's JSON; see ``has_shape``.
    """

    route: str
    ask: str = ""
    forms: tuple[str, ...] = BOTH
    body: Any = None
    upload: dict[str, str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    kind: str | None = JSON
    shape: Any = object

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.ask or self.route.partition(" ")[2]

    def __str__(self) -> str:
        asked = f" as {self.ask}" if self.ask else ""
        return f"{self.route}{asked}{' with a body' if self.body is not None else ''}"


GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
}
ITEM = [NUMBER, str, dict, dict, list]
FILE = {"filename": str, "subfolder": str, "type": str}
ENTRY = {
    "prompt": list,
    "outputs": Each(dict),
    "status": {"status_str": "success", "completed": True, "messages": [list]},
    "meta": Each({"node_id": str, "display_node": str, "parent_node": object, "real_node_id": str}),
}
JOB = {
    "id": str,
    "status": "completed",
    "priority": NUMBER,
    "create_time": int,
    "execution_start_time": int,
    "execution_end_time": int,
    "outputs_count": int,
    "previewable_outputs_count": int,
    "preview_output": {**FILE, "nodeId": str, "mediaType": str},
}
CLASS = With({"input": dict, "output": list, "name": str, "category": str, "display_name": object})
REFUSED = {
    "error": {"type": str, "message": str, "details": str, "extra_info": dict},
    "node_errors": dict,
}
DEVICE = {
    "name": str,
    "type": str,
    "index": object,
    "vram_total": int,
    "vram_free": int,
    "torch_vram_total": int,
    "torch_vram_free": int,
}
DISABLED = {"error": {"code": "SERVICE_DISABLED", "message": str, "details": {}}}
UPLOADED = {"name": str, "subfolder": "", "type": "input"}
REF = json.dumps({"filename": "pic.png", "subfolder": "", "type": "input"})
PAGE = {"offset": 0, "limit": int, "total": int, "has_more": bool}

PROMPTS = (
    Row(
        route="POST /prompt",
        body={"prompt": GRAPH},
        shape={"prompt_id": str, "number": NUMBER, "node_errors": {}},
    ),
    Row(route="POST /prompt", body={"prompt": {}}, status=400, shape=REFUSED),
    Row(route="GET /prompt", shape={"exec_info": {"queue_remaining": int}}),
    Row(route="GET /queue", shape={"queue_running": list, "queue_pending": list}),
    Row(route="POST /queue", body={"delete": [UUID]}, kind=NO_BODY),
    Row(route="POST /queue", body={"clear": True}, kind=NO_BODY),
    Row(route="GET /history", ask="/history?max_items=1&offset=0", shape=Each(ENTRY)),
    Row(route="GET /history", shape=Each(ENTRY)),
    Row(route="POST /history", body={"delete": [UUID]}, kind=NO_BODY),
    Row(route="GET /history/ID", ask="/history/DONE", shape=Each(ENTRY)),
    Row(route="GET /history/ID", ask=f"/history/{UUID}", shape={}),
    Row(route="POST /interrupt", body={"prompt_id": UUID}, kind=NO_BODY),
    Row(route="POST /interrupt", kind=NO_BODY),
    Row(route="GET /ws", status=426),
)
JOBS = (
    Row(
        route="GET /jobs",
        ask="/jobs?status=completed&limit=1&offset=0",
        forms=API,
        shape={"jobs": [JOB], "pagination": PAGE},
    ),
    Row(
        route="GET /jobs",
        ask="/jobs?status=in_progress,pending&limit=200&offset=0",
        forms=API,
        shape={"jobs": list, "pagination": PAGE},
    ),
    Row(route="GET /jobs", ask="/jobs?limit=0", forms=API, status=400, shape={"error": str}),
    Row(
        route="GET /jobs/ID",
        ask="/jobs/DONE",
        forms=API,
        shape={
            **JOB,
            "outputs": Each(dict),
            "execution_status": dict,
            "workflow": {"prompt": dict, "extra_data": dict},
        },
    ),
    Row(route="GET /jobs/ID", ask=f"/jobs/{UUID}", forms=API, status=404, shape={"error": "Job not found"}),
    Row(route="POST /jobs/ID/cancel", ask="/jobs/DONE/cancel", forms=API, shape={"cancelled": False}),
    Row(route="POST /jobs/ID/cancel", ask="/jobs/nope/cancel", forms=API, shape={"cancelled": False}),
    Row(route="POST /jobs/cancel", forms=API, body={"job_ids": [UUID]}, shape={"cancelled": False}),
    Row(
        route="POST /jobs/cancel",
        forms=API,
        body={"job_ids": ["nope"]},
        status=400,
        shape={"error": str, "invalid_ids": ["nope"]},
    ),
)
FILES = (
    Row(route="GET /view", ask="/view?filename=NAME&type=output&subfolder=&rand=0.5", kind=PNG),
    Row(route="GET /view", ask="/view?filename=NAME&preview=webp;80", kind=WEBP),
    Row(route="GET /view", ask="/view?filename=NAME&channel=a", kind=PNG),
    Row(route="GET /view", ask="/view?filename=pic.png&type=input", kind=PNG),
    Row(route="GET /view", ask="/view?filename=none.png", status=404, kind=NO_BODY),
    Row(route="GET /view", ask="/view?filename=../x.png", status=400, kind=NO_BODY),
    Row(route="GET /view", ask=f"/view?filename={HASH}", status=404, kind=NO_BODY),
    Row(route="POST /upload/image", upload={"type": "input"}, shape=UPLOADED),
    Row(route="POST /upload/mask", upload={"original_ref": REF}, shape=UPLOADED),
    Row(route="GET /internal/files/input", forms=PLAIN, shape=[str]),
    Row(route="GET /internal/files/output", forms=PLAIN, shape=[str]),
    Row(route="GET /internal/files/temp", forms=PLAIN, shape=list),
)
CATALOGUE = (
    Row(route="GET /object_info", shape=Each(CLASS)),
    Row(route="GET /object_info/CLASS", ask="/object_info/KSampler", shape={"KSampler": CLASS}),
    Row(route="GET /object_info/CLASS", ask="/object_info/NoSuchClass", shape={}),
    Row(route="GET /models", shape=[str]),
    Row(route="GET /models/FOLDER", ask="/models/vae", shape=[str]),
    Row(route="GET /models/FOLDER", ask="/models/nothing", status=404, kind=NO_BODY),
    Row(route="GET /embeddings", shape=list),
    Row(route="GET /node_replacements", shape=Each([With({"new_node_id": str, "old_node_id": str})])),
    Row(route="GET /experiment/models", shape=[With({"name": str, "folders": [str]})]),
    Row(route="GET /experiment/models/FOLDER", ask="/experiment/models/vae", shape=list),
    Row(
        route="GET /experiment/models/FOLDER",
        ask="/experiment/models/nothing",
        status=404,
        kind=NO_BODY,
    ),
    Row(
        route="GET /experiment/models/preview/FOLDER/INDEX/FILE",
        ask="/experiment/models/preview/vae/0/none.webp",
        status=404,
        kind=NO_BODY,
    ),
    Row(
        route="GET /view_metadata/FOLDER",
        ask="/view_metadata/vae?filename=none.safetensors",
        status=404,
        kind=NO_BODY,
    ),
)
SYSTEM = (
    Row(
        route="GET /system_stats",
        shape={
            "system": With({"os": str, "comfyui_version": str, "python_version": str, "argv": []}),
            "devices": [DEVICE],
        },
    ),
    Row(route="GET /features", shape=With({"supports_preview_metadata": True, "max_upload_size": int})),
    Row(route="POST /free", body={"unload_models": True, "free_memory": True}, kind=NO_BODY),
    Row(route="POST /free", body={}, kind=NO_BODY),
)
OF_THE_EDITOR = {"X-Fleet-Origin": "editor"}
"""What the edge says of requests to the public port; a node's files are given to no other."""
EDITOR = (
    Row(route="GET /extensions", shape=[str]),
    Row(route="GET /i18n", shape=dict),
    Row(route="GET /workflow_templates", shape=dict),
    Row(route="GET /global_subgraphs", shape=dict),
    Row(route="GET /global_subgraphs/ID", shape=None),
    Row(
        route="GET /extensions/PACKAGE/FILE",
        ask="/extensions/core/none.js",
        headers=OF_THE_EDITOR,
        forms=PLAIN,
        status=404,
        kind=NO_BODY,
    ),
)
_ASSETS = (
    *("GET /assets", "POST /assets", "POST /assets/from-hash", f"HEAD /assets/hash/{HASH}"),
    *(f"GET /assets/{UUID}", f"PUT /assets/{UUID}", f"DELETE /assets/{UUID}", f"GET /assets/{UUID}/content"),
    *(f"POST /assets/{UUID}/tags", f"DELETE /assets/{UUID}/tags", "GET /assets/tags/refine", "GET /tags"),
)
ASSETS = tuple(
    Row(
        route=route.replace(UUID, "ID").replace(HASH, "H"),
        ask=route.partition(" ")[2],
        forms=API,
        body={} if route.startswith("P") else None,
        status=503,
        kind=JSON,
        shape=DISABLED if not route.startswith("HEAD") else object,
    )
    for route in _ASSETS
)
SAVED = "/userdata/table%2Fa.json"
INFO = {"path": "a.json", "size": int, "modified": int, "created": int}
USER_DATA = (
    Row(route="POST /userdata/FILE", ask=SAVED, body={"table": True}, shape="table/a.json"),
    Row(
        route="POST /userdata/FILE",
        ask=f"{SAVED}?overwrite=false",
        body={},
        status=409,
        kind=TEXT,
    ),
    Row(route="GET /userdata/FILE", ask=SAVED, shape={"table": True}),
    Row(route="GET /userdata/FILE", ask="/userdata/none.json", status=404, kind=NO_BODY),
    Row(route="POST /userdata/FILE/move/DEST", ask=f"{SAVED}/move/table%2Fa.json", shape="table/a.json"),
    Row(
        route="POST /userdata/FILE/move/DEST",
        ask="/userdata/none.json/move/x.json",
        status=404,
        kind=NO_BODY,
    ),
    Row(route="GET /userdata", ask="/userdata?dir=table", shape=["a.json"]),
    Row(
        route="GET /userdata",
        ask="/userdata?dir=table&recurse=true&split=false&full_info=true",
        shape=[INFO],
    ),
    Row(route="GET /userdata", ask="/userdata?dir=nothing", status=404, kind=TEXT),
    Row(route="GET /userdata", status=400, kind=TEXT),
    Row(
        route="GET /v2/userdata",
        ask="/v2/userdata?path=table",
        shape=[
            {"name": "a.json", "path": "table/a.json", "type": "file", "size": int, "modified": float},
        ],
    ),
    Row(route="GET /v2/userdata", ask="/v2/userdata?path=nothing", status=404, kind=TEXT),
    Row(route="DELETE /userdata/FILE", ask="/userdata/none.json", status=404, kind=NO_BODY),
    Row(route="POST /settings", body={"Comfy.TutorialCompleted": True}, kind=NO_BODY),
    Row(route="POST /settings/ID", ask="/settings/Comfy.InstalledVersion", body="1.2", kind=NO_BODY),
    Row(route="GET /settings", shape={"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.2"}),
    Row(route="GET /settings/ID", ask="/settings/Comfy.InstalledVersion", shape="1.2"),
    Row(route="GET /settings/ID", ask="/settings/none", shape=None),
    Row(route="GET /users", shape={"storage": "server", "migrated": True}),
    Row(route="POST /users", body={"username": " "}, status=400, shape={"error": "username not provided"}),
)
PAGE_OF_THE_FLEET = (Row(route="GET /", forms=PLAIN, kind=HTML),)
SERVED = (*PROMPTS, *JOBS, *FILES, *CATALOGUE, *SYSTEM, *EDITOR, *ASSETS, *USER_DATA, *PAGE_OF_THE_FLEET)

AN_EDITORS = (
    *("GET /workflow_templates/PACK/a.json", "GET /assets/index.js", "GET /scripts/app.js", "GET /user.css"),
    *("GET /docs/KSampler/en.md", "GET /templates/index.json"),
)
CLOSED = (
    *("POST /assets/seed", "POST /assets/seed/cancel", "POST /assets/prune", "GET /assets/seed/status"),
    *("GET /internal/logs", "GET /internal/logs/raw", "PATCH /internal/logs/subscribe"),
    *(
        "GET /internal/folder_paths",
        "GET /customnode/installed",
        "POST /manager/reboot",
        "GET /v2/manager/queue",
    ),
)
NO_ROUTES = ("GET /history_v2", "GET /job/ID/status", "GET /tasks", "GET /user")
"""ComfyUI's own description of its API has them; its server has not."""
ABSENT = tuple((*line.split(" "), form) for line in (*AN_EDITORS, *CLOSED, *NO_ROUTES) for form in BOTH)


@dataclass
class Asked:
    """The answers of one fleet."""

    served: dict[tuple[Row, str], httpx.Response]
    heads: dict[tuple[Row, str], httpx.Response]
    absent: dict[tuple[str, str, str], httpx.Response]


@pytest.fixture(scope="module")
def asked(redis_port: int) -> Iterator[Asked]:
    """Ask a fleet with a node of each version for everything, one after the other."""
    with sync_redis.Redis(port=redis_port) as database:
        database.flushall()
        yield asyncio.run(ask_everything(redis_port))
        database.flushall()


async def ask_everything(redis_port: int) -> Asked:
    models = {"vae": {"pixel_space": 0}}
    async with faced(redis_port, "old", sim={"comfyui": "0.3.64", "models": models}) as face:
        await face.fleet.add_sim("new", comfyui="0.33.0", models=models)
        await face.fleet.verdict("new")
        async with NativeClient(face.url, uuid4().hex) as client:
            asked = Asked({}, {}, {})
            await ask_rows(client, asked)
            for method, path, form in ABSENT:
                asked.absent[method, path, form] = await client.http.request(method, form + path)
    return asked


async def ask_rows(client: NativeClient, asked: Asked) -> None:
    """Ask a server for every row in each form; GETs also as HEAD."""
    done = await prepared(client)
    for row in SERVED:
        for form in BOTH:
            answer = await ask(client.http, row, form, done)
            if form not in row.forms:
                asked.absent[row.method, row.path, form] = answer
                continue
            asked.served[row, form] = answer
            if row.method == "GET":
                asked.heads[row, form] = await client.http.head(
                    form + named(row.path, done), headers=row.headers
                )


@dataclass(frozen=True)
class Done:
    """A prompt that is over, and the name of its file."""

    prompt: str
    file: str


async def prepared(client: NativeClient) -> Done:
    """Make what the rows ask for: a finished prompt and an upload."""
    await client.http.post("/upload/image", data={}, files={"image": ("pic.png", a_picture())})
    prompt = str(uuid4())
    entry = await client.run(GRAPH, prompt)
    return Done(prompt, entry["outputs"]["2"]["images"][0]["filename"])


def named(path: str, done: Done) -> str:
    return path.replace("DONE", done.prompt).replace("NAME", done.file)


async def ask(http: httpx.AsyncClient, row: Row, form: str, done: Done) -> httpx.Response:
    more: dict[str, Any] = {}
    if row.upload is not None:
        name = "mask.png" if "mask" in row.path else "pic.png"
        more = {"data": row.upload, "files": {"image": (name, a_picture())}}
    elif row.body is not None:
        more = {"json": row.body}
    return await http.request(row.method, form + named(row.path, done), headers=row.headers, **more)


def a_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(buffer, "PNG")
    return buffer.getvalue()


CASES = [pytest.param(row, form, id=f"{form or 'plain'} {row}") for row in SERVED for form in row.forms]


@pytest.mark.parametrize(("row", "form"), CASES)
def test_a_row_is_answered_as_the_table_says(asked: Asked, row: Row, form: str) -> None:
    answer = asked.served[row, form]
    assert answer.status_code == row.status, answer.text
    if row.kind is NO_BODY:
        assert answer.content == b""
    else:
        assert answer.headers["content-type"] == row.kind
    if row.kind == JSON and row.method != "HEAD":
        assert has_shape(answer.json(), row.shape), answer.text[:2000]
    elif row.kind and row.method != "HEAD":
        assert answer.content
    if row.method == "GET":
        head = asked.heads[row, form]
        assert (head.status_code, head.content) == (answer.status_code, b"")
        assert head.headers.get("content-type") == answer.headers.get("content-type")


def test_whatever_is_not_a_fleets_is_not_there(asked: Asked) -> None:
    wrong = {
        f"{method} {form}{path}": answer.status_code
        for (method, path, form), answer in asked.absent.items()
        if answer.status_code != 404
    }
    assert wrong == {}


def test_the_table_has_every_route_that_is_served() -> None:
    served = {
        (method, starred(route.path))
        for route in native.routes()
        for method in (route.methods or set()) - ({"HEAD"} if "GET" in (route.methods or ()) else set())
    }
    listed = {
        (row.method, starred(form + row.route.partition(" ")[2]))
        for row in SERVED
        if row not in PAGE_OF_THE_FLEET
        for form in row.forms
    }
    assert listed == served


def starred(path: str) -> str:
    """Return a path with a star for each name in it."""
    path = re.sub(r"/internal/files/[a-z]+", "/internal/files/*", path)
    return re.sub(r"\{[^}]*\}|\b[A-Z]+\b", "*", path)
