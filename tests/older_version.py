"""The version before layout 2, beside this one: its scripts, as Redis got them.

``data/scripts_layout_1.json.gz`` is what commit 3d2b227 sent for the namespace ``fleet``: name -> text.
"""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.bootstrap import Stores

DATA = Path(__file__).parent / "data" / "scripts_layout_1.json.gz"
TEXTS: dict[str, str] = orjson.loads(gzip.decompress(DATA.read_bytes()))


class OlderScripts(Scripts):
    """That version's scripts, called by this version's stores, whose arguments and answers have grown since.

    What that version had no script for, this one's does.
    """

    def __init__(self, redis: FleetRedis) -> None:
        super().__init__(redis, schema=1)

    async def call(self, script: str, /, *blobs: str | bytes, **args: Any) -> Any:
        if script not in TEXTS:
            return await super().call(script, *blobs, **args)
        if script == "submit":
            graph, secret, _, *values = blobs
            blobs = (graph, secret, *values)
        named = orjson.dumps({name: value for name, value in args.items() if value is not None})
        answer = await self._redis.run_script(TEXTS[script], named, *blobs)
        if script == "claim" and answer[0] == b"ok":
            return [*answer, b""]
        if script == "submit" and answer[0] == b"ok":
            return [*answer, b"0"]
        return [*answer, 0] if script == "frames" and answer else answer


class OlderJobs(RedisJobStore):
    """Jobs as an older API sees them."""

    def __init__(self, redis: FleetRedis) -> None:
        super().__init__(redis, ageing_s=60.0, schema=1)
        self._scripts = OlderScripts(redis)


class OlderRuns(RedisRunStore):
    """Runs as an older dispatcher sees them."""

    def __init__(self, redis: FleetRedis) -> None:
        super().__init__(redis, schema=1)
        self._scripts = OlderScripts(redis)


def older(stores: Stores) -> Stores:
    """Return the same stores as that version has them."""
    return replace(stores, jobs=OlderJobs(stores.redis), runs=OlderRuns(stores.redis))
