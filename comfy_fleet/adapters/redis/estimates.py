"""What estimates are made of, in Redis (port :class:`comfy_fleet.ports.estimates.EstimateStore`)."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis, WrongType
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.schedule.calibration import KEPT, KINDS
from comfy_fleet.domain.schedule.standing import OwnerBacklog, Share, Standing, Underway

ALL = "*"
"""The profile that stands for all."""


class RedisEstimates:
    """See the port."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)

    async def underway(self, job_id: str) -> Underway | None:
        """Return how far a job's run is in time; see the port."""
        found = await self._scripts.call("underway", job=job_id)
        if not found:
            return None
        since_s, run_s, own_kind = found
        return Underway(since_s=float(since_s), run_s=float(run_s), own_kind=own_kind == 1)

    async def free_in_s(self, nodes: Sequence[str]) -> Mapping[str, float]:
        """Return in how many seconds nodes are free; see the port."""
        if not nodes:
            return {}
        found = await self._scripts.call("free_times", names=list(nodes))
        return {name: float(raw) for name, raw in zip(nodes, found, strict=True) if raw}

    async def mean_run_s(self) -> float | None:
        """Return how long runs compute, of all kinds; see the port."""
        try:
            found = _ratio(await self._redis.hget(self._keys.sched_profile(ALL), "run_s"))
        except WrongType:
            return None
        return found if found is not None and found > 0 else None

    async def errors(self) -> Mapping[str, Sequence[float]]:
        """Return how far estimates were off; see the port."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for kind in KINDS:
                pipe.lrange(self._keys.sched_errors(kind), 0, KEPT - 1)
            answers = await pipe.execute(raise_on_error=False)
        found: dict[str, Sequence[float]] = {}
        for kind, answer in zip(KINDS, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, WrongType):
                raise answer
            rows = answer if isinstance(answer, list) else []
            found[kind] = [ratio for raw in rows if (ratio := _ratio(raw)) is not None]
        return found

    async def note(self, job_id: str, kind: str, end_in_s: float) -> None:
        """Remember the first estimate of a job that waits; see the port."""
        await self._scripts.call("note_estimate", job=job_id, kind=kind, seconds=end_in_s)


def load_standing(text: bytes) -> Standing | None:
    """Return where a job stands from the script's JSON; None for an empty one."""
    if not text:
        return None
    found: dict[str, Any] = orjson.loads(text)
    tenants = found.pop("tenants") or []
    others = found.pop("others") or []  # Lua's JSON has one word for an empty list and an empty object
    tenant = _share(found.pop("tenant"))
    return Standing(
        **found | {"own_kind": found["own_kind"] == 1},
        tenant=tenant,
        tenants=tuple(map(_share, tenants)),
        others=tuple(OwnerBacklog(tag=tag, weight=weight, jobs=jobs) for tag, weight, jobs in others),
    )


def _share(pair: Sequence[float]) -> Share:
    return Share(tag=pair[0], weight=pair[1])


def _ratio(raw: bytes | None) -> float | None:
    """Return a number from 0 that was stored, or None."""
    with contextlib.suppress(ValueError):
        if raw is not None and 0 <= (found := float(raw)) < math.inf:
            return found
    return None
