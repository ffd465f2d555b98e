"""What tests of the prompt routes share: one API for several people, and jobs at every stage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from comfy_fleet.domain.jobs.job import JobError, JobFilter, JobStatus
from comfy_fleet.domain.jobs.raw_ui import RawUi
from comfy_fleet.ports.runs import Claim
from tests.comfyui_server import ANSWER_S
from tests.factories import picture
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

KEYS = {"ada": "key-of-ada-0123456789", "bob": "key-of-bob-0123456789"}


@asynccontextmanager
async def two_people(
    redis_port: int, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Api, httpx.AsyncClient, httpx.AsyncClient]]:
    """Run an API with keys, and yield it with a client of each person's."""
    keys = folder / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with running(redis_port, folder, keys_file=keys, **settings) as api:
        await api.add_node()
        clients = [
            httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=ANSWER_S)
            for key in KEYS.values()
        ]
        async with clients[0] as ada, clients[1] as bob:
            yield api, ada, bob


async def post(client: httpx.AsyncClient, color: int = 1, **more: Any) -> str:
    """Post a prompt and return its id."""
    answer = await client.post("/prompt", json={"prompt": picture(color), **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


async def claim_next(api: Api, node: str = "g1") -> Claim:
    """Start the next job, as a dispatcher does."""
    placements = {job.placement for job in (await api.stores.jobs.find(JobFilter(owner=None))).jobs}
    got = await api.stores.runs.claim(
        node=node,
        placements=sorted(placements, key=lambda one: one.key),
        run=str(uuid4()),
        token=str(uuid4()),
        dispatcher="d1",
        ttl_s=30,
    )
    assert isinstance(got, Claim), got
    return got


async def end(
    api: Api,
    claim: Claim,
    status: JobStatus = JobStatus.SUCCEEDED,
    *,
    ui: dict[str, Any] | None = None,
    error: JobError | None = None,
) -> None:
    """End a run and its job; ``ui`` is what its nodes returned, with at most one file each."""
    kept = RawUi()
    for node_id, one in (ui or {}).items():
        kept.take(node_id, one)
        for file in one.get("images", ()):
            name = file["filename"]
            await api.output(claim, name.encode(), name=name, node=node_id, saved=True)
    await api.stores.runs.left(claim, [])
    await api.stores.runs.finish(claim, status, error=error, duration_s=1.0, ui=kept.dump())
