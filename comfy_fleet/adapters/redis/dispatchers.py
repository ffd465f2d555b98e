"""Which dispatchers live. Each says so in the fleet's own keys: RQ's clients may write RQ's."""

from collections.abc import Mapping
from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import SCHEMA

TTL_S = 60


class LivingDispatcher:
    """One dispatcher's sign of life."""

    def __init__(self, redis: FleetRedis, name: str) -> None:
        self._redis: Any = redis
        self._keys = redis.keyspace
        self._name = name
        self._swept = False

    async def beat(self) -> None:
        """Record that it lives, and the layout that it knows."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.dispatcher(self._name), SCHEMA, ex=TTL_S)
            pipe.sadd(self._keys.dispatchers, self._name)
            await pipe.execute()
        if not self._swept:  # the names of those that died without removing them
            known = await _layouts(self._redis)
            if gone := [name for name, layout in known.items() if layout is None]:
                await self._redis.srem(self._keys.dispatchers, *gone)
            self._swept = True

    async def leave(self) -> None:
        """Remove the record."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.srem(self._keys.dispatchers, self._name)
            pipe.delete(self._keys.dispatcher(self._name))
            await pipe.execute()


async def live_dispatchers(redis: FleetRedis) -> list[str]:
    """Return the names of dispatchers with a recent heartbeat."""
    return [name for name, layout in (await _layouts(redis)).items() if layout is not None]


async def outdated_dispatchers(redis: FleetRedis) -> list[str]:
    """Return the names of live dispatchers that don't know the layout in Redis and so claim nothing."""
    client: Any = redis
    current = await client.get(redis.keyspace.schema) or b"1"
    return [name for name, layout in (await _layouts(redis)).items() if layout not in (None, current)]


async def _layouts(redis: FleetRedis) -> Mapping[str, bytes | None]:
    """Return the layouts that dispatchers know, by name; None of one that lives no more."""
    client: Any = redis
    members = await client.smembers(redis.keyspace.dispatchers)
    names = sorted(name.decode(errors="replace") for name in members)
    known = await client.mget([redis.keyspace.dispatcher(name) for name in names]) if names else []
    return dict(zip(names, known, strict=True))
