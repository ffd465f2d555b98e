"""Waits until replicas have what a request has written (docs/adr/0059)."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.errors import NotReplicated

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0
_AWAY_S = 5  # replicas are heard once a second


class Replicas:
    """Asks the replicas of a Redis if they have all that was written before.

    Redis sends replicas its writes in their order, so one ``WAIT`` on any connection answers for those of all
    others. Requests that come while one is being answered share the next one.

    Args:
        redis: The primary.
        wanted: How many replicas must confirm; 0: nothing is asked.
        within_s: How long they may take.
        required: Whether a request fails if they don't; else that is logged.
    """

    def __init__(self, redis: FleetRedis, *, wanted: int, within_s: float, required: bool) -> None:
        self._redis: Any = redis  # redis-py can't say what its pipelines answer
        self._channel = redis.keyspace.replicas
        self._wanted = wanted
        self._within_s = within_s
        self._required = required
        self._server = ""
        self._now: asyncio.Task[tuple[str, int]] | None = None
        self._next: asyncio.Task[tuple[str, int]] | None = None
        self._said_at = float("-inf")

    async def server(self) -> str:
        """Return what tells the server that takes writes now from another one.

        Raises:
            StoreDown: No answer.
        """
        if self._wanted and not self._server:
            self._server = _server_in(await self._redis.info("replication"))
        return self._server

    async def confirm(self, server: str) -> None:
        """Return once enough replicas have what was written before.

        Args:
            server: What :meth:`server` has answered before the first of these writes.

        Raises:
            NotReplicated: They have not confirmed it in time, or it was written to another server.
            StoreDown: No answer.
        """
        if not self._wanted:
            return
        if self._next is None:
            self._next = asyncio.create_task(self._asked(self._now))
            self._next.add_done_callback(_seen)  # all who waited may be gone
        found, confirmed = await asyncio.shield(self._next)
        if found != server:
            raise NotReplicated("Redis was failed over meanwhile", retry_after_s=1)
        if confirmed >= self._wanted:
            return
        lacking = f"{confirmed} of {self._wanted} replicas confirmed a write within {self._within_s:g} s"
        if self._required:
            raise NotReplicated(lacking, retry_after_s=2)
        if time.monotonic() - self._said_at > _SAY_EVERY_S:
            self._said_at = time.monotonic()
            logger.warning("answered without replicas", extra={"reason": lacking})

    async def lacking(self) -> str | None:
        """Return that replicas are away, and what requests get meanwhile; None: all is well.

        Raises:
            StoreDown: No answer.
        """
        if not self._wanted:
            return None
        info: Mapping[str, Any] = await self._redis.info("replication")
        found = [info.get(f"slave{number}") for number in range(int(info.get("connected_slaves", 0)))]
        heard = sum(
            isinstance(one, Mapping) and one.get("state") == "online" and int(one.get("lag", 0)) <= _AWAY_S
            for one in found
        )
        if heard >= self._wanted:
            return None
        then = (
            "whatever changes something gets 503 not_replicated"
            if self._required
            else "a failover loses jobs"
        )
        return f"replicas: {heard} of {self._wanted} can be heard: {then}"

    async def _asked(self, before: "asyncio.Task[tuple[str, int]] | None") -> tuple[str, int]:
        if before is not None:
            await asyncio.wait([before])
        self._now, self._next = self._next, None  # who comes from now on has written more
        async with self._redis.pipeline(transaction=False) as pipe:
            # WAIT asks about its own connection's last write. This one changes nothing, and costs no sync.
            pipe.execute_command("PUBLISH", self._channel, "")
            pipe.execute_command("WAIT", self._wanted, max(1, round(self._within_s * 1000)))
            pipe.info("replication")
            _, confirmed, info = await pipe.execute()
        self._server = _server_in(info)
        return self._server, int(confirmed)


def _server_in(info: Mapping[str, Any]) -> str:
    return str(info["master_replid"])


def _seen(task: "asyncio.Task[tuple[str, int]]") -> None:
    if not task.cancelled():
        task.exception()
