"""Where processes serve metrics, in Redis (port :class:`comfy_fleet.ports.scrape_targets.ScrapeTargets`)."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis, WrongType
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.scrape_targets import ScrapeTarget

KEPT_S = 600.0
MOST_TARGETS = 2000
MOST_AGENTS = 1800
"""Of them; more than there can be hosts with agents. Agents that make up hosts keep no process of the fleet's
own out."""


class RedisScrapeTargets:
    """See the port.

    Args:
        redis: The server.
        clock: The fleet's time, Unix seconds.
    """

    def __init__(self, redis: FleetRedis, clock: Callable[[], Awaitable[float]]) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._key = redis.keyspace.scrape_targets
        self._clock = clock

    async def announce(self, target: ScrapeTarget) -> None:
        """Remember a process; see the port."""
        record = orjson.dumps({**asdict(target), "at": await self._clock()})
        try:
            known = await self._redis.hlen(self._key)
        except WrongType:
            await self._redis.delete(self._key)
            known = 0
        most = MOST_AGENTS if target.process == "agent" else MOST_TARGETS
        if known < most or await self._redis.hexists(self._key, _field(target)):
            await self._redis.hset(self._key, _field(target), record)
        else:
            await self.targets()  # forgets the old ones

    async def leave(self, target: ScrapeTarget) -> None:
        """Forget a process; see the port."""
        with contextlib.suppress(WrongType):  # the next announcement mends it
            await self._redis.hdel(self._key, _field(target))

    async def targets(self) -> Sequence[ScrapeTarget]:
        """Return all of them; see the port."""
        try:
            rows = await self._redis.hgetall(self._key)
        except WrongType:
            return []
        now, found, old = await self._clock(), [], []
        for name, raw in rows.items():
            try:
                record = dict(orjson.loads(raw))
                at = float(record.pop("at"))
                target = from_fields(ScrapeTarget, record)
            except UNREADABLE:
                old.append(name)
                continue
            if now - at > KEPT_S:
                old.append(name)
            else:
                found.append(target)
        if old:
            await self._redis.hdel(self._key, *old)
        return sorted(found, key=lambda one: (one.process, one.host, one.address))


def _field(target: ScrapeTarget) -> str:
    if target.process == "agent":  # one speaks for a host, wherever it listens
        return f"{target.process} {target.host}"
    return f"{target.process} {target.host} {target.address}"
