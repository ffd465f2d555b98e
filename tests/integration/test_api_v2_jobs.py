"""Comfy API v2: jobs, as the contract has them."""

import asyncio
import copy
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from comfy_low.models import Job as SdkJob
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.job_records import load_extra_data
from comfy_fleet.adapters.system.secret_box import SecretBox
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from comfy_fleet.services.node_directory import NodeDirectory
from tests.factories import GRAPH, picture
from tests.integration.api_kit import Api, code, running


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


@pytest.fixture
async def ready(api: Api) -> Api:
    await api.add_node()
    return api


async def test_a_job_from_submit_to_end(ready: Api) -> None:
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH, "priority": 5})
    assert answer.status_code == 201
    job = answer.json()
    SdkJob.model_validate(job)
    assert (job["status"], job["queue_position"], job["priority"]) == ("queued", 1, 5)
    assert job["urls"]["self"] == f"{ready.url}/api/v2/jobs/{job['id']}"

    claim = await ready.claim(job["id"])
    got = (await ready.client.get(job["urls"]["self"])).json()
    assert (got["status"], got["queue_position"], got["node"]) == ("running", None, "g1")
    output = await ready.output(claim, b"picture")
    await ready.finish(claim)

    got = (await ready.client.get(job["urls"]["self"])).json()
    SdkJob.model_validate(got)
    assert got["status"] == "succeeded"
    assert got["metrics"]["queue_ms"] >= 0
    assert got["metrics"]["execution_ms"] >= 0
    assert [o["id"] for o in got["outputs"]] == [output.asset_id]
    picture = await ready.client.get(got["outputs"][0]["url"])
    assert picture.content == b"picture"
    assert picture.headers["content-type"] == "image/png"


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/api/v2/jobs", {"workflow": GRAPH}, "id"),
        ("/api/v1/generate", {"prompt": "x"}, "task_id"),
        ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}, "id"),
    ],
)
async def test_a_trace_travels_with_its_job(ready: Api, path: str, body: dict[str, Any], name: str) -> None:
    made = (await ready.client.post(path, json=body, headers={"traceparent": TRACE})).json()
    claim = await ready.claim(made[name])
    assert claim.job.traceparent == claim.log_fields["traceparent"] == TRACE
    for face in ("v1", "v2"):
        assert (await ready.client.get(f"/api/{face}/jobs/{made[name]}")).json()["traceparent"] == TRACE
    assert (await ready.client.get("/api/v2/jobs")).json()["jobs"][0]["traceparent"] == TRACE


@pytest.mark.parametrize("headers", [{}, {"traceparent": TRACE.upper()}, {"traceparent": "\xff"}])
async def test_a_malformed_trace_is_ignored(ready: Api, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=raw)
    assert answer.status_code == 201 and "traceparent" not in answer.json()
    twice = [("traceparent", TRACE), ("traceparent", TRACE)]
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=twice)
    assert answer.status_code == 201 and "traceparent" not in answer.json()


async def test_every_face_tells_of_all_progress_and_attempts(ready: Api) -> None:
    job = await ready.submit(GRAPH)
    first = await ready.claim(job["id"])
    gone = JobError(code="node_lost", message="the node went down")
    await ready.stores.runs.requeue(first, counts=True, reason=gone)
    claim = await ready.claim(job["id"])
    await ready.stores.runs.progress(claim, Progress(value=0.75, nodes_done=1, nodes_total=2))
    await ready.finish(claim)
    for version in ("v1", "v2"):
        got = (await ready.client.get(f"/api/{version}/jobs/{job['id']}")).json()
        assert (got["progress"]["value"], got["progress"]["nodes_done"]) == (1.0, 2)
        lost, done = got["attempts"]
        assert lost.items() >= {"run": first.run, "node": "g1", "counted": True}.items()
        assert lost["error"] == {"code": "node_lost", "message": "the node went down"}
        assert got["created_at"] <= lost["started_at"] <= lost["ended_at"] <= done["started_at"]
        assert (done["run"], done["counted"], done["error"]) == (claim.run, False, None)
        (listed,) = (await ready.client.get(f"/api/{version}/jobs")).json()["jobs"]
        assert listed["progress"] == got["progress"] and "attempts" not in listed
    for task in (f"status/{job['id']}", f"result?task_id={job['id']}"):
        assert (await ready.client.get(f"/api/v1/{task}")).json()["progress"] == 1.0


