"""Which URLs of jobs' inputs are to be fetched (port :class:`comfy_fleet.ports.fetches.FetchStore`)."""

import hashlib
from collections.abc import Callable
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import ended_job, rq_failure
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.input_fetch import ERROR, KEEP_S
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.records import from_fields
from comfy_fleet.ports.fetches import Fetch
from comfy_fleet.ports.telemetry import Telemetry

LEASE_S = 10.0
"""How long a process has a URL without a beat."""
AT_ONCE = 50  # jobs that one call of a script changes: takes a few milliseconds on the server


def fetch_id(owner: str, url: str) -> str:
    """Return the id of an owner's URL."""
    return hashlib.sha256(f"{owner}\0{url}".encode("utf-8", "surrogatepass")).hexdigest()[:40]


class RedisFetches:
    """The URLs in Redis.

    Args:
        redis: A client that returns bytes.
        new_token: Draws a token.
        telemetry: Is told of jobs that end.
        lease_s: How long a process has a URL without a beat.
    """

    def __init__(
        self,
        redis: FleetRedis,
        *,
        new_token: Callable[[], str],
        telemetry: Telemetry,
        lease_s: float = LEASE_S,
    ) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._new_token = new_token
        self._telemetry = telemetry
        self._lease_s = lease_s

    async def fresh(self, owner: str, url: str) -> str | None:
        """See the port."""
        found = await self._redis.get(self._keys.fetched_fresh(fetch_id(owner, url)))
        return found.decode() if found else None

    async def take(self, *, each: int) -> Fetch | None:
        """See the port."""
        if not await self._redis.exists(self._keys.fetch_owners):
            return None  # an idle fleet runs no script
        token = self._new_token()
        row = await self._scripts.call("take_fetch", token=token, lease_s=self._lease_s, each=each)
        if not row:
            return None
        id_, owner, url, tries, asset_id, etag, modified = (part.decode() for part in row)
        return Fetch(
            id=id_,
            owner=owner,
            url=url,
            token=token,
            tries=int(tries),
            asset_id=asset_id,
            etag=etag,
            modified=modified,
        )

    async def beat(self, fetch: Fetch) -> bool:
        """See the port."""
        return bool(
            await self._scripts.call("beat_fetch", fetch=fetch.id, token=fetch.token, lease_s=self._lease_s)
        )

    async def done(self, fetch: Fetch, asset: Asset, *, etag: str, modified: str, fresh_s: float) -> None:
        """See the port."""
        gone = await self._end(
            fetch,
            asset={"id": asset.id, "type": asset.content_type, "size": asset.size_bytes},
            etag=etag,
            modified=modified,
            fresh_s=fresh_s,
            keep_s=KEEP_S,
            code=ERROR,
        )
        if gone:
            await self.again(fetch, in_s=0.0, counts=True)

    async def failed(self, fetch: Fetch, error: JobError) -> None:
        """See the port."""
        told = {"code": error.code, "message": error.message, "details": dict(error.details)}
        await self._end(fetch, error=told, text=rq_failure(error))

    async def again(self, fetch: Fetch, *, in_s: float, counts: bool) -> None:
        """See the port."""
        await self._end(fetch, again={"in_s": in_s, "counts": counts})

    async def _end(self, fetch: Fetch, *, text: str = "", **args: Any) -> bool:
        """Call until all jobs were told; return whether the asset is gone."""
        while True:
            outcome, *rows = await self._scripts.call(
                "end_fetch", text, fetch=fetch.id, token=fetch.token, most=AT_ONCE, **args
            )
            for facts, raw in zip(rows[::2], rows[1::2], strict=True):
                error = from_fields(JobError, orjson.loads(raw))
                self._telemetry.ended_without_run(ended_job(facts, JobStatus.FAILED, error))
            if outcome != b"more":
                return bool(outcome == b"gone")
