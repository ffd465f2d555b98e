"""Connections to Redis: one retrying pool for commands, one patient connection for subscriptions.

redis-py's errors end here: all other code gets the fleet's own.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any, Self, cast

from hiredis import Reader
from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.client import Pipeline, PubSub
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.errors import StoreDown, StoreRefuses
from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE
from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import NoTurn, Turns

CONNECTIONS = 128
ANSWER_S = 10.0
WAIT_S = 5.0


class _Direct(AbstractConnection):
    """Writes a command in the caller's own task.

    redis-py wraps every write in ``asyncio.wait_for``, which before Python 3.12 starts a task for each and
    swallows a cancellation that comes just when the write is done: a loop that was canceled went on.
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
        except RuntimeError as error:
            if not _is_closed(error):
                raise
            raise RedisConnectionError(f"Connection was closed: {error}") from error
        finally:
            self.socket_timeout = patience_s

    def _goes_at_once(self, command: bytes | str | Iterable[bytes]) -> bool:
        """Return whether a write certainly need not wait; then a timeout would cost more than the write."""
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


def _is_closed(error: Exception) -> bool:
    """Return whether a transport of uvloop says so of itself, where asyncio's would take the bytes."""
    return isinstance(error, RuntimeError) and "handler is closed" in str(error)


class WrongType(Exception):
    """A key has a value of another type, which somebody else has put there."""


_IN_PIPELINE = " of pipeline caused error: ('"
_REFUSALS = frozenset(
    {"BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)


_NOT_ALLOWED = ("unknown command", "ACL failure in script", "The user executing the script can't")
"""What servers say of a command that their user may not use: also in a script, by Valkey and by Redis."""


def _known(error: Exception) -> Exception | None:
    """Return the fleet's own error for one of redis-py's; None for those that only our own mistakes raise."""
    if isinstance(error, BusyLoadingError):
        return StoreRefuses(f"Redis is still loading its data: {error}", retry_after_s=2)
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError) or _is_closed(error):
        return StoreDown(f"Redis does not answer: {error}", retry_after_s=2)
    if isinstance(error, NoPermissionError) or any(part in str(error) for part in _NOT_ALLOWED):
        return StoreRefuses(f"Redis does not let its user do that: {error}", retry_after_s=5)
    if not isinstance(error, ResponseError):
        return None
    # redis-py removes the code from messages for which it has a class; a script's own errors keep it.
    # Of a command in a pipeline it says first which one that is.
    said = str(error).rpartition(_IN_PIPELINE)[2]
    words = said.replace(":", " ").split(" ", 3)[:3]
    if isinstance(error, MasterDownError | OutOfMemoryError | ReadOnlyError) or _REFUSALS.intersection(words):
        return StoreRefuses(f"Redis can't write now: {error}", retry_after_s=5)
    return WrongType(str(error)) if "WRONGTYPE" in words else None


class _Translated:
    """Turns redis-py's errors inside the block into the fleet's own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RedisError | OSError | RuntimeError) and (known := _known(error)) is not None:
            raise known from error


_TRANSLATED = _Translated()


class FleetRedis(Redis):
    """A client for one fleet's part of a Redis; callers wait in line for its connections.

    redis-py's pools have two problems. If no connection is free, they refuse at once, or wait on a condition,
    which before Python 3.13 loses its wake-up if the woken task was canceled. And a release that is canceled
    while it waits for the pool's lock loses the connection. A line in front of an unlimited pool has neither.

    Every call may raise:
        StoreDown: No answer, after the client's own tries.
        StoreRefuses: The server refuses commands now; or no connection was free for too long.
    """

    keyspace: Keyspace
    turns: Turns

    @classmethod
    def made(cls, url: str, *, keyspace: Keyspace, turns: Turns, **options: Any) -> Self:
        """Return a client of a URL; ``options`` are redis-py's."""
        client = cast(Self, cls.from_url(url, **_own_name(), **options))
        client.keyspace, client.turns = keyspace, turns
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command."""
        await _turn(self.turns)
        try:
            with _TRANSLATED:
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self.turns.give()

    async def run_script(self, text: str, *args: str | bytes) -> Any:
        """Run a script; it is sent to the server on the first call and after a restart."""
        sha = _sha(text)
        try:
            return await self.evalsha(sha, 0, *args)
        except NoScriptError:
            await self.script_load(text)
            return await self.evalsha(sha, 0, *args)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return commands that are sent together; for a key of a wrong type, the answer is a
        :class:`WrongType`."""
        made = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.turns = self.turns
        return made

    def pubsub(self, **options: Any) -> "Subscription":
        """Return a subscription."""
        return Subscription(self.connection_pool, **options)


class _Pipeline(Pipeline):
    turns: Turns

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        await _turn(self.turns)
        try:
            with _TRANSLATED:
                answers = await super().execute(raise_on_error)
        finally:
            self.turns.give()
        if raise_on_error:
            return answers
        return [_known(one) or one if isinstance(one, Exception) else one for one in answers]

    async def read(self) -> list[Any]:
        """Send the commands and return their answers: None where a key has a value of another type."""
        answers = await self.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, WrongType):
                raise answer
        return [None if isinstance(answer, WrongType) else answer for answer in answers]


