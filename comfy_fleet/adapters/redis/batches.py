"""Batches in Redis (port :class:`comfy_fleet.ports.batches.BatchStore`).

An item that is to be queued is a text with all that submit.lua gets: whichever process is there queues it.
"""

import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.job_records import dump_error, ended_job, hashed, rq_failure
from comfy_fleet.adapters.redis.quotas import limit_error
from comfy_fleet.adapters.redis.runs import DEADLINE
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.adapters.redis.submit_calls import submit_call
from comfy_fleet.domain.errors import (
    BadInput,
    Busy,
    Conflict,
    IdempotencyKeyReuse,
    NotFound,
    QueueFull,
)
from comfy_fleet.domain.jobs.job import JobStatus, NewJob
from comfy_fleet.domain.jobs.job_batch import BatchItem, ItemState, JobBatch
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.ports.batches import BatchPage, NewBatch, Queueing, StagedItem
from comfy_fleet.ports.jobs import Idempotency
from comfy_fleet.ports.telemetry import Telemetry

STAGED_S = 3600
STEP = 10_000_000
"""From one state's scores to the next one's, as in batches.lua."""
_STATES = tuple(ItemState)
_LOOKED_AT = 1000
_SCORE = re.compile(r"[0-9]{1,12}\.[0-9]{6}")