async def test_workflow_comes_back_as_it_was_sent(ready: Api) -> None:
    graph = copy.deepcopy(GRAPH)
    graph["2"]["_meta"] = {"title": "Ünïcode"}
    graph["9"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 2**64 - 1}}
    job = await ready.submit(graph, extra_data={"api_key_comfy_org": "comfyui-secret"})
    answer = await ready.client.get(f"/api/v2/jobs/{job['id']}/workflow")
    assert answer.json() == {"workflow": graph, "format": "api"}
    assert list(answer.json()["workflow"]) == list(graph)


async def test_partner_key_is_encrypted_and_in_no_record(ready: Api, redis: Redis, tmp_path: Path) -> None:
    key = "comfyui-very-secret-key"
    job = await ready.submit(GRAPH, extra_data={"api_key_comfy_org": key})
    box = SecretBox.open(tmp_path / "secret.key")
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    sealed = await redis.get(f"fleet:job:{job['id']}:secret")
    assert isinstance(sealed, bytes)
    assert box.open_sealed(sealed) == b'{"api_key_comfy_org":"%s"}' % key.encode()
    for name in await redis.keys("*"):
        assert key.encode() not in (await redis.dump(name) or b"")
    claim = await ready.claim(job["id"])
    assert await ready.stores.runs.secret(claim) == sealed
    await ready.finish(claim)
    assert await redis.get(f"fleet:job:{job['id']}:secret") is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "invalid_request")),
        (b"{", (400, "invalid_request")),
        (b"null", (400, "invalid_request")),
        (b"[1]", (400, "invalid_request")),
        (b'"x"', (400, "invalid_request")),
        (b'{"workflow": {"1": NaN}}', (400, "invalid_request")),
        (b'{"workflow": "\xff"}', (400, "invalid_request")),
        (b'{"workflow": ' + b"[" * 3000 + b"]" * 3000 + b"}", (400, "invalid_request")),
        (b"{}", (422, "invalid_workflow")),
        (b'{"workflow": null}', (422, "invalid_workflow")),
        (b'{"workflow": []}', (422, "invalid_workflow")),
        (b'{"workflow": {}}', (422, "invalid_workflow")),
        (b'{"workflow": {"1": {"class_type": "X", "inputs": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}}}",
         (422, "invalid_workflow")),
        (b'{"workflow": {"nodes": [], "links": []}}', (422, "workflow_format_ui")),
        (b'{"workflow": {}, "webhook_url": "x"}', (422, "invalid_request")),
        (b'{"workflow": {}, "inputs": {}}', (422, "invalid_workflow")),
    ],
)  # fmt: skip
async def test_bad_bodies_get_the_envelope(ready: Api, body: bytes, expected: tuple[int, str]) -> None:
    answer = await ready.client.post(
        "/api/v2/jobs", content=body, headers={"content-type": "application/json"}
    )
    assert code(answer) == expected
    assert await ready.stores.jobs.depth() == 0


LONG = "x" * 200_000


