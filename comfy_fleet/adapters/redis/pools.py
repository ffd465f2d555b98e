"""Pools in Redis: what operators have set, and HAProxy's slots (port ``PoolStore``)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.pool import Pool
from comfy_fleet.domain.records import UNREADABLE, from_fields


class RedisPools:
    """Pools. One without settings and without a slot is not stored: any name may be requested.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    async def pools(self) -> Sequence[Pool]:
        """Return the pools that have a setting or a slot, by name."""
        async with self._redis.pipeline(transaction=False) as pipe:  # a full Redis refuses MULTI
            pipe.hgetall(self._keys.pools)
            pipe.hgetall(self._keys.pool_slots)
            records, slots = await pipe.read()
        found = []
        for raw in sorted(records.keys() | slots.keys()):
            try:
                found.append(self._read(raw.decode(), records.get(raw), slots.get(raw)))
            except (*UNREADABLE, BadInput) as error:  # no pool can have such a name
                self._complaints.about("pool", raw.decode(errors="backslashreplace"), error)
        return found

    async def get(self, name: str) -> Pool:
        """Return a pool, with empty fields if nothing is set."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.pools, name)
            pipe.hget(self._keys.pool_slots, name)
            record, slot = await pipe.read()
        return self._read(name, record, slot)

    async def set(self, pool: Pool) -> None:
        """Store a pool's settings, replacing the earlier ones; its slot is not touched."""
        if record := _dump(pool):
            await self._redis.hset(self._keys.pools, pool.name, record)
        else:
            await self._redis.hdel(self._keys.pools, pool.name)

    async def change(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change some of a pool's settings; see :meth:`comfy_fleet.ports.nodes.PoolStore.change`."""
        while True:
            before: bytes | None = await self._redis.hget(self._keys.pools, name)
            after = _dump(replace(self._read(name, before, None), **settings))
            if await self._scripts.call("swap_pool", before or b"", after, name=name):
                return

    async def place(self, slots: Mapping[str, int]) -> None:
        """Store which pool has which of HAProxy's slots; all others have none."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.pool_slots)
            if slots:
                pipe.hset(self._keys.pool_slots, mapping=dict(slots))
            await pipe.execute()

    def _read(self, name: str, record: bytes | None, slot: bytes | None) -> Pool:
        facts: dict[str, Any] = {"name": name, "slot": int(slot) if slot and slot.isdigit() else None}
        if record is not None:
            try:
                return from_fields(Pool, {**orjson.loads(record), **facts})
            except (*UNREADABLE, BadInput) as error:
                self._complaints.about("pool", name, error)
        return Pool(**facts)


def _dump(pool: Pool) -> bytes:
    """Return a pool's settings as they are stored; nothing if none is set."""
    record = {
        "free_idle_s": pool.free_idle_s,
        "free_on_oom": pool.free_on_oom,
        "patience_s": pool.patience_s,
        "silence_s": pool.silence_s,
    }
    return orjson.dumps(record) if pool.is_set else b""
