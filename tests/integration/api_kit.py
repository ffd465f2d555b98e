"""The HTTP faces on a real server, Redis and folder; the dispatcher's part is played by tests."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson

from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.api.app import create_app
from comfy_fleet.api.body_pace import BodyPace
from comfy_fleet.api.deps import ApiDeps, NodeFacts
from comfy_fleet.api.main import build
from comfy_fleet.api.server import ApiServer, server
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.connections import close
from comfy_fleet.domain.jobs.job import JobStatus, Output, OutputKind
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.runs import Claim, StoredOutput
from comfy_fleet.settings import Settings
from tests.comfyui_server import ANSWER_S
from tests.fakes.comfyui import FakeNodeApi

OBJECT_INFO = Path(__file__).parents[1] / "data" / "object_info_0.3.64.json.gz"


def object_info() -> dict[str, Any]:
    """Return what a real ComfyUI lists."""
    info: dict[str, Any] = orjson.loads(gzip.decompress(OBJECT_INFO.read_bytes()))
    return info


@dataclass
class Api:
    """A running API."""

    url: str
    client: httpx.AsyncClient
    stores: Stores
    deps: ApiDeps
    info: FakeNodeApi
    server: ApiServer
    serving: asyncio.Task[None]

    @property
    def assets(self) -> RedisAssets:
        assert isinstance(self.deps.assets, RedisAssets)
        return self.deps.assets

    async def add_node(
        self,
        name: str = "g1",
        *,
        info: bool = True,
        up: bool = True,
        simulated: bool = False,
        editor: bool | None = None,
    ) -> None:
        """Register a node; with ``info`` it answers like a real one."""
        if info:
            self.info.serve(name, object_info())
        number = len(await self.stores.nodes.nodes())
        await self.stores.nodes.add(
            Node(name=name, url=f"http://127.0.0.1:{9000 + number}", simulated=simulated, editor=editor)
        )
        if up:
            await self.stores.nodes.report(name, verdict="up", why="")

    async def learned(self, profile: str, run_s: float) -> None:
        """Let the fleet know how long runs of a profile, and of all together, compute."""
        client: Any = self.stores.redis
        for each in (profile, "*"):
            await client.hset(f"fleet:sched:profile:{each}", mapping={"run_s": run_s, "runs": 1})

    async def submit(self, graph: object, **more: Any) -> dict[str, Any]:
        answer = await self.client.post("/api/v2/jobs", json={"workflow": graph, **more})
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def claim(self, job_id: str, node: str = "g1") -> Claim:
        """Start the job, as a dispatcher does."""
        job = await self.stores.jobs.get(job_id)
        assert job is not None
        claim = await self.stores.runs.claim(
            node=node,
            placements=[job.placement],
            run=str(uuid4()),
            token=str(uuid4()),
            dispatcher="d1",
            ttl_s=30,
        )
        assert isinstance(claim, Claim), claim
        assert claim.job.id == job_id
        return claim

    async def output(
        self,
        claim: Claim,
        data: bytes,
        *,
        name: str = "out_00001_.png",
        node: str = "2",
        saved: bool = False,
        subfolder: str = "",
        temporary: bool = False,
        content_type: str = "image/png",
        kind: OutputKind = OutputKind.IMAGE,
    ) -> Output:
        """Commit an output; ``saved``: the node has saved it as a file."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        asset = await self.assets.put_output(
            owner=claim.job.owner,
            job_id=claim.job.id,
            chunks=chunks(),
            name=name,
            content_type=content_type,
            expires_at=claim.job.expires_at,
        )
        output = Output(
            asset_id=asset.id,
            node_id=node,
            key="images",
            index=0,
            name=name,
            kind=kind,
            content_type=content_type,
            size_bytes=asset.size_bytes,
            hash=asset.hash,
            saved=saved,
            subfolder=subfolder,
            temporary=temporary,
        )
        kept = await self.stores.runs.commit(claim, StoredOutput(output=output, asset=asset))
        return replace(output, asset_id=kept.id)

    async def finish(
        self, claim: Claim, status: JobStatus = JobStatus.SUCCEEDED, seconds: float = 2.0
    ) -> None:
        """End the job."""
        await self.stores.runs.left(claim, [])
        await self.stores.runs.finish(claim, status, error=None, duration_s=seconds)


@asynccontextmanager
async def running(
    redis_port: int,
    folder: Path,
    *,
    info: NodeFacts | None = None,
    pace: BodyPace | None = None,
    **settings: Any,
) -> AsyncIterator[Api]:
    """Run the API on a port that the kernel chose; ``info`` asks the nodes, else the test answers."""
    made = Settings(data=folder, **{"redis_url": f"redis://127.0.0.1:{redis_port}/0", **settings})
    played = FakeNodeApi()
    # asyncio turns off Nagle only where the protocol is named; uvloop, which serves elsewhere, always.
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with open_stores(made) as stores:
        deps = replace(build(made, stores, info or played), pace=pace or BodyPace())
        served = server(create_app(deps), made, deps.closing)
        serving = asyncio.create_task(served.serve([sock]))
        while not served.started:
            assert not serving.done(), serving
            await asyncio.sleep(0.005)
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S) as client:
            try:
                yield Api(url, client, stores, deps, played, served, serving)
            finally:
                for one in served.servers:
                    await close(one)
                served.should_exit = True
                await serving
    sock.close()


def code(answer: Any) -> tuple[int, str]:
    """Check the form of an error and return its status and code."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["message"]
    return answer.status_code, error["code"]


async def upload(api: Api, data: bytes, name: str = "a.png", **more: Any) -> httpx.Response:
    """Send a picture as an asset."""
    headers = more.pop("headers", {})
    return await api.client.post(
        "/api/v2/assets",
        data={"content_type": "image/png", "file_path": name, **more},
        files={"file": ("whatever", data, "image/png")},
        headers=headers,
    )
