"""Connections to Redis: one retrying pool for commands, one patient connection for subscriptions."""

import asyncio
from collections.abc import Iterable

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError


class _Direct(AbstractConnection):
    """Writes a command in the caller's own task.

    redis-py puts every write under ``asyncio.wait_for``, which before Python 3.12 starts a task for each and
    swallows a cancellation that comes just when the write is done: a loop that was told to end went on.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]  # the library left it untyped
        patience_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(patience_s):
                await super().send_packed_command(command, check_health=False)
        except TimeoutError:
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = patience_s


class _DirectTcp(_Direct, Connection):
    pass


class _DirectTls(_Direct, SSLConnection):
    pass


class _DirectUnix(_Direct, UnixDomainSocketConnection):
    pass


_DIRECT: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _DirectTcp,
    SSLConnection: _DirectTls,
    UnixDomainSocketConnection: _DirectUnix,
}


def connect(url: str, *, max_connections: int = 128) -> Redis:
    """Return a client that retries a lost connection for about two seconds.

    Every script is safe to repeat: a claim whose answer got lost is a run lease that nobody beats, and is
    taken over when it expires.
    """
    redis = Redis.from_url(
        url,
        max_connections=max_connections,
        socket_timeout=10,
        socket_connect_timeout=3,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.8), 4),
    )
    pool = redis.connection_pool  # which class it uses is the URL's choice
    pool.connection_class = _DIRECT[pool.connection_class]
    return redis


def subscriber(url: str) -> Redis:
    """Return a client for subscriptions: it may wait for a message as long as it takes."""
    return Redis.from_url(url, socket_timeout=None, socket_connect_timeout=3, health_check_interval=15)
