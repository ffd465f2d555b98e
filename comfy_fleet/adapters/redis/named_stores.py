"""Stores' records in Redis (port :class:`comfy_fleet.ports.stores.NamedStores`)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.domain.stores.named_store import NamedStore


class RedisNamedStores:
    """All stores, by name.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._complaints = Complaints()

    async def read(self) -> Mapping[str, NamedStore]:
        """Return all, by name; one that can't be read is told of and left out."""
        found = {}
        for raw_name, raw in sorted((await self._redis.hgetall(self._keys.named_stores)).items()):
            name = raw_name.decode(errors="replace")
            try:
                found[name] = from_fields(NamedStore, orjson.loads(raw))
            except (*UNREADABLE, BadInput) as error:
                self._complaints.about("store", name, error)
        return found

    async def save(self, store: NamedStore, *, new: bool) -> bool:
        """Write a store; see the port."""
        record = orjson.dumps(asdict(store))
        if new:
            return bool(await self._redis.hsetnx(self._keys.named_stores, store.name, record))
        await self._redis.hset(self._keys.named_stores, store.name, record)
        return True

    async def drop(self, name: str) -> bool:
        """Remove a store; see the port."""
        return bool(await self._redis.hdel(self._keys.named_stores, name))
