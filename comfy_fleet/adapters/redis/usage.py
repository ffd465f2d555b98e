"""What was used, in Redis (port :class:`comfy_fleet.ports.usage.UsageStore`); usage.lua adds it up."""

from collections.abc import Sequence
from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.ports.usage import UsageRow


class RedisUsage:
    """Sums by day.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace

    async def day(self, number: int) -> Sequence[UsageRow]:
        """Return what was used on a day; see the port."""
        found: dict[tuple[str, ...], dict[str, int]] = {}
        for raw, amount in (await self._redis.hgetall(self._keys.usage(number))).items():
            *whose, what = raw.decode(errors="replace").split("\n")
            if len(whose) == 4 and amount.isdigit():
                found.setdefault(tuple(whose), {})[what] = int(amount)
        return [
            UsageRow(tenant=tenant, owner=owner, workflow=workflow, pool=pool, amounts=amounts)
            for (tenant, owner, workflow, pool), amounts in found.items()
        ]
