"""What one user has is nobody else's to see, through any face; users of a shared tenant see jobs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from tests.factories import GRAPH
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

KEYS = {name: f"{name}-key-0123456789" for name in ("ann", "bob", "eve", "ops")}
PROMPT, UPLOAD, USERFILE, LABEL, OUTPUT = (
    *("a-zebra-nobody-knows", "zebra-upload.png", "zebra-flow.json", "zebra-label"),
    "zebra-out_00001_.png",
)
MINE = "5e1b5a7e-0000-4000-8000-00000000a11e"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@dataclass(frozen=True)
class Things:
    """What ann has."""

    job: str
    prompt: str
    asset: str
    output: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (
            self.job,
            self.prompt,
            self.asset,
            self.output,
            PROMPT,
            UPLOAD,
            USERFILE,
            LABEL,
            OUTPUT,
            "zebra",
        )


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = write_keys(
        tmp_path / "keys",
        "".join(f"{name} {key}{' operator' if name == 'ops' else ''}\n" for name, key in KEYS.items()),
    )
    async with running(redis_port, tmp_path / "data", keys_file=keys) as started:
        await started.add_node()
        yield started


def graph() -> dict[str, Any]:
    made: dict[str, Any] = orjson.loads(orjson.dumps(GRAPH))
    for node in made.values():
        for name, value in node["inputs"].items():
            if name == "text" or (isinstance(value, str) and name == "filename_prefix"):
                node["inputs"][name] = PROMPT
    return made


async def has_everything(api: Api) -> Things:
    """Give ann a finished job, one that waits, an upload and a file of the editor's."""
    head = bearer("ann")
    body = {"workflow": graph(), "metadata": {"of": LABEL}}
    job = await api.client.post("/api/v2/jobs", json=body, headers=head)
    assert job.status_code == 201, job.text
    job_id = job.json()["id"]
    claim = await api.claim(job_id)
    output = await api.output(claim, b"zebra bytes", name=OUTPUT, saved=True)
    await api.finish(claim)
    prompt = {"prompt": graph(), "prompt_id": MINE, "client_id": "anns-editor"}
    assert (await api.client.post("/prompt", json=prompt, headers=head)).status_code == 200
    files = {"image": (UPLOAD, b"zebra picture", "image/png")}
    assert (await api.client.post("/upload/image", files=files, headers=head)).status_code == 200
    saved = await api.client.post(f"/userdata/{USERFILE}", content=b'{"zebra": 1}', headers=head)
    assert saved.status_code == 200, saved.text
    listed = (await api.client.get("/api/assets", headers=head)).json()
    asset = next(one["id"] for one in listed["assets"] if one["name"] == UPLOAD) if "assets" in listed else ""
    return Things(job_id, MINE, asset or output.asset_id, output.asset_id)


def asked(things: Things) -> list[str]:
    """Return everything that shows something, by every name that ann's things have."""
    ids = {things.job, things.prompt}
    lists = (
        *("/api/v2/jobs", "/api/v1/jobs", "/api/v1/jobs?all=true", f"/api/v1/jobs?metadata[of]={LABEL}"),
        *("/queue", "/api/queue", "/history", "/api/history", "/api/jobs", "/prompt", "/api/v1/queue"),
        *("/internal/files/input", "/internal/files/output", "/internal/files/temp"),
        *("/api/assets", "/api/tags", "/userdata?dir=&recurse=true", "/v2/userdata", "/users", "/settings"),
        *("/object_info", "/object_info/LoadImage", "/system_stats", "/features", "/models", "/embeddings"),
        *("/api/v1/ready", "/api/v1/health", "/api/v1/me", "/api/v1/workflows", "/api/v1/drafts"),
        f"/api/v1/job-ids?prefix={things.job[:8]}",
        f"/userdata/{USERFILE}",
        f"/view?filename={UPLOAD}&type=input",
        f"/view?filename={OUTPUT}&type=output",
        f"/view_metadata/{UPLOAD}",
    )
    each = [
        path.format(id=id_)
        for id_ in sorted(ids)
        for path in (
            *("/api/v1/jobs/{id}", "/api/v1/jobs/{id}/outputs", "/api/v1/jobs/{id}/workflow"),
            *("/api/v1/jobs/{id}/events", "/api/v2/jobs/{id}", "/api/v2/jobs/{id}/workflow"),
            *("/api/v2/jobs/{id}/events", "/api/v1/status/{id}", "/api/v1/result?task_id={id}"),
            *("/api/status/{id}", "/history/{id}", "/api/jobs/{id}"),
        )
    ]
    assets = [
        path.format(id=id_)
        for id_ in sorted({things.asset, things.output})
        for path in ("/api/v2/assets/{id}", "/api/v2/assets/{id}/content", "/api/assets/{id}")
    ]
    return [*lists, *each, *assets]


async def told(api: Api, path: str, name: str) -> tuple[int, str]:
    """Return what somebody is answered; of a stream, that it began."""
    async with api.client.stream("GET", path, headers=bearer(name)) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer.status_code, "(a stream)"
        data = await answer.aread()
        return answer.status_code, data.decode(errors="replace")


async def test_nobody_sees_anything_of_another_user_through_any_face(api: Api) -> None:
    things = await has_everything(api)
    named: set[str] = set()
    for path in asked(things):
        _, mine = await told(api, path, "ann")
        if any(mark in mine for mark in things.marks) or mine == "(a stream)":
            named.add(path)
        status, theirs = await told(api, path, "bob")
        found = [mark for mark in things.marks if mark in theirs and mark not in path]
        assert not found, (path, status, found, theirs[:500])
        assert theirs != "(a stream)", path
        assert status != 500, path  # 503: what only a real node could answer
    # The walk means something only if ann's own answers name her things.
    assert len(named) > 25, named


