"""Connections to Redis: one retrying pool for commands, one patient connection for subscriptions."""

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import NoTurn, Turns

CONNECTIONS = 128
_ASK_AGAIN_S = 30.0
WAIT_S = 5.0


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
            if self._goes_at_once(command):
                await super().send_packed_command(command, check_health=False)
                return
            async with Timeout(patience_s):
                await super().send_packed_command(command, check_health=False)
        except TimeoutError:
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = patience_s

    def _goes_at_once(self, command: bytes | str | Iterable[bytes]) -> bool:
        """Return whether a write surely need not wait: a timeout costs more than such a write."""
        if self._writer is None or not isinstance(command, list):
            return False
        transport = self._writer.transport
        return (
            sum(map(len, command)) <= transport.get_write_buffer_limits()[1]
            and not transport.get_write_buffer_size()
        )


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


class NoConnection(RedisConnectionError):
    """Every connection was in use for too long; the server was not asked."""


class _Client(Redis):
    """A client whose callers wait in line for one of its connections.

    redis-py's pools either refuse at once whoever finds none free, or wait on a condition, which before
    Python 3.13 loses its wake-up if the one woken was canceled; and a release that is canceled while it
    waits for the pool's lock loses the connection. A line in front of an unlimited pool has none of these.
    """

    turns: Turns

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await _turn(self.turns)
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self.turns.give()

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        made = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.turns = self.turns
        return made


class _Pipeline(Pipeline):
    turns: Turns

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        await _turn(self.turns)
        try:
            return await super().execute(raise_on_error)
        finally:
            self.turns.give()


async def _turn(turns: Turns) -> None:
    try:
        await turns.take()
    except NoTurn:
        raise NoConnection(
            f"all {turns.places} connections to Redis are in use (FLEET_REDIS_CONNECTIONS)"
        ) from None


def connect(url: str, *, connections: int = CONNECTIONS, wait_s: float = WAIT_S) -> Redis:
    """Return a client that retries a lost connection for about two seconds.

    Every script is safe to repeat: a claim whose answer got lost is a run lease that nobody beats, and is
    taken over when it expires.

    Args:
        url: Where Redis is.
        connections: Most connections at once.
        wait_s: How long a call waits for a free one, before it raises :class:`NoConnection`.
    """
    redis = cast(
        _Client,
        _Client.from_url(
            url,
            max_connections=2**31,  # the line is the limit; without a number the pool has one of its own
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.8), 4),
        ),
    )
    redis.turns = Turns(connections, wait_s=wait_s)
    pool = redis.connection_pool  # which class it uses is the URL's choice
    pool.connection_class = _DIRECT[pool.connection_class]
    return redis


class ServerClock:
    """The server's time, asked for now and then and counted on from there: what processes on several machines
    write as times belongs to one clock.

    Args:
        redis: The server.
        monotonic: Counts between two questions.
    """

    def __init__(self, redis: Redis, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._redis: Any = redis
        self._monotonic = monotonic
        self._ahead_s = 0.0
        self._asked_at = float("-inf")

    async def __call__(self) -> float:
        """Return Unix seconds."""
        if self._monotonic() - self._asked_at > _ASK_AGAIN_S:
            seconds, micros = await self._redis.time()
            self._asked_at = self._monotonic()
            self._ahead_s = seconds + micros / 1e6 - self._asked_at
        return self._monotonic() + self._ahead_s


def subscriber(url: str) -> Redis:
    """Return a client for subscriptions: it may wait for a message as long as it takes."""
    return Redis.from_url(url, socket_timeout=None, socket_connect_timeout=3, health_check_interval=15)
