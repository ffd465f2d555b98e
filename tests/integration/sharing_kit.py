"""A fleet with an API and a stored workflow, for tests of jobs that share results."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.jobs.job import JobStatus
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import Api, running

NOISE: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 7}},
    "2": {
        "class_type": "ImageAddNoise",
        "inputs": {"image": ["1", 0], "seed": 1, "strength": 0.5},
        "_meta": {"title": "$seed $strength.strength"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "art/pic"}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


@dataclass
class Sharing:
    """The fleet, its API, and its stored workflow ``noise``."""

    fleet: Fleet
    api: Api

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    @property
    def runs(self) -> int:
        """How many prompts the nodes have computed, as they count them themselves."""
        return sum(len(sim.engine.history) for sim in self.fleet.sims.values())

    async def submit(self, *, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """Submit the workflow, with the seed 5 unless the parameters say otherwise."""
        params = body.pop("params", {"seed": 5})
        answer = await self.client.post(
            "/api/v1/workflows/noise/jobs", json={"params": params, **body}, headers=headers
        )
        assert answer.status_code == 201, answer.text
        job: dict[str, Any] = answer.json()
        return job

    async def job(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return a job as it is now."""
        answer = await self.client.get(f"/api/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def done(self, job: dict[str, Any], status: JobStatus = JobStatus.SUCCEEDED) -> dict[str, Any]:
        """Wait for a job's end and return it."""
        ended = await self.fleet.ended(job["id"])
        assert ended.status is status, ended.error
        return await self.job(job)

    async def content(self, job: dict[str, Any]) -> list[bytes]:
        """Return the bytes of a job's outputs."""
        found = []
        for output in job["outputs"]:
            answer = await self.client.get(f"/api/v2/assets/{output['id']}/content")
            assert answer.status_code == 200, answer.text
            found.append(answer.content)
        return found


@asynccontextmanager
async def sharing(
    redis_port: int,
    folder: Path,
    *names: str,
    manifest: str = "",
    graph: dict[str, Any] | None = None,
    api: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Sharing]:
    """Start it; ``manifest`` is the workflow's."""
    made = folder / "workflows" / "noise"
    made.mkdir(parents=True)
    (made / "workflow.json").write_bytes(orjson.dumps(graph or NOISE))
    (made / "workflow.toml").write_text(manifest)
    async with (
        fleet_of(redis_port, *names, **options) as fleet,
        NodeClient(fleet.settings.direct_url) as ask,
        running(
            redis_port, fleet.settings.data, info=ask, workflows=folder / "workflows", **(api or {})
        ) as serving,
    ):
        inventories = serving.deps.inventories
        await until(lambda: len(inventories.known) == len(fleet.sims), what="the API has read all nodes")
        yield Sharing(fleet, serving)
