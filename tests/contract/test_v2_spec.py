"""Every answer of Comfy API v2 against the contract itself: ``spec/openapi.yaml`` of the official SDK.

Each answer that these tests get is held against the schema of its operation and status; the last test tells
which operations and statuses have been seen, so that none is forgotten. What the contract leaves open (405,
413, unreadable bodies) has to have its error envelope all the same.
"""

import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from blake3 import blake3
from PIL import Image

from tests.acceptance.up import Up, keyed_fleet
from tests.contract.openapi import Contract
from tests.sdk_source import unpack

KEY, OTHER, AGENT = "ann-key-0123456789", "bob-key-0123456789", "agent-0123456789abc"
DEPTH, STREAMS = 3, 1
NIL = "00000000-0000-4000-8000-000000000000"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    source = unpack(tmp_path_factory.mktemp("sdk"))
    return Contract(yaml.safe_load((source / "spec" / "openapi.yaml").read_text()))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("spec")
    env = {"FLEET_QUEUE_DEPTH": str(DEPTH), "FLEET_MAX_STREAMS": str(STREAMS)}
    keys = f"ann {KEY}\nbob {OTHER}\n"
    with keyed_fleet(folder, keys, AGENT, "--sim-args", "--previews", **env) as up:
        yield up


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def client(fleet: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, headers=bearer(KEY), timeout=20) as http:
        yield http


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(**more: Any) -> dict[str, Any]:
    color = uuid.uuid4().int % 0xFFFFFF
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=color),
        "2": node("SaveImage", images=["1", 0], filename_prefix="spec"),
        **more,
    }


def sleeping(seconds: float) -> dict[str, Any]:
    return picture(**{"2": node("SaveImage", images=["3", 0], filename_prefix="spec")},
                   **{"3": node("TestSleep", value=["1", 0], seconds=seconds)})  # fmt: skip


