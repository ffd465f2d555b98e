"""What people asked for and the fleet lacked, in Redis (port ``MissingRecord``)."""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.clock import ServerClock
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.graphs.missing import MissingPart, PartKind
from comfy_fleet.domain.graphs.part_sources import PartSource
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.missing import KEPT_S, MOST_OF_OWNER, AskedPart


class RedisMissing:
    """:class:`comfy_fleet.ports.missing.MissingRecord`."""

    def __init__(self, redis: FleetRedis, *, clock: ServerClock) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._clock = clock
        self._complaints = Complaints()

    async def note(self, owner: str, parts: Sequence[MissingPart]) -> None:
        """See :meth:`comfy_fleet.ports.missing.MissingRecord.note`."""
        await self._scripts.call(
            "note_missing",
            owner=owner,
            parts=[
                {"key": _key(part), "about": _about(part), "sourced": part.source.is_known} for part in parts
            ],
            most=MOST_OF_OWNER,
            ttl_s=int(KEPT_S),
        )

    async def asked(self) -> Sequence[AskedPart]:
        """See :meth:`comfy_fleet.ports.missing.MissingRecord.asked`."""
        since = await self._clock() - KEPT_S
        found: dict[bytes, AskedPart] = {}
        for name in await self._redis.smembers(self._keys.missing_owners):
            kept: dict[bytes, bytes] = await self._redis.hgetall(self._keys.missing_of(name.decode()))
            if not kept:  # what is written between the two calls is found again with the next part
                await self._redis.srem(self._keys.missing_owners, name)
            for key, raw in kept.items():
                one = self._load(key, raw)
                if one is not None and one.last >= since:
                    found[key] = one if key not in found else _together(found[key], one)
        return sorted(found.values(), key=lambda one: -one.last)

    def _load(self, key: bytes, raw: bytes) -> AskedPart | None:
        try:
            record = orjson.loads(raw)
            about = orjson.loads(record["about"])
            part = MissingPart(
                kind=PartKind(about["kind"]),
                name=str(about["name"]),
                class_type=str(about["class_type"]),
                input=str(about["input"]),
                source=from_fields(PartSource, about),
            )
            return AskedPart(
                part=part,
                asked=int(record["asked"]),
                people=1,
                first=float(record["first"]),
                last=float(record["last"]),
            )
        except UNREADABLE as error:
            self._complaints.about("missing part", key.decode(errors="replace"), error)
            return None


def _key(part: MissingPart) -> str:
    text = "\0".join((part.kind, part.name, part.class_type, part.input))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _about(part: MissingPart) -> str:
    about = part.to_json()
    del about["node_ids"], about["lacked_by"]  # of one graph, and of one moment
    return orjson.dumps(about).decode()


def _together(one: AskedPart, other: AskedPart) -> AskedPart:
    told = max(one, other, key=lambda asked: (asked.part.source.is_known, asked.last))
    return AskedPart(
        part=told.part,
        asked=one.asked + other.asked,
        people=one.people + other.people,
        first=min(one.first, other.first),
        last=max(one.last, other.last),
    )
