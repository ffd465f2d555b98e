"""Outputs get into their store once although the processes that put them there are killed."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from comfy_fleet.bootstrap import Stores, open_assets
from comfy_fleet.domain.jobs.job import JobStatus, Output, OutputKind
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim, StoredOutput
from comfy_fleet.settings import Settings
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_process import api_process
from tests.integration.store_kit import Bucket, served_bucket

JOBS = int(os.environ.get("FLEET_TEST_STORE_JOBS", "12"))
"""More in a long run."""


@dataclass
class Between:
    """Stands between the fleet and its store: passes everything on, and may keep answers back."""

    behind: str
    url: str = ""
    held: asyncio.Event | None = None
    puts: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        url = URL(self.behind + request.raw_path, encoded=True)
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, data=body, headers=headers) as answer,
        ):
            found = await answer.read()
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "content-type")
            }
        if request.method == "PUT" and answer.status == 200 and "probe" not in request.path:
            self.puts.append(request.path)
            if self.held is not None:
                await self.held.wait()
        if request.method == "HEAD":
            return web.Response(status=answer.status, headers={**answer.headers})
        return web.Response(status=answer.status, body=found, headers=kept, content_type=answer.content_type)


@asynccontextmanager
async def between(bucket: Bucket) -> AsyncIterator[Between]:
    made, app = Between(bucket.url), web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        if made.held is not None:
            made.held.set()
        await runner.cleanup()


@pytest.mark.timeout(240)
async def test_each_output_is_stored_though_the_api_is_killed_while_its_store_answers(
    redis_port: int, stores: Stores, tmp_path: Path
) -> None:
    await stores.nodes.add(Node(name="g1", url="http://127.0.0.1:9"))
    assets = open_assets(Settings(data=tmp_path), stores)
    ids: list[str] = []

    async def made(job_id: str) -> None:
        """Let a job succeed, as a dispatcher does."""
        job = await stores.jobs.get(job_id)
        assert job is not None
        claim = await stores.runs.claim(
            node="g1",
            placements=[job.placement],
            run=str(uuid4()),
            token=str(uuid4()),
            dispatcher="d1",
            ttl_s=60,
        )
        assert isinstance(claim, Claim), claim

        async def chunks() -> AsyncIterator[bytes]:
            yield claim.job.id.encode()

        asset = await assets.put_output(
            owner=claim.job.owner,
            job_id=claim.job.id,
            chunks=chunks(),
            name="a.png",
            content_type="image/png",
            expires_at=claim.job.expires_at,
        )
        output = Output(
            asset_id=asset.id,
            node_id="2",
            key="images",
            index=0,
            name="a.png",
            kind=OutputKind.IMAGE,
            content_type="image/png",
            size_bytes=asset.size_bytes,
            hash=asset.hash,
        )
        await stores.runs.commit(claim, StoredOutput(output=output, asset=asset))
        await stores.runs.left(claim, [])
        await stores.runs.finish(claim, JobStatus.SUCCEEDED, error=None, duration_s=1.0)

    with served_bucket() as bucket:
        async with between(bucket) as door:
            async with api_process(redis_port, tmp_path) as (client, process):
                record = {**bucket.record(), "endpoint": door.url}
                added = await client.post("/api/v1/stores", json=record)
                assert added.status_code == 201, added.text
                for color in range(JOBS):
                    output = {"store": "shop", "key": f"{color}.png", "on_conflict": "fail"}
                    body = {"workflow": picture(color), "output": output}
                    answer = await client.post("/api/v2/jobs", json=body)
                    assert answer.status_code == 201, answer.text
                    ids.append(answer.json()["id"])
                door.held = asyncio.Event()
                for job_id in ids:
                    await made(job_id)
                await until(lambda: door.puts, what="the store has an object", timeout_s=60)
                process.kill()  # before it is noted
            door.held.set()
            door.held = None
            client_: Any = stores.redis
            await client_.delete(
                "fleet:transfers:taken:shop"
            )  # as a minute later, when their leases are over
            for name in await client_.zrange("fleet:transfers:queue:shop", 0, -1):
                await client_.zadd("fleet:transfers:queue:shop", {name: 0})
            await client_.zadd("fleet:transfers", {"shop": 0})
            async with api_process(redis_port, tmp_path) as (client, process):

                async def all_there() -> bool:
                    jobs = await stores.jobs.load(ids)
                    return all(job is not None and not job.storing for job in jobs)

                await until(all_there, what="nothing waits", timeout_s=60)
            jobs = await stores.jobs.load(ids)
            states = [one.state.value for job in jobs if job is not None for one in job.stored.values()]
            assert states == ["stored"] * JOBS
            contents = {bucket.read(f"pictures/{color}.png").decode() for color in range(JOBS)}
            assert contents == {*ids}, "each name has its own job's bytes, and none is missing"
            assert len(door.puts) == JOBS, "no object was written twice"
