"""Figures of the whole fleet out of Redis (port :class:`comfy_fleet.ports.figures.Figures`)."""

from collections.abc import Mapping
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import StoreRefuses
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.ports.figures import PoolQueue, StoreFigures, WebhookBacklog

MOST = 1000
"""Waiting jobs, and receivers of webhooks, that are looked at: about two milliseconds."""

SERVER = {
    "used_memory": "memory_used_bytes",
    "used_memory_rss": "memory_resident_bytes",
    "maxmemory": "memory_limit_bytes",
    "connected_clients": "clients",
    "connected_slaves": "replicas",
    "total_commands_processed": "commands_total",
    "evicted_keys": "evicted_keys_total",
    "uptime_in_seconds": "uptime_seconds",
}
"""What of ``INFO`` is shown, and the end of the metric's name."""


class RedisFigures:
    """See the port."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)

    async def read(self) -> StoreFigures:
        """Return them as they are now; see the port."""
        found = orjson.loads(await self._scripts.call("figures", most=MOST))
        at = float(found["at"])
        due = float(found["due"])
        batched = await self._redis.hget(self._keys.batches_waiting, "")
        return StoreFigures(
            queues=_queues(found["counts"] or [], found["since"] or {}, at),
            batch_items=int(batched or 0),
            webhooks=WebhookBacklog(
                waiting=int(found["messages"]),
                late_s=max(0.0, at - due) if due >= 0 else 0.0,
                failing=int(found["failing"]),
            ),
            unstored=_unstored(found["stores"] or []),
            dispatchers=len(await live_dispatchers(self._redis)),
            server=await self._server(),
        )

    async def _server(self) -> Mapping[str, float]:
        try:
            info: Mapping[str, Any] = await self._redis.info()
        except StoreRefuses:  # the fleet's user may not ask
            return {}
        shown = {name: float(info[field]) for field, name in SERVER.items() if field in info}
        saved = (info.get("aof_last_write_status", "ok"), info.get("rdb_last_bgsave_status", "ok"))
        return {**shown, "saves": float(saved == ("ok", "ok"))}


def _unstored(found: list[str]) -> Mapping[str, int]:
    pairs = zip(found[::2], found[1::2], strict=True)
    return {name: int(size) for name, size in sorted(pairs) if name and size.isdecimal()}


def _queues(counts: list[str], since: Mapping[str, float], at: float) -> list[PoolQueue]:
    pools: dict[str, tuple[int, float]] = {}
    for key, text in zip(counts[::2], counts[1::2], strict=True):
        try:
            pool, count = Placement.parse(key).pool, int(text)
        except UNREADABLE:  # a newer version's; it shows them itself
            continue
        waiting, oldest = pools.get(pool, (0, 0.0))
        pools[pool] = waiting + max(0, count), max(oldest, at - since.get(key, at))
    return [
        PoolQueue(pool=pool, waiting=waiting, oldest_s=oldest)
        for pool, (waiting, oldest) in sorted(pools.items())
    ]
