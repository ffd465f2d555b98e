"""Attacks by who asks: other sites, users without a key or with another's, and what lies on the disk."""

import contextlib
import json
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.acceptance.footprint import family, listening
from tests.acceptance.up import Up
from tests.acceptance.wire import (
    AGENT,
    ANN,
    BOB,
    END,
    FILE,
    OPS,
    PLACE,
    ask,
    bearer,
    console_of,
    ends,
    graph,
    port_of,
    post_json,
    refused,
    signed_in,
    still_well,
)

pytestmark = pytest.mark.timeout(180)


# -- who asks ----------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "127.0.0.1@evil.test",
             "evil.test:8188", "[::2]", "0.0.0.0", "localhost/evil", "localhost evil",
             "localhost:99x", "<b>"],
)  # fmt: skip
def test_a_rebound_name_gets_nothing(fleet: Up, host: str) -> None:
    note = json.loads((fleet.data / "run" / "up.json").read_text())
    for where in (fleet, console_of(fleet), note["ports"][0]):
        for method, path in (
            ("GET", "/api/v1/nodes"),
            ("POST", "/api/v2/jobs"),
            ("GET", "/api/v1/openapi.json"),
        ):
            raw = ask(where, method, path, host=host)
            assert raw.status in (400, 403), raw.raw
            assert b"sim-1" not in raw.raw


def test_a_forwarded_host_vouches_for_nothing(fleet: Up) -> None:
    note = json.loads((fleet.data / "run" / "up.json").read_text())
    for headers in (
        ("X-Forwarded-Host: localhost",),
        ("X-Forwarded-Host: localhost", "Forwarded: host=localhost"),
    ):
        refused(ask(fleet, "GET", "/api/v1/nodes", *headers, host="evil.test"), 403)
        inner = ask(note["ports"][0], "GET", "/api/v1/nodes", *headers, host="evil.test")
        refused(inner, 403)
    inner = ask(note["ports"][0], "GET", "/api/v1/nodes", "X-Forwarded-Host: evil.test", host="localhost")
    refused(inner, 403)


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", "http://127.0.0.1:1", "http://localhost", "x"]
)
def test_a_page_of_another_site_changes_nothing(fleet: Up, origin: str) -> None:
    job = httpx.post(f"{fleet.url}/api/v2/jobs", json={"workflow": graph(3)}).json()
    form = json.dumps({"name": "evil", "url": "http://10.0.0.9:8188"}).encode()
    for method, path, body in (
        ("POST", "/api/v2/jobs", json.dumps({"workflow": graph()}).encode()),
        ("POST", "/api/v1/generate", b'{"prompt":"x"}'),
        ("POST", "/api/submit", b'{"prompt":"x"}'),
        ("POST", "/api/v1/nodes", form),
        ("POST", "/api/v1/nodes/sim-1/drain", b""),
        ("DELETE", "/api/v1/nodes/sim-1?force=true", None),
        ("POST", f"/api/v2/jobs/{job['id']}/cancel", b""),
        ("POST", "/api/v2/assets", FILE + PLACE + END),
    ):
        answer = ask(fleet, method, path, f"Origin: {origin}", "Content-Type: text/plain", body=body)
        assert refused(answer, 403)["code"] == "forbidden"
    assert ends(fleet, job)["status"] == "succeeded"
    assert [n["name"] for n in httpx.get(f"{fleet.console}/api/v1/nodes").json()["nodes"]] == [
        "sim-1",
        "sim-2",
    ]


def test_no_other_site_may_read(fleet: Up, picture: str) -> None:
    for method in ("GET", "OPTIONS"):
        for path in (
            "/api/v2/jobs",
            "/api/v1/nodes",
            picture,
            "/api/v1/openapi.json",
            "/prompt",
            "/api/v2/health",
        ):
            asked = ("Origin: https://evil.test", "Access-Control-Request-Method: GET")
            headers = ask(fleet, method, path, *asked).headers
            assert not [name for name in headers if name.startswith("access-control-")]
            assert headers["x-content-type-options"] == "nosniff"


def test_what_only_a_proxy_may_say_does_nothing_from_outside(keyed: Up) -> None:
    told = (
        f"Authorization: Bearer {ANN}",
        "X-Forwarded-Host: evil.test",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /evil",
        "X-Original-URL: /metrics",
        "X-Rewrite-URL: /metrics",
        "Forwarded: host=evil.test",
        "X-Fleet-Owner: ops",
        "X-Fleet-Node: sim-1",
        "X-Fleet-Pool: default",
    )
    body = json.dumps({"workflow": graph(5)}).encode()
    job = json.loads(ask(keyed, "POST", "/api/v2/jobs", *told, body=body).body)
    assert job["urls"]["self"] == f"{keyed.url}/api/v2/jobs/{job['id']}"
    refused(ask(keyed, "GET", "/api/v1/nodes", *told), 403)


