"""The test runs of drafts, in Redis."""

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.ports.publish_tests import KEPT_S


class RedisPublishTests:
    """:class:`comfy_fleet.ports.publish_tests.PublishTests`. The client may decode responses or not."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace

    async def job(self, owner: str, name: str, version: str) -> str | None:
        """See :meth:`comfy_fleet.ports.publish_tests.PublishTests.job`."""
        kept = await self._redis.get(self._keys.publish_test(owner, name))
        tested, _, job_id = (kept.decode() if isinstance(kept, bytes) else kept or "").partition(" ")
        return job_id if job_id and tested == version else None

    async def note(self, owner: str, name: str, version: str, job_id: str) -> None:
        """See :meth:`comfy_fleet.ports.publish_tests.PublishTests.note`."""
        await self._redis.set(self._keys.publish_test(owner, name), f"{version} {job_id}", ex=int(KEPT_S))
