"""What the server says of its memory."""

from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.store_memory import StoreMemory


async def server_memory(redis: FleetRedis) -> StoreMemory:
    """Ask the server.

    Raises:
        StoreDown: No answer.
        StoreRefuses: The fleet's user may not ask.
    """
    info: Any = await redis.info("memory")
    return StoreMemory(
        used_bytes=int(info.get("used_memory") or 0),
        most_bytes=int(info.get("maxmemory") or 0),
        policy=str(info.get("maxmemory_policy") or "noeviction"),
    )
