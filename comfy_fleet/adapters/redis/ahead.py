"""Peeks at the next choice, and records of files that are staged ahead (port ``AheadStore``)."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from comfy_fleet.adapters.redis.asset_record import asset_fields, load_asset
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.ports.ahead import NextJob, Peek
from comfy_fleet.ports.runs import StagedInput


class RedisAhead:
    """What is staged ahead, in Redis.

    Args:
        redis: A client that returns bytes.
        schema: The layout that this process knows.
    """

    def __init__(self, redis: FleetRedis, *, schema: int = SCHEMA) -> None:
        self._scripts = Scripts(redis, schema=schema)

    async def peek(
        self,
        *,
        node: str,
        placements: Sequence[Placement],
        pool: str,
        peers: int,
        speed: float,
        ram: int,
        patience_s: float,
        able: Mapping[Placement, Sequence[str]],
        unable: Mapping[Placement, Sequence[str]],
    ) -> Peek:
        """Rehearse a claim."""
        ahead, *found = await self._scripts.call(
            "peek",
            node=node,
            placements=[placement.key for placement in placements],
            pool=pool,
            peers=peers,
            speed=speed,
            ram=ram,
            patience_s=patience_s,
            able=_by_key(able),
            unable=_by_key(unable),
        )
        job = None
        if found:
            job_id, assets, editor = found
            job = NextJob(id=job_id.decode(), asset_ids=assets.decode().split(), editor=bool(editor))
        return Peek(next=job, ahead=(ahead or b"").decode())

    async def stage_ahead(
        self, node: str, job: NextJob | None, *, keep_s: float, most_bytes: int
    ) -> Mapping[str, StagedInput]:
        """Name a job's files on a node."""
        assets = job.asset_ids if job is not None else ()
        _, rows = await self._scripts.begin(
            "stage_ahead",
            node=node,
            job=job.id if job is not None else "",
            keep_s=keep_s,
            most_bytes=most_bytes,
            assets=list(assets),
            drawn=[f"{uuid4()}/{uuid4()}" for _ in assets],
        )
        found = {}
        for record, folders, new in rows:
            asset = load_asset(asset_fields(record))
            found[asset.id] = StagedInput(asset=asset, folders=folders.decode(), new=bool(new))
        return found

    async def staged_ahead(self, node: str, staged: StagedInput, *, keep_s: float) -> bool:
        """Let runs find a file."""
        answer = await self._scripts.call(
            "staged_ahead", node=node, asset=staged.asset.id, folders=staged.folders, keep_s=keep_s
        )
        return bool(answer)


def _by_key(named: Mapping[Placement, Sequence[str]]) -> dict[str, list[str]] | None:
    return {placement.key: list(names) for placement, names in named.items()} or None
