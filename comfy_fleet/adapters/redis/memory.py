"""What became of jobs' memory, in Redis (port :class:`comfy_fleet.ports.memory.MemoryStore`)."""

import math
import time
from collections.abc import Callable
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.jobs.workload import Workload
from comfy_fleet.domain.nodes.memory_need import FamilyMemory, Seen

MOST_ENDS = 8
"""Ends of a kind that a family keeps of one owner: of more, the newest."""
MOST_OF_ALL = 32
"""The same of all owners."""
MOST_FAMILIES = 1000
ALL = "*"
"""Where the counts of all families are; no file is called so, because its folder is part of its name."""


class RedisMemory:
    """:class:`comfy_fleet.ports.memory.MemoryStore`.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, redis: FleetRedis, *, clock: Callable[[], float] = time.time) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._clock = clock

    async def known(self, family: str) -> FamilyMemory:
        """See :meth:`comfy_fleet.ports.memory.MemoryStore.known`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self._keys.sched_memory(family), "fits", "fails")
            pipe.hmget(self._keys.sched_memory(ALL), "refused", "ran")
            answers = await pipe.read()
        (fits, fails), (refused, ran) = (answer or (None, None) for answer in answers)
        now = self._clock()
        return FamilyMemory(
            fits=_ends(fits, now), fails=_ends(fails, now), refused=_count(refused), ran=_count(ran)
        )

    async def note(self, workload: Workload, *, owner: str, room: int, fits: bool, ttl_s: int) -> None:
        """See :meth:`comfy_fleet.ports.memory.MemoryStore.note`."""
        await self._scripts.call(
            "note_memory",
            family=workload.family,
            model_bytes=workload.model_bytes,
            pixels=workload.pixels,
            owner=owner,
            room=room,
            fits=fits,
            ttl_s=ttl_s,
            most=MOST_ENDS,
            most_of_all=MOST_OF_ALL,
            most_families=MOST_FAMILIES,
        )


def _ends(data: bytes | None, now: float) -> tuple[Seen, ...]:
    """Return the ends that still count; what can't be read does not."""
    try:
        rows = orjson.loads(data) if data else []
    except ValueError:
        return ()
    found = []
    for row in rows[:MOST_OF_ALL] if isinstance(rows, list) else ():
        if not isinstance(row, list) or [type(x) in (int, float) for x in row] != [True] * 3 + [False]:
            continue
        room, pixels, until, owner = row
        if room > 0 and pixels > 0 and until > now and math.isfinite(room):
            found.append(Seen(owner=str(owner), room=int(room), pixels=float(pixels), until=float(until)))
    return tuple(found)


def _count(data: bytes | None) -> int:
    return int(data) if data and data.isdigit() and len(data) <= 18 else 0
