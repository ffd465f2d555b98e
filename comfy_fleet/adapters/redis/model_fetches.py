"""Orders to fetch model files in Redis (port ``ModelFetches``)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.nodes.model_fetch import ENDS, HostFetch, ModelFetch
from comfy_fleet.domain.outbound import parse_target
from comfy_fleet.domain.records import UNREADABLE, from_fields

MOST_OPEN = 50
MOST_KEPT = 200
KEPT_S = 14 * 86400
_NOT_STORED = ("told", "serving", "canceled")


class RedisModelFetches:
    """:class:`comfy_fleet.ports.model_fetches.ModelFetches`.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._complaints = Complaints()

    async def add(self, fetch: ModelFetch) -> None:
        """See the port."""
        if await self._redis.scard(self._keys.model_fetches_open) >= MOST_OPEN:
            raise Conflict(
                f"{MOST_OPEN} fetches are not over: wait for them, or cancel some (`fleet model fetches`)",
                details={"limit": MOST_OPEN},
            )
        key = self._keys.model_fetch(fetch.id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, "order", _dump(fetch))
            pipe.expire(key, KEPT_S)
            pipe.zadd(self._keys.model_fetches, {fetch.id: fetch.created_at})
            pipe.zremrangebyrank(self._keys.model_fetches, 0, -MOST_KEPT - 1)
            pipe.sadd(self._keys.model_fetches_open, fetch.id)
            await pipe.execute()

    async def get(self, fetch_id: str) -> ModelFetch | None:
        """See the port."""
        return self._read(fetch_id, await self._redis.hgetall(self._keys.model_fetch(fetch_id)))

    async def recent(self) -> Sequence[ModelFetch]:
        """See the port."""
        return await self._all(await self._redis.zrevrange(self._keys.model_fetches, 0, MOST_KEPT - 1))

    async def open(self) -> Sequence[ModelFetch]:
        """See the port."""
        ids = await self._redis.smembers(self._keys.model_fetches_open)
        found = await self._all(sorted(ids)) if ids else []
        gone = ids - {fetch.id.encode() for fetch in found}
        if gone:  # they have expired, or can't be read
            await self._redis.srem(self._keys.model_fetches_open, *gone)
        return found

    async def tell(self, fetch: ModelFetch, host: str, told: HostFetch, *, serves: str = "") -> bool:
        """See the port."""
        key, text = self._keys.model_fetch(fetch.id), orjson.dumps(asdict(told))
        async with self._redis.pipeline(transaction=True) as pipe:
            if told.state in ENDS:
                pipe.hsetnx(key, f"end {host}", text)
            else:
                pipe.hset(key, f"now {host}", text)
            if serves:
                pipe.hset(key, f"at {host}", serves)
            pipe.expire(key, KEPT_S)
            first, *_ = await pipe.execute()
        return told.state in ENDS and bool(first)

    async def cancel(self, fetch_id: str) -> None:
        """See the port."""
        key = self._keys.model_fetch(fetch_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, "canceled", "1")
            pipe.expire(key, KEPT_S)
            await pipe.execute()

    async def close(self, fetch: ModelFetch) -> None:
        """See the port."""
        plain = parse_target(fetch.url).url.partition("?")[0]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.model_fetch(fetch.id), "order", _dump(fetch, url=plain, ticket=""))
            pipe.srem(self._keys.model_fetches_open, fetch.id)
            await pipe.execute()

    async def _all(self, ids: Sequence[bytes]) -> list[ModelFetch]:
        names = [raw.decode() for raw in ids]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(self._keys.model_fetch(name))
            rows = await pipe.execute()
        read = (self._read(name, row) for name, row in zip(names, rows, strict=True))
        return [fetch for fetch in read if fetch is not None]

    def _read(self, fetch_id: str, row: Mapping[bytes, bytes]) -> ModelFetch | None:
        if b"order" not in row:
            return None
        try:
            made = dict(orjson.loads(row[b"order"]))
            hosts = {str(host): tuple(map(str, nodes)) for host, nodes in made.pop("hosts").items()}
            told, serving = dict[str, HostFetch](), dict[str, str]()
            for field in sorted(row, reverse=True):  # what is now, then the ends, which count
                kind, _, host = field.decode().partition(" ")
                if kind in ("now", "end"):
                    told[host] = from_fields(HostFetch, orjson.loads(row[field]))
                elif kind == "at":
                    serving[host] = row[field].decode()
            return from_fields(
                ModelFetch,
                {**made, "hosts": hosts, "told": told, "serving": serving, "canceled": b"canceled" in row},
            )
        except UNREADABLE as error:
            self._complaints.about("fetch of a model", fetch_id, error)
            return None


def _dump(fetch: ModelFetch, **changed: str) -> bytes:
    fields = {name: value for name, value in asdict(fetch).items() if name not in _NOT_STORED}
    return orjson.dumps({**fields, **changed})
