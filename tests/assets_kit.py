"""An asset store on a real Redis and a real folder."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.runs import Claim, StoredOutput
from tests.factories import a_claim, an_output, running_job


def new_id() -> str:
    return str(uuid4())


async def fixed_clock() -> float:
    return 1e9


def assets_on(
    redis: FleetRedis,
    root: Path,
    *,
    clock: Callable[[], Awaitable[float]] = fixed_clock,
    disk: Disk | None = None,
    retention_s: float = 0.0,
    grace_s: float = 3600.0,
) -> RedisAssets:
    """Return the store of a folder."""
    blobs = DiskBlobs(root, new_id=new_id, disk=disk)
    return RedisAssets(redis, blobs, clock=clock, new_id=new_id, retention_s=retention_s, grace_s=grace_s)


async def begun(redis: FleetRedis, job: str, owner: str = "ann") -> Claim:
    """Let a run have a job; returns its claim."""
    await redis.hset(f"fleet:run:run-of-{job}", mapping={"job": job, "token": "t"})
    return a_claim(run=f"run-of-{job}", job=running_job(id=job, owner=owner), token="t")


async def add_output(
    redis: FleetRedis, store: RedisAssets, made: Claim, data: bytes, name: str = "o.png"
) -> Asset:
    """Store an output of a run and commit it, as a dispatcher does.

    Raises:
        LeaseLost: The job is not this run's any more, or the run not this token's.
    """

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    asset = await store.put_output(
        owner=made.job.owner,
        job_id=made.job.id,
        chunks=chunks(),
        name=name,
        content_type="image/png",
        expires_at=2e9,
    )
    output = an_output(asset_id=asset.id, name=name, hash=asset.hash, size_bytes=asset.size_bytes)
    kept = await RedisRunStore(redis).commit(made, StoredOutput(output=output, asset=asset))
    if kept.path != asset.path:
        await store.replace_output(kept.path, by=asset)
    return kept


async def content_of(store: AssetStore, asset: Asset) -> bytes:
    """Return an asset's bytes."""
    return b"".join([chunk async for chunk in await store.open(asset)])
