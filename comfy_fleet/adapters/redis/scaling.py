"""Who scales the fleet, and what is remembered of it (port ``ScalingStore``)."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.domain.scaling.looks import PoolLook
from comfy_fleet.domain.scaling.orders import PoolBook, ScalingOrder
from comfy_fleet.ports.scaling import ScalingState


class RedisScaling:
    """See the port.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)

    async def hold(self, holder: str, *, ttl_s: float) -> bool:
        """Become active, or stay so; see the port."""
        return bool(await self._scripts.call("scale_hold", holder=holder, ttl_ms=round(ttl_s * 1000)))

    async def save(self, holder: str, pool: str, book: PoolBook, looks: Sequence[PoolLook]) -> bool:
        """Store a pool's book; see the port."""
        seen = orjson.dumps([astuple(look) for look in looks])
        return bool(
            await self._scripts.call("scale_hold", orjson.dumps(asdict(book)), seen, holder=holder, pool=pool)
        )

    async def release(self, holder: str) -> None:
        """Let another one be active."""
        await self._scripts.call("scale_hold", holder=holder, release=True)

    async def state(self) -> ScalingState:
        """Return what is stored."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._keys.autoscaler)
            pipe.hgetall(self._keys.autoscale_books)
            pipe.hgetall(self._keys.autoscale_looks)
            holder, books, looks = await pipe.read()
        read, unreadable = {}, set()
        for raw, text in books.items():
            pool = raw.decode(errors="backslashreplace")
            try:
                read[pool] = _book(text)
            except UNREADABLE:
                unreadable.add(pool)
        return ScalingState(
            holder=(holder or b"").decode(errors="backslashreplace"),
            books=read,
            looks={raw.decode(errors="backslashreplace"): _looks(text) for raw, text in looks.items()},
            unreadable=frozenset(unreadable),
        )


def _book(text: bytes) -> PoolBook:
    record = dict(orjson.loads(text))
    orders = tuple(from_fields(ScalingOrder, one) for one in record.pop("orders"))
    return from_fields(PoolBook, {**record, "orders": ()}).with_orders(orders)


def _looks(text: bytes) -> tuple[PoolLook, ...]:
    """Return what was seen; nothing if that can't be read: it is only watched anew then."""
    try:
        found = tuple(
            PoolLook(
                at=float(at),
                waiting=int(waiting),
                oldest_s=float(oldest_s),
                nodes=int(nodes),
                busy=int(busy),
                ended=int(ended),
            )
            for at, waiting, oldest_s, nodes, busy, ended in orjson.loads(text)
        )
    except UNREADABLE:
        return ()
    return found if all(look.sound for look in found) else ()