@pytest.mark.parametrize(
    "graph",
    [
        {"1": {"class_type": LONG, "inputs": {}}},
        {LONG: {"class_type": "SaveImage", "inputs": {LONG: ["2", 0]}}},
        {"1": {"class_type": "SaveImage", "inputs": {"images": [LONG, 0]}}},
        {"1": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
         "2": {"class_type": "EmptyImage", "inputs": {"width": LONG}}},
        {str(number): {"class_type": f"Class{number}" * 20, "inputs": {}} for number in range(4000)},
    ],
    ids=["a class", "an id", "a link", "a value", "many"],
)  # fmt: skip
async def test_a_refusal_is_short_however_long_the_names(ready: Api, graph: dict[str, Any]) -> None:
    await until(lambda: ready.deps.inventories.known == {"g1"})
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": graph})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid_workflow"
    assert error["details"]["field"] == "workflow"
    assert error["details"]["node_errors"]
    assert len(answer.content) < 600_000
    assert len(graph) > 1 or len(answer.content) < 20_000


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"priority": True}, "invalid_request"),
        ({"priority": 1.5}, "invalid_request"),
        ({"priority": "1"}, "invalid_request"),
        ({"priority": 1_000_001}, "invalid_request"),
        ({"priority": -1_000_001}, "invalid_request"),
        ({"metadata": 5}, "metadata_invalid"),
        ({"metadata": {"a b": "x"}}, "metadata_invalid"),
        ({"metadata": {"a": 1}}, "metadata_invalid"),
        ({"metadata": {"a": "x" * 257}}, "metadata_invalid"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata_invalid"),
        ({"metadata": "ü" * 600}, "metadata_invalid"),
        ({"extra_data": []}, "invalid_request"),
        ({"extra_data": {"extra_pnginfo": []}}, "invalid_request"),
        ({"extra_data": {"api_key_comfy_org": None}}, "invalid_request"),
        ({"deadline_s": 0}, "invalid_request"),
    ],
)
async def test_bad_wishes_are_refused(ready: Api, more: dict[str, Any], expected: str) -> None:
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH, **more})
    assert code(answer) == (422, expected)


async def test_bodies_have_a_limit(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, max_body_bytes=2000) as api:
        big = b'{"workflow": "' + b"x" * 3000 + b'"}'
        assert code(await api.client.post("/api/v2/jobs", content=big)) == (413, "payload_too_large")

        async def chunked() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 100

        assert code(await api.client.post("/api/v2/jobs", content=chunked())) == (413, "payload_too_large")


@pytest.mark.parametrize("path", ["/api/v2/jobs", "/api/v2/assets", "/api/v1/generate"])
async def test_compressed_bodies_are_refused_by_name(ready: Api, path: str) -> None:
    body = gzip.compress(b'{"workflow": {}}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=B"}
    answer = await ready.client.post(path, content=body, headers=headers)
    assert code(answer) == (415, "unsupported_media_type")
    assert answer.json()["error"]["details"] == {"field": "Content-Encoding"}
    assert answer.headers["accept-encoding"] == "identity"
    plain = await ready.client.post(path, content=b"", headers={"Content-Encoding": "identity"})
    assert plain.status_code in (400, 422)


async def test_an_idempotency_key_comes_only_once(ready: Api) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=headers)
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["error"]["details"] == {"field": "Idempotency-Key"}


async def test_unknown_routes_and_methods_get_the_envelope(api: Api) -> None:
    assert code(await api.client.get("/nothing")) == (404, "not_found")
    assert code(await api.client.get("/api/v2/jobs/")) == (404, "not_found")
    for path, methods in (
        ("/api/v2/jobs", "GET, HEAD, POST"),
        ("/api/v2/assets/x", "DELETE, GET, HEAD"),
        ("/api/v1/nodes/x", "DELETE, GET, HEAD"),
    ):
        answer = await api.client.put(path)
        assert (code(answer), answer.headers["allow"]) == ((405, "method_not_allowed"), methods)
    for path in ("x", "00000000-0000-0000-0000-000000000000", "x:outputs", "%00", "..%2f.."):
        assert (await api.client.get(f"/api/v2/jobs/{path}")).status_code == 404


