"""The console's pages, over HTTP: what they show, to whom, and what hostile names do to them."""

import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import orjson
import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.api.console.static_files import static_files
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.request_context import in_request
from comfy_fleet.timeouts import Timeout
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

ANN, BEN, OPS, FIG = ({"X-API-Key": f"{name}-key-0123456789"} for name in ("ann", "ben", "ops", "fig"))
CONSOLE = {"X-Fleet-Origin": "console"}
PART = {"HX-Request": "true"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`\u202e{{71*71*71*71}}\x1b[31m\x00"
TYPED = HOSTILE.replace("\x00", "")
VENDOR = Path(__file__).parents[2] / "comfy_fleet/api/console/static/vendor"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = "ann ann-key-0123456789\nben ben-key-0123456789\nops ops-key-0123456789 operator\n"
    write_keys(tmp_path / "keys", f"{keys}fig fig-key-0123456789 metrics\n")
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys") as api:
        yield api


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


async def shown(api: Api, path: str, who: Mapping[str, str] = OPS, more: Mapping[str, str] = {}) -> str:
    answer = await api.client.get(f"/console/{path}", headers={**CONSOLE, **who, **more})
    assert answer.status_code == 200, answer.text
    return answer.text


async def change(api: Api, path: str, who: dict[str, str] = OPS, **form: str) -> httpx.Response:
    headers = {**CONSOLE, **PART, **who}
    return await api.client.post(f"/console/{path}", data=form or {"": ""}, headers=headers)


def harmless(text: str) -> None:
    """Check that a page holds no script, style or handler that is not the console's own."""
    for tag, attributes in Elements(text).found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        if tag == "script":
            assert re.fullmatch(r"(\.\./|\./)+console/static/[\w.-]+\.js", attributes["src"] or ""), (
                attributes
            )
        assert tag != "style"
        for name in ("href", "src"):
            assert not re.match(r"(?i)\s*(javascript|vbscript|data:text)", attributes.get(name) or ""), (
                attributes
            )
    assert "\u202e" not in text and "\x1b" not in text and "\x00" not in text
    assert "25411681" not in text  # what a template would make of it


# -- nodes ---------------------------------------------------------------------------------------------------


async def test_nodes_are_shown_with_what_runs_and_why_not(api: Api) -> None:
    for name in ("g2", "g10", "g1"):
        await api.add_node(name)
    await api.stores.nodes.report("g10", verdict="down", why="no route to it")
    made = (
        await api.submit(GRAPH)
        if api.deps.keys.open
        else (await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=ANN)).json()
    )
    await api.claim(made["id"], "g2")
    text = await shown(api, "nodes")
    assert [text.index(f'id="node-{name}"') for name in ("g1", "g2", "g10")] == sorted(
        text.index(f'id="node-{name}"') for name in ("g1", "g2", "g10")
    )
    assert "no route to it" in text and made["id"][:8] in text
    assert re.search(r"<b>1</b> <span[^>]*>working", text) and re.search(r"<b>1</b> <span[^>]*>down", text)
    part = await shown(api, "nodes?state=working", more=PART)
    assert "<html" not in part and "node-g2" in part and "node-g1" not in part
    assert "node-g10" in await shown(api, "nodes?q=10") and "node-g2" not in await shown(api, "nodes?q=10")
    one = await shown(api, "nodes/g2")
    assert made["id"] in one and "<h1>g2</h1>" in one
    missing = await api.client.get("/console/nodes/g3", headers={**CONSOLE, **OPS, "Accept": "text/html"})
    assert missing.status_code == 404 and "no node" in missing.text and "<h1>" in missing.text


async def test_many_nodes_are_paged_and_cost_no_trip_each(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = api.stores.redis.pipeline(transaction=False)
    async with pipe:
        for number in range(120):
            node = Node(name=f"n{number}", url=f"http://10.0.{number}.1:8188")
            pipe.hset("fleet:nodes", node.name, orjson.dumps({"name": node.name, "url": node.url}))
        await pipe.execute()
    asked = 0
    send = type(api.stores.redis).execute_command

    async def counted(self: Any, *args: Any, **how: Any) -> Any:
        nonlocal asked
        asked += bool(in_request.get())  # the process has other things to ask
        return await send(self, *args, **how)

    monkeypatch.setattr(type(api.stores.redis), "execute_command", counted)
    text = await shown(api, "nodes")
    assert asked < 12, asked
    assert len(re.findall('id="node-n', text)) == 50 and "1 to 50 of 120" in text
    last = await shown(api, "nodes?page=99")
    assert "101 to 120 of 120" in last and 'rel="next"' not in last


async def test_draining_and_resuming_is_done_and_written_down(api: Api) -> None:
    await api.add_node("g1")
    done = await change(api, "nodes/g1/drain", reason=f"new fans {HOSTILE[:60]}")
    assert (done.status_code, done.content) == (204, b"")
    assert orjson.loads(done.headers["hx-trigger"]) == {"done": "g1 is drained"}
    harmless(text := await shown(api, "nodes"))
    assert "new fans" in text and "Resume g1" in text
    assert (await change(api, "nodes/g1/resume")).status_code == 204
    assert "Drain g1" in await shown(api, "nodes")
    entries = await api.client.get("/api/v1/audit", headers=OPS)
    assert [one["event"] for one in entries.json()["entries"]] == ["node.resumed", "node.drained"]
    assert code(await change(api, "nodes/g1/drain", reason="x" * 201)) == (400, "invalid_request")
    assert (await change(api, "nodes/none/resume")).status_code == 404


async def test_a_change_needs_the_pages_own_header_and_an_operator(api: Api) -> None:
    await api.add_node("g1")
    for path in ("drain", "resume"):
        plain = await api.client.post(
            f"/console/nodes/g1/{path}", data={"reason": "x"}, headers={**CONSOLE, **OPS}
        )
        assert code(plain) == (403, "forbidden")
        assert code(await change(api, f"nodes/g1/{path}", ANN)) == (403, "forbidden")
        elsewhere = await api.client.post(
            f"/console/nodes/g1/{path}",
            data={"reason": "x"},
            headers={**CONSOLE, **PART, **OPS, "Origin": "https://evil.test"},
        )
        assert elsewhere.status_code == 403
    (node,) = await api.stores.nodes.states()
    assert not node.node.cordoned


async def test_only_operators_see_nodes(api: Api) -> None:
    await api.add_node("g1")
    for path in ("nodes", "nodes/g1"):
        for who in (ANN, FIG):
            refused = await api.client.get(f"/console/{path}", headers={**CONSOLE, **who})
            assert code(refused) == (403, "forbidden")


async def test_what_agents_and_nodes_say_is_escaped(api: Api) -> None:
    await api.add_node("g1")
    await api.stores.nodes.report("g1", verdict="down", why=HOSTILE)
    redis: Any = api.stores.redis
    await redis.hset("fleet:node:g1", mapping={"gpu": HOSTILE, "comfyui": HOSTILE, "trouble": HOSTILE})
    await redis.lpush(
        "fleet:node:g1:errors",
        orjson.dumps({"at": HOSTILE, "job": HOSTILE, "code": HOSTILE, "message": HOSTILE}),
    )
    for path in ("nodes", "nodes/g1"):
        text = await shown(api, path)
        harmless(text)
        assert "&lt;script&gt;" in text


# -- jobs ----------------------------------------------------------------------------------------------------


async def submitted(api: Api, who: dict[str, str], **more: Any) -> str:
    answer = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH, **more}, headers=who)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_jobs_are_listed_to_operators_and_to_whom_they_belong(api: Api) -> None:
    await api.add_node("g1")
    anns, bens = await submitted(api, ANN), await submitted(api, BEN)
    claim = await api.claim(anns)
    await api.output(claim, picture())
    await api.finish(claim)
    to_ann, to_ops = await shown(api, "jobs", ANN), await shown(api, "jobs")
    assert anns in to_ann and bens not in to_ann and "thumb" in to_ann and "format=webp" in to_ann
    assert anns in to_ops and bens in to_ops and "format=webp" not in to_ops
    assert anns in await shown(api, "jobs?status=succeeded") and bens in await shown(api, "jobs?user=ben")
    assert anns not in await shown(api, "jobs?user=ben") and "No job" in await shown(api, "jobs?workflow=x")
    mine = await shown(api, f"jobs/{anns}", ANN)
    assert "format=webp" in mine and "Submit again" in mine and "t-queue" in mine
    others = await shown(api, f"jobs/{anns}")
    assert "format=webp" not in others and "alone to see" in others and "Submit again" not in others
    refused = await api.client.get(f"/console/jobs/{anns}", headers={**CONSOLE, **BEN})
    assert code(refused) == (404, "not_found")
    by_user = await api.client.get("/console/jobs?user=ann", headers={**CONSOLE, **BEN})
    assert code(by_user) == (403, "forbidden")
    assert code(await api.client.get("/console/jobs", headers={**CONSOLE, **FIG})) == (403, "forbidden")
    small = re.search(r'src="(?:\.\./)+(api/v2/assets/[^"]+)"', mine)
    assert small is not None
    got = await api.client.get("/" + small[1].replace("&amp;", "&"), headers={**CONSOLE, **ANN})
    assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")


async def test_the_queue_says_why_nothing_runs(api: Api) -> None:
    await api.add_node("g1")
    job = await submitted(api, ANN)
    assert (await change(api, "nodes/g1/drain", reason="new fans")).status_code == 204
    for path in ("queue", "queue?pool=default", "overview"):
        text = await shown(api, path)
        assert "drained" in text, path
        assert (job[:8] in text) == path.startswith("queue")
    assert re.search(r'data-queued="1" data-running="0"', await shown(api, "overview"))
    for path in ("queue", "overview"):
        refused = await api.client.get(f"/console/{path}", headers={**CONSOLE, **ANN})
        assert code(refused) == (403, "forbidden")
    odd = await api.client.get("/console/queue?pool=%3Cx%3E", headers={**CONSOLE, **OPS})
    assert odd.status_code == 400


async def test_jobs_are_canceled_and_submitted_again(api: Api) -> None:
    await api.add_node("g1")
    first, second = await submitted(api, ANN), await submitted(api, ANN)
    assert code(await change(api, f"jobs/{first}/cancel", BEN)) == (404, "not_found")
    assert (await change(api, f"jobs/{first}/cancel", ANN)).status_code == 204
    done = await change(api, f"jobs/{second}/cancel")
    assert "is canceled" in done.headers["hx-trigger"]
    audit = (await api.client.get("/api/v1/audit", headers=OPS)).json()["entries"]
    assert [(one["event"], one["about"]["job"]) for one in audit] == [("job.canceled", second)]
    again = await change(api, f"jobs/{first}/again", ANN)
    made = await api.stores.jobs.get(again.headers["hx-redirect"])
    assert again.status_code == 204 and made is not None and made.retry_of == first
    assert code(await change(api, f"jobs/{first}/again", BEN)) == (404, "not_found")
    assert code(await change(api, f"jobs/{first}/again", OPS)) == (404, "not_found")
    seedless = await change(api, f"jobs/{first}/again", ANN, new_seed="1")
    assert code(seedless) == (400, "no_seed")


async def test_what_users_and_graphs_say_is_escaped(api: Api) -> None:
    await api.add_node("g1")
    answer = await api.client.post(
        "/api/v2/jobs", json={"workflow": GRAPH, "metadata": {"a": TYPED}}, headers=ANN
    )
    assert answer.status_code == 201, answer.text
    job = str(answer.json()["id"])
    claim = await api.claim(job)
    await api.output(claim, picture(), name=TYPED.replace("/", "") + ".png")
    error = JobError(
        code=HOSTILE, message=HOSTILE, node_id=HOSTILE, class_type=HOSTILE, details={"story": [HOSTILE]}
    )
    redis: Any = api.stores.redis
    await redis.hset(
        f"fleet:job:{job}", mapping={"excerpt": HOSTILE, "workflow": HOSTILE, "workflow_version": HOSTILE}
    )
    await api.stores.runs.left(claim, [])
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1.0)
    for path in ("jobs", f"jobs/{job}", "overview", "queue"):
        for who in (ANN, OPS) if path.startswith("jobs") else (OPS,):
            harmless(text := await shown(api, path, who))
            assert "&lt;script&gt;" in text or path == "queue"
    harmless(await shown(api, "jobs?workflow=%3Cscript%3Ealert(1)%3C/script%3E%22onx=1"))
    harmless(await shown(api, "nodes?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&pool=%22%3E%3Cb%3E"))


# -- what all pages have in common ---------------------------------------------------------------------------


async def test_pages_run_no_script_but_their_own(api: Api) -> None:
    await api.add_node("g1")
    answer = await api.client.get("/console/nodes", headers={**CONSOLE, **OPS})
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["script-src"] == policy["style-src"] == "'self'" and policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["cache-control"] == "no-store"
    settings = next(
        orjson.loads(found["content"] or "")
        for tag, found in Elements(answer.text).found
        if tag == "meta" and found.get("name") == "htmx-config"
    )
    assert settings["allowEval"] is False and settings["includeIndicatorStyles"] is False


async def test_files_are_kept_by_browsers_and_change_their_address(api: Api) -> None:
    await api.add_node("g1")
    text = await shown(api, "nodes")
    addresses = re.findall(r'(?:src|href)="\.\./(console/static/[^"]+)"', text)
    assert len(set(addresses)) >= 5
    for address in addresses:
        answer = await api.client.get(f"/{address}", headers=ANN)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        etag = answer.headers["etag"]
        assert etag.strip('"') in address
        again = await api.client.get(f"/{address}", headers={**ANN, "If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        plain = await api.client.get(f"/{address}", headers={**ANN, "Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.content == answer.content
    assert (await api.client.get("/console/static/console.js", headers=ANN)).status_code == 404
    assert (await api.client.get("/console/static/README.md", headers=ANN)).status_code == 404


def test_libraries_are_those_that_the_readme_names() -> None:
    told = dict(
        re.findall(
            r"^\| `([\w.-]+)` .* `([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
        )
    )
    there = {one.name for one in VENDOR.iterdir() if one.suffix in (".js", ".css")}
    assert told.keys() == there <= static_files().keys()
    for name, digest in told.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


async def test_who_is_not_signed_in_is_led_to_the_form_and_back(api: Api) -> None:
    asked = await api.client.get("/console/nodes", headers=CONSOLE)
    assert asked.status_code == 401 and "login?then=console/nodes" in asked.text
    for place in ("console/workflows/painted/versions", "console/workflows/painted@draft"):
        asked = await api.client.get(f"/{place}", headers=CONSOLE)
        assert asked.status_code == 401 and f"login?then={place}" in unquote(asked.text), asked.text
    done = await api.client.post(
        "/login", data={"key": OPS["X-API-Key"], "then": "console/nodes"}, headers=CONSOLE
    )
    assert (done.status_code, done.headers["location"]) == (303, "./console/nodes")
    cookie = done.headers["set-cookie"]
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
    page = await api.client.get("/console/nodes", headers={**CONSOLE, "Cookie": cookie.partition(";")[0]})
    assert page.status_code == 200 and "Sign out" in page.text
    first = await api.client.get("/console", headers={**CONSOLE, **OPS})
    assert first.status_code == 303


# -- the stream ----------------------------------------------------------------------------------------------


async def events(stream: AsyncIterator[str]) -> dict[str, Any]:
    """Return what the stream says next."""
    async with Timeout(60):
        async for line in stream:
            if line.startswith("data: ") and line != "data: {}":
                found: dict[str, Any] = orjson.loads(line[6:])
                return found
    raise AssertionError("the stream has ended")


async def test_the_stream_tells_operators_of_everything_and_others_of_their_own(api: Api) -> None:
    await api.add_node("g1")
    ops = api.client.stream("GET", "/console/live", headers={**CONSOLE, **OPS})
    ben = api.client.stream("GET", "/console/live", headers={**CONSOLE, **BEN})
    async with ops as to_ops, ben as to_ben:
        told_ops, told_ben = to_ops.aiter_lines(), to_ben.aiter_lines()
        async with Timeout(60):
            for told in (told_ops, told_ben):
                while await anext(told) != "event: hello":
                    pass
            while not (await events(told_ops))["nodes"]:
                pass
        await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=ANN)
        while not (seen := (await events(told_ops))["jobs"]):
            pass
        assert seen == {"queued": 1}
        await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=BEN)
        # Nothing of Ann's came before it, and nothing of nodes.
        assert await events(told_ben) == {"nodes": False, "jobs": {"queued": 1}}


async def test_the_editors_origin_has_no_stream(api: Api) -> None:
    at_the_editor = {
        "X-Fleet-Origin": "editor",
        "Authorization": "Basic " + b64encode(b"me:ops-key-0123456789").decode(),
    }
    refused = await api.client.get("/console/live", headers=at_the_editor)
    assert code(refused) == (403, "console_only")


async def test_streams_are_bounded(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with (
        running(redis_port, tmp_path, max_streams=1) as api,
        api.client.stream("GET", "/console/live", headers=CONSOLE) as first,
    ):
        assert first.headers["content-type"].startswith("text/event-stream")
        told = first.aiter_lines()
        async with Timeout(60):
            while await anext(told) != "event: hello":
                pass
        assert code(await api.client.get("/console/live", headers=CONSOLE)) == (429, "too_many_streams")