class Subscription(PubSub):
    """redis-py's subscription; a busy reader gets many messages at once.

    Attributes:
        reconnects: How often it has got a new connection, on which it had to subscribe again.
    """

    reconnects = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return bool(getattr(self.connection, "is_connected", False))  # there may be no connection

    async def on_connect(self, connection: Any) -> None:
        """Subscribe again."""
        self.reconnects += 1
        await super().on_connect(connection)

    async def execute_command(self, *args: Any) -> Any:
        """Send a command."""
        with _TRANSLATED:
            return await super().execute_command(*args)

    async def get_message(self, *args: Any, **options: Any) -> Any:
        """Return the next message."""
        with _TRANSLATED:
            return await super().get_message(*args, **options)

    async def replies(self, *, timeout_s: float) -> list[tuple[bytes, bytes, Any]]:
        """Wait for messages and confirmations, and return all that have come: kind, channel, and data.

        redis-py reads one at a time, which costs more than anything that is done with most of them.
        """
        found: list[tuple[bytes, bytes, Any]] = []
        with _TRANSLATED:
            reply = await self.parse_response(block=False, timeout=timeout_s)
            reader = getattr(getattr(self.connection, "_parser", None), "_reader", None)
            while isinstance(reply, list):
                if len(reply) == 3:  # the answer to a ping has two parts
                    if reply[0] != b"message":
                        await self.handle_message(reply)  # type: ignore[no-untyped-call]  # as above
                    found.append((reply[0], reply[1], reply[2]))
                reply = reader.gets() if isinstance(reader, Reader) else None
            if isinstance(reply, Exception):
                raise reply
        return found


@cache
def _own_name() -> dict[str, Any]:
    """Return what redis-py calls itself to a server: else it reads that from a file for each connection."""
    try:
        from redis.driver_info import DriverInfo
    except ImportError:  # an older redis-py
        return {}
    return {"driver_info": DriverInfo()}


@cache
def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


async def _turn(turns: Turns) -> None:
    try:
        await turns.take()
    except NoTurn:
        raise StoreRefuses(
            f"all {turns.places} connections to Redis are in use (FLEET_REDIS_CONNECTIONS)", retry_after_s=1
        ) from None


def connect(
    url: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    connections: int = CONNECTIONS,
    wait_s: float = WAIT_S,
    answer_s: float = ANSWER_S,
) -> FleetRedis:
    """Return a client that retries a lost connection for about two seconds.

    A server that takes a command and does not answer is not asked again: whoever waits would wait too long.

    Every script is safe to repeat: a claim whose answer got lost leaves a run lease that nobody renews, and
    is taken over when that expires.

    Args:
        url: Where Redis is.
        namespace: Which fleet's part of it.
        connections: Most connections at once.
        wait_s: How long a call waits for a free one.
        answer_s: How long it waits for an answer.
    """
    redis = FleetRedis.made(
        url,
        keyspace=Keyspace(namespace),
        turns=Turns(connections, wait_s=wait_s),
        max_connections=2**31,  # the line is the limit; without a number, the pool has its own
        socket_timeout=answer_s,
        socket_connect_timeout=3,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.8), 4, (RedisConnectionError,)),
    )
    pool = redis.connection_pool  # the URL decides which class it uses
    pool.connection_class = _DIRECT[pool.connection_class]
    return redis


def subscriber(url: str, *, namespace: str = DEFAULT_NAMESPACE) -> FleetRedis:
    """Return a client for subscriptions: it may wait for a message without limit."""
    return FleetRedis.made(
        url,
        keyspace=Keyspace(namespace),
        turns=Turns(CONNECTIONS, wait_s=WAIT_S),
        socket_timeout=None,
        socket_connect_timeout=3,
        health_check_interval=15,
        protocol=2,  # with 3, redis-py makes a text of every message, for a log that nobody reads
    )


def connect_once(url: str, *, timeout_s: float = 2.0) -> FleetRedis:
    """Return a client for a quick look at a server: it has short timeouts and does not retry."""
    return FleetRedis.made(
        url,
        keyspace=Keyspace(),
        turns=Turns(1, wait_s=timeout_s),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
