"""The Lua scripts: a shared prelude and one file for each call."""

import logging
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
from comfy_fleet.domain.errors import ConfigError, Outdated, StoreDown, StoreRefuses

logger = logging.getLogger(__name__)

Arg = str | bytes | int | float

SCHEMA = 1
"""The layout of what stands in Redis. A change that an older version would misread or undo raises it; a field
more in a record is no such change. ``schema.lua`` brings older data to it."""


@cache
def source(name: str, schema: int = SCHEMA) -> str:
    """Return the whole text of a script."""
    folder = files("comfy_fleet.adapters.redis") / "lua"
    texts = [(folder / f"{part}.lua").read_text() for part in ("prelude", name)]
    return f"local SCHEMA = {schema}\n" + "".join(texts)


class Scripts:
    """Calls scripts by name on one client. Keys are built inside: for one Redis, not for a cluster.

    Args:
        redis: The client.
        schema: The layout that the scripts know.
    """

    def __init__(self, redis: Redis, *, schema: int = SCHEMA) -> None:
        self._redis = redis
        self._schema = schema
        self._shas: dict[str, str] = {}

    async def call(self, name: str, *args: Arg) -> Any:
        """Run ``NAME.lua`` with ARGV; loads it on the first call and after a restart of the server.

        Raises:
            StoreDown: No answer, after the client's own tries.
        """
        with store_errors():
            sha = self._shas.get(name)
            if sha is None:
                sha = self._shas[name] = str(await self._redis.script_load(source(name, self._schema)))
            try:
                return await self._redis.evalsha(sha, 0, *args)
            except NoScriptError:
                await self._redis.script_load(source(name, self._schema))
                return await self._redis.evalsha(sha, 0, *args)

    async def begin(self, name: str, *args: Arg) -> Any:
        """Run a script that takes new work, which only the newest version on this Redis may do.

        Raises:
            Outdated: A newer version has raised the layout.
            StoreDown: No answer.
        """
        answer = await self.call(name, *args)
        if answer[0] != b"schema":
            return answer
        await self.check(may_raise=True)  # Redis was emptied, or away when this process started
        answer = await self.call(name, *args)
        if answer[0] == b"schema":
            raise outdated(answer[1], self._schema)
        return answer

    async def check(self, *, may_raise: bool = False) -> None:
        """Compare the layout in Redis with the one that this process knows.

        Args:
            may_raise: Raise an older one in Redis to ours.

        Raises:
            Outdated: The one in Redis is newer, or no number.
            StoreDown: No answer.
        """
        found: bytes = await self.call("schema", int(may_raise))
        if not found.isdigit() or int(found) > self._schema:
            raise outdated(found, self._schema)

    async def start(self) -> None:
        """Check the layout at a process's start, and raise it in Redis if it is older.

        A Redis that is away is no hindrance: the first script that takes new work looks again.

        Raises:
            ConfigError: The one in Redis is newer.
        """
        try:
            await self.check(may_raise=True)
        except Outdated as error:
            raise ConfigError(
                f"{error.message}: start the version that wrote it, "
                "or restore Redis from a backup made before"
            ) from error
        except StoreDown as error:
            logger.warning("layout in Redis not checked yet", extra={"error": str(error)})


def outdated(found: bytes, known: int) -> Outdated:
    """Return the error for a layout in Redis that this process does not know."""
    shown = found[:40].decode(errors="replace")
    return Outdated(
        f"Redis holds layout {shown} and this process knows layout {known}: it is the older version",
        retry_after_s=5,
    )


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
