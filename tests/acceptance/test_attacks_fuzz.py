"""Requests that nobody thought of."""

import contextlib
import json
import string
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import bodies, inside
from tests.acceptance.up import Up
from tests.acceptance.wire import (
    END,
    FILE,
    INSIDE,
    part,
    still_well,
)

pytestmark = pytest.mark.timeout(180)


# -- fuzz --------------------------------------------------------------------

_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    _LEAF | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_NODE = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["EmptyImage", "SaveImage", "LoadImage", "PreviewImage"]) | _TEXT,
        "inputs": st.dictionaries(
            st.sampled_from(["width", "height", "batch_size", "color", "images", "image", "filename_prefix"])
            | _TEXT,
            _JSON | st.tuples(st.sampled_from("123"), st.integers(-1, 2)).map(list),
            max_size=5,
        ),
    }
)
_GRAPH = st.dictionaries(st.sampled_from("123") | _TEXT, _NODE | _JSON, max_size=4)
_BODY = st.fixed_dictionaries(
    {"workflow": _GRAPH | _JSON},
    optional={
        "priority": _LEAF,
        "metadata": _JSON,
        "extra_data": _JSON,
        "deadline_s": _LEAF,
        "ttl_s": _LEAF,
        "timeout_s": _LEAF,
        "finish_by": _LEAF,
        "tier": _LEAF,
        "params": _JSON,
        "prompt": _JSON,
        "name": _JSON,
        "url": _JSON,
    },
)
_CALM = settings(
    max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def client(fleet: Up) -> Iterator[Callable[..., httpx.Response]]:
    with httpx.Client(base_url=fleet.url, timeout=10) as http:

        def send(method: str, path: str, **more: Any) -> httpx.Response:
            answer = http.request(method, path, **more)
            assert answer.status_code < 500, (method, path, more, answer.text)
            if answer.status_code >= 400 and method != "HEAD" and answer.text.startswith("{"):
                assert set(answer.json()["error"]) == {"code", "message", "details"}
                assert not INSIDE.search(answer.json()["error"]["message"].replace(path, ""))
            return answer

        yield send


@_CALM
@given(_BODY)
def test_fuzzed_bodies(client: Callable[..., httpx.Response], body: Any) -> None:
    data = json.dumps(body).encode()
    for path in ("/api/v2/jobs", "/api/v1/workflows/image_card/jobs", "/api/v1/generate",
                 "/api/v2/assets/from-hash"):  # fmt: skip
        answer = client("POST", path, content=data)
        if answer.status_code in (201, 202):
            client("POST", f"/api/v2/jobs/{answer.json().get('id') or answer.json()['task_id']}/cancel")


@_CALM
@given(st.binary(max_size=200))
def test_fuzzed_bytes(fleet: Up, client: Callable[..., httpx.Response], body: bytes) -> None:
    for path in (
        "/api/v2/jobs",
        "/api/v1/generate",
        "/api/submit",
        f"{fleet.console}/api/v1/nodes",
        f"{fleet.console}/api/v1/nodes/sim-1/drainx",
    ):
        assert client("POST", path, content=body).status_code in (400, 404, 422)
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    for content in (
        body,
        b"--b\r\n" + body,
        FILE[:40] + body + END,
        part("file", b"") + part("tags", body) + END,
    ):
        assert client("POST", "/api/v2/assets", content=content, headers=form).status_code in (400, 409, 422)
    tagged = client("POST", "/api/v2/assets", content=FILE + part("tags", body) + END, headers=form)
    assert tagged.status_code in (200, 201, 400, 409, 422)  # some bytes are a tag


@_CALM
@given(
    st.sampled_from(
        [
            "/api/v2/jobs/",
            "/api/v2/assets/",
            "/api/v1/workflows/",
            "/api/v1/nodes/",
            "/api/v1/status/",
            "/api/status/",
        ]
    ),
    st.text(max_size=30),
    st.sampled_from(["", "/content", "/events", "/workflow", "/jobs", "/check", "/outputs"]),
)
def test_fuzzed_paths(
    fleet: Up, client: Callable[..., httpx.Response], root: str, name: str, tail: str
) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        quoted = quote(name, safe="")
        if quoted in ("", ".", ".."):
            return
        answer = client("GET", f"{fleet.console}{root}{quoted}{tail}")
        assert answer.status_code in (400, 404, 405, 422), (root, name, tail)


@_CALM
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["limit", "cursor", "status", "workflow", "metadata", "metadata[a]", "x"]),
            st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
        ),
        max_size=6,
    ),
    st.text(string.printable.strip() + "äß", min_size=1, max_size=40),
)
def test_fuzzed_queries_and_headers(
    client: Callable[..., httpx.Response], query: list[tuple[str, str]], value: str
) -> None:
    raw = value.encode("latin-1")
    for face in ("v1", "v2"):
        answer = client(
            "GET", f"/api/{face}/jobs", params=query, headers={"If-None-Match": raw, "Range": raw}
        )
        assert answer.status_code in (200, 400)
    content = json.dumps({"workflow": {}}).encode()
    for name in ("Idempotency-Key", "Authorization", "X-API-Key", "Accept", "Content-Type", "X-Fleet-Node"):
        answer = client("POST", "/api/v2/jobs", content=content, headers={name: raw})
        assert answer.status_code in (400, 422)


@pytest.mark.parametrize("name", ["native-routes", "client-frames"])
def test_comfyuis_own_routes(fleet: Up, name: str) -> None:
    with bodies.targets(fleet.url, fleet.console, "", "") as targets:
        (target,) = [one for one in targets if one.name == name]
        finding, cases = inside.one_round(target, "short", 60)
    assert finding is None
    assert cases >= 60


def test_the_fleet_works_on_and_nothing_went_wrong_inside(fleet: Up) -> None:
    still_well(fleet)
