"""Which websockets clients have, in Redis (port :class:`comfy_fleet.ports.sockets.SocketStore`)."""

from collections.abc import Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import hashed
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.sockets import ClientSocket

KEPT_S = 120


class RedisSocketStore:
    """One key for each client, and a list of an owner's open ones.

    Args:
        redis: The client.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._keys = redis.keyspace

    async def now(self) -> float:
        """Return the fleet's time, in Unix seconds."""
        return float(await self._scripts.call("time"))

    async def keep(self, sockets: Sequence[ClientSocket]) -> None:
        """Write what is so now."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in sockets:
                client = hashed(one.client_id)
                pipe.set(self._keys.socket(client, one.owner), orjson.dumps(one), ex=KEPT_S)
                if one.open:
                    pipe.zadd(self._keys.sockets(one.owner), {client: one.kept_at})
                else:
                    pipe.zrem(self._keys.sockets(one.owner), client)
            for owner, now in {one.owner: one.kept_at for one in sockets}.items():
                pipe.zremrangebyscore(self._keys.sockets(owner), "-inf", now - KEPT_S)
                pipe.expire(self._keys.sockets(owner), KEPT_S)
            await pipe.execute()

    async def last(self, owner: str, client_id: str) -> ClientSocket | None:
        """Return a client's newest websocket."""
        raw: Any = await self._redis.get(self._keys.socket(hashed(client_id), owner))
        return _read(raw)

    async def newest(self, owner: str) -> ClientSocket | None:
        """Return the websocket that was opened last among the open ones."""
        clients: Any = await self._redis.zrange(self._keys.sockets(owner), 0, -1)
        if not clients:
            return None
        raw: Any = await self._redis.mget([self._keys.socket(client.decode(), owner) for client in clients])
        found = [one for data in raw if (one := _read(data)) is not None and one.open]
        return max(found, key=lambda one: one.since, default=None)


def _read(data: bytes | None) -> ClientSocket | None:
    if not data:
        return None
    try:
        return from_fields(ClientSocket, orjson.loads(data))
    except UNREADABLE:
        return None