async def test_graphs_are_checked_against_the_nodes(ready: Api) -> None:
    await until(lambda: ready.deps.inventories.known == {"g1"})
    graph = copy.deepcopy(GRAPH)
    graph["1"]["class_type"] = "NoSuchNode"
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": graph})
    assert code(answer) == (422, "invalid_workflow")
    details = answer.json()["error"]["details"]
    assert details["node_errors"]["1"][0]["reason"] == "unknown_class"
    assert list(details["nodes"]) == ["g1"]
    graph = copy.deepcopy(GRAPH)
    del graph["2"]["inputs"]["images"]
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": graph})
    assert answer.json()["error"]["details"]["node_errors"]["2"][0]["reason"] == "missing_input"


async def test_a_graph_goes_to_the_nodes_that_can_run_it(ready: Api) -> None:
    await ready.add_node("g2", info=False)
    odd = {"1": {"class_type": "OddNode", "inputs": {}}}
    one = {"input": {"required": {}}, "output": [], "output_node": True, "name": "OddNode"}
    ready.info.serve("g3", {"OddNode": one})
    await ready.add_node("g3", info=False)
    await until(lambda: ready.deps.inventories.known == {"g1", "g3"})
    job = await ready.submit(odd)
    record = await ready.stores.jobs.get(job["id"])
    assert record is not None
    assert record.placement.nodes == frozenset()
    directory = NodeDirectory(ready.stores.nodes, ready.stores.inventories)
    await directory.look()
    await directory.learn([record.placement])
    assert directory.able(record.placement) == {"g2", "g3"}  # nobody knows what g2 has


async def test_without_nodes_there_is_a_503(api: Api) -> None:
    assert code(await api.client.post("/api/v2/jobs", json={"workflow": {}})) == (422, "invalid_workflow")
    answer = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers={"Idempotency-Key": "k"})
    assert code(answer) == (503, "no_nodes")
    assert int(answer.headers["retry-after"]) >= 1
    await api.add_node()
    again = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 201


async def test_queue_full_keeps_the_key_free(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, queue_depth=1) as api:
        await api.add_node()
        job = await api.submit(GRAPH)
        full = await api.client.post(
            "/api/v2/jobs", json={"workflow": GRAPH}, headers={"Idempotency-Key": "k"}
        )
        assert code(full) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        await api.client.post(f"/api/v2/jobs/{job['id']}/cancel")
        again = await api.client.post(
            "/api/v2/jobs", json={"workflow": GRAPH}, headers={"Idempotency-Key": "k"}
        )
        assert again.status_code == 201


async def test_idempotency_keys_are_single_use(ready: Api) -> None:
    send: dict[str, Any] = {"json": {"workflow": GRAPH}, "headers": {"Idempotency-Key": "key-1"}}
    bad = await ready.client.post("/api/v2/jobs", json={"workflow": {}}, headers=send["headers"])
    assert bad.status_code == 422  # claims nothing
    answers = await asyncio.gather(*(ready.client.post("/api/v2/jobs", **send) for _ in range(8)))
    made = [a for a in answers if a.status_code == 201]
    assert len(made) == 1
    for refused in (a for a in answers if a.status_code != 201):
        assert code(refused) == (422, "idempotency_key_reuse")
        assert refused.json()["error"]["details"]["job_id"] == made[0].json()["id"]
    bodies: tuple[Any, ...] = ({"workflow": {}}, {"webhook_url": "x"}, [])
    for late in bodies:  # wrong themselves, and the key is used
        refused = await ready.client.post("/api/v2/jobs", json=late, headers=send["headers"])
        assert code(refused) == (422, "idempotency_key_reuse")
        assert refused.json()["error"]["details"]["job_id"] == made[0].json()["id"]
    for key in (b"", b"x" * 256, "ü".encode()):
        answer = await ready.client.post(
            "/api/v2/jobs", json={"workflow": GRAPH}, headers={b"Idempotency-Key": key}
        )
        assert code(answer) == (400, "invalid_request")


