"""An asset store on a real Redis and a real folder."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore


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


async def begun(redis: FleetRedis, job: str) -> dict[str, Any]:
    """Let a run have a job; returns what its writes have to show."""
    await redis.hset(f"fleet:run:run-of-{job}", mapping={"job": job, "token": "t"})
    return {"run": f"run-of-{job}", "token": "t"}


async def content_of(store: AssetStore, asset: Asset) -> bytes:
    """Return an asset's bytes."""
    return b"".join([chunk async for chunk in await store.open(asset)])
