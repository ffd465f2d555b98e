"""The record of leases held ready (port ``ReadyLeaseStore``)."""

from collections.abc import Collection, Mapping
from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.ports.ready_leases import ReadyBeat


class RedisReadyLeases:
    """Which idle nodes' leases dispatchers hold ready.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)

    async def beat(
        self, dispatcher: str, held: Mapping[str, str], new: Mapping[str, str], dropped: Mapping[str, str]
    ) -> ReadyBeat:
        """Renew a dispatcher's leases."""
        holders, lost = await self._scripts.call(
            "ready_beat",
            dispatcher=dispatcher,
            held=dict(held) or None,
            new=dict(new) or None,
            dropped=dict(dropped) or None,
        )
        return ReadyBeat(holders=int(holders), lost=frozenset(raw.decode() for raw in lost))

    async def expired(self) -> Mapping[str, str]:
        """Return the leases that have to be cut."""
        return _pairs(await self._scripts.call("ready_expired"))

    async def unexplained(self, nodes: Collection[str]) -> frozenset[str]:
        """Return those that no run has and nobody holds ready."""
        if not nodes:
            return frozenset()
        keys = self._redis.keyspace
        # Who holds a node ready is asked first: a claim writes the run before it takes that away.
        held = await self._redis.hmget(keys.ready_leases, list(nodes))
        runs = await self._redis.mget([keys.lease(node) for node in nodes])
        known = zip(nodes, held, runs, strict=True)
        return frozenset(node for node, ready, run in known if not ready and not run)

    async def give_up(self, leases: Mapping[str, str]) -> frozenset[str]:
        """Give up those that still have to be cut."""
        return frozenset(_pairs(await self._scripts.call("ready_expired", cut=dict(leases))))


def _pairs(answer: list[Any]) -> dict[str, str]:
    words = [raw.decode() for raw in answer]
    return dict(zip(words[::2], words[1::2], strict=True))
