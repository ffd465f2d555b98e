"""How many requests the API works on at once, and who need not wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.factories import picture
from tests.integration.api_kit import Api, code, running

pytestmark = pytest.mark.usefixtures("redis")


@asynccontextmanager
async def busy(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Let one list take as long as the block."""
    began, end, real = asyncio.Event(), asyncio.Event(), api.stores.jobs.find

    async def slow(wanted: Any) -> Any:
        began.set()
        await end.wait()
        return await real(wanted)

    monkeypatch.setattr(api.deps.jobs, "find", slow)
    listing = asyncio.create_task(api.client.get("/api/v2/jobs"))
    await began.wait()
    yield
    end.set()
    assert (await listing).status_code == 200


@pytest.fixture
async def narrow(redis: Redis, redis_port: int, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path, max_requests=1, request_wait_s=0.05) as api:
        await api.add_node()
        yield api


async def test_who_waits_too_long_is_told_to_come_again(narrow: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async with busy(narrow, monkeypatch):
        for answer in (
            await narrow.client.post("/api/v2/jobs", json={"workflow": picture(1)}),
            await narrow.client.post("/api/v1/generate", json={"prompt": "a"}),
            await narrow.client.get("/api/v1/nodes"),
            await narrow.client.request("GET", "/api/v1/jobs", content=b"nobody reads this"),
        ):
            assert code(answer) == (503, "busy")
            assert answer.headers["retry-after"] == "1"
            assert "FLEET_MAX_REQUESTS" in answer.json()["error"]["message"]
    assert (await narrow.submit(picture(1)))["status"] == "queued"


async def test_the_urgent_do_not_wait(narrow: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = (await narrow.submit(picture(1)))["id"]
    async with busy(narrow, monkeypatch):
        for path in ("/health", "/api/v1/health", "/api/v2/health"):
            assert (await narrow.client.get(path)).status_code == 200
        assert (await narrow.client.get("/api/v1/ready")).json()[
            "reasons"
        ]  # it was asked: no dispatcher is here
        beat = await narrow.client.post("/api/v1/agents/h1/heartbeat", json={"instance": "a"})
        assert beat.status_code == 200
        for face in ("v1", "v2"):
            assert (await narrow.client.post(f"/api/{face}/jobs/{job}/cancel")).status_code == 200


async def test_a_stream_keeps_nobody_out(narrow: Api) -> None:
    job = (await narrow.submit(picture(1)))["id"]
    async with narrow.client.stream("GET", f"/api/v2/jobs/{job}/events") as stream:
        assert stream.status_code == 200
        assert (await narrow.client.get("/api/v2/jobs")).status_code == 200


async def test_a_heartbeat_may_join_many_nodes(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    joining = [
        {"name": f"n{number}", "url": f"http://127.0.0.1:{10_000 + number}", "agent": "127.0.0.1:9"}
        for number in range(256)
    ]
    async with running(redis_port, tmp_path, redis_connections=8, host_nodes=256) as api:
        answer = await api.client.post("/api/v1/agents/h1/heartbeat", json={"instance": "a", "join": joining})
        assert answer.status_code == 200
        assert len(answer.json()["joined"]) == len(await api.stores.nodes.nodes()) == 256
