"""Answers for repeated requests, in Redis."""

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import hashed

_MARK_S = 60
_KEEP_S = 86400


class RedisReplays:
    """:class:`comfy_fleet.ports.jobs.Replays`. The client may decode responses or not."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace

    async def begin(self, scope: str, key: str) -> bool:
        """See :meth:`comfy_fleet.ports.jobs.Replays.begin`."""
        return bool(
            await self._redis.set(self._keys.replay_mark(scope, hashed(key)), "1", nx=True, ex=_MARK_S)
        )

    async def recall(self, scope: str, key: str) -> tuple[str, bytes] | None:
        """See :meth:`comfy_fleet.ports.jobs.Replays.recall`."""
        kept = await self._redis.get(self._keys.replay(scope, hashed(key)))
        if kept is None:
            return None
        fingerprint, _, body = (kept if isinstance(kept, bytes) else kept.encode()).partition(b"\0")
        return fingerprint.decode(), body

    async def end(self, scope: str, key: str, *, answer: tuple[str, bytes] | None) -> None:
        """See :meth:`comfy_fleet.ports.jobs.Replays.end`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            if answer is not None:
                kept = b"\0".join((answer[0].encode(), answer[1]))
                pipe.set(self._keys.replay(scope, hashed(key)), kept, nx=True, ex=_KEEP_S)
            pipe.delete(self._keys.replay_mark(scope, hashed(key)))
            await pipe.execute()
