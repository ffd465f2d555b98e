"""The rules of choosing in Redis: one script that calls what the fleet's scripts call, counting commands."""

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


def script(namespace: str) -> str:
    """Return the script's text."""
    body = Path(__file__).with_name("schedule_port.lua").read_text()
    return _COUNTING + scripts.whole(body, namespace)


class Port:
    """The rules in Redis.

    Args:
        redis: A client.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._text = script(redis.keyspace.namespace)

    async def call(self, what: str, **args: Any) -> dict[str, Any]:
        """Call one function, and return what it says."""
        named = {name: value for name, value in args.items() if value is not None}
        answer: bytes = await self._redis.run_script(self._text, orjson.dumps({"what": what, **named}))
        found = orjson.loads(answer)
        return found if isinstance(found, dict) else {}
