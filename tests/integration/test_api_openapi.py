"""The OpenAPI documents: valid, complete, of each fleet its own, and what the server answers fits them."""

import asyncio
import re
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.api.errors import fleet_error
from comfy_fleet.api.metrics import KIND
from comfy_fleet.domain.graphs.missing import MissingPart, PartKind
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from comfy_fleet.settings import packaged
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import Api, running, upload
from tests.integration.openapi_kit import V1, V2, Described, document
from tests.key_files import write_keys


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node(info=False)
        yield started


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return {one for item in value for one in references(item)}
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own | {one for item in value.values() for one in references(item)}
    return set()


@pytest.mark.parametrize("path", [V1, V2])
async def test_documents_are_valid_and_refer_to_nothing_that_is_not_there(api: Api, path: str) -> None:
    spec = await document(api, path)
    validate(spec)
    assert spec["servers"] == [{"url": api.url}]
    schemas = {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}
    assert references(spec) == schemas  # none dangles, and none is left over
    operations = [one for methods in spec["paths"].values() for one in methods.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{2,40}", one) for one in ids)
    assert set(spec["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    for one in operations:
        assert one["summary"] and one["description"]
        successes = [status for status in one["responses"] if status < "400"]
        assert successes, one["operationId"]
        for status, response in one["responses"].items():
            if status >= "400" and one["operationId"] != "ready":
                schema = response["content"]["application/json"]["schema"]
                form = "PictureErrorEnvelope" if one["tags"] == ["openai"] else "ErrorEnvelope"
                assert schema == {"$ref": f"#/components/schemas/{form}"}


READABLE = {"application/json", "application/octet-stream", "text/event-stream", KIND}
"""Types of answers that every generator makes something of."""


@pytest.mark.parametrize("path", [V1, V2])
async def test_documents_say_only_what_every_generator_reads(api: Api, path: str) -> None:
    """Warnings of openapi-generator and of Redocly's linter; the first about 3.1 itself."""
    spec = await document(api, path)
    assert spec["openapi"] == "3.0.3"
    assert all(tag["description"] for tag in spec["tags"])
    used = {one["tags"][0] for methods in spec["paths"].values() for one in methods.values()}
    assert {tag["name"] for tag in spec["tags"]} == used
    for shape in inner_objects(spec):
        # Beside no type it means nothing, and beside a type and a reference generated clients overlook it.
        assert shape.get("nullable") is not True or ("type" in shape and "allOf" not in shape)
        assert not isinstance(shape.get("type"), list)
        assert "$ref" not in shape or len(shape) == 1
        assert not {"const", "anyOf", "examples"} & shape.keys() or shape["anyOf"][0].keys() == {"$ref"}
    for methods in spec["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                assert (
                    next(iter(response.get("content", ["application/json"]))) in READABLE
                )  # the first one counts
            form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
            if form is not None:
                fields = spec["components"]["schemas"][form["schema"]["$ref"].rpartition("/")[2]]
                assert {one["type"] for one in fields["properties"].values()} == {"string", "integer"}


def inner_objects(value: Any) -> Iterator[dict[str, Any]]:
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from inner_objects(item)
    if isinstance(value, dict):
        yield value


async def test_events_are_what_the_documents_say(api: Api) -> None:
    for surface, path in (("v1", V1), ("v2", V2)):
        spec = await document(api, path)
        job = await api.submit(GRAPH)
        claim = await api.claim(job["id"])
        await api.stores.runs.progress(claim, Progress(value=0.5, nodes_done=1, nodes_total=2))
        preview = {"node_id": "2", "content_type": "image/png", "data_base64": "AA=="}
        seen: dict[str, dict[str, Any]] = {}
        async with api.client.stream("GET", f"/api/{surface}/jobs/{job['id']}/events") as answer:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    first = name not in seen
                    seen[name] = orjson.loads(line.removeprefix("data: "))
                    match name:
                        case "progress" if first:
                            await api.stores.runs.preview(claim, preview)
                        case "preview" if first:
                            await api.output(claim, b"picture")
                        case "output" if first:
                            await api.finish(claim)
        operation = spec["paths"][f"/api/{surface}/jobs/{{job_id}}/events"]["get"]
        stream = operation["responses"]["200"]["content"]["text/event-stream"]
        assert stream["x-fleet-events"].keys() == seen.keys()
        described = Described(spec)
        for name, data in seen.items():
            shape = {**stream["x-fleet-events"][name], "components": described.components}
            Draft202012Validator(shape).validate(data)
            model = stream["x-fleet-events"][name]["$ref"].rpartition("/")[2]
            assert f"`{name}` with a {model}" in operation["responses"]["200"]["description"]


async def test_every_route_is_described(api: Api) -> None:
    described = {
        (method.upper(), path)
        for document_path in (V1, V2)
        for path, methods in (await document(api, document_path))["paths"].items()
        for method in methods
    }
    router = api.server.config.loaded_app.router
    names: dict[Any, str] = {}
    for route in router.routes:
        # Requests are counted by their handler, so it has one name.
        assert names.setdefault(route.endpoint, route.name) == route.name
        ours = route.refusal is fleet_error  # ComfyUI's own routes are described by nobody
        if ours and route.path.startswith("/api/") and not route.path.endswith("openapi.json"):
            for method in route.methods - ({"HEAD"} if "GET" in route.methods else set()):
                assert (method, route.path) in described


async def test_each_workflow_has_a_path_and_a_request_of_its_own(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "workflows"
    for name in (
        "image_card",
        "image-card",
        "image.card",
        "job",
        "1",
        "new",
        "class",
        "job-detail",
        "x" * 63,
    ):
        shutil.copytree(packaged("workflows") / "image_card", folder / name)
    async with running(redis_port, tmp_path / "data", workflows=folder) as api:
        await api.add_node(info=False)
        spec = await document(api, V1)
        validate(spec)
        ids = [one["operationId"] for methods in spec["paths"].values() for one in methods.values()]
        names = [re.sub("[^a-z0-9]", "", name.lower()) for name in spec["components"]["schemas"]]
        for taken in (ids, names):
            assert len(set(taken)) == len(taken)
        operation = spec["paths"]["/api/v1/workflows/image_card/jobs"]["post"]
        model = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        job = spec["components"]["schemas"][model]
        assert job["required"] == ["params"] and "deadline_s" in job["properties"]
        params = spec["components"]["schemas"][job["properties"]["params"]["$ref"].rpartition("/")[2]]
        assert params["required"] == ["prompt"]
        assert "silk" in params["properties"]["style"]["enum"]
        # Generators for TypeScript would make clients send what has a default.
        assert not any("default" in shape for shape in params["properties"].values())
        assert "Default: `512`" in params["properties"]["width"]["description"]
        made = Described(spec)
        path = "/api/v1/workflows/image-card/jobs"
        made.check("POST", path, await api.client.post(path, json={"params": {"prompt": "x"}}))
        shutil.rmtree(folder / "new")
        assert "/api/v1/workflows/new/jobs" not in (await document(api, V1))["paths"]


async def test_answers_are_what_the_document_says(api: Api) -> None:
    spec = Described(await document(api, V1))

    async def call(method: str, path: str, status: int, **more: Any) -> Any:
        answer = await api.client.request(method, path, **more)
        assert answer.status_code == status, answer.text
        return spec.check(method, path.partition("?")[0], answer)

    lacked = MissingPart(kind=PartKind.FILE, name="a.safetensors", class_type="VAELoader", input="vae_name")
    await api.stores.missing.note("ann", [lacked])
    task = (await call("POST", "/api/v1/generate", 202, json={"prompt": "x"}))["task_id"]
    await call("POST", "/api/submit", 202, json={"prompt": "x"})
    labels = {"params": {"prompt": "x"}, "metadata": {"a": "b"}}
    job = (await call("POST", "/api/v1/workflows/image_card/jobs", 201, json=labels))["id"]
    tasks = (
        f"/api/v1/status/{task}",
        f"/api/v1/result?task_id={task}",
        f"/api/status?task_id={task}",
        f"/api/status/{task}",
        f"/api/v1/jobs/{task}",
        f"/api/v1/jobs/{task}/outputs",
        f"/api/v1/jobs/{task}/workflow",
        f"/api/v1/jobs/{task}/timeline",
        "/api/v1/usage",
        "/api/v1/jobs",
        "/api/v1/jobs?metadata[a]=b",
        "/api/v1/job-ids?prefix=0",
        "/api/v1/queue",
        "/api/v1/overview",
        "/api/v1/overview?pool=default&nodes=0",
        "/api/v1/nodes",
        "/api/v1/nodes?sealed=true",
        "/api/v1/nodes/g1",
        "/api/v1/nodes-diff",
        "/api/v1/models",
        "/api/v1/model-fetches",
        "/api/v1/pools",
        "/api/v1/pools/default",
        "/api/v1/missing?all=true",
        "/api/v1/hosts",
        "/api/v1/workflows",
        "/api/v1/workflows/image_card",
        "/api/v1/workflows/image_card/check",
        "/api/v1/missing",
        "/api/v1/me",
        "/api/v1/audit?limit=1",
        "/api/v1/metrics",
        "/api/v1/prometheus/targets",
        "/api/v1/health",
    )
    for path in tasks:
        await call("GET", path, 200)
    claim = await api.claim(task)
    for path in tasks[:8]:
        await call("GET", path, 200)
    await call("GET", "/api/v1/nodes/g1", 200)
    await api.output(claim, b"picture")
    await api.finish(claim)
    for path in tasks[:8]:
        await call("GET", path, 200)
    await call("GET", f"/api/v1/jobs/{task}/events", 200)
    submitted = (await call("POST", "/api/v1/generate", 202, json={"prompt": "y"}))["task_id"]
    await call("POST", f"/api/v1/jobs/{submitted}/cancel", 200)
    await call("POST", f"/api/v1/jobs/{job}/cancel", 200)
    await call("GET", "/api/v1/ready", 503)
    await call("POST", "/api/v1/nodes-warm", 200, json={"wait_s": 5})
    await call("POST", "/api/v1/nodes-warm", 404, json={"nodes": ["g9"]})
    await call("PUT", f"/api/v1/jobs/{task}/keep", 200)
    await call("DELETE", f"/api/v1/jobs/{task}/keep", 200)
    await call("POST", f"/api/v1/jobs/{task}/store", 409)
    waits = (await call("POST", f"/api/v1/jobs/{task}/retry", 201, json={"new_seed": True}))["id"]
    await call("DELETE", f"/api/v1/jobs/{waits}", 409)
    await call("DELETE", f"/api/v1/jobs/{waits}?cancel=true", 204)
    body = {"name": "g2", "url": "http://10.0.0.2:8188"}
    await call("POST", "/api/v1/nodes", 201, json=body)
    await call("POST", "/api/v1/nodes/g2/drain", 200, json={"reason": "fans"})
    await call("POST", "/api/v1/nodes/g2/resume", 200)
    await call("POST", "/api/v1/nodes/g2/restart", 409)
    await call("DELETE", "/api/v1/nodes/g2", 204)
    await call("PUT", "/api/v1/pools/default", 200, json={"free_idle_s": 60.0})
    await call("PATCH", "/api/v1/pools/default", 200, json={"free_on_oom": None})
    await call("GET", "/api/v1/nodes", 200)
    beat = {"instance": "i1", "nodes": [{"name": "g1", "word": "ready"}]}
    await call("POST", "/api/v1/agents/h1/heartbeat", 200, json=beat)
    await call("GET", "/api/v1/hosts", 200)
    await _model_fetches(call)
    token = await call("POST", "/api/v1/agent-tokens", 201, json={"host": "h2"})
    await call("GET", "/api/v1/agent-tokens", 200)
    await call("DELETE", f"/api/v1/agent-tokens/{token['id']}", 204)
    await call("POST", "/api/v1/jobs-cancel", 200, json={"waiting_only": True})
    await _batches(call)
    await _pictures(call, api)
    await _stores(call)
    await _uploads(api, call)
    await _webhooks(call)
    await _versions(call)
    await _publishing(call, api)
    for method, path, status, more in (
        ("POST", "/api/v1/generate", 400, {"content": b"{"}),
        ("POST", "/api/v1/generate", 422, {"json": {"prompt": "x", "size": "1x1"}}),
        ("POST", "/api/v1/generate", 413, {"content": b" " * 5_000_000}),
        ("POST", "/api/v1/generate", 415, {"content": b"x", "headers": {"Content-Encoding": "gzip"}}),
        ("POST", "/api/v1/nodes", 409, {"json": {"name": "g1", "url": "http://10.0.0.9:1"}}),
        ("GET", "/api/v1/result", 422, {}),
        ("GET", "/api/v1/jobs/none", 404, {}),
        ("GET", "/api/v1/jobs?limit=0", 400, {}),
        ("POST", "/api/v1/nodes/g1/refresh", 502, {}),
    ):
        await call(method, path, status, **more)
    general = {  # each workflow has its own beside it
        operation["operationId"]
        for path, methods in spec.spec["paths"].items()
        for operation in methods.values()
        if not re.fullmatch(r"/api/v1/workflows/[^{/]+/jobs", path)
        and not path.startswith(("/api/v1/tenants", "/api/v1/users", "/api/v1/keys"))
    }
    assert general - spec.seen == {"run_workflow"}


async def _model_fetches(call: Any) -> None:
    """Order a model file, take it as its host's agent, and cancel it."""
    node = {"name": "m1", "url": "http://10.0.0.5:8188", "agent": "10.0.0.5:9200"}
    beat = {
        "instance": "i3",
        "join": [node],
        "nodes": [{"name": "m1", "word": "drain", "facts": {"models": True}}],
    }
    await call("POST", "/api/v1/agents/h3/heartbeat", 200, json=beat)
    body = {"url": "https://models.test/a.safetensors", "folder": "loras", "sha256": "0" * 64}
    fetch = await call("POST", "/api/v1/model-fetches", 202, json=body)
    told = await call("POST", "/api/v1/agents/h3/heartbeat", 200, json=beat)
    assert [order["id"] for order in told["fetches"]] == [fetch["id"]]
    news = {"instance": "i3", "fetches": [{"id": fetch["id"], "state": "fetching", "bytes": 1, "total": 2}]}
    await call("POST", "/api/v1/agents/h3/models", 200, json=news)
    await call("GET", f"/api/v1/model-fetches/{fetch['id']}", 200)
    await call("POST", f"/api/v1/model-fetches/{fetch['id']}/cancel", 200)
    await call("GET", "/api/v1/model-fetches", 200)


async def test_answers_about_people_are_what_the_document_says(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    key = "ops-key-0123456789"
    keys = write_keys(tmp_path / "keys", f"ops {key} operator\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys) as api:
        api.client.headers["Authorization"] = f"Bearer {key}"
        spec = Described(await document(api, V1))

        async def call(method: str, path: str, status: int, body: Any = None) -> Any:
            answer = await api.client.request(method, f"/api/v1/{path}", json=body)
            assert answer.status_code == status, answer.text
            return spec.check(method, f"/api/v1/{path}".partition("?")[0], answer)

        await call("POST", "tenants", 201, {"name": "studio", "sharing": "shared"})
        await call("POST", "tenants", 409, {"name": "studio"})
        await call("POST", "tenants", 422, {"name": "a b", "sharing": "x"})
        await call("PATCH", "tenants/studio", 200, {"sharing": "private"})
        await call("POST", "users", 201, {"name": "ada", "tenant": "studio"})
        await call("POST", "users", 404, {"name": "bob", "tenant": "none"})
        body = {"user": "ada", "roles": ["artist"], "expires_in_s": 3600, "note": "n"}
        made = await call("POST", "keys", 201, body)
        for path in ("tenants", "tenants/studio", "users", "users/ada", "keys", f"keys/{made['id']}", "me"):
            await call("GET", path, 200)
        new = await call("POST", f"keys/{made['id']}/rotate", 201, {"grace_s": 60})
        await call("GET", "keys?user=ada", 200)
        await call("DELETE", f"keys/{new['id']}", 204)
        await call("DELETE", f"keys/{new['id']}", 404)
        await call("DELETE", "users/ada", 204)
        await call("DELETE", "tenants/studio", 204)
        described = {
            operation["operationId"]
            for path, methods in spec.spec["paths"].items()
            for operation in methods.values()
            if path.startswith(("/api/v1/tenants", "/api/v1/users", "/api/v1/keys"))
        }
        assert described <= spec.seen


async def _uploads(api: Api, call: Callable[..., Awaitable[Any]]) -> None:
    path, tus = "/api/v1/uploads", {"Tus-Resumable": "1.0.0"}
    part = {**tus, "Content-Type": "application/offset+octet-stream"}
    await call("OPTIONS", path, 204)
    await call("POST", path, 412)
    await call("POST", path, 201, headers={**part, "Upload-Length": "2"}, content=b"a")
    (first,) = (api.deps.settings.files_dir / "uploads").iterdir()
    one = f"{path}/{first.name}"
    await call("HEAD", one, 200, headers=tus)
    await call("GET", one, 200)
    await call("PATCH", one, 409, headers={**part, "Upload-Offset": "0"}, content=b"b")
    await call("PATCH", one, 204, headers={**part, "Upload-Offset": "1"}, content=b"b")
    await call("GET", one, 200)
    await call("POST", one, 405, headers=tus)
    await call("DELETE", one, 204, headers=tus)


async def _stores(call: Callable[..., Awaitable[Any]]) -> None:
    path, store = "/api/v1/stores", {"name": "shop", "url": "s3://shop/x", "endpoint": "http://127.0.0.1:9"}
    await call("POST", path, 502, json=store)
    await call("POST", path, 201, json={**store, "probe": False})
    await call("POST", path, 409, json={**store, "probe": False})
    for asked in (path, f"{path}/shop"):
        await call("GET", asked, 200)
    await call("POST", f"{path}/shop/test", 200)
    await call("POST", f"{path}/shop/retry", 200)
    await call("DELETE", f"{path}/shop", 204)
    await call("GET", f"{path}/shop", 404)


async def _pictures(call: Callable[..., Awaitable[Any]], api: Api) -> None:
    await call("GET", "/v1/models", 200)
    await call("GET", "/v1/models/image_card", 200)
    await call("GET", "/v1/models/none", 404)
    fox = {"prompt": "a fox", "seed": 5, "response_format": "url", "size": "512x512"}
    asked = call("POST", "/v1/images/generations", 200, json=fox)
    waiting = asyncio.ensure_future(asked)
    await until(lambda: api.deps.waits.total() == 1, what="a request waits")
    [job] = (await api.client.get("/api/v1/jobs?status=queued")).json()["jobs"]
    claim = await api.claim(job["id"])
    await api.output(claim, b"picture")
    await api.finish(claim)
    await waiting
    await call("POST", "/v1/images/generations", 400, json={})
    await call("POST", "/v1/images/edits", 400, files={"image": ("a.png", b"x")}, data={"prompt": "a hat"})


async def _batches(call: Callable[..., Awaitable[Any]]) -> None:
    path = "/api/v1/workflows/image_card/batches"
    items = [{"custom_id": "a", "params": {"prompt": "x"}}, {"custom_id": "b", "params": {"promt": "x"}}]
    await call("POST", path, 422, json={"items": items})
    made = await call("POST", path, 201, json={"items": items, "partial": True})
    batch = f"/api/v1/batches/{made['id']}"
    await call("POST", f"{batch}/cancel", 200)
    for asked in ("/api/v1/batches", batch, f"{batch}/events", f"{batch}/outputs.zip"):
        await call("GET", asked, 200)
    await call("POST", f"{batch}/retry", 200, json={"statuses": ["canceled"]})
    await call("DELETE", batch, 409)
    await call("DELETE", f"{batch}?cancel=true", 204)


async def _webhooks(call: Callable[..., Awaitable[Any]]) -> None:
    body = {"prompt": "z", "webhook_url": "http://localhost:9/", "webhook_events": ["job.canceled"]}
    told = (await call("POST", "/api/v1/generate", 202, json=body))["task_id"]
    await call("POST", f"/api/v1/jobs/{told}/cancel", 200)
    found = (await call("GET", "/api/v1/webhooks", 200))["webhooks"][0]["id"]

    async def given_up() -> bool:  # its address is a private one
        return bool((await call("GET", "/api/v1/webhooks?failed=true", 200))["webhooks"])

    await until(given_up, what="it is given up")
    await call("POST", f"/api/v1/webhooks/{found}/redeliver", 202)
    await call("POST", "/api/v1/webhooks/x/redeliver", 404)
    await call("POST", "/api/v1/webhooks/test", 200, json={"url": "http://localhost:9/"})
    await call("GET", "/api/v1/webhooks/secret", 200)
    await call("POST", "/api/v1/webhooks/secret/rotate", 200)


async def _versions(call: Callable[..., Awaitable[Any]]) -> None:
    """Ask for all that is about versions, drafts and manifests of a stored workflow."""
    w = "/api/v1/workflows/w"
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "WEBP")
    new = {"graph": GRAPH, "ui": {"nodes": []}, "thumbnail": b64encode(picture.getvalue()).decode()}
    first = await call("PUT", w, 200, json={**new, "manifest": {"title": "W"}})
    patched = await call("PATCH", f"{w}/manifest?note=x", 200, json={"description": "D"})
    await call("PUT", w, 409, json={"graph": {**GRAPH, "9": GRAPH["1"]}})
    await call("PUT", w, 422, json={"graph": {}})
    await call("POST", f"{w}/rollback", 200, json={"note": "x", "base_version": patched["version"]})
    await call("PUT", f"{w}/labels/x", 200, json={"version": first["version"]})
    await call("PUT", f"{w}/draft", 200, json={"graph": GRAPH})
    for path in ("", "/versions", "/versions/x", "/versions/draft", "/history", "/diff?a=x", "/manifest"):
        await call("GET", w + path, 200)
    for path in ("/versions/x/thumbnail", "/export", "/draft"):
        await call("GET", w + path, 200)
    for path in ("/draft", "/labels/x", ""):
        await call("DELETE", w + path, 204)


async def _publishing(call: Callable[..., Awaitable[Any]], api: Api) -> None:
    """Hand a graph over, check it, test it and publish it."""
    ui = {"nodes": [{"id": 1, "type": "EmptyImage"}], "links": []}
    await call("POST", "/api/v1/drafts", 201, json={"name": "P", "graph": GRAPH, "ui": ui})
    await call("GET", "/api/v1/drafts", 200)
    begun = await call("POST", "/api/v1/workflows/p/check", 200)
    claim = await api.claim(begun["test_run"]["job_id"])
    await call("POST", "/api/v1/workflows/p/publish", 409, json={"draft": begun["draft"]})
    await api.output(claim, b"picture")
    await api.finish(claim)
    found = await call("POST", "/api/v1/workflows/p/check", 200, json={})
    await call("POST", "/api/v1/workflows/p/publish", 200, json={"draft": found["draft"]})
    await call("GET", "/api/v1/workflows/p/editor-graph", 200)


async def test_answers_of_v2_are_what_its_document_says(api: Api) -> None:
    spec = Described(await document(api, V2))

    async def call(method: str, path: str, status: int, **more: Any) -> Any:
        answer = await api.client.request(method, path, **more)
        assert answer.status_code == status, answer.text
        return spec.check(method, path.partition("?")[0], answer)

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    graph = {"workflow": GRAPH}
    job = (await call("POST", "/api/v2/jobs", 201, json=graph, headers={"traceparent": trace}))["id"]
    items = [{"custom_id": "a", **graph}]
    made = await call("POST", "/api/v2/batches", 201, json={"items": items})
    await api.client.post(f"/api/v1/batches/{made['id']}/cancel")
    claim = await api.claim(job)
    await api.stores.runs.left(claim, [])
    error = JobError(code="out_of_memory", message="no memory left", traceback="line 1")
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=None)
    for path in ("", f"/{job}", f"/{job}/workflow", f"/{job}/events"):
        await call("GET", f"/api/v2/jobs{path}", 200)
    await call("POST", f"/api/v2/jobs/{job}/cancel", 200)
    await call("POST", "/api/v2/jobs", 422, json={})
    made = await upload(api, b"bytes")
    asset = spec.check("POST", "/api/v2/assets", made)
    at = f"/api/v2/assets/{asset['id']}"
    await call("GET", at, 200)
    await call("GET", f"{at}/content", 200)
    await call("GET", f"{at}/content", 206, headers={"Range": "bytes=0-1"})
    await call("GET", f"{at}/content", 416, headers={"Range": "bytes=99-"})
    await call("POST", "/api/v2/assets/from-hash", 201, json={"hash": asset["hash"], "file_path": "b.png"})
    await call("HEAD", f"/api/v2/assets/by-hash/{asset['hash']}", 200)
    await call("DELETE", at, 204)
    await call("GET", at, 404)
    await call("GET", "/api/v2/health", 200)
    described = {
        operation["operationId"] for methods in spec.spec["paths"].values() for operation in methods.values()
    }
    assert spec.seen == described
