"""The Lua scripts: a shared prelude and one file for each call."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from comfy_fleet.adapters.redis.client import NoConnection
from comfy_fleet.domain.errors import StoreDown, StoreRefuses

Arg = str | bytes | int | float


@cache
def source(name: str) -> str:
    """Return the whole text of a script."""
    folder = files("comfy_fleet.adapters.redis") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


class Scripts:
    """Calls scripts by name on one client. Keys are built inside: for one Redis, not for a cluster."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._shas: dict[str, str] = {}

    async def call(self, name: str, *args: Arg) -> Any:
        """Run ``NAME.lua`` with ARGV; loads it on the first call and after a restart of the server.

        Raises:
            StoreDown: No answer, after the client's own tries.
        """
        with store_errors():
            sha = self._shas.get(name)
            if sha is None:
                sha = self._shas[name] = str(await self._redis.script_load(source(name)))
            try:
                return await self._redis.evalsha(sha, 0, *args)
            except NoScriptError:
                await self._redis.script_load(source(name))
                return await self._redis.evalsha(sha, 0, *args)


_REFUSALS = frozenset(
    {"BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what redis-py raises while the server is away, or takes nothing, into StoreDown."""
    try:
        yield
    except NoConnection as error:
        raise StoreRefuses(str(error), retry_after_s=1) from error
    except BusyLoadingError as error:
        raise StoreRefuses(f"Redis is still loading its data: {error}", retry_after_s=2) from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise StoreDown(f"Redis does not answer: {error}", retry_after_s=2) from error
    except ResponseError as error:
        # redis-py takes the code off a message that it has a class for; a script's own refusals keep it.
        known = isinstance(error, MasterDownError | OutOfMemoryError | ReadOnlyError)
        if not known and _REFUSALS.isdisjoint(str(error).replace(":", " ").split(" ", 3)[:3]):
            raise
        raise StoreRefuses(f"Redis can't write now: {error}", retry_after_s=5) from error
