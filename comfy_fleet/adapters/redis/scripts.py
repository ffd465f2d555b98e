"""The Lua scripts: a shared prelude and one file for each call."""

from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

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
        """Run ``NAME.lua`` with ARGV; loads it on the first call and after a restart of the server."""
        sha = self._shas.get(name)
        if sha is None:
            sha = self._shas[name] = str(await self._redis.script_load(source(name)))
        try:
            return await self._redis.evalsha(sha, 0, *args)
        except NoScriptError:
            await self._redis.script_load(source(name))
            return await self._redis.evalsha(sha, 0, *args)