@pytest.mark.parametrize("host", ["a/b", "a?b", "[::1", "a b", "a:b:c", "", "\xff"])
def test_a_host_that_is_none_makes_no_urls(keyed: Up, host: str) -> None:
    body = json.dumps({"workflow": graph(), "metadata": {"host": "none"}}).encode()
    answer = ask(keyed, "POST", "/api/v2/jobs", f"Authorization: Bearer {ANN}", body=body, host=host or " ")
    assert answer.status == 400
    found = httpx.get(
        f"{keyed.url}/api/v2/jobs?metadata[host]=none", headers={"Authorization": f"Bearer {ANN}"}
    )
    assert found.json()["jobs"] == []  # refused before anything was made


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(ANN[:-1]),
        bearer(ANN + "0"),
        bearer(ANN.upper()),
        {"Authorization": f"Basic {ANN}"},
        {"Authorization": ANN[:-1]},
        {"Authorization": f"{ANN} {ANN}"},
        {"Cookie": f"api_key={ANN}"},
        bearer("x" * 8000),
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_without_a_key_there_is_nothing(keyed: Up, headers: dict[str, str]) -> None:
    raw = [f"{name}: {value}" for name, value in headers.items()]
    for method, path in (
        ("GET", f"/api/v2/jobs?api_key={ANN}"),
        ("POST", "/api/v2/jobs"),
        ("POST", "/api/v2/assets"),
        ("HEAD", "/api/v2/assets/by-hash/blake3:" + "0" * 64),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/workflows"),
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/api/v1/queue"),
    ):
        answer = ask(keyed, method, path, *raw)
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", answer.raw
        if method != "HEAD":
            assert refused(answer, 401)["code"] == "unauthorized"
        assert b"ann" not in answer.raw.lower().replace(b"bearer", b"")


@pytest.fixture(scope="module")
def anns(keyed: Up) -> dict[str, Any]:
    """A job and an upload of Ann's."""
    with httpx.Client(base_url=keyed.url, headers=bearer(ANN)) as ann:
        upload = ann.post(
            "/api/v2/assets", files={"file": ("a.png", b"of ann's")}, data={"file_path": "ann.png"}
        ).json()
        label = {"metadata": {"who": "ann"}}
        job = ann.post(
            "/api/v2/jobs", json={"workflow": graph(9), **label}, headers={"Idempotency-Key": "k1"}
        )
        return {"upload": upload, "job": ends(keyed, job.json(), bearer(ANN))}


@pytest.mark.parametrize("who", [BOB, OPS])
def test_what_is_anns_is_nobody_elses(keyed: Up, anns: dict[str, Any], who: str) -> None:
    job, upload = anns["job"], anns["upload"]
    at = f"/api/v2/jobs/{job['id']}"
    output = f"/api/v2/assets/{job['outputs'][0]['id']}"
    with httpx.Client(base_url=keyed.url, headers=bearer(who)) as other:
        for method, path in (
            *(("GET", f"{at}{tail}") for tail in ("", "/workflow", "/events")),
            ("POST", f"{at}/cancel"),
            *(("GET", f"/api/v1/jobs/{job['id']}{tail}") for tail in ("/outputs", "/workflow", "/events")),
            # An operator sees the record, and cancels.
            *([] if who == OPS else [("GET", f"/api/v1/jobs/{job['id']}")]),
            *([] if who == OPS else [("POST", f"/api/v1/jobs/{job['id']}/cancel")]),
            ("GET", f"/api/v1/status/{job['id']}"),
            *(
                (method, f"{output}{tail}")
                for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
            ),
            ("GET", f"/api/v2/assets/{upload['id']}/content"),
            ("DELETE", f"/api/v2/assets/{upload['id']}"),
        ):
            answer = other.request(method, path)
            if who == OPS and path.removesuffix("/cancel") == f"/api/v1/jobs/{job['id']}":
                assert (answer.status_code, answer.json()["user"]) == (200, "ann")  # they see it, and end it
                continue
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        assert other.head(f"/api/v2/assets/by-hash/{upload['hash']}").status_code == 404
        assert other.post("/api/v2/assets/from-hash", json={"hash": upload["hash"]}).status_code == 404
        for listing in ("/api/v2/jobs", "/api/v1/jobs", "/api/v2/jobs?metadata[who]=ann"):
            assert other.get(listing).json()["jobs"] == []
        for value in ({"__type": "core/ASSET", "info": {"id": upload["id"]}}, "ann.png"):
            looking = graph(1)
            looking["1"] = {"class_type": "LoadImage", "inputs": {"image": value}}
            tried = other.post("/api/v2/jobs", json={"workflow": looking})
            if isinstance(value, dict):
                assert (tried.status_code, tried.json()["error"]["code"]) == (422, "missing_asset")
            else:  # a name means the caller's own file, or one that the node has
                assert (tried.status_code, tried.json()["error"]["code"]) == (422, "invalid_workflow")
        # The same key of somebody else is another key.
        again = other.post("/api/v2/jobs", json={"workflow": graph(9)}, headers={"Idempotency-Key": "k1"})
        assert again.status_code == 201 and again.json()["id"] != job["id"]
        assert ends(keyed, again.json(), bearer(who))["outputs"][0]["id"] != job["outputs"][0]["id"]