async def test_listing(ready: Api) -> None:
    ids = [
        (await ready.submit(GRAPH, metadata={"client": "acme", "n": str(n)} if n % 2 else "opaque"))["id"]
        for n in range(5)
    ]
    page = (await ready.client.get("/api/v2/jobs")).json()
    assert [j["id"] for j in page["jobs"]] == ids[::-1]
    assert page["next_cursor"] is None
    item = page["jobs"][0]
    assert item["create_time"] == item["update_time"] == item["created_at"]
    assert item["deployment_id"] is None
    assert item["metadata"] == "opaque"

    first = (await ready.client.get("/api/v2/jobs?limit=2")).json()
    second = (
        await ready.client.get("/api/v2/jobs", params={"limit": 2, "cursor": first["next_cursor"]})
    ).json()
    assert [j["id"] for j in first["jobs"] + second["jobs"]] == ids[::-1][:4]

    acme = (await ready.client.get("/api/v2/jobs", params={"metadata[client]": "acme"})).json()
    assert [j["id"] for j in acme["jobs"]] == [ids[3], ids[1]]
    one = (await ready.client.get("/api/v2/jobs?metadata[client]=acme&metadata[n]=3")).json()
    assert [j["id"] for j in one["jobs"]] == [ids[3]]

    await ready.client.post(f"/api/v2/jobs/{ids[0]}/cancel")
    done = (await ready.client.get("/api/v2/jobs?status=canceled,failed")).json()
    assert [j["id"] for j in done["jobs"]] == [ids[0]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=0", "invalid_request"),
        ("limit=101", "invalid_request"),
        ("limit=x", "invalid_request"),
        ("status=nope", "invalid_request"),
        ("cursor=%21", "invalid_cursor"),
        ("cursor=abcd", "invalid_cursor"),
        ("cursor=", "invalid_cursor"),
        ("metadata[a%20b]=x", "invalid_metadata_filter"),
        ("metadata=x", "invalid_metadata_filter"),
        ("metadata[a]=1&metadata[a]=2", "invalid_metadata_filter"),
        ("&".join(f"metadata[k{i}]=v" for i in range(17)), "invalid_metadata_filter"),
    ],
)
async def test_bad_listings(api: Api, query: str, expected: str) -> None:
    assert code(await api.client.get(f"/api/v2/jobs?{query}")) == (400, expected)


