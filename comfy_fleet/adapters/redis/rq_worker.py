"""A dispatcher as RQ sees a worker: registration, heartbeats and the commands that RQ's tools send."""

import contextlib
import os
import platform
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis, WrongType
from comfy_fleet.adapters.redis.dispatchers import TTL_S
from comfy_fleet.adapters.redis.events import RedisEvents


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RqWorker:
    """RQ's worker record of one dispatcher.

    Args:
        stop: Called with an id in RQ for RQ's ``stop-job`` command.
    """

    def __init__(
        self,
        redis: FleetRedis,
        events: RedisEvents,
        name: str,
        *,
        stop: Callable[[str], Awaitable[object]],
    ) -> None:
        self._redis: Any = redis
        self._events = events
        self._name = name
        self._keys = redis.keyspace
        self._key = redis.keyspace.rq_worker(name)
        self._stop = stop
        self._birth = _stamp()
        self._swept = False
        self._version = version("rq")  # reads a file, so not at every beat

    async def beat(self, *, busy: int, done: int) -> None:
        """Record that the dispatcher lives."""
        fields = {
            "birth": self._birth,
            "last_heartbeat": _stamp(),
            "queues": f"{self._keys.rq_name},{self._keys.rq_mirror_name}",
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "ip_address": "",
            "version": self._version,
            "python_version": platform.python_version(),
            "state": "busy" if busy else "idle",
            "successful_job_count": done,
            "inflight": busy,
        }
        try:
            await self._write(fields)
        except WrongType:
            await self._clear()
            await self._write(fields)
        if not self._swept:
            await self._sweep()
            self._swept = True

    async def _write(self, fields: Mapping[str, Any]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, mapping=fields)
            pipe.expire(self._key, TTL_S)
            pipe.sadd(self._keys.rq_all_workers, self._key)
            pipe.sadd(self._keys.rq_workers, self._key)
            pipe.sadd(self._keys.rq_mirror_workers, self._key)
            await pipe.execute()

    async def _clear(self) -> None:
        """Remove what others have put in the place of these keys: RQ's clients may write them."""
        sets = (self._keys.rq_all_workers, self._keys.rq_workers, self._keys.rq_mirror_workers)
        for key, kind in ((self._key, b"hash"), *((one, b"set") for one in sets)):
            if await self._redis.type(key) != kind:
                await self._redis.delete(key)

    async def _sweep(self) -> None:
        """Remove the names of workers that died without removing them; their records have expired."""
        for key in await self._redis.smembers(self._keys.rq_workers):
            if not await self._redis.exists(key):
                await self._redis.srem(self._keys.rq_all_workers, key)
                await self._redis.srem(self._keys.rq_workers, key)
                await self._redis.srem(self._keys.rq_mirror_workers, key)

    async def listen(self) -> None:
        """Obey RQ's command to stop a job until canceled; others are for RQ's own workers."""
        async with self._events.channel(self._keys.rq_commands(self._name)) as queue:
            while True:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    command = orjson.loads(await queue.get())
                    if command["command"] == "stop-job" and isinstance(command["job_id"], str):
                        await self._stop(command["job_id"])

    async def leave(self) -> None:
        """Remove the record."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.srem(self._keys.rq_all_workers, self._key)
            pipe.srem(self._keys.rq_workers, self._key)
            pipe.srem(self._keys.rq_mirror_workers, self._key)
            pipe.hset(self._key, "death", _stamp())
            pipe.expire(self._key, TTL_S)
            await pipe.execute()
