"""Whatever is swept meanwhile: a live job has its inputs, and whoever has a job's outputs can read them.

Clients, nodes and sweepers work at the same time, each with stores of its own on one Redis and one folder.
Days pass for uploads, which their clients let expire at once and delete; some jobs are past their retention
as they end.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import orjson
import pytest

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import AssetInUse, LeaseLost, MissingAsset, NotFound
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.result_keys import ResultKeys
from comfy_fleet.ports.runs import Claim
from tests.assets_kit import add_output, assets_on, content_of, new_id
from tests.integration.redis_kit import BROKEN, add_nodes, submit

KEYS = Keyspace()
CONTENTS = (b"one", b"two", b"three")
NODES = ("g1", "g2")
LIVE = ("queued", "running", "canceling")
DAY_S = 86400.0


class World:
    """Clients, nodes and sweepers.

    Args:
        stores: A fleet's.
        root: Where its files are.
        seed: Of what they do.
    """

    def __init__(self, stores: Stores, root: Path, seed: int) -> None:
        self.stores, self.root, self.chance = stores, root, Random(seed)
        self.redis: Any = stores.redis
        self.now = 1_800_000_000.0
        self.inputs: dict[str, tuple[str, bytes]] = {}  # by job: the upload that it uses, and its bytes
        self.made: dict[str, bytes] = {}  # by job: what its run has made
        self.lasting: set[str] = set()  # jobs that are not past their retention
        self.clients = 0
        self.cached = self.refused = self.swept = self.forgotten = self.gone = 0

    async def clock(self) -> float:
        return self.now

    def assets(self) -> RedisAssets:
        return assets_on(self.stores.redis, self.root, clock=self.clock, grace_s=0)

    async def pause(self) -> None:
        """Let the others go on for a moment."""
        for _ in range(self.chance.randrange(6)):
            await self.redis.ping()

    async def client(self, steps: int) -> None:
        """Upload, submit jobs that use it, and delete it."""
        assets, chance = self.assets(), self.chance
        self.clients += 1
        for _ in range(steps):
            owner, data = chance.choice(["ann", "bob"]), chance.choice(CONTENTS)

            async def chunks(data: bytes = data) -> AsyncIterator[bytes]:
                yield data

            asset, _ = await assets.upload(
                owner=owner,
                chunks=chunks(),
                content_type="image/png",
                file_path=f"{new_id()}.png",
                expires_in_s=1.0,
            )
            await self.pause()
            for _ in range(chance.choice([1, 1, 2])):  # jobs may share it
                await self.submit(assets, owner, asset.id, data)
            await self.pause()
            try:
                await assets.delete(owner=owner, asset_id=asset.id)
            except AssetInUse:
                self.refused += 1
            except NotFound:
                self.gone += 1  # it was swept
        self.clients -= 1

    async def submit(self, assets: RedisAssets, owner: str, asset: str, data: bytes) -> None:
        job_id, lasting = str(uuid4()), self.chance.random() < 0.6
        try:
            await assets.hold(owner=owner, asset_ids=[asset], job_id=job_id)
        except MissingAsset:
            return  # it has expired before
        self.inputs[job_id] = asset, data
        if lasting:
            self.lasting.add(job_id)
        await self.pause()
        alike = ResultKeys(wanted=data.decode(), kept=(data.decode(),), versions=("",))
        job = await submit(
            self.stores,
            id=job_id,
            owner=owner,
            assets=frozenset([asset]),
            expires_in_s=3600.0 if lasting else 0.01,
            results=alike if self.chance.random() < 0.6 else None,
            max_attempts=9,
        )
        self.cached += job.status is JobStatus.SUCCEEDED
        await self.pause()
        await self.check(job_id, assets)

    async def node(self, name: str) -> None:
        """Run jobs, as long as there may be some."""
        assets, chance = self.assets(), self.chance
        while self.clients or await self.stores.runs.waiting():
            await self.pause()
            classes = [one.placement for one in await self.stores.runs.waiting()]
            got = await self.stores.runs.claim(
                node=name,
                placements=classes,
                run=str(uuid4()),
                token=uuid4().hex,
                dispatcher="d1",
                ttl_s=60,
            )
            if not isinstance(got, Claim):
                continue
            asset, data = self.inputs[got.job.id]
            await self.pause()
            found = await assets.get(asset)  # it is staged
            assert found is not None and await content_of(assets, found) == data
            if chance.random() < 0.2:
                await self.stores.runs.requeue(got, counts=False, reason=BROKEN)
                continue
            try:
                await add_output(self.stores.redis, assets, got, b"made of " + data, f"{new_id()}.png")
            except LeaseLost:
                continue
            await self.pause()
            await self.check(got.job.id, assets)
            await self.stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=0.1)
            self.made[got.job.id] = b"made of " + data

    async def sweeper(self) -> None:
        """Let days pass, forget jobs as a dispatcher does, and delete bytes."""
        assets = self.assets()
        while self.clients or await self.stores.runs.waiting():
            self.now += DAY_S
            for job_id in await self.stores.runs.forgettable(50):
                await self.pause()
                if await assets.forget_job(job_id):
                    await self.stores.runs.forget(job_id)
                    self.forgotten += 1
            self.swept += await assets.sweep()
            await self.pause()

    async def check(self, job_id: str, assets: RedisAssets) -> None:
        """See that a job has its input while it is live, and its outputs until it is past its retention."""
        asset, data = self.inputs[job_id]
        found = await assets.get(asset)
        content = await self.read(assets, asset) if found is not None else None
        if await self.redis.hget(KEYS.job(job_id), "status") in [status.encode() for status in LIVE]:
            assert content == data, job_id
        if job_id in self.lasting:
            for raw in await self.redis.hvals(KEYS.job_outputs(job_id)):
                assert await self.read(assets, orjson.loads(raw)["asset_id"]) == b"made of " + data, job_id

    async def read(self, assets: RedisAssets, asset_id: str) -> bytes | None:
        found = await assets.get(asset_id)
        try:
            return await content_of(assets, found) if found is not None else None
        except FileNotFoundError:
            return None


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_that_a_live_job_uses_is_swept(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    world, real = World(stores, tmp_path, seed), DiskBlobs.delete
    await add_nodes(stores, *NODES)

    async def late(blobs: DiskBlobs, key: str) -> None:  # chosen already, deleted after others have gone on
        await world.pause()
        await real(blobs, key)

    monkeypatch.setattr(DiskBlobs, "delete", late)
    await asyncio.gather(
        *(world.client(12) for _ in range(3)), *map(world.node, NODES), *(world.sweeper() for _ in range(2))
    )
    assets = world.assets()
    for job_id in world.inputs:
        await world.check(job_id, assets)
    assert world.refused and world.forgotten and world.swept and world.cached, (
        "it must have been worth the trouble"
    )
    for job_id in world.lasting & world.made.keys():
        assert await world.redis.hlen(KEYS.job_outputs(job_id)) == 1
