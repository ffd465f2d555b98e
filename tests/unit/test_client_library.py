"""The Python client by itself: what it sends, repeats, and makes of answers."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pytest

from comfy_fleet.api.openapi import document
from comfy_fleet.api.v1.document import _PATH_NAMES, _TAGS
from comfy_fleet.api.v1.routes import TABLE
from comfy_fleet.api.v2 import routes as v2_routes
from comfy_fleet.client import (
    AccessRefused,
    AsyncFleetClient,
    BrokenDownload,
    ClientError,
    FleetClient,
    FleetUnavailable,
    RateLimited,
    RequestRefused,
    StorageFull,
    WaitExpired,
    calls,
    data,
)
from comfy_fleet.client.batch_calls import BatchCalls
from comfy_fleet.client.job_calls import SubmitOptions
from tests.canned import DONE, JOB, Canned, canned_server, error

JOBS = "/api/v1/workflows/image_card/jobs"
KEY = "k3y-that-nobody-may-see"


@pytest.fixture
def canned() -> Iterator[Canned]:
    with canned_server() as known:
        yield known


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLEET_API_URL", "FLEET_API_KEY", "FLEET_API_CA_FILE"):
        monkeypatch.delenv(name, raising=False)


def client(canned: Canned, **more: Any) -> FleetClient:
    return FleetClient(canned.url, retry_s=more.pop("retry_s", 20), **more)


def in_turn(canned: Canned, method: str, path: str, *answers: tuple[int, Any, dict[str, str]]) -> None:
    """Answer each request with the next of these, and then always with the last."""
    made = []
    for status, body, headers in answers:
        canned.on(method, path, body, status, **headers)
        made.append(canned.answers[method, path])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (made.pop(0) if len(made) > 1 else made[0])(handler)

    canned.answers[method, path] = answer


def keys_of(canned: Canned) -> list[str | None]:
    return [headers.get("Idempotency-Key") for _, _, headers, _ in canned.seen]


LOADED = """
import sys
before = set(sys.modules)
import comfy_fleet.client
print(*sorted(set(sys.modules) - before))
"""
BUSY = (429, error("queue_full", "1000 jobs wait"), {"Retry-After": "0"})
AWAY: tuple[int, bytes, dict[str, str]] = (503, b"<html>", {})


def test_importing_it_loads_nothing_of_the_servers() -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in told if name.startswith("comfy_fleet")}
    assert {name for name in ours if not name.startswith("comfy_fleet.client")} == {
        "comfy_fleet",
        "comfy_fleet.domain",
        "comfy_fleet.domain.jobs",
        "comfy_fleet.domain.jobs.safe_names",
    }
    heavy = {
        "aiohttp",
        "blake3",
        "jinja2",
        "pydantic",
        "redis",
        "rq",
        "starlette",
        "typer",
        "uvicorn",
        "uvloop",
    }
    assert {name.partition(".")[0] for name in told} & heavy == set()
    assert "httpx" in told


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    inner = {"repeated", "events", "followed"}  # what the methods themselves are made of
    assert public(AsyncFleetClient) - inner == public(FleetClient)
    for name in public(FleetClient):
        assert getattr(FleetClient, name).__doc__ or name == "url"
        if name != "close":
            assert getattr(FleetClient, name).__doc__ == getattr(BatchCalls, name).__doc__


def test_a_submit_is_repeated_under_one_key(canned: Canned) -> None:
    in_turn(canned, "POST", JOBS, BUSY, AWAY, (201, {**DONE, "status": "queued"}, {}))
    with client(canned) as fleet:
        assert fleet.submit("image_card", {"prompt": "x"})["id"] == JOB
    (first, second, third) = keys_of(canned)
    assert first and first == second == third
    with client(canned) as fleet:
        fleet.submit("image_card", idempotency_key="order-4711")
    assert keys_of(canned)[-1] == "order-4711"


@pytest.mark.parametrize("key", ["", "bestellung-ü", " a", "a" * 256])
def test_a_key_that_can_t_be_sent_is_refused_before_anything_is(canned: Canned, key: str) -> None:
    with client(canned) as fleet:
        with pytest.raises(RequestRefused, match="printable ASCII") as refused:
            fleet.submit("image_card", {"prompt": "x"}, idempotency_key=key)
        assert refused.value.details == {"field": "idempotency_key"}
        with pytest.raises(RequestRefused, match="params must be a mapping"):
            fleet.submit("image_card", ["x"])  # type: ignore[arg-type]
    assert keys_of(canned) == []


def test_the_time_for_repeating_is_kept(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn(canned, "POST", JOBS, (429, error("limit_reached", "later"), {"Retry-After": "3600"}))
    with client(canned) as fleet, pytest.raises(RateLimited) as limited:
        fleet.submit("image_card")
    assert (limited.value.retry_after_s, limited.value.code) == (3600, "limit_reached")
    assert len(canned.seen) == 1
    canned.on("GET", f"/api/v1/jobs/{JOB}", b"", 502)
    with client(canned, retry_s=0) as fleet, pytest.raises(FleetUnavailable, match="502"):
        fleet.job(JOB)
    monkeypatch.setattr(calls, "PATIENCE_S", 0.1)
    with FleetClient("http://127.0.0.1:1", retry_s=0.5) as fleet:
        with pytest.raises(FleetUnavailable, match="nothing answers"):
            fleet.job(JOB)
        with pytest.raises(FleetUnavailable):
            fleet.wait(JOB)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", AccessRefused),
        (403, "forbidden", AccessRefused),
        (507, "storage_limit", StorageFull),
        (418, "teapot", ClientError),
    ],
)
def test_each_kind_of_refusal(canned: Canned, status: int, code: str, kind: type[ClientError]) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", error(code, "because"), status)
    with client(canned) as fleet, pytest.raises(kind, match="because") as refused:
        fleet.job(JOB)
    assert (type(refused.value), refused.value.code, refused.value.status) == (kind, code, status)


def test_what_is_no_fleet_is_told_so(canned: Canned) -> None:
    canned.on("GET", "/api/v1/workflows", b"<html>hello</html>")
    with client(canned) as fleet, pytest.raises(FleetUnavailable, match="is that a fleet"):
        fleet.workflows()


def test_a_fleet_below_a_path(canned: Canned) -> None:
    canned.on("GET", f"/fleet/api/v1/jobs/{JOB}", DONE)
    canned.on("GET", "/fleet/api/v2/assets/a1/content", b"abcd")
    for ending in ("", "/", "/api/v1"):
        with FleetClient(f"{canned.url}/fleet{ending}") as fleet:
            assert fleet.job(JOB)["status"] == "succeeded"
            assert fleet.read("a1") == b"abcd"


def test_a_key_is_sent_and_never_shown(
    canned: Canned, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    in_turn(canned, "GET", f"/api/v1/jobs/{JOB}", AWAY, (200, DONE, {}))
    host = canned.url.removeprefix("http://")
    with FleetClient(canned.url, KEY) as fleet:
        fleet.job(JOB)
    with FleetClient(f"{canned.url}/k/{KEY}") as fleet:
        fleet.job(JOB)
    monkeypatch.setenv("FLEET_API_KEY", KEY)
    monkeypatch.setenv("FLEET_API_URL", canned.url)
    with FleetClient() as fleet:
        fleet.job(JOB)
        shown = repr(fleet)
    sent = [headers.get("Authorization") for _, _, headers, _ in canned.seen]
    assert sent == [f"Bearer {KEY}"] * 4
    with FleetClient(f"http://me:{KEY}@{host}") as fleet:
        fleet.job(JOB)
        shown += repr(fleet)
    assert canned.seen[-1][2]["Authorization"].startswith("Basic ") and canned.seen[-1][2]["X-API-Key"] == KEY
    assert KEY not in shown and KEY not in caplog.text and "trying again" in caplog.text
    for wrong in ("ftp://x", "nonsense", "http://", "http://a b"):
        with pytest.raises(ValueError, match="no http"):
            FleetClient(wrong)
    with pytest.raises(ValueError, match="printable"):
        FleetClient(canned.url, "a\nb")


def test_a_file_that_is_not_what_the_fleet_has_stored(canned: Canned, tmp_path: Any) -> None:
    canned.on("GET", "/api/v2/assets/a1/content", b"abcd")
    output: Any = {"id": "a1", "name": "a.png", "size_bytes": 4, "hash": f"blake3:{'0' * 64}"}
    with client(canned) as fleet:
        with pytest.raises(BrokenDownload):
            fleet.read(output)
        with pytest.raises(BrokenDownload):
            fleet.save(output, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_threads_share_a_client(canned: Canned) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", DONE)
    found: list[Any] = []
    with client(canned) as fleet:
        threads = [threading.Thread(target=lambda: found.append(fleet.job(JOB)["id"])) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert found == [JOB] * 8


EVENTS = f"/api/v1/jobs/{JOB}/events"
RUNNING = b'event: status\ndata: {"status": "running"}\n\n'


def told(fleet: FleetClient, **more: Any) -> list[tuple[str, Any]]:
    return [(event.name, event.data) for event in fleet.follow(JOB, **more)]


def test_events_are_read_over_broken_streams(canned: Canned) -> None:
    first = RUNNING + b": ping\n\nevent: progress\nda"
    second = (
        RUNNING + b'event: progress\r\ndata: {"value": 0.5,\r\ndata: "message": "KSampler 1/2"}\r\n\r\n'
        b'event: status\ndata: {"status": "succeeded"}\n\nevent: status\ndata: {"status": "never seen"}\n\n'
    )
    canned.stream(EVENTS, first, second)
    with client(canned) as fleet:
        assert told(fleet) == [
            ("status", {"status": "running"}),
            ("progress", {"value": 0.5, "message": "KSampler 1/2"}),
            ("status", {"status": "succeeded"}),
        ]


def test_of_a_job_that_has_ended_everything_is_told_though_the_time_is_up(canned: Canned) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "queue_position": None})
    ended = b'event: output\ndata: {"url": "/x"}\n\nevent: status\ndata: {"status": "succeeded"}\n\n'
    canned.stream(EVENTS, RUNNING + ended)
    with client(canned) as fleet:
        assert told(fleet, wait_s=0)[-2:] == [("output", {"url": "/x"}), ("status", {"status": "succeeded"})]


def test_where_no_stream_can_be_had_the_job_is_asked_for(canned: Canned) -> None:
    canned.on("GET", EVENTS, error("too_many_streams", "64 are open"), 429, Retry_After="0")
    now = {**DONE, "status": "running", "queue_position": None}
    in_turn(
        canned,
        "GET",
        f"/api/v1/jobs/{JOB}",
        (200, now, {}),
        (200, now, {}),
        (200, {**now, "status": "failed"}, {}),
    )
    with client(canned) as fleet:
        assert [data["status"] for _, data in told(fleet)] == ["running", "failed"]
    canned.on("GET", f"/api/v1/jobs/{JOB}", now)
    with client(canned) as fleet, pytest.raises(WaitExpired, match="goes on"):
        told(fleet, wait_s=0.3)


# -- the types, against the fleet's own document ------------------------------


def _schemas() -> dict[str, Any]:
    paths = {"job_id": "", "asset_id": "", "hash": ""}
    files = document(v2_routes.TABLE, title="", description="", tags={}, paths=paths)
    jobs = document(TABLE, title="", description="", tags=_TAGS, paths=_PATH_NAMES)
    found: dict[str, Any] = {**files["components"]["schemas"], **jobs["components"]["schemas"]}
    return found


SCHEMAS = _schemas()
RENAMED = {"Job": "JobDetail"}
TYPES = [
    kind
    for kind in vars(data).values()
    if is_typeddict(kind) and kind.__module__ == data.__name__ and kind.__name__ != "JobFieldsData"
]


def named(kind: type) -> str:
    name = kind.__name__.removesuffix("Data")
    return RENAMED.get(name, name)


def shape(hint: Any) -> Any:
    """Return what a type of the client's takes, in a form that can be compared."""
    if get_origin(hint) in (NotRequired, Required):
        return shape(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return sorted(get_args(hint))
    if get_origin(hint) in (UnionType, Union):
        (inner,) = [one for one in get_args(hint) if one is not NoneType]
        return {"or null": shape(inner)}
    if get_origin(hint) is list:
        return {"list": shape(get_args(hint)[0])}
    if get_origin(hint) is dict:
        return {"values": shape(get_args(hint)[1])}
    if is_typeddict(hint):
        return named(hint)
    return {str: "string", int: "integer", float: "number", bool: "boolean", Any: "anything"}[hint]


def told_shape(schema: Any) -> Any:
    """Return the same of a schema of the document."""
    if "allOf" in schema:
        return told_shape(schema["allOf"][0])
    if "anyOf" in schema:
        (inner,) = [one for one in schema["anyOf"] if one.get("enum") != [None]]
        return {"or null": told_shape(inner)}
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return sorted(SCHEMAS[name]["enum"]) if "enum" in SCHEMAS[name] else name
    if schema.get("nullable"):
        inner = {key: value for key, value in schema.items() if key != "nullable"}
        return {"or null": told_shape(inner)}
    if schema.get("type") == "array":
        return {"list": told_shape(schema["items"])}
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return {"values": told_shape(values) if isinstance(values, dict) else "anything"}
    return schema.get("type", "anything")


@pytest.mark.parametrize("kind", TYPES, ids=named)
def test_the_types_are_those_of_the_fleets_document(kind: Any) -> None:
    schema = SCHEMAS[named(kind)]
    ours = {name: shape(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    assert ours == {name: told_shape(one) for name, one in schema["properties"].items()}
    assert kind.__required_keys__ == set(schema["required"])


def test_every_type_of_the_document_that_is_used_is_there() -> None:
    assert {named(kind) for kind in TYPES} >= {
        *("JobDetail", "ListedJob", "Output", "Progress", "Asset", "Workflow", "WorkflowSummary"),
        *("Batch", "BatchDetail", "BatchItem", "MadeBatch", "RetriedBatch", "ItemError"),
    }


def test_a_submit_takes_what_the_document_says() -> None:
    body = SCHEMAS["NewJobBody"]["properties"]
    assert get_type_hints(SubmitOptions).keys() == body.keys() - {"params"}
    graph = SCHEMAS["GraphJobBody"]["properties"]
    assert get_type_hints(SubmitOptions).keys() == graph.keys() - {"workflow", "extra_data"}
