"""Outputs on their way into stores, in Redis (port :class:`comfy_fleet.ports.transfers.Transfers`)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.job_records import output_field
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.stores.output_plan import OutputPlace, StoredObject
from comfy_fleet.ports.transfers import Erasure, StoreTraffic, Transfer

MOST_ERROR = 500
"""Characters of an error that are kept."""
TENDED_EVERY_S = 60.0
_TENDED_AT_ONCE = 100


class RedisTransfers:
    """The queues of all stores.

    Args:
        redis: A client that returns bytes.
        events: Tells when a transfer begins.
    """

    def __init__(self, redis: FleetRedis, events: RedisEvents) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._events = events
        self._scripts = Scripts(redis)

    @asynccontextmanager
    async def wakes(self) -> AsyncIterator[AsyncIterator[None]]:
        """Yield something whenever a transfer begins."""
        async with self._events.channel(self._keys.transfer_wake, most=1) as queue:

            async def each() -> AsyncIterator[None]:
                while True:
                    await queue.get()
                    yield

            yield each()

    async def take(self, *, most: int, each: int, lease_s: float) -> Sequence[Transfer]:
        """Take transfers that are due; see the port."""
        # An idle fleet runs no script for this.
        if not await self._redis.exists(self._keys.transfers):
            return []
        token = uuid4().hex
        rows = await self._scripts.call("transfers_take", most=most, each=each, lease_s=lease_s, token=token)
        return [
            Transfer(job_id=job.decode(), store=store.decode(), token=token, fails=int(fails))
            for job, store, fails in rows
        ]

    async def note(
        self, one: Transfer, stored: Mapping[OutputPlace, StoredObject], *, lease_s: float
    ) -> bool:
        """Note what has become of outputs; see the port."""
        noted = await self._scripts.call(
            "transfer_note",
            id=one.job_id,
            store=one.store,
            token=one.token,
            lease_s=lease_s,
            stored=[[output_field(*place), _dump(found)] for place, found in stored.items()],
        )
        return bool(noted)

    async def end(self, one: Transfer) -> None:
        """Nothing of it waits any more; see the port."""
        await self._scripts.call(
            "transfer_done", id=one.job_id, store=one.store, token=one.token, most_age_s=0
        )

    async def again(
        self,
        one: Transfer,
        error: str,
        *,
        after_s: float = 0.0,
        counts: bool = False,
        pause_s: float | None = None,
        most_age_s: float,
    ) -> int:
        """Leave what is left for another try; see the port."""
        _, given_up = await self._scripts.call(
            "transfer_done",
            id=one.job_id,
            store=one.store,
            token=one.token,
            again=True,
            after_s=after_s,
            counts=counts or None,
            pause_s=pause_s,
            error=error[:MOST_ERROR],
            most_age_s=most_age_s,
        )
        return int(given_up)

    async def tries(self, job_id: str) -> int:
        """Return how many tries of a job's own there were."""
        return int(await self._redis.hget(self._keys.job(job_id), "store_tries") or 0)

    async def retry(self, job_id: str, owner: str | None) -> str:
        """Begin again with what was given up; see the port."""
        outcome: bytes = await self._scripts.call("transfer_again", id=job_id, owner=owner)
        return outcome.decode()

    async def given_up(self, store: str, limit: int) -> Sequence[str]:
        """Return jobs with outputs that were given up; see the port."""
        rows = await self._redis.zrange(self._keys.transfers_failed(store), 0, limit - 1)
        return [raw.decode() for raw in rows]

    async def traffic(self, stores: Sequence[str]) -> Mapping[str, StoreTraffic]:
        """Return how some stores' transfers stand; see the port."""
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in stores:
                pipe.zcard(keys.transfer_queue(name))
                pipe.hget(keys.transfer_bytes, name)
                pipe.zcard(keys.transfers_failed(name))
                pipe.hmget(keys.transfer_store(name), "error", "since")
            answers = await pipe.read() if stores else []
        found = {}
        for at, name in enumerate(stores):
            waiting, size, failed, (error, since) = answers[4 * at : 4 * at + 4]
            found[name] = StoreTraffic(
                waiting=int(waiting),
                bytes=int(size or 0),
                failed=int(failed),
                error=(error or b"").decode(errors="replace"),
                since=float(since) if since else None,
            )
        return found

    async def waiting_bytes(self) -> int:
        """Return how many bytes wait for any store."""
        return int(await self._redis.hget(self._keys.transfer_bytes, "") or 0)

    async def erasures(self, *, most: int, lease_s: float) -> Sequence[Erasure]:
        """Take objects that are to be deleted; see the port."""
        if not await self._redis.exists(self._keys.erasures):
            return []
        found = []
        for raw in await self._scripts.call("erasures_take", most=most, lease_s=lease_s):
            store, job_id, key, since = raw.decode().split("\n")
            found.append(Erasure(store=store, job_id=job_id, key=key, since=since))
        return found

    async def erase(self, one: Erasure) -> None:
        """Have an object deleted; see the port."""
        await self._redis.zadd(self._keys.erasures, {_member(one): float(one.since)})

    async def erased(self, one: Erasure) -> None:
        """Note that nothing is left to be done for an object; see the port."""
        await self._redis.zrem(self._keys.erasures, _member(one))

    async def tend(self) -> int:
        """Begin what an earlier version beside this one has left out; see the port."""
        if not await self._redis.exists(self._keys.transfer_jobs):
            return 0
        return int(await self._scripts.call("tend_transfers", every_s=TENDED_EVERY_S, most=_TENDED_AT_ONCE))


def _member(one: Erasure) -> str:
    return "\n".join((one.store, one.job_id, one.key, one.since))


def _dump(found: StoredObject) -> str:
    record = {"state": found.state, "key": found.key, "url": found.url}
    if found.error:
        record["error"] = found.error[:MOST_ERROR]
    return orjson.dumps({name: value for name, value in record.items() if value is not None}).decode()
