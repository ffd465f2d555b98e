"""Equal jobs that follow a run or get a result, beside like ones that share a prompt, while much goes wrong.

Whatever the order: each job ends once, and who succeeds has the picture of its own seed.
"""

import asyncio
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.jobs.job import OwnerEvent
from comfy_fleet.ports.jobs import ClientFeed
from comfy_fleet.sim import SimTiming
from tests.fleet import until
from tests.integration.sharing_kit import Sharing, sharing

KEYS = Keyspace()
NODES = ("g1", "g2")
OVER = ("succeeded", "failed", "canceled", "expired")
STEPS, MOST_LOSSES = 40, 2
"""A job may be lost with its node so often that another attempt is left."""
MANIFEST = 'cache = "{cache}"\n[merge]\nmode = "exact"\nmost = 3\nwindow_s = {window_s}\n'


class _World:
    """Jobs of a few seeds, two nodes, and everything that may happen."""

    def __init__(self, world: Sharing, seed: int, *, drawn: bool) -> None:
        self.world, self.random, self.drawn = world, random.Random(seed), drawn
        self.jobs: list[str] = []
        self.deleted: set[str] = set()
        self.losses = 0
        self.ends = Counter[str]()
        self.history: list[str] = []

    async def step(self) -> None:
        """Let one thing happen, and now and then some time pass."""
        things = ["submit"] * 5 + ["burst", "cancel", "cancel", "delete", "lose", "wait", "wait"]
        name = self.random.choice(things)
        self.history.append(name)
        await getattr(self, name)()

    async def submit(self) -> None:
        drawn = self.drawn and self.random.random() < 0.5
        params = {} if drawn else {"seed": self.random.randint(1, 4)}
        headers = self.random.choice([{}, {}, {}, {"Cache-Control": "no-cache"}])
        answer = await self.world.submit(params=params, headers=headers)
        self.jobs.append(answer["id"])

    async def burst(self) -> None:
        await asyncio.gather(*(self.submit() for _ in range(6)))

    async def cancel(self) -> None:
        if self.jobs:
            answer = await self.world.client.post(f"/api/v1/jobs/{self.random.choice(self.jobs)}/cancel")
            assert answer.status_code in (200, 202, 404, 409), answer.text

    async def delete(self) -> None:
        if self.jobs:
            job = self.random.choice(self.jobs)
            answer = await self.world.client.delete(f"/api/v1/jobs/{job}", params={"cancel": "true"})
            assert answer.status_code in (204, 404), answer.text
            self.deleted.add(job)

    async def lose(self) -> None:
        if self.losses < MOST_LOSSES:
            self.losses += 1
            await self.world.fleet.sims[self.random.choice(NODES)].restart()

    async def wait(self) -> None:
        await asyncio.sleep(self.random.random() * 0.4)

    async def listen(self, feed: ClientFeed) -> None:
        """Count the ends that are told."""
        while True:
            for one in await feed.news():
                if isinstance(one, OwnerEvent) and one.status.terminal:
                    self.ends[one.job_id] += 1

    async def shown(self, job: str) -> dict[str, Any] | None:
        answer = await self.world.client.get(f"/api/v1/jobs/{job}")
        assert answer.status_code in (200, 404), answer.text
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found

    async def over(self) -> bool:
        found = [await self.shown(job) for job in self.jobs]
        return all(one is None or one["status"] in OVER for one in found)


async def pixels(world: Sharing, job: dict[str, Any]) -> tuple[bytes, int]:
    """Return what a job's saved picture shows, and the seed that is written in it."""
    (saved,) = [output for output in job["outputs"] if not output["temporary"]]
    answer = await world.client.get(f"/api/v2/assets/{saved['id']}/content")
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        graph = json.loads(picture.text["prompt"])  # type: ignore[attr-defined]  # a PNG has texts
        return picture.tobytes(), int(graph["2"]["inputs"]["seed"])


async def alone(world: Sharing, seed: int) -> bytes:
    """Return the picture of a seed that nobody shares."""
    job = await world.submit(params={"seed": seed}, headers={"Cache-Control": "no-store"})
    return (await pixels(world, await world.done(job)))[0]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(6))
async def test_each_job_ends_once_with_its_own_picture(
    redis_port: int, redis: Any, tmp_path: Path, seed: int
) -> None:
    drawn = seed % 2 == 1
    manifest = MANIFEST.format(cache="any-seed" if drawn else "exact", window_s=(0, 0.3)[seed // 2 % 2])
    timing = {"timing": SimTiming(job_s=0.25)}
    async with sharing(redis_port, tmp_path, *NODES, manifest=manifest, sim=timing) as world:
        things = _World(world, seed, drawn=drawn)
        async with world.fleet.stores.events.clients("local") as feed:
            listener = asyncio.create_task(things.listen(feed))
            for _ in range(STEPS):
                await things.step()
            await until(things.over, what=f"all are over after {things.history}", timeout_s=120)
            told = {job for job in things.jobs if job not in things.deleted}
            await until(lambda: told <= set(things.ends), what="all ends are told")
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        assert not [job for job, count in things.ends.items() if count != 1], things.history

        found = {job: await things.shown(job) for job in things.jobs}
        ended = [job for job in found.values() if job is not None]
        assert Counter(job["status"] for job in ended).keys() <= {"succeeded", "canceled"}, ended
        right: dict[int, bytes] = {}
        for job in ended:
            if job["status"] != "succeeded":
                continue
            asked = job["params"]["seed"]
            if asked not in right:
                right[asked] = await alone(world, asked)
            assert await pixels(world, job) == (right[asked], asked), (job["id"], things.history)
        assert len(set(right.values())) == len(right) > 1, "each seed has a picture of its own"
        assert any(job["cached"] for job in ended), "some share a result"
        files = [output["id"] for job in ended for output in job["outputs"]]
        assert len(files) == len(set(files)), "no file is two jobs'"

        redis_ = world.fleet.stores.redis
        assert await redis_.zcard(KEYS.queued) == 0
        assert await redis_.zcard(KEYS.live("local")) == 0
        assert [key async for key in redis_.scan_iter("fleet:flight:*:jobs")] == []
