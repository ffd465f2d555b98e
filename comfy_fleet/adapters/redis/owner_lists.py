"""Keeps owners' lists of jobs true beside versions of the fleet that have no such lists.

The scripts that change a job's status write the lists. Jobs of earlier versions are put into them when they
are first asked for. Processes of an earlier version may still end runs and cancel jobs, so now and then the
lists are compared with the records.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.domain.errors import Outdated, StoreRefuses

MEND_S = 30.0
"""Between two comparisons of the lists with the records, in the whole fleet."""
OWNERS = 250  # owners whose lists one call of a script looks at: takes a millisecond on the server
LISTED_AT_ONCE = 100  # jobs that one call of a script lists: takes a few milliseconds on the server
MENDED_AT_ONCE = 250  # jobs that one call of a script looks at: takes a millisecond or two on the server
T = TypeVar("T")


class OwnerLists:
    """The lists ``live``, ``listed`` and ``history`` of every owner (see ``keys.py``).

    Args:
        redis: A client that returns bytes.
        schema: The layout that this process knows.
    """

    def __init__(self, redis: FleetRedis, *, schema: int = SCHEMA) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis, schema=schema)
        self._complete: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}

    async def complete(self, owner: str) -> None:
        """Put the owner's jobs of earlier versions into the lists, once.

        The layout is raised before, so that no earlier version adds jobs afterwards. Under a newer one, or
        if Redis takes nothing now, the lists stay as they are.
        """
        if owner in self._complete:
            return
        turn = self._turns.setdefault(owner, asyncio.Lock())  # several requests may ask at once
        try:
            async with turn:
                if owner not in self._complete and await self._list_all(owner):
                    self._complete.add(owner)
        finally:
            if self._turns.get(owner) is turn and not turn.locked():
                del self._turns[owner]

    async def _list_all(self, owner: str) -> bool:
        if await self._redis.sismember(self._keys.listed_owners, owner):
            return True
        try:
            await self._scripts.begin("list_jobs", owner=owner, ids=[])
            ids = await self._redis.zrange(self._keys.jobs_of(owner), 0, -1)
            for part in parts([raw.decode() for raw in ids], LISTED_AT_ONCE):
                await self._scripts.begin("list_jobs", owner=owner, ids=part)
            await self._redis.sadd(self._keys.listed_owners, owner)
        except (Outdated, StoreRefuses):  # reading goes on
            return False
        return True

    async def mend(self, *, every_s: float = MEND_S) -> int:
        """Compare the lists of live jobs with the records, if no process has done so within this time.

        It must be called now and then. Owners whose lists nobody has asked for yet are left out: their lists
        are compared when they are completed.

        Returns:
            How many jobs were put right.

        Raises:
            StoreDown: Redis is away; the next turn begins anew.
        """
        self._complete.clear()  # Redis may have been emptied, or restored, since it was read
        turn = await self._redis.set(self._keys.lists_mended, "1", nx=True, px=int(every_s * 1000))
        if not turn:
            return 0
        owners = sorted(raw.decode() for raw in await self._redis.smembers(self._keys.listed_owners))
        first, start, mended = 0, 0, 0
        while first < len(owners):
            some = owners[first : first + OWNERS]
            try:
                _, done, place, count = await self._scripts.begin(
                    "mend_lists", owners=some, start=start, most=MENDED_AT_ONCE
                )
            except Outdated:  # that is the newer version's work
                break
            first, start, mended = first + int(done), int(place), mended + int(count)
        return mended


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in their order, so many at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
