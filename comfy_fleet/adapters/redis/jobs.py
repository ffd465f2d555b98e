"""Jobs as clients see them: submit, read, list, cancel (port :class:`comfy_fleet.ports.jobs.JobStore`)."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import orjson

from comfy_fleet.adapters.redis import job_records
from comfy_fleet.adapters.redis.asset_record import asset_fields, load_asset
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.estimates import load_standing
from comfy_fleet.adapters.redis.job_records import hashed
from comfy_fleet.adapters.redis.owner_lists import OwnerLists, parts
from comfy_fleet.adapters.redis.quotas import limit_error
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.adapters.redis.submit_calls import submit_call
from comfy_fleet.domain.errors import (
    BadInput,
    Conflict,
    EntryEnded,
    JobLive,
    MissingAsset,
    NotFound,
    QueueFull,
    key_reused,
)
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.extra_data import editor_workflow_id
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobPage, JobStatus, NewJob, Output
from comfy_fleet.domain.jobs.media import MODELS, extension_of
from comfy_fleet.domain.jobs.output_names import OUTPUT, TEMP, SavedFile, asset_in
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.domain.schedule.waiting_words import QueuePlace
from comfy_fleet.domain.text import clean
from comfy_fleet.ports.jobs import Idempotency, JobSnapshot, Submitted, Waits
from comfy_fleet.ports.telemetry import Telemetry

WINDOW = 1000  # jobs that one call of a script compares with a filter: takes a few milliseconds on the server
AT_ONCE = 100  # jobs that one call of a script changes: takes a few milliseconds on the server
LOOKED_AT = 10_000  # most jobs that are looked at for one page or an abbreviated id
MOST_ERROR = 8192  # longest error, in bytes, that a list shows completely

_BRIEF = (
    *(
        "error",
        "owner",
        "status",
        "created",
        "expires",
        "graph",
        "priority",
        "metadata",
        "workflow",
        "version",
    ),
    *("profile", "placement", "started", "completed", "deadline", "attempt", "max_attempts", "run", "node"),
    *("cancel", "progress", "seq", "waits", "traceparent"),
    *("prompt_id", "client_id", "number", "targets", "hidden", "has_extra", "workflow_id"),
    *("excerpt", "retry_of", "kept", "removed"),
    *("tier", "finish_by", "timeout_s", "memory", "cached", "follows", "in_batch"),
    *("output", "storing"),
)
"""Fields of a record that a list reads; first the error, which the script may shorten."""

_SCORE = re.compile(r"[0-9]{1,12}\.[0-9]{6}")


class RedisJobStore:
    """The job records in Redis.

    Args:
        redis: A client that returns bytes.
        ageing_s: Waiting this long is worth one point of priority.
        mirror: Whether RQ's tools see the fleet's own jobs, see ``FLEET_RQ_MIRROR``.
        schema: The layout that this process knows.
    """

    def __init__(
        self, redis: FleetRedis, *, ageing_s: float, mirror: str = "auto", schema: int = SCHEMA
    ) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._ageing_s = ageing_s
        self._mirror = mirror
        self._scripts = Scripts(redis, schema=schema)
        self.lists = OwnerLists(redis, schema=schema)
        """Each owner's lists of jobs."""
        self._complaints = job_records.Complaints()
        self.telemetry: Telemetry | None = None

    def telling(self, telemetry: Telemetry) -> Self:
        """Return this store; it reports jobs that it ends to an observer."""
        made = copy(self)
        made.telemetry = telemetry
        return made

    async def submit(self, new: NewJob, *, idempotency: Idempotency | None, depth_limit: int) -> Submitted:
        """Write and enqueue a job in one step; see the port."""
        if new.prompt.number is not None or new.prompt.front:
            await self.lists.complete(new.owner)  # it goes before the owner's other jobs
        blobs, args = submit_call(new, ageing_s=self._ageing_s, mirror=self._mirror)
        answer = await self._scripts.begin(
            "submit",
            *blobs,
            **args,
            depth_limit=depth_limit,
            quota=new.quota,
            idempotency=None
            if idempotency is None
            else {
                "scope": idempotency.scope,
                "hash": hashed(idempotency.key),
                "fingerprint": idempotency.fingerprint,
                "replay": idempotency.replay,
            },
        )
        outcome = answer[0]
        if outcome == b"full":
            raise QueueFull(
                f"{int(answer[1])} jobs wait already, the limit is {depth_limit}: try again later",
                retry_after_s=1,
                details={"depth": int(answer[1]), "limit": depth_limit},
            )
        if outcome == b"gone":
            asset_id = answer[1].decode()
            raise MissingAsset(f"asset {asset_id} does not exist any more", details={"id": asset_id})
        if outcome == b"limit":
            raise limit_error(answer[1:])
        if outcome == b"ended":
            raise EntryEnded(f"the entry of job {new.id} has ended already", details={"job_id": new.id})
        if outcome == b"ok":
            job = _fresh(new, created_at=float(answer[1]), number=float(answer[3]))
            return Submitted(job=job, position=int(answer[2]) or None)
        if outcome == b"shared":
            record, outputs = (dict(zip(part[::2], part[1::2], strict=True)) for part in answer[1:])
            if (shared := self.shown(new.id, record, outputs)) is not None:
                return Submitted(job=shared)
        job_id = answer[1].decode() if outcome in (b"used", b"replay") else new.id
        if outcome == b"used":
            raise key_reused(job_id)
        made = await self.get(job_id)
        if made is None:
            raise NotFound(f"job {job_id} is past its retention", details={"job_id": job_id})
        return Submitted(job=made, replayed=outcome == b"replay")

    async def made_by(self, idempotency: Idempotency) -> str | None:
        """Return the id of the job that a key has made, or None."""
        job_id, _ = await self._made(idempotency)
        return job_id or None

    async def replayed(self, idempotency: Idempotency) -> Submitted | None:
        """Return the job that the same body with this key has made; see the port."""
        job_id, fingerprint = await self._made(idempotency)
        if not job_id:
            return None
        if fingerprint != idempotency.fingerprint:
            raise key_reused(job_id)
        job = await self.get(job_id)
        return None if job is None else Submitted(job=job, replayed=True)

    async def _made(self, idempotency: Idempotency) -> tuple[str, str]:
        """Return the job that a key has made, and the body's fingerprint; empty texts if none."""
        seen = await self._redis.get(self._keys.idempotency(idempotency.scope, hashed(idempotency.key)))
        job_id, _, fingerprint = (seen or b"").decode().partition(" ")
        return job_id, fingerprint

    async def get(self, job_id: str) -> Job | None:
        """Return a job, or None."""
        return (await self.load([job_id]))[0]

    async def with_ui(self, job_id: str) -> tuple[Job | None, Mapping[str, Any]]:
        """Return a job and what its nodes returned for the user interface; see the port."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._ask_for(pipe, job_id)
            pipe.get(self._keys.job_ui(job_id))
            record, outputs, ui = await pipe.read()
        return self.shown(job_id, record or {}, outputs or {}), job_records.load_ui(ui)

    async def load(self, ids: Sequence[str]) -> list[Job | None]:
        """Return several jobs with their outputs."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                self._ask_for(pipe, job_id)
            answers = iter(await pipe.read())
        return [
            self.shown(job_id, record or {}, outputs or {})
            for job_id, record, outputs in zip(ids, answers, answers, strict=True)
        ]

    async def first_outputs(self, ids: Sequence[str], each: int) -> Mapping[str, Sequence[Output]]:
        """Return the first outputs of some jobs; see the port. Two trips, however many jobs there are."""
        places: dict[str, list[bytes]] = {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hkeys(self._keys.job_outputs(job_id))
            for job_id, names in zip(ids, await pipe.read(), strict=True):
                if first := sorted(names or ())[:each]:
                    places[job_id] = first
        found: dict[str, Sequence[Output]] = {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id, names in places.items():
                pipe.hmget(self._keys.job_outputs(job_id), names)
            for job_id, values in zip(places, await pipe.read(), strict=True):
                try:
                    found[job_id] = [job_records.load_output(one) for one in values or () if one is not None]
                except UNREADABLE as error:
                    self._complaints.about("outputs", job_id, error)
        return found

    def _ask_for(self, pipe: Any, job_id: str) -> None:
        pipe.hgetall(self._keys.job(job_id))
        pipe.hgetall(self._keys.job_outputs(job_id))

    def shown(self, job_id: str, record: Mapping[bytes, bytes], outputs: Mapping[bytes, bytes]) -> Job | None:
        """Return a job from its two hashes, as far as they can be read; None if there is no record."""
        if not record:
            return None
        return job_records.shown_job(
            job_id, job_records.to_dict(record), outputs, complaints=self._complaints
        )

    async def graph(self, job: Job) -> bytes:
        """Return the graph as submitted; raises NotFound past retention."""
        graph: bytes | None = await self._redis.get(self._keys.graph(job.graph_hash))
        if graph is None:
            raise NotFound(f"job {job.id} is past its retention", details={"job_id": job.id})
        return graph

    async def find(self, wanted: JobFilter) -> JobPage:
        """List jobs, newest first; raises BadInput for a cursor that is not ours.

        A cursor is the place of the last job that was looked at. Jobs that are submitted later are newer than
        all that follow it, so none is listed twice or left out.
        """
        key = self._newest(wanted.owner)
        filtered = (
            bool(wanted.owners or wanted.statuses or wanted.metadata or wanted.kept or not wanted.hidden)
            or wanted.workflow is not None
        )
        after = (float("inf"), "") if wanted.cursor is None else _read_cursor(wanted.cursor)
        found: list[Job] = []
        budget, skip = LOOKED_AT, 0
        while True:
            window = WINDOW if filtered else wanted.limit - len(found) + 1  # one may be the cursor's job
            top = "+inf" if after[0] == float("inf") else f"{after[0]:.6f}"
            rows = await self._redis.zrevrangebyscore(
                key, top, "-inf", start=skip, num=window, withscores=True
            )
            # Within one score, Redis sorts by id, here in descending order.
            fresh = [(score, raw.decode()) for raw, score in rows if (score, raw.decode()) < after]
            matching = await self._matching([job_id for _, job_id in fresh], wanted) if filtered else None
            chosen = [row for row in fresh if matching is None or row[1] in matching]
            chosen = chosen[: wanted.limit - len(found)]
            found += [job for job in await self.briefs([job_id for _, job_id in chosen]) if job is not None]
            if len(found) >= wanted.limit:
                return JobPage(jobs=tuple(found), next_cursor=_write_cursor(*chosen[-1]))
            if len(rows) < window:
                return JobPage(jobs=tuple(found), next_cursor=None)
            budget -= len(rows)
            # Many jobs with one score may hide those that follow.
            after, skip = (fresh[-1], 0) if fresh else (after, skip + len(rows))
            if budget <= 0 and fresh:
                return JobPage(jobs=tuple(found), next_cursor=_write_cursor(*after))

    async def _matching(self, ids: Sequence[str], wanted: JobFilter) -> frozenset[str]:
        if not ids:
            return frozenset()
        found = await self._scripts.call(
            "matching",
            ids=ids,
            owners=sorted(wanted.owners) or None,
            states=list(wanted.statuses) or None,
            workflow=wanted.workflow or None,
            labels=dict(wanted.metadata) or None,
            shown=None if wanted.hidden else True,
            kept=wanted.kept or None,
        )
        return frozenset(raw.decode() for raw in found)

    async def first_waiting(self, most: int) -> Sequence[str]:
        """Return the ids of jobs at the front of the queue; see the port."""
        return [raw.decode() for raw in await self._redis.zrange(self._keys.queued, 0, most - 1)]

    async def last_ended(self, most: int) -> Sequence[str]:
        """Return the ids of the jobs that ended last; see the port."""
        return [raw.decode() for raw in await self._redis.lrange(self._keys.ended, 0, most - 1)]

    async def briefs(self, ids: Sequence[str]) -> list[Job | None]:
        """Read only what a list shows of jobs: their outputs and errors may be megabytes."""
        if not ids:
            return []
        rows = await self._scripts.call("briefs", ids=ids, fields=_BRIEF, most=MOST_ERROR)
        found: list[Job | None] = []
        for job_id, row in zip(ids, rows, strict=True):
            record = {name: value for name, value in zip(_BRIEF, row[1:], strict=False) if value is not None}
            job = None
            if record:
                job = job_records.shown_job(
                    job_id, record, output_count=int(row[0]), complaints=self._complaints
                )
            if job is not None and job.error is not None:
                job = replace(job, error=job.error.without_story())
            found.append(job)
        return found

    async def ids(self, owner: str | None, prefix: str) -> list[str]:
        """Return the ids with this prefix among the newest jobs; see the port."""
        newest = await self._redis.zrevrange(self._newest(owner), 0, LOOKED_AT - 1)
        return [job_id.decode() for job_id in newest if job_id.startswith(prefix.encode())]

    def _newest(self, owner: str | None) -> str:
        return self._keys.jobs if owner is None else self._keys.jobs_of(owner)

    async def request_cancel(self, job_id: str, *, running_only: bool = False) -> Job | None:
        """Ask for cancellation; return the job's present state, or None."""
        answer = await self._scripts.call("cancel", job=job_id, running=running_only or None)
        if isinstance(answer, list) and self.telemetry is not None:
            self.telemetry.ended_without_run(job_records.ended_job(answer, JobStatus.CANCELED))
        return await self.get(job_id)

    async def withdraw(self, owner: str, job_ids: Sequence[str]) -> int:
        """Cancel those of an owner's jobs that wait; see the port."""
        count = 0
        for start in range(0, len(job_ids), AT_ONCE):
            ended = await self._scripts.call(
                "withdraw", owner=owner, ids=list(job_ids[start : start + AT_ONCE])
            )
            count += len(ended)
            if self.telemetry is not None:
                for row in ended:
                    self.telemetry.ended_without_run(job_records.ended_job(row, JobStatus.CANCELED))
        return count

    async def position(self, job: Job) -> int | None:
        """Return the 1-based place among all queued jobs, or None if it does not wait."""
        if job.status is not JobStatus.QUEUED:
            return None
        return (await self.positions([job.id])).get(job.id)

    async def positions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the 1-based places of those of some jobs that wait."""
        found: dict[str, int] = {}
        for ids in parts(job_ids, WINDOW):
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.zrank(self._keys.queued, job_id)
                places = await pipe.read()
            found |= {
                job_id: int(place) + 1 for job_id, place in zip(ids, places, strict=True) if place is not None
            }
        return found

    async def remove(self, owner: str, job_id: str) -> None:
        """Take a job that is over, or is being canceled, from its owner; see the port."""
        outcome = await self._scripts.begin("remove", job=job_id, owner=owner)
        if outcome[0] == b"none":
            raise NotFound(f"no job {job_id}", details={"job_id": job_id})
        if outcome[0] == b"live":
            raise JobLive(
                f"job {job_id} is {outcome[1].decode()}: cancel it first", details={"job_id": job_id}
            )

    async def keep(self, owner: str, job_id: str, *, keep: bool, most: int) -> None:
        """Exempt a job and what it uses from retention, or no longer; see the port."""
        outcome = await self._scripts.begin("keep", job=job_id, owner=owner, keep=keep, most=most)
        if outcome[0] == b"none":
            raise NotFound(f"no job {job_id}", details={"job_id": job_id})
        if outcome[0] == b"full":
            raise Conflict(
                f"{int(outcome[1])} jobs are kept already, the limit is {most}: keep another one no longer",
                details={"kept": int(outcome[1]), "limit": most},
            )

    async def waits(self, job: Job, *, node: str | None = None) -> Waits:
        """Return what a queued job waits for; see the port."""
        if job.status is not JobStatus.QUEUED:
            return Waits()
        there, left_s, *place = await self._scripts.call("waits", job=job.id, node=node)
        return Waits(
            results_on=there.decode(),
            results_s=float(left_s),
            place=_queue_place(*place[:5], tenant_used=place[7], bound=place[8]) if place else None,
            standing=load_standing(place[5]) if place else None,
            gathers_s=float(place[6] or 0) if place else 0.0,
        )

    async def depth(self) -> int:
        """Return how many jobs wait."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(self._keys.queued)
            (count,) = await pipe.read()
        return int(count or 0)

    async def snapshot(self, job_id: str) -> JobSnapshot | None:
        """Return a job as it is now; see the port."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._ask_for(pipe, job_id)
            pipe.get(self._keys.job_preview(job_id))
            pipe.zrank(self._keys.queued, job_id)
            record, outputs, preview, place = await pipe.read()
        job = self.shown(job_id, record or {}, outputs or {})
        if job is None:
            return None
        waits = job.status is JobStatus.QUEUED
        return JobSnapshot(
            job=job,
            position=int(place) + 1 if waits and place is not None else None,
            preview=dict(orjson.loads(preview)) if preview and not waits else None,
        )

    async def by_prompt(self, owner: str, prompt_id: str) -> str | None:
        """Return the newest job that its client calls so; see the port."""
        found = await self._redis.get(self._keys.prompt(owner, hashed(prompt_id)))
        return found.decode() if found else None

    async def live(self, owner: str) -> Sequence[Job]:
        """Return the owner's jobs that are not final; see the port."""
        await self.lists.complete(owner)
        running, queued = await self._scripts.call("live", owner=owner)
        ids = [raw.decode() for raw in (*running, *queued)]
        found: list[Job] = []
        for start in range(0, len(ids), WINDOW):
            found += [job for job in await self.briefs(ids[start : start + WINDOW]) if job is not None]
        return found

    async def live_count(self, owner: str) -> int:
        """Return how many of the owner's jobs are not final."""
        await self.lists.complete(owner)
        return int(await self._redis.zcard(self._keys.live(owner)))

    async def made_since(self, owner: str, client_id: str, since: float) -> Sequence[str]:
        """Return the ids of a client's jobs since a time; see the port."""
        raw = await self._redis.zrevrangebyscore(
            self._keys.jobs_of(owner), "+inf", f"{since:.6f}", start=0, num=LOOKED_AT
        )
        found: list[str] = []
        for part in parts([job_id.decode() for job_id in reversed(raw)], WINDOW):
            rows = await self._scripts.call("facts", ids=part, fields=["client_id"])
            wanted = client_id.encode()
            found += [job_id for job_id, row in zip(part, rows, strict=True) if row and row[0] == wanted]
        return found

    async def hide(self, owner: str, job_ids: Sequence[str]) -> int:
        """Delete final jobs from ComfyUI's history; see the port."""
        return sum(
            [
                int(await self._scripts.call("hide", owner=owner, ids=list(ids)))
                for ids in parts(job_ids, AT_ONCE)
            ]
        )

    async def saved(self, owner: str, file: SavedFile) -> Asset | None:
        """Return the file that an owner's job saved under this name; see the port."""
        paths = [file.path]
        if extension_of(file.filename) in MODELS:
            paths.append(replace(file, type=OUTPUT if file.type == TEMP else TEMP).path)
        paths = [path.encode(errors="replace").decode() for path in paths]
        if record := await self._scripts.call("saved_asset", owner=owner, paths=paths):
            return load_asset(asset_fields(record))
        # Perhaps an output of a version that drew no names.
        if (asset_id := asset_in(file.subfolder)) is None:
            return None
        raw = await self._redis.hgetall(self._keys.asset(asset_id))
        asset = load_asset({name.decode(): value.decode() for name, value in raw.items()}) if raw else None
        named = asset is not None and (asset.owner, asset.file_path) == (owner, file.filename)
        return asset if named and asset and asset.job_id else None

    async def saved_files(self, owner: str, type_: str, *, limit: int) -> Sequence[tuple[str, float]]:
        """Return an owner's newest files in a folder; see the port."""
        key = self._keys.saved_newest(owner, type_)
        found: dict[str, float] = {}
        for first in range(0, limit, WINDOW):
            last = min(first + WINDOW, limit) - 1
            rows = await self._redis.zrevrange(key, first, last, withscores=True)
            for name, at in rows:  # one that was saved meanwhile moves others to later places
                found.setdefault(name.decode(), float(at))
            if len(rows) <= last - first:
                break
        return list(found.items())


def _fresh(new: NewJob, *, created_at: float, number: float) -> Job:
    """Return the same as :meth:`RedisJobStore.get`, from data that was read already."""
    return Job(
        id=new.id,
        owner=new.owner,
        status=JobStatus.QUEUED,
        created_at=created_at,
        expires_at=created_at + new.expires_in_s,
        graph_hash=new.graph_hash,
        priority=new.priority,
        metadata=new.metadata,
        workflow=new.workflow,
        workflow_version=new.workflow_version,
        params=new.params,
        profile=new.profile,
        placement=new.placement,
        uploads=new.uploads,
        deadline_at=None if new.deadline_s is None else created_at + new.deadline_s,
        max_attempts=new.max_attempts,
        has_secret=new.secret is not None,
        has_extra_data=bool(new.extra_data),
        traceparent=new.traceparent,
        workflow_id=editor_workflow_id(new.extra_data),
        excerpt=clean(new.excerpt),
        retry_of=new.retry_of,
        prompt_id=new.prompt.prompt_id or new.id,
        client_id=new.prompt.client_id,
        number=number,
        targets=new.prompt.targets,
        output_nodes=new.output_nodes,
        editor=new.editor,
        tier=new.tier,
        finish_by=new.finish_by,
        timeout_s=new.timeout_s,
        silence_s=new.silence_s,
        memory=new.memory,
        workload=new.workload,
        output=new.output,
        follows=bool(new.fetches),
        waiting_for=f"its input {new.fetches[0].shown} is being fetched" if new.fetches else None,
    )


def _write_cursor(score: float, job_id: str) -> str:
    return urlsafe_b64encode(f"{score:.6f} {job_id}".encode()).decode().rstrip("=")


def _queue_place(
    ahead: int, overdue: bytes, holder: bytes, free: bytes, used: int, *, tenant_used: int, bound: bytes
) -> QueuePlace:
    whose, _, most = bound.partition(b" ")
    return QueuePlace(
        ahead=ahead,
        overdue_in_s=float(overdue) if overdue else None,
        holder=holder.decode(errors="replace"),
        free_in_s=float(free),
        share_used=used == 1,
        tenant_used=tenant_used == 1,
        bounded_by=whose.decode(),
        most_running=int(most or 0),
    )


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        score, job_id = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split(" ")
        return float(score) if _SCORE.fullmatch(score) else float("no number"), job_id
    except ValueError as error:
        raise BadInput(
            "cursor is not one that this server gave out: list from the start without it",
            details={"field": "cursor"},
        ) from error