def test_only_admins_change_nodes_and_agents_do_nothing_else(keyed: Up) -> None:
    node = {"name": "meta", "url": "http://169.254.169.254:80"}
    for key in (ANN, AGENT):
        with httpx.Client(base_url=keyed.url, headers=bearer(key)) as client:
            for method, path in (
                ("POST", "/api/v1/nodes"),
                ("DELETE", "/api/v1/nodes/sim-1?force=true"),
                ("POST", "/api/v1/nodes/sim-1/drain"),
                ("POST", "/api/v1/nodes/sim-1/resume"),
                ("GET", "/api/v1/workflows/image_card/check"),
            ):
                answer = client.request(method, path, json=node if path.endswith("nodes") else None)
                assert answer.status_code == 403, path
    with httpx.Client(base_url=keyed.url, headers=bearer(AGENT)) as agent:
        assert agent.get("/api/v1/nodes").status_code == 200
        for method, path in (("GET", "/api/v2/jobs"), ("GET", "/api/v1/jobs"), ("POST", "/api/v2/assets")):
            assert agent.request(method, path).status_code == 403


NODES: dict[str, dict[str, Any]] = {
    url: {"name": "x", "url": url}
    for url in (
        "file:///etc/passwd",
        "https://10.0.0.1",
        "gopher://10.0.0.1:6379",
        "http://:secret@10.0.0.1",
        "http://user:sec%0Aret@10.0.0.1",
        "http://user:secret%@10.0.0.1",
        "http://10.0.0.1/../prompt",
        "http://10.0.0.1/a%0Ab",
        "http://10.0.0.1/a b",
        "http://10.0.0.1/%[src]",
        "http://10.0.0.1?x=y",
        "http://10.0.0.1#x",
        "http://10.0.0.1:99999",
        "http://10.0.0.1\n    server evil 10.0.0.2:80",
        "http://a\r\nb",
        "http://a b",
        "http://a;quit",
        "unix@/run/x",
        "http://unix@/x",
        "http://fd@fd@",
        "http://\u0431.test",
        "http://",
        "",
    )
}
NODES |= {
    f"name {name!r}": {"name": name, "url": "http://10.0.0.9:1"}
    for name in ("", "A", "a b", "a\nb", "../x", "a/b", "a;b", "-a", "x" * 64, "\u0430")
}
NODES |= {
    f"agent {agent!r}": {"name": "x", "url": "http://10.0.0.9:1", "agent": agent}
    for agent in ("h", "h:0", "h:99999", "h:1\nserver", "u@h:1", "h:1/x", ":1", "unix@/x:1")
}
NODES |= {
    "a pool": {"name": "x", "url": "http://10.0.0.9:1", "pool": "a b\n"},
    "a weight": {"name": "x", "url": "http://10.0.0.9:1", "weight": 10**30},
    "a zone": {"name": "x", "url": "http://10.0.0.9:1", "zone": "z" * 65},
    "a label": {"name": "x", "url": "http://10.0.0.9:1", "labels": {"a": "x" * 257}},
    "33 labels": {"name": "x", "url": "http://10.0.0.9:1", "labels": {str(n): "" for n in range(33)}},
    "more": {"name": "x", "url": "http://10.0.0.9:1", "cordoned": False},
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_can_smuggle_nothing_into_the_configuration(fleet: Up, name: str) -> None:
    refused(post_json(console_of(fleet), "/api/v1/nodes", json.dumps(NODES[name]).encode()), 400, 422)
    assert "evil" not in (fleet.data / "run" / "broker.cfg").read_text()


# -- what lies around --------------------------------------------------------


@pytest.mark.parametrize("which", ["fleet", "keyed"])  # the second one logs all that there is to log
def test_no_secret_is_written_down(which: str, request: pytest.FixtureRequest) -> None:
    fleet: Up = request.getfixturevalue(which)
    secret = f"comfyui-{uuid.uuid4().hex}"
    bodies: list[dict[str, Any]] = [
        {"workflow": graph(11), "extra_data": {"api_key_comfy_org": secret}},
        {"workflow": graph(12), "extra_data": {"api_key_comfy_org": secret, "more": 1}},
        {"workflow": "none", "extra_data": {"api_key_comfy_org": secret}},
        {"workflow": graph(13), "extra_data": {"api_key_comfy_org": [secret]}},
        {
            "workflow": {"1": {"class_type": "Nope", "inputs": {}}},
            "extra_data": {"api_key_comfy_org": secret},
        },
    ]
    client = httpx.Client(base_url=fleet.url, headers=bearer(ANN))
    done = [client.post("/api/v2/jobs", json=body) for body in bodies]
    assert [answer.status_code for answer in done] == [201, 422, 422, 422, 422]
    assert all(secret not in answer.text for answer in done)
    job = ends(fleet, done[0].json(), bearer(ANN))
    assert job["status"] == "succeeded"
    for path in ("", "/workflow", "/events"):
        assert secret not in client.get(f"/api/v2/jobs/{job['id']}{path}").text
    assert secret not in client.get(f"/api/v2/jobs?token={secret}").text
    client.close()
    for way in (
        f"/k/{ANN}",
        f"/k/{ANN}/api/v2/jobs",
        f"/k/{ANN}/prompt",
        f"/k/{ANN}/ws",
        f"/k/{ANN}/a/k/{ANN}/b",
    ):
        assert ANN not in httpx.get(f"{fleet.url}{way}").text, way
    if which == "keyed":
        with httpx.Client() as browser:
            signed_in(browser, fleet, ANN)
            assert ANN not in str(browser.cookies.jar)
    place = fleet.url.removeprefix("http://")
    for url in (f"ws://{place}/k/{ANN}/ws", f"ws://me:{ANN}@{place}/ws", f"ws://{place}/k/{ANN}x/ws"):
        with contextlib.suppress(InvalidStatus), connect(url, proxy=None) as opened:
            assert '"status"' in str(opened.recv(10))
    files = [path for path in fleet.data.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert any(path.suffix == ".aof" and job["id"].encode() in path.read_bytes() for path in files)
    files.append(fleet.data.parent / f"{fleet.data.name}.log")
    for hidden in (secret, ANN, OPS, AGENT):
        assert [path for path in files if hidden.encode() in path.read_bytes()] == []


def test_other_users_of_the_machine_see_nothing(fleet: Up) -> None:
    assert fleet.data.stat().st_mode & 0o077 == 0
    for name in ("redis", "logs", "run", "files"):
        assert (fleet.data / name).stat().st_mode & 0o077 == 0, name
    for path in (fleet.data / "secret.key", *(fleet.data / "run").glob("*.cfg"), *fleet.data.rglob("*.sock")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_everything_listens_on_loopback(fleet: Up) -> None:
    found = listening(family(fleet.process.pid))
    assert len(found) >= 5  # the edge, the API, the broker's two, the agent, the nodes
    assert {address.rpartition(":")[0] for address in found} == {"0100007F"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_an_open_fleet_does_not_leave_loopback(tmp_path: Path, host: str) -> None:
    from comfy_fleet.api.auth import Keys
    from comfy_fleet.domain.errors import ConfigError
    from comfy_fleet.settings import Settings

    for outside in (Settings(data=tmp_path, host=host), Settings(data=tmp_path, api_host=host)):
        with pytest.raises(ConfigError, match="FLEET_KEYS_FILE"):
            Keys.load(outside)


def test_the_front_page_fetches_nothing(fleet: Up) -> None:
    page = httpx.get(f"{fleet.url}/")
    assert page.status_code == 200 and "openapi.json" in page.text
    fetching = r"<(script|link|img|iframe|form|base|object)|(src|href)=[\"']?(https?:)?//|@import|url\("
    assert not re.search(fetching, page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    where = httpx.get(f"{fleet.url}/openapi.json", headers={"Host": f"localhost:{port_of(fleet)}"})
    assert where.headers["location"] == "/api/v1/openapi.json"


def test_the_fleet_works_on_and_nothing_went_wrong_inside(fleet: Up, keyed: Up) -> None:
    still_well(fleet, keyed)
