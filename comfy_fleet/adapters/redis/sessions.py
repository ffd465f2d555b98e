"""Sessions in Redis."""

from collections.abc import Sequence

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import hashed


class RedisSessions:
    """:class:`comfy_fleet.ports.sessions.Sessions`."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace

    async def begin(self, token: str, proof: str, *, ttl_s: float) -> None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.begin`."""
        await self._redis.set(self._keys.session(hashed(token)), proof, px=int(ttl_s * 1000))

    async def proof(self, token: str) -> str | None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.proof`."""
        kept = await self._redis.get(self._keys.session(hashed(token)))
        return kept.decode() if isinstance(kept, bytes) else kept

    async def over(self, tokens: Sequence[str]) -> Sequence[str]:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.over`."""
        kept = await self._redis.mget([self._keys.session(hashed(token)) for token in tokens])
        return [token for token, proof in zip(tokens, kept, strict=True) if proof is None]

    async def end(self, token: str) -> None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.end`."""
        await self._redis.delete(self._keys.session(hashed(token)))
