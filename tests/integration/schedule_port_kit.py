"""The rules of choosing in Redis: one script that calls what the fleet's scripts call, counting commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from comfy_fleet.adapters.redis import scripts
from comfy_fleet.adapters.redis.client import FleetRedis

_COUNTING = """
local counted = 0
local real = redis
local redis = { sha1hex = real.sha1hex }
function redis.call(...) counted = counted + 1; return real.call(...) end
function redis.pcall(...) counted = counted + 1; return real.pcall(...) end
"""


def script(namespace: str, *, rehearsed: bool = False) -> str:
    """Return the script's text; a rehearsed one writes nothing."""
    body = Path(__file__).with_name("schedule_port.lua").read_text()
    if rehearsed:
        body = f"local rehearsed = rehearsal\n{body}"
    return _COUNTING + scripts.whole(body, namespace)


class Port:
    """The rules in Redis.

    Args:
        redis: A client.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self.redis = redis
        self._text = script(redis.keyspace.namespace)
        self._rehearsed = script(redis.keyspace.namespace, rehearsed=True)

    async def call(self, what: str, **args: Any) -> dict[str, Any]:
        """Call one function, and return what it says."""
        return await self._run(self._text, what, args)

    async def rehearse(self, what: str, **args: Any) -> dict[str, Any]:
        """Do as if one function were called, and return what it would say."""
        return await self._run(self._rehearsed, what, args)

    async def _run(self, text: str, what: str, args: Mapping[str, Any]) -> dict[str, Any]:
        named = {name: value for name, value in args.items() if value is not None}
        answer: bytes = await self.redis.run_script(text, orjson.dumps({"what": what, **named}))
        found = orjson.loads(answer)
        return found if isinstance(found, dict) else {}


async def everything(redis: FleetRedis) -> dict[bytes, Any]:
    """Return all that is in Redis."""
    client: Any = redis
    names = sorted(await client.keys("*"))
    async with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
        kinds = await pipe.execute()
        for name, kind in zip(names, kinds, strict=True):
            match kind:
                case b"hash":
                    pipe.hgetall(name)
                case b"zset":
                    pipe.zrange(name, 0, -1, withscores=True)
                case b"set":
                    pipe.smembers(name)
                case b"list":
                    pipe.lrange(name, 0, -1)
                case b"stream":
                    pipe.xrange(name)
                case _:
                    pipe.get(name)
        return dict(zip(names, await pipe.execute(), strict=True))
