"""The jobs that RQ's own clients enqueue, in Redis: taken from RQ's list, and told of in RQ's records."""

import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.jobs.job import Progress
from comfy_fleet.domain.jobs.rq_entry import FIELDS, RqEntry
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.rq_inbox import Callback, Change, Taken

AT_ONCE = 100  # new entries of one call of a script: takes a few milliseconds on the server
LOOKED_AT = 500  # live jobs of one call
HOLD_S = 3.0
"""How long a process has the turn without asking again."""


class RedisRqInbox:
    """:class:`comfy_fleet.ports.rq_inbox.RqInbox`.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._holder = uuid4().hex

    async def waiting(self) -> int:
        """See the port."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.type(self._keys.rq_inbox)
            (kind,) = await pipe.read()
        return int(await self._redis.llen(self._keys.rq_inbox)) if kind == b"list" else 0

    async def take(self, *, new: bool, most_data: int) -> Taken:
        """See the port."""
        answer = await self._scripts.begin(
            "inbox_take",
            holder=self._holder,
            hold_ms=round(HOLD_S * 1000),
            ids=[str(uuid4()) for _ in range(AT_ONCE)] if new else None,
            most_data=most_data,
        )
        if answer[0] in (b"other", b"idle"):
            return Taken(turn=answer[0] == b"idle", idle=answer[0] == b"idle")
        return Taken(
            more=int(answer[1]) == AT_ONCE,
            dropped=[(id_.decode(errors="replace"), why.decode(errors="replace")) for id_, why in answer[2]],
            entries=[_entry(*row) for row in answer[3]],
        )

    async def changes(self) -> Sequence[Change]:
        """See the port."""
        found = []
        for id_, job, what, *rest in await self._scripts.call("inbox_look", most=LOOKED_AT):
            word = what.decode()
            if word == "ended":
                entry = _entry(id_, job, b"", *rest[1:])
                found.append(Change(what=word, entry=entry, stopped=rest[0] == b"1"))
            elif word == "progress":
                entry = RqEntry(id=id_.decode(), job_id=job.decode(), fields={"meta": rest[1]})
                found.append(Change(what=word, entry=entry, progress=_progress(rest[0]), noted=rest[0]))
            else:
                entry = RqEntry(id=id_.decode(), job_id=job.decode(), fields={})
                found.append(Change(what=word, entry=entry))
        return found

    async def end(
        self,
        entry: RqEntry,
        status: str,
        *,
        checked: bool = False,
        ttl_s: int,
        result: Mapping[str, Any] | None = None,
        why: str = "",
        callback: Callback | None = None,
    ) -> None:
        """See the port."""
        text = b64encode(orjson.dumps(result) if result is not None else zlib.compress(why.encode())).decode()
        call = orjson.dumps([callback.function, None, list(callback.args), {}]) if callback else b""
        await self._scripts.call(
            "inbox_end",
            text if result is not None or why else "",
            call,
            id=entry.id,
            job=entry.job_id,
            checked=checked,
            status=status,
            ttl=ttl_s,
            callback={
                "id": str(uuid4()),
                "queue": callback.queue,
                "description": f"{callback.function} for {entry.id}",
                "timeout": callback.timeout_s,
            }
            if callback
            else None,
        )

    async def progress(self, change: Change, meta: bytes) -> None:
        """See the port."""
        entry = change.entry
        await self._scripts.call(
            "inbox_meta", entry.fields["meta"], meta, change.noted, id=entry.id, job=entry.job_id
        )

    async def stop(self, rq_id: str) -> str | None:
        """Note that RQ's command stops a job; return the job's id in the fleet, None if there is none."""
        found: bytes = await self._scripts.call("inbox_stop", id=rq_id)
        return found.decode() or None


def _entry(id_: bytes, job: bytes, too_long: bytes, *values: bytes) -> RqEntry:
    fields = dict(zip(FIELDS, values, strict=True))
    return RqEntry(id=id_.decode(), job_id=job.decode(), fields=fields, too_long=too_long.decode())


def _progress(text: bytes) -> Progress | None:
    try:
        return from_fields(Progress, orjson.loads(text))
    except UNREADABLE:
        return None
