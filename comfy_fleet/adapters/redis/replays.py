"""Answers for repeated requests, in Redis.

fleet:replay:mark:SCOPE:HASH    somebody works on it, at most a minute
fleet:replay:SCOPE:HASH         FINGERPRINT NUL BODY, 24 h
"""

import hashlib

from redis.asyncio import Redis

from comfy_fleet.adapters.redis.scripts import store_errors

_MARK_S = 60
_KEEP_S = 86400


class RedisReplays:
    """:class:`comfy_fleet.ports.jobs.Replays`. The client may decode responses or not."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def begin(self, scope: str, key: str) -> bool:
        """See :meth:`comfy_fleet.ports.jobs.Replays.begin`."""
        with store_errors():
            return bool(
                await self._redis.set(f"fleet:replay:mark:{_id(scope, key)}", "1", nx=True, ex=_MARK_S)
            )

    async def recall(self, scope: str, key: str) -> tuple[str, bytes] | None:
        """See :meth:`comfy_fleet.ports.jobs.Replays.recall`."""
        with store_errors():
            kept = await self._redis.get(f"fleet:replay:{_id(scope, key)}")
        if kept is None:
            return None
        fingerprint, _, body = (kept if isinstance(kept, bytes) else kept.encode()).partition(b"\0")
        return fingerprint.decode(), body

    async def end(self, scope: str, key: str, *, answer: tuple[str, bytes] | None) -> None:
        """See :meth:`comfy_fleet.ports.jobs.Replays.end`."""
        name = _id(scope, key)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                if answer is not None:
                    kept = b"\0".join((answer[0].encode(), answer[1]))
                    pipe.set(f"fleet:replay:{name}", kept, ex=_KEEP_S)
                pipe.delete(f"fleet:replay:mark:{name}")
                await pipe.execute()


def _id(scope: str, key: str) -> str:
    return f"{scope}:{hashlib.sha256(key.encode()).hexdigest()}"