async def test_nobody_changes_anything_of_another_user_through_any_face(api: Api) -> None:
    things = await has_everything(api)
    head = bearer("bob")
    ask = api.client.request
    changes: list[tuple[str, str, dict[str, Any]]] = [
        *(
            ("POST", f"/api/v{n}/jobs/{id_}/cancel", {})
            for n in (1, 2)
            for id_ in (things.job, things.prompt)
        ),
        ("DELETE", f"/api/v1/jobs/{things.job}", {}),
        ("DELETE", f"/api/v1/jobs/{things.job}?cancel=true", {}),
        ("POST", f"/api/v1/jobs/{things.job}/retry", {}),
        ("PUT", f"/api/v1/jobs/{things.job}/keep", {}),
        ("DELETE", f"/api/v2/assets/{things.output}", {}),
        ("POST", "/queue", {"json": {"delete": [things.prompt]}}),
        ("POST", "/queue", {"json": {"clear": True}}),
        ("POST", "/interrupt", {"json": {"prompt_id": things.prompt}}),
        ("POST", "/history", {"json": {"delete": [things.job], "clear": True}}),
        ("POST", f"/api/jobs/{things.prompt}/cancel", {}),
        ("DELETE", f"/userdata/{USERFILE}", {}),
        ("POST", f"/userdata/{USERFILE}", {"content": b"{}"}),
    ]
    before = [await told(api, path, "ann") for path in ("/history", "/queue", f"/userdata/{USERFILE}")]
    for method, path, more in changes:
        answer: httpx.Response = await ask(method, path, headers=head, **more)
        assert answer.status_code < 500, (method, path)
        assert "zebra" not in answer.text.replace(USERFILE, ""), (method, path, answer.text)
    after = [await told(api, path, "ann") for path in ("/history", "/queue", f"/userdata/{USERFILE}")]
    assert [one[0] for one in after] == [200, 200, 200]
    assert things.job in after[0][1] and MINE in after[1][1] and "zebra" in after[2][1]
    assert before[2] == after[2]
    kept = await told(api, f"/api/v2/assets/{things.output}/content", "ann")
    assert kept == (200, "zebra bytes")


async def test_a_websocket_by_the_same_client_id_tells_of_ones_own_jobs_alone(api: Api) -> None:
    heard: list[str] = []
    url = api.url.replace("http", "ws") + "/ws?clientId=anns-editor"
    async with (
        connect(url, additional_headers=bearer("bob"), proxy=None) as bobs,
        connect(url, additional_headers=bearer("ann"), proxy=None) as anns,
    ):

        async def listen() -> None:
            async for message in bobs:
                heard.append(str(message))  # noqa: PERF401 - as they come

        listening = asyncio.create_task(listen())
        prompt = {"prompt": graph(), "prompt_id": MINE, "client_id": "anns-editor"}
        made = await api.client.post("/prompt", json=prompt, headers=bearer("ann"))
        assert made.status_code == 200
        found = (await api.client.get("/api/v1/jobs?user=ann", headers=bearer("ops"))).json()["jobs"]
        claim = await api.claim(found[0]["id"])
        await api.finish(claim)
        async for message in anns:  # ann is told of it to the end, so bob would have been
            if MINE in str(message) and ("execution_success" in str(message) or "executing" in str(message)):
                break
        # Bob's own job is told to him: his websocket works.
        own = await api.client.post(
            "/prompt", json={**prompt, "prompt_id": MINE[:-1] + "b"}, headers=bearer("bob")
        )
        assert own.status_code == 200
        async with asyncio.timeout(60):
            while not any('"queue_remaining": 1' in one or '"queue_remaining":1' in one for one in heard):
                await asyncio.sleep(0.01)
        listening.cancel()
    assert not any(MINE in one or "zebra" in one for one in heard), heard


async def test_users_of_a_shared_tenant_see_jobs_and_nothing_else(api: Api) -> None:
    ops = bearer("ops")
    tenant = {"name": "studio", "sharing": "shared"}
    assert (await api.client.post("/api/v1/tenants", json=tenant, headers=ops)).status_code == 201
    for name in ("ann", "eve"):
        user = {"name": name, "tenant": "studio"}
        assert (await api.client.post("/api/v1/users", json=user, headers=ops)).status_code == 201
    things = await has_everything(api)
    shared = {
        *("/api/v1/jobs?all=true", f"/api/v1/jobs/{things.job}", f"/api/v1/jobs/{things.job}/outputs"),
        *(f"/api/v1/jobs/{things.job}/workflow", f"/api/v2/jobs/{things.job}"),
        *(f"/api/v2/jobs/{things.job}/workflow", f"/api/v2/jobs/{things.job}/events"),
        *(f"/api/v1/jobs/{things.job}/events", f"/api/v2/assets/{things.output}"),
        *(f"/api/v2/assets/{things.output}/content", f"/api/v1/status/{things.job}"),
        *(f"/api/v1/result?task_id={things.job}", f"/api/status/{things.job}"),
    }
    for path in asked(things):
        status, theirs = await told(api, path, "eve")
        seen = any(mark in theirs and mark not in path for mark in things.marks) or theirs == "(a stream)"
        if path in shared:
            assert status == 200, (path, status, theirs[:300])
        else:
            assert not seen, (path, status, theirs[:500])
        _, nobodys = await told(api, path, "bob")
        assert not any(mark in nobodys and mark not in path for mark in things.marks), path