class RedisBatches:
    """The batches.

    Args:
        redis: A client that returns bytes.
        events: What brings news.
        ageing_s: Waiting this long is worth one point of priority.
        mirror: Whether RQ's tools see the fleet's own jobs, see ``FLEET_RQ_MIRROR``.
        depth: The queue's limit; batches fill half of it.
        telemetry: Is told of jobs that end without a run.
    """

    def __init__(
        self,
        redis: FleetRedis,
        events: RedisEvents,
        *,
        ageing_s: float,
        mirror: str,
        depth: int,
        telemetry: Telemetry,
    ) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._events = events
        self._ageing_s = ageing_s
        self._mirror = mirror
        self._depth = depth
        self._telemetry = telemetry

    async def stage(self, batch_id: str, items: Sequence[StagedItem]) -> int:
        """See the port."""
        keys = self._keys
        pending, places, jobs, names, refused = (
            keys.batch_pending(batch_id),
            keys.batch_items(batch_id),
            keys.batch_jobs(batch_id),
            keys.batch_names(batch_id),
            keys.batch_refused(batch_id),
        )
        waiting: list[bytes] = []
        scores, ids = dict[str, int](), dict[str, str]()
        called, faults = dict[str, bytes](), dict[str, bytes]()
        for one in items:
            if one.job is not None:
                waiting.append(self._entry(one, one.job))
            if one.was:
                continue  # of a retry: the batch knows it
            number = str(one.number)
            state = ItemState.REFUSED if one.job is None else ItemState.PENDING
            scores[number] = _STATES.index(state) * STEP + one.number
            called[number] = one.custom_id.encode("utf-8", "replace")
            if one.job is not None:
                ids[number] = one.job.id
            else:
                faults[number] = orjson.dumps([error.shown() for error in one.errors[:5]])
        async with self._redis.pipeline(transaction=True) as pipe:
            if waiting:
                pipe.rpush(pending, *waiting)
            if scores:
                pipe.zadd(places, scores)
            for key, values in ((jobs, ids), (names, called), (refused, faults)):
                if values:
                    pipe.hset(key, mapping=values)
            for key in (pending, places, jobs, names, refused):
                pipe.expire(key, STAGED_S)
            await pipe.execute()
        return sum(map(len, waiting))

    def _entry(self, item: StagedItem, job: NewJob) -> bytes:
        blobs, args = submit_call(job, ageing_s=self._ageing_s, mirror=self._mirror)
        args |= {"item": str(item.number), **({"was": item.was} if item.was else {})}
        return b"".join(struct.pack(">I", len(one)) + one for one in (orjson.dumps(args), *blobs))

    async def discard(self, batch_id: str) -> None:
        """See the port."""
        keys = self._keys
        await self._redis.unlink(
            keys.batch_pending(batch_id),
            keys.batch_items(batch_id),
            keys.batch_jobs(batch_id),
            keys.batch_names(batch_id),
            keys.batch_refused(batch_id),
        )

    async def begin(self, new: NewBatch, *, idempotency: Idempotency | None) -> str:
        """See the port."""
        fields = {"workflow": new.workflow, "version": new.version}
        if new.webhook is not None:
            fields["webhook"] = orjson.dumps(new.webhook.record(new.owner)).decode()
        answer = await self._scripts.begin(
            "begin_batch",
            **_common(new, idempotency),
            total=new.total,
            fields={name: value for name, value in fields.items() if value},
        )
        if answer[0] == b"replay":
            return str(answer[1].decode())
        self._refused(new, answer)
        return new.id

    async def begin_retry(self, new: NewBatch, *, list_id: str, idempotency: Idempotency | None) -> bool:
        """See the port."""
        answer = await self._scripts.begin("retry_batch", **_common(new, idempotency), list=list_id)
        if answer[0] == b"none":
            raise NotFound(f"no batch {new.id}", details={"batch_id": new.id})
        if answer[0] == b"busy":
            raise Conflict(
                f"items of batch {new.id} still wait to be queued: try again in some seconds",
                details={"batch_id": new.id},
            )
        if answer[0] == b"replay":
            return False
        self._refused(new, answer)
        return True

    def _refused(self, new: NewBatch, answer: Sequence[Any]) -> None:
        match answer[0]:
            case b"used":
                raise IdempotencyKeyReuse("this Idempotency-Key came with another body before: use a new key")
            case b"stale":
                raise Busy("checking this batch has taken too long: send it again", retry_after_s=1)
            case b"limit":
                raise limit_error(answer[1:])
            case b"full":
                raise _full(new, int(answer[1]))

    async def made_by(self, idempotency: Idempotency) -> str | None:
        """See the port."""
        seen = await self._redis.get(self._keys.idempotency(idempotency.scope, hashed(idempotency.key)))
        if seen is None:
            return None
        made, _, fingerprint = seen.decode().partition(" ")
        if fingerprint != idempotency.fingerprint:
            raise IdempotencyKeyReuse("this Idempotency-Key came with another body before: use a new key")
        return str(made)

    async def queue(self, batch_id: str, *, most: int) -> Queueing:
        """See the port."""
        left, full, *ended = await self._scripts.begin(
            "queue_batch",
            dump_error(DEADLINE),
            rq_failure(DEADLINE),
            batch=batch_id,
            most=most,
            depth_limit=self._depth,
        )
        for word, facts in ended:
            status = JobStatus(word.decode())
            error = DEADLINE if status is JobStatus.EXPIRED else None
            self._telemetry.ended_without_run(ended_job(facts, status, error))
        return Queueing(left=int(left), full=bool(full))

    async def cancel(self, batch_id: str, *, most: int, marked: bool = False) -> int:
        """See the port."""
        left, *ended = await self._scripts.call(
            "cancel_batch", batch=batch_id, most=most, marked=marked or None
        )
        for facts in ended:
            self._telemetry.ended_without_run(ended_job(facts, JobStatus.CANCELED))
        return int(left)

    async def tend(self, batch_id: str, *, first: int, most: int, ended: bool = False) -> int:
        """See the port."""
        found = await self._scripts.call(
            "tend_batch", batch=batch_id, **{"from": first}, most=most, ended=ended or None
        )
        return int(found)

    async def some(self, first: int, limit: int) -> Sequence[str]:
        """See the port."""
        rows = await self._redis.zrange(self._keys.batches, first, first + limit - 1)
        return [raw.decode() for raw in rows]

    async def drop(self, batch_id: str, numbers: Sequence[int]) -> bool:
        """See the port."""
        return bool(await self._scripts.call("drop_batch", batch=batch_id, items=list(map(str, numbers))))

    async def live(self, limit: int) -> Sequence[tuple[str, float]]:
        """See the port."""
        rows = await self._redis.zrange(self._keys.batches_live, 0, limit - 1, withscores=True)
        return [(raw.decode(), float(at)) for raw, at in rows]

    async def busy(self, limit: int) -> Sequence[str]:
        """See the port."""
        rows = await self._redis.zrange(self._keys.batches_busy, 0, limit - 1)
        return [raw.decode() for raw in rows]

    async def get(self, batch_id: str) -> JobBatch | None:
        """See the port."""
        return (await self._load([batch_id]))[0]

    async def _load(self, ids: Sequence[str]) -> list[JobBatch | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                pipe.hgetall(self._keys.batch(batch_id))
                pipe.llen(self._keys.batch_pending(batch_id))
                for place in range(len(_STATES)):
                    pipe.zcount(self._keys.batch_items(batch_id), place * STEP, f"({(place + 1) * STEP}")
            answers = await pipe.read()
        width = 2 + len(_STATES)
        return [
            _read(batch_id, answers[at], answers[at + 1], answers[at + 2 : at + width])
            for at, batch_id in zip(range(0, width * len(ids), width), ids, strict=True)
        ]

    async def find(self, owners: Collection[str] | None, *, limit: int, cursor: str | None) -> BatchPage:
        """See the port."""
        wanted = None if owners is None else set(owners)
        one = next(iter(wanted)) if wanted is not None and len(wanted) == 1 else None
        key = self._keys.batches if one is None else self._keys.batches_of(one)
        after = (float("inf"), "") if cursor is None else _read_cursor(cursor)
        found: list[JobBatch] = []
        while True:
            top = "+inf" if after[0] == float("inf") else f"{after[0]:.6f}"
            rows = await self._redis.zrevrangebyscore(
                key, top, "-inf", start=0, num=limit + 1, withscores=True
            )
            fresh = [(float(at), raw.decode()) for raw, at in rows if (float(at), raw.decode()) < after]
            for at, batch in zip(fresh, await self._load([name for _, name in fresh]), strict=True):
                after = at
                if batch is not None and (wanted is None or batch.owner in wanted):
                    found.append(batch)
                if len(found) == limit:
                    return BatchPage(batches=tuple(found), cursor=_write_cursor(*after))
            if len(rows) <= limit or not fresh:
                return BatchPage(batches=tuple(found))

    async def items(
        self, batch_id: str, states: Collection[ItemState], *, after: BatchItem | None = None, limit: int
    ) -> Sequence[BatchItem]:
        """See the port."""
        keys, found = self._keys, list[tuple[int, ItemState]]()
        least = -1 if after is None else _STATES.index(after.state) * STEP + after.number
        for place, state in enumerate(_STATES):
            if len(found) >= limit or (states and state not in states) or least >= (place + 1) * STEP:
                continue
            rows = await self._redis.zrangebyscore(
                keys.batch_items(batch_id),
                f"({max(least, place * STEP - 1)}",
                f"({(place + 1) * STEP}",
                start=0,
                num=limit - len(found),
            )
            found += [(int(raw), state) for raw in rows]
        if not found:
            return ()
        numbers = [str(number) for number, _ in found]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(keys.batch_names(batch_id), numbers)
            pipe.hmget(keys.batch_jobs(batch_id), numbers)
            pipe.hmget(keys.batch_refused(batch_id), numbers)
            names, jobs, refused = await pipe.read()
        return [
            BatchItem(
                number=number,
                custom_id=(name or b"").decode(errors="replace"),
                state=state,
                job_id=(job or b"").decode(),
                errors=tuple(orjson.loads(errors)) if errors else (),
            )
            for (number, state), name, job, errors in zip(found, names, jobs, refused, strict=True)
        ]

    async def last(self, batch_id: str, state: ItemState) -> str | None:
        """See the port."""
        low = _STATES.index(state) * STEP
        rows = await self._redis.zrevrangebyscore(
            self._keys.batch_items(batch_id), f"({low + STEP}", low, start=0, num=1
        )
        job = await self._redis.hget(self._keys.batch_jobs(batch_id), rows[0]) if rows else None
        return job.decode() if job else None

    async def names(self, batch_id: str, numbers: Sequence[int]) -> Mapping[int, str]:
        """See the port."""
        if not numbers:
            return {}
        found = await self._redis.hmget(self._keys.batch_names(batch_id), [str(one) for one in numbers])
        return {
            number: raw.decode(errors="replace") for number, raw in zip(numbers, found, strict=True) if raw
        }

    @asynccontextmanager
    async def events(self, batch_id: str) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        """See the port."""
        async with self._events.channel(self._keys.batch_events(batch_id), most=_LOOKED_AT) as queue:
            yield _told(queue)


async def _told(queue: Any) -> AsyncIterator[Mapping[str, Any]]:
    while True:
        try:
            yield orjson.loads(await queue.get())
        except orjson.JSONDecodeError:
            continue  # somebody else's message


def _common(new: NewBatch, idempotency: Idempotency | None) -> dict[str, Any]:
    return {
        "batch": new.id,
        "owner": new.owner,
        "jobs": new.jobs,
        "most_waiting": new.most_waiting,
        "quota": new.quota,
        "idempotency": None
        if idempotency is None
        else {
            "scope": idempotency.scope,
            "hash": hashed(idempotency.key),
            "fingerprint": idempotency.fingerprint,
        },
    }


def _full(new: NewBatch, waiting: int) -> QueueFull:
    limit = new.most_waiting
    what = (
        f"{new.jobs} items don't fit: {waiting} items of batches wait to be queued already, and "
        f"{limit} may (FLEET_MAX_BATCH_WAITING)"
    )
    if new.jobs > limit:
        what = f"{new.jobs} items are more than may ever wait to be queued: {limit} (FLEET_MAX_BATCH_WAITING)"
    return QueueFull(
        f"{what}: send at most {max(0, limit - waiting) or limit} at a time, or try again later",
        retry_after_s=1,
        details={"waiting": waiting, "limit": limit, "jobs": new.jobs},
    )


def _read(batch_id: str, raw: Mapping[bytes, bytes], waiting: int, counts: Sequence[int]) -> JobBatch | None:
    record = {name.decode(): value for name, value in (raw or {}).items()}
    if not record:
        return None
    try:
        completed = record.get("completed")
        return JobBatch(
            id=batch_id,
            owner=record["owner"].decode(),
            created_at=float(record["created"]),
            total=int(record["total"]),
            counts={state: int(count) for state, count in zip(_STATES, counts, strict=True) if count},
            waiting=int(waiting),
            workflow=record.get("workflow", b"").decode(),
            version=record.get("version", b"").decode(),
            canceled="cancel" in record,
            storing=max(0, int(record.get("storing", 0))),
            not_stored=max(0, int(record.get("unstored", 0))),
            completed_at=float(completed) if completed else None,
            round=int(record.get("rounds", 1)),
        )
    except UNREADABLE:
        return None


def _write_cursor(score: float, batch_id: str) -> str:
    return urlsafe_b64encode(f"{score:.6f} {batch_id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        score, batch_id = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split(" ")
        return float(score) if _SCORE.fullmatch(score) else float("no number"), batch_id
    except ValueError as error:
        raise BadInput(
            "cursor is not one that this server gave out: list from the start without it",
            details={"field": "cursor"},
        ) from error