async def test_cancel(ready: Api) -> None:
    queued = await ready.submit(GRAPH)
    answer = await ready.client.post(queued["urls"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    running_job = await ready.submit(GRAPH)
    claim = await ready.claim(running_job["id"])
    for _ in range(2):
        answer = await ready.client.post(running_job["urls"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (200, "canceling")
    await ready.finish(claim, JobStatus.CANCELED)
    answer = await ready.client.post(running_job["urls"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert (await ready.client.post(f"/api/v2/jobs/{queued['id'][:-1]}x/cancel")).status_code == 404


async def test_links_follow_the_edge_or_the_setting(ready: Api, redis_port: int, tmp_path: Path) -> None:
    job = await ready.submit(GRAPH)
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "localhost:444"}
    got = (await ready.client.get(f"/api/v2/jobs/{job['id']}", headers=headers)).json()
    assert got["urls"]["self"].startswith("https://localhost:444/api/v2/")
    async with running(redis_port, tmp_path, public_url="https://comfy.example.org/") as api:
        got = (await api.client.get(f"/api/v2/jobs/{job['id']}")).json()
        assert got["urls"]["self"] == f"https://comfy.example.org/api/v2/jobs/{job['id']}"


async def test_keyless_fleets_are_out_of_reach_for_web_pages(ready: Api) -> None:
    def post(**headers: str) -> Any:
        return ready.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=headers)

    assert code(await post(Origin="https://evil.example")) == (403, "forbidden")
    assert code(await post(Host="evil.example")) == (403, "forbidden")
    assert code(await post(**{"Host": "evil.example", "X-Forwarded-Host": "localhost"})) == (403, "forbidden")
    assert code(await post(Origin="null")) == (403, "forbidden")
    assert (await post(Origin=ready.url)).status_code == 201
    assert (await post(Authorization="Bearer whatever")).status_code == 201


async def test_a_defect_is_an_upstream_error_that_tells_no_secret(
    ready: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(ready.deps.jobs, "submit", broken)
    answer = await ready.client.post("/api/v2/jobs", json={"workflow": GRAPH})
    assert code(answer) == (500, "upstream_error")
    assert "hunter2" not in answer.text
    assert "hunter2" in caplog.text  # the operator sees it


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_graph_that_certainly_makes_too_many_outputs_is_refused(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    graph = picture(1)
    graph["1"]["inputs"]["batch_size"] = 30
    async with running(redis_port, tmp_path, max_outputs=20) as api:
        await api.add_node()
        answer = await api.client.post("/api/v2/jobs", json={"workflow": graph})
        assert code(answer) == (422, "invalid_workflow")
        error = answer.json()["error"]
        assert "at least 30 outputs, a job may have 20 (FLEET_MAX_OUTPUTS)" in error["message"]
        assert error["details"]["node_errors"]["1"][0]["field"] == "batch_size"
        graph["1"]["inputs"]["batch_size"] = 20
        await api.submit(graph)


async def test_a_byte_order_mark_is_taken_and_what_is_no_number_is_named(api: Api) -> None:
    async def said(content: bytes) -> tuple[int, str]:
        answer = await api.client.post("/api/v2/jobs", content=content)
        return answer.status_code, answer.json()["error"]["message"]

    assert await said(b"\xef\xbb\xbf{}") == await said(b"{}")
    for word in ("NaN", "Infinity", "-Infinity"):
        body = b'{"workflow": {"\xc3\xa9": {"is_changed": [%s]}}}' % word.encode()
        status, message = await said(body)
        assert status == 400
        place = 35 + word.count("-")
        assert f"it holds {word.lstrip('-')} at character {place}" in message, message
    status, message = await said("{}".encode("utf-16"))
    assert (status, "UTF-16: send UTF-8" in message) == (400, True)


async def test_pictures_information_is_taken_within_limits_and_is_in_no_answer(
    ready: Api, redis: Redis, tmp_path: Path
) -> None:
    info = {"workflow": {"nodes": [], "x": "hush"}}
    body = {"workflow": picture(1), "extra_data": {"extra_pnginfo": info, "api_key_comfy_org": "k"}}
    answer = await ready.client.post("/api/v2/jobs", json=body)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    box = SecretBox.open(tmp_path / "secret.key")
    sealed = await redis.get(f"fleet:job:{job_id}:secret")
    assert isinstance(sealed, bytes)
    assert orjson.loads(box.open_sealed(sealed)) == {"api_key_comfy_org": "k"}
    kept = await redis.get(f"fleet:job:{job_id}:extra")
    assert isinstance(kept, bytes)
    assert load_extra_data(kept) == {"extra_pnginfo": info}
    for path in (f"/api/v2/jobs/{job_id}", f"/api/v2/jobs/{job_id}/workflow", "/api/v1/jobs"):
        assert "hush" not in (await ready.client.get(path)).text

    async def refused(extra: Any) -> str:
        answer = await ready.client.post("/api/v2/jobs", json={"workflow": picture(1), "extra_data": extra})
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        return f"{error['details']['field']}: {error['message']}"

    assert "extra_data.extra_pnginfo must be an object" in await refused({"extra_pnginfo": [1]})
    assert "api_key_comfy_org, extra_pnginfo and nothing else" in await refused({"auth_token_comfy_org": "x"})
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    assert "extra_data.extra_pnginfo: extra_data.extra_pnginfo can't be" in await refused(
        {"extra_pnginfo": {"a": deep}}
    )
    large = {"extra_pnginfo": {"workflow": "x" * ready.deps.settings.max_pnginfo_bytes}}
    assert "FLEET_MAX_PNGINFO_BYTES" in await refused(large)
