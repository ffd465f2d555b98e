"""Versions before layouts 2 and 3, beside this one: their scripts, as Redis got them.

``data/scripts_layout_N.json.gz`` is what commits 3d2b227 and 86ccaaf sent for the namespace ``fleet``:
name -> text.
"""

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.jobs import RedisJobStore
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, Placement
from comfy_fleet.ports.runs import TEND_S, Waiting

DATA = Path(__file__).parent / "data"
TEXTS: dict[int, dict[str, str]] = {
    layout: orjson.loads(gzip.decompress((DATA / f"scripts_layout_{layout}.json.gz").read_bytes()))
    for layout in (1, 2)
}


class OlderScripts(Scripts):
    """A version's scripts, called by this version's stores, whose arguments and answers have grown since.

    What that version had no script for, this one's does.
    """

    def __init__(self, redis: FleetRedis, layout: int) -> None:
        super().__init__(redis, schema=layout)
        self._layout = layout

    async def call(self, script: str, /, *blobs: str | bytes, **args: Any) -> Any:
        texts = TEXTS[self._layout]
        if script not in texts:
            return await super().call(script, *blobs, **args)
        if script == "submit":
            args |= {f"rq_{name}": args["rq"][name] for name in ("data", "description")}
        if script == "submit" and self._layout == 1:
            graph, secret, _, *values = blobs
            blobs = (graph, secret, *values)
        if script == "claim":
            args["peek"] = 64
        named = orjson.dumps({name: value for name, value in args.items() if value is not None})
        answer = await self._redis.run_script(texts[script], named, *blobs)
        if script == "claim" and answer[0] == b"ok":
            extra = [b""] if self._layout == 1 else []
            answer = [*answer[:4], *answer[5:]]  # without what RQ would have called
            return [*answer, *extra, b"", b"0", [], b""]
        if script == "take_over":
            return [[*run, b""] for run in answer]
        if self._layout > 1:
            return answer
        if script == "submit" and answer[0] == b"ok":
            return [*answer, b"0"]
        return [*answer, 0] if script == "frames" and answer else answer


class OlderJobs(RedisJobStore):
    """Jobs as an older API sees them."""

    def __init__(self, redis: FleetRedis, layout: int) -> None:
        super().__init__(redis, ageing_s=60.0, schema=layout)
        self._scripts = OlderScripts(redis, layout)

    async def depth(self) -> int:
        return int(await self._redis.llen(self._keys.rq_inbox))

    async def position(self, job: Job) -> int | None:
        at = await self._redis.zrank(self._keys.queue(job.placement.key), job.id)
        return None if at is None else int(at) + 1


class OlderRuns(RedisRunStore):
    """Runs as an older dispatcher sees them."""

    def __init__(self, redis: FleetRedis, layout: int) -> None:
        super().__init__(redis, schema=layout)
        self._scripts = OlderScripts(redis, layout)

    async def waiting(self) -> Sequence[Waiting]:
        found = []
        for raw in await self._redis.smembers(self._keys.placements):
            queue = self._keys.queue(raw.decode())
            ((_, score),) = await self._redis.zrange(queue, 0, 0, withscores=True)
            placement, count = Placement.parse(raw.decode()), await self._redis.zcard(queue)
            found.append(Waiting(placement=placement, count=count, head_score=score))
        return found

    async def tend(self, *, every_s: float = TEND_S) -> None:
        """Do nothing: that version wrote RQ's list with each change."""


def older(stores: Stores, layout: int = 1) -> Stores:
    """Return the same stores as the version with this layout has them."""
    return replace(stores, jobs=OlderJobs(stores.redis, layout), runs=OlderRuns(stores.redis, layout))