def drawing(steps: int) -> dict[str, Any]:
    """A graph with a sampler: it shows previews."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"),
        "4": node("CLIPTextEncode", clip=["1", 1], text=uuid.uuid4().hex),
        "6": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "7": node("KSampler", model=["1", 0], positive=["4", 0], negative=["4", 0], latent_image=["6", 0],
                  seed=1, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="spec"),
    }  # fmt: skip


def submit(contract: Contract, client: httpx.Client, graph: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = client.post("/api/v2/jobs", json={"workflow": graph, **more})
    job: dict[str, Any] = contract.check("postJobs", answer, 201)
    return job


def poll(contract: Contract, client: httpx.Client, job_id: str, *statuses: str) -> dict[str, Any]:
    """Ask until the job has one of the statuses; every answer on the way has to be valid."""
    deadline = time.monotonic() + 30
    while True:
        job: dict[str, Any] = contract.check("getJob", client.get(f"/api/v2/jobs/{job_id}"), 200)
        if job["status"] in (statuses or ("succeeded", "failed", "canceled", "expired")):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


def upload(client: httpx.Client, data: bytes, **fields: str) -> httpx.Response:
    form = {"content_type": "image/png", "file_path": "photo.png", **fields}
    return client.post("/api/v2/assets", files={"file": ("photo.png", data)}, data=form)


@dataclass(frozen=True)
class Event:
    name: str
    data: Any


def events(
    fleet: Up, job_id: str, first: Callable[[], object] = lambda: None
) -> tuple[httpx.Response, list[Event]]:
    """Read a stream to its end; once it has told something, call ``first``."""
    found: list[Event] = []
    with httpx.stream(
        "GET", f"{fleet.url}/api/v2/jobs/{job_id}/events", headers=bearer(KEY), timeout=30
    ) as answer:
        name = ""
        for line in answer.iter_lines():
            assert line == "" or line.startswith((":", "event: ", "data: ")), line  # no id, no retry
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append(Event(name, json.loads(line[6:])))
                if len(found) == 1:
                    first()
    return answer, found


def test_a_job_from_submit_to_end(contract: Contract, client: httpx.Client, fleet: Up) -> None:
    graph = picture()
    job = submit(contract, client, graph)
    assert job["status"] == "queued" and job["outputs"] == [] and job["error"] is None
    for name, tail in (("self", ""), ("events", "/events"), ("cancel", "/cancel")):
        assert job["urls"][name] == f"{fleet.url}/api/v2/jobs/{job['id']}{tail}"
    done = poll(contract, client, job["id"])
    assert done["status"] == "succeeded" and done["queue_position"] is None
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] < done["expires_at"]
    assert all(isinstance(value, int) for value in done["metrics"].values())
    (output,) = done["outputs"]
    assert (output["type"], output["node_id"], output["job_id"]) == ("image", "2", job["id"])
    assert output["url"] == f"{fleet.url}/api/v2/assets/{output['id']}/content"
    asset = contract.check("getAsset", client.get(f"/api/v2/assets/{output['id']}"), 200)
    assert {asset[key] == output[key] for key in ("hash", "size_bytes", "content_type", "job_id")} == {True}
    content = client.get(output["url"])
    contract.check("getAssetContent", content, 200)
    assert f"blake3:{blake3(content.content).hexdigest()}" == asset["hash"]
    shown = contract.check("getJobWorkflow", client.get(f"/api/v2/jobs/{job['id']}/workflow"), 200)
    assert shown == {"workflow": graph, "format": "api"}
    assert contract.check("cancelJob", client.post(done["urls"]["cancel"]), 200)["status"] == "succeeded"


@pytest.mark.parametrize(
    "metadata", [None, {}, {"client": "acme", "shot": "7"}, "an opaque text", "ä" * 512, {"k": "v" * 256}]
)
def test_metadata_in_both_shapes(contract: Contract, client: httpx.Client, metadata: object) -> None:
    job = submit(contract, client, picture(), metadata=metadata)
    assert job["metadata"] == metadata
    assert poll(contract, client, job["id"])["metadata"] == metadata


@pytest.mark.parametrize("priority", [-1_000_000, 0, 1000])
def test_priorities(contract: Contract, client: httpx.Client, priority: int) -> None:
    job = submit(contract, client, picture(), priority=priority)
    assert job["priority"] == priority
    poll(contract, client, job["id"])


def test_a_failure_tells_where(contract: Contract, client: httpx.Client) -> None:
    graph = picture(**{"2": node("SaveImage", images=["3", 0], filename_prefix="spec")},
                    **{"3": node("TestSyncError", value=["1", 0])})  # fmt: skip
    job = poll(contract, client, submit(contract, client, graph)["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "node_execution_error")
    assert (job["error"]["node_id"], job["error"]["class_type"]) == ("3", "TestSyncError")


def test_the_stream_follows_its_catalog(contract: Contract, client: httpx.Client, fleet: Up) -> None:
    catalog = contract.operations["getJobEvents"]["x-sse-events"]
    before = submit(contract, client, sleeping(60))
    poll(contract, client, before["id"], "running")
    job = submit(contract, client, drawing(100))  # on a busy machine, too, long enough for a preview
    answer, found = events(fleet, job["id"], lambda: client.post(before["urls"]["cancel"]))
    contract.check("getJobEvents", answer, 200)
    assert answer.headers["content-type"].startswith("text/event-stream")
    for event in found:
        assert not catalog[event.name].get("x-sse-not-yet-emitted")
        contract.valid({"$ref": catalog[event.name]["schema"]}, event.data)
    assert {event.name for event in found} == {"status", "progress", "preview", "output"}
    assert (found[0].name, found[0].data["status"]) == ("status", "queued")  # the snapshot first
    assert (found[-1].name, found[-1].data["status"]) == ("status", "succeeded")  # and the end last
    values = [event.data["value"] for event in found if event.name == "progress"]
    assert values == sorted(values)
    # The same objects, but retention counts from the job's end, which was not known yet.
    outputs = [{**event.data, "url_expires_at": None} for event in found if event.name == "output"]
    final = poll(contract, client, job["id"])["outputs"]
    assert outputs == [{**output, "url_expires_at": None} for output in final]
    # The stream of a job that has ended tells its outputs, then the status that ends every stream.
    _, after = events(fleet, job["id"])
    assert [event.data["status"] for event in after if event.name == "status"] == ["succeeded"]
    assert after[-1].name == "status"
    for event in after:
        contract.valid({"$ref": catalog[event.name]["schema"]}, event.data)


def test_the_queue_streams_and_cancels(contract: Contract, client: httpx.Client, fleet: Up) -> None:
    running = submit(contract, client, sleeping(60))
    poll(contract, client, running["id"], "running")
    waiting = [submit(contract, client, sleeping(60)) for _ in range(DEPTH)]
    assert [job["queue_position"] for job in waiting] == sorted(job["queue_position"] for job in waiting)
    full = contract.check("postJobs", client.post("/api/v2/jobs", json={"workflow": picture()}), 429)
    assert full["error"]["code"] == "queue_full"
    first = threading.Event()
    seen: list[Event] = []

    def follow() -> None:
        at = f"{fleet.url}/api/v2/jobs/{running['id']}/events"
        with httpx.stream("GET", at, headers=bearer(KEY), timeout=30) as answer:
            for line in answer.iter_lines():
                first.set()
                if line.startswith("data: "):
                    seen.append(Event("", json.loads(line[6:])))

    follower = threading.Thread(target=follow)
    follower.start()
    assert first.wait(10)
    for _ in range(2):
        more = contract.check("getJobEvents", client.get(f"/api/v2/jobs/{running['id']}/events"), 429)
        assert more["error"]["code"] == "too_many_streams"
    for job in [*waiting, running]:
        canceled = contract.check("cancelJob", client.post(job["urls"]["cancel"]), 200)
        assert canceled["status"] in ("canceling", "canceled")
    for job in [*waiting, running]:
        assert poll(contract, client, job["id"])["status"] == "canceled"
        assert contract.check("cancelJob", client.post(job["urls"]["cancel"]), 200)["status"] == "canceled"
    follower.join(10)
    assert seen[-1].data["status"] == "canceled"


def test_uploads(contract: Contract, client: httpx.Client) -> None:
    data = uuid.uuid4().bytes
    digest = f"blake3:{blake3(data).hexdigest()}"
    contract.check("headAssetByHash", client.head(f"/api/v2/assets/by-hash/{digest}"), 404)
    wanted = {"hash": digest, "file_path": "photo.png", "expires_in": 60}
    missing = contract.check("assetFromHash", client.post("/api/v2/assets/from-hash", json=wanted), 404)
    assert missing["error"]["code"] == "blob_not_found"
    new = contract.check("postAssets", upload(client, data, tags="input", expires_in="3600"), 201)
    assert (new["created_new"], new["hash"], new["size_bytes"]) == (True, digest, 16)
    assert (new["content_type"], new["file_path"]) == ("image/png", "photo.png")
    assert "job_id" not in new and new["expires_at"] is not None
    contract.check("headAssetByHash", client.head(f"/api/v2/assets/by-hash/{digest}"), 200)
    again = contract.check(
        "postAssets", upload(client, data, file_path="other.png", expected_hash=digest), 200
    )
    assert (again["created_new"], again["file_path"]) == (False, "other.png")
    minted = contract.check(
        "assetFromHash",
        client.post("/api/v2/assets/from-hash", json={"hash": digest, "file_path": "third.png"}),
        201,
    )
    assert minted["created_new"] is False and minted["hash"] == digest
    same = contract.check(
        "assetFromHash",
        client.post("/api/v2/assets/from-hash", json={"hash": digest, "file_path": "third.png"}),
        200,
    )
    assert same["id"] == minted["id"]
    wrong = contract.check("postAssets", upload(client, data, expected_hash="blake3:" + "0" * 64), 409)
    assert wrong["error"]["code"] == "hash_mismatch"
    at = f"/api/v2/assets/{new['id']}"
    assert contract.check("getAsset", client.get(at), 200)["id"] == new["id"]
    part = client.get(f"{at}/content", headers={"Range": "bytes=2-5"})
    contract.check("getAssetContent", part, 206)
    assert (part.content, part.headers["content-range"]) == (data[2:6], "bytes 2-5/16")
    contract.check("getAssetContent", client.get(f"{at}/content", headers={"Range": "bytes=99-"}), 416)
    contract.check("deleteAsset", client.delete(at), 204)
    for answer, operation in (
        (client.delete(at), "deleteAsset"),
        (client.get(at), "getAsset"),
        (client.get(f"{at}/content"), "getAssetContent"),
    ):
        assert contract.check(operation, answer, 404)["error"]["code"] == "not_found"
    assert client.get(again["url"]).content == data  # the bytes stay as long as somebody refers to them


def test_an_asset_that_a_job_needs_stays(contract: Contract, client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    asset = contract.check("postAssets", upload(client, file.getvalue()), 201)
    reference = {"__type": "core/ASSET", "info": {"id": asset["id"], "file_path": "photo.png"}}
    graph = sleeping(60)
    graph["1"] = node("LoadImage", image=reference)
    job = submit(contract, client, graph)
    kept = contract.check("deleteAsset", client.delete(f"/api/v2/assets/{asset['id']}"), 409)
    assert kept["error"] == {"code": "asset_in_use", "message": "the asset is in use", "details": None}
    client.post(job["urls"]["cancel"])
    poll(contract, client, job["id"])
    contract.check("deleteAsset", client.delete(f"/api/v2/assets/{asset['id']}"), 204)


def test_what_a_submit_is_refused_for(contract: Contract, client: httpx.Client) -> None:
    reference = {"__type": "core/ASSET", "info": {"id": NIL}}
    bodies: list[tuple[dict[str, Any], str]] = [
        ({}, "invalid_workflow"),
        ({"workflow": {}}, "invalid_workflow"),
        ({"workflow": picture(**{"3": node("NoSuchClass")})}, "invalid_workflow"),
        ({"workflow": {"nodes": [], "links": []}}, "workflow_format_ui"),
        ({"workflow": picture(**{"1": node("LoadImage", image=reference)})}, "missing_asset"),
        ({"workflow": picture(), "extra_data": {"other": 1}}, "invalid_request"),
        ({"workflow": picture(), "webhook_url": "http://10.0.0.1/"}, "invalid_request"),
        ({"workflow": picture(), "inputs": {}}, "invalid_workflow"),
        ({"workflow": picture(), "metadata": {"a b": "c"}}, "metadata_invalid"),
        ({"workflow": picture(), "priority": 1.5}, "invalid_request"),
    ]
    for body, code in bodies:
        answer = contract.check("postJobs", client.post("/api/v2/jobs", json=body), 422)
        assert answer["error"]["code"] == code, body
    nodes = contract.check("postJobs", client.post("/api/v2/jobs", json=bodies[2][0]), 422)
    assert {"field", "reason"} <= set(nodes["error"]["details"]["node_errors"]["3"][0])
    contract.check("postJobs", client.post("/api/v2/jobs", content=b"{"), 400)
    contract.check("postJobs", client.put("/api/v2/jobs", content=b"{}"), 405)
    huge = client.post("/api/v2/jobs", content=b" " * (17 * 1024 * 1024))
    contract.check("postJobs", huge, 413)


def test_a_key_makes_one_job(contract: Contract, client: httpx.Client) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    # A submit that makes no job gives its key back.
    contract.check("postJobs", client.post("/api/v2/jobs", json={"workflow": {}}, headers=key), 422)
    made = contract.check(
        "postJobs", client.post("/api/v2/jobs", json={"workflow": picture()}, headers=key), 201
    )
    for body in ({"workflow": picture()}, {"workflow": {}, "more": 1}):
        answer = client.post("/api/v2/jobs", json=body, headers=key)
        reused = contract.check("postJobs", answer, 422)
        assert reused["error"]["code"] in ("idempotency_key_reuse", "invalid_workflow")
        assert "idempotency-replayed" not in answer.headers
    again = contract.check(
        "postJobs", client.post("/api/v2/jobs", json={"workflow": picture()}, headers=key), 422
    )
    assert again["error"]["details"]["job_id"] == made["id"]
    poll(contract, client, made["id"])
    form = {"file": ("x", uuid.uuid4().bytes)}
    fields = {"file_path": "x", "content_type": "image/png"}
    first = client.post("/api/v2/assets", files=form, data=fields, headers=key)
    contract.check("postAssets", first, 201)  # another operation, another scope
    second = contract.check(
        "postAssets", client.post("/api/v2/assets", files=form, data=fields, headers=key), 422
    )
    assert second["error"]["code"] == "idempotency_key_reuse"


def test_lists_page_by_page(contract: Contract, client: httpx.Client) -> None:
    label = {"page": uuid.uuid4().hex}
    made = []
    for _ in range(3):  # the queue is short here
        made.append(submit(contract, client, picture(), metadata=label)["id"])
        poll(contract, client, made[-1])
    query = {"metadata[page]": label["page"], "limit": "2"}
    first = client.get("/api/v2/jobs", params=query).json()
    second = client.get("/api/v2/jobs", params={**query, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == made[::-1]
    assert isinstance(first["next_cursor"], str) and second["next_cursor"] is None
    for job in first["jobs"]:
        contract.named("Job", job)
        contract.valid({"type": "string", "format": "date-time"}, job["create_time"])
    for bad in ({"cursor": "x"}, {"limit": "0"}, {"status": "x"}, {"metadata[a b]": "c"}):
        contract.named("ErrorEnvelope", client.get("/api/v2/jobs", params=bad).json())


CALLS = [
    ("postAssets", "POST", "/api/v2/assets"),
    ("assetFromHash", "POST", "/api/v2/assets/from-hash"),
    ("headAssetByHash", "HEAD", "/api/v2/assets/by-hash/blake3:" + "0" * 64),
    ("getAsset", "GET", f"/api/v2/assets/{NIL}"),
    ("deleteAsset", "DELETE", f"/api/v2/assets/{NIL}"),
    ("getAssetContent", "GET", f"/api/v2/assets/{NIL}/content"),
    ("postJobs", "POST", "/api/v2/jobs"),
    ("getJob", "GET", f"/api/v2/jobs/{NIL}"),
    ("getJobWorkflow", "GET", f"/api/v2/jobs/{NIL}/workflow"),
    ("getJobEvents", "GET", f"/api/v2/jobs/{NIL}/events"),
    ("cancelJob", "POST", f"/api/v2/jobs/{NIL}/cancel"),
]


@pytest.mark.parametrize(("operation", "method", "path"), CALLS)
def test_who_may(contract: Contract, fleet: Up, operation: str, method: str, path: str) -> None:
    for headers in ({}, bearer("wrong")):
        answer = httpx.request(method, f"{fleet.url}{path}", headers=headers)
        body = contract.check(operation, answer, 401)
        assert body is None or body["error"]["code"] == "unauthorized"
    answer = httpx.request(method, f"{fleet.url}{path}", headers=bearer(AGENT))
    if "403" in contract.operations[operation]["responses"]:
        assert contract.check(operation, answer, 403)["error"]["code"] == "forbidden"
    else:
        assert answer.status_code == 403
    if "{id}" in path or NIL in path:
        body = contract.check(
            operation, httpx.request(method, f"{fleet.url}{path}", headers=bearer(OTHER)), 404
        )
        assert body["error"]["code"] == "not_found"


def test_every_documented_answer_was_seen(contract: Contract, request: pytest.FixtureRequest) -> None:
    ran = {item.name for item in request.session.items if item.path == Path(__file__)}
    assert len(ran) >= 20, "this looks at what the whole module saw: run all of it"
    documented = {
        (name, int(status))
        for name, operation in contract.operations.items()
        for status in operation["responses"]
    }
    elsewhere = {
        ("getAssetContent", 302),  # redirects and credits are the hosted service's
        ("postJobs", 402),
        ("getJobEvents", 501),
        *((name, 500) for name in contract.operations),  # needs a broken Redis
        *((name, 429) for name in ("getJob", "getJobWorkflow", "cancelJob")),  # the edge's limit, off here
    }
    assert documented - contract.seen == elsewhere
