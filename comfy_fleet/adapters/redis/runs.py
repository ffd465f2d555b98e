"""Jobs as dispatchers see them: claim, beat, finish, requeue (port ``RunStore``)."""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis import job_records
from comfy_fleet.adapters.redis.asset_record import asset_fields, dump_asset, load_asset
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.events import client_channel, frame_message
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.adapters.redis.upkeep import tend, tend_flights
from comfy_fleet.domain.errors import LeaseLost, Outdated, StoreRefuses
from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.domain.jobs.job import JobError, JobStatus, Placement, Progress
from comfy_fleet.domain.jobs.output_names import NodeFile, NumberGroup, OutputId, SavedFile, place_of
from comfy_fleet.domain.nodes.pool import PATIENCE_S
from comfy_fleet.domain.nodes.speed import SHARE
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.domain.schedule.tenants import ROOT
from comfy_fleet.ports.runs import (
    NOTHING_SAID,
    ONLY_CLIENTS,
    TEND_S,
    Beat,
    Claim,
    Held,
    Refused,
    StagedInput,
    StoredOutput,
    Waiting,
)
from comfy_fleet.ports.telemetry import EndedJob, Telemetry

logger = logging.getLogger(__name__)

ADOPTED_AT_ONCE = 100  # jobs that one call of a script looks at: takes a millisecond or two on the server
BEAT_CHUNK = 250  # runs to renew in one call, so that no call blocks the server for long
MODELS = 16  # kept for each node
NAME_CHUNK = 250  # files to name in one call
COUNTERS = 20_000  # of one owner's names, about 2 MB; prefixes beyond share one

UNMERGED = JobError(code="released", message="the job with which it was to run can't be read")
DEADLINE = JobError(code="deadline_exceeded", message="no node took the job within its time to live (ttl_s)")


class RedisRunStore:
    """Leases and claims in Redis. Every write is fenced by the claim's token.

    Args:
        redis: A client that returns bytes.
        mirror: Whether RQ's tools see the fleet's own jobs, see ``FLEET_RQ_MIRROR``.
        schema: The layout that this process knows.
    """

    def __init__(self, redis: FleetRedis, *, mirror: str = "auto", schema: int = SCHEMA) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._mirror = mirror
        self._scripts = Scripts(redis, schema=schema)
        self._complaints = job_records.Complaints()
        self.telemetry: Telemetry | None = None

    def telling(self, telemetry: Telemetry) -> Self:
        """Return this store; it reports jobs that end without the end of a run to an observer."""
        made = copy(self)
        made.telemetry = telemetry
        return made

    def _tell(self, job: EndedJob) -> None:
        if self.telemetry is not None:
            self.telemetry.ended_without_run(job)

    async def waiting(self) -> Sequence[Waiting]:
        """Return the placement classes with queued jobs, the one whose turn it is first."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(self._keys.placements)
            pipe.hgetall(self._keys.sched_count)
            pipe.exists(self._keys.sched_tenanted)
            older, counts, tenanted = await pipe.read()
        if older and await self._adopt():
            counts = await self._redis.hgetall(self._keys.sched_count)
        if not counts:
            return []
        classes = [raw.decode() for raw in counts]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in [f"{name}{ROOT}" for name in classes] if tenanted else []:
                pipe.zrange(self._keys.sched_owners(name), 0, 0, withscores=True)
            for name in classes:
                pipe.zrange(self._keys.sched_owners(name), 0, 0, withscores=True)
            heads = await pipe.read()
        owners = heads[-len(classes) :]  # of the default tenant; those of others are found by their tenants
        firsts = [one or other for one, other in zip(heads[: len(classes)], owners, strict=True)]
        found = []
        for name, count, first in zip(classes, counts.values(), firsts, strict=True):
            try:
                placement = Placement.parse(name)
            except UNREADABLE as error:  # a newer version's, or broken: the others must not wait for it
                self._complaints.about("placement", name, error)
                continue
            if first and first[0][1] < math.inf:  # else all that wait there have as many runs as they may
                number = int(count) if count.isdigit() else 1  # upkeep counts anew
                found.append(Waiting(placement=placement, count=number, head_score=first[0][1]))
        return sorted(found, key=lambda waiting: waiting.head_score)

    async def _adopt(self) -> bool:
        """Let jobs wait for this version that an earlier one has queued; return whether any may do so now."""
        try:
            await self._scripts.begin("adopt", most=ADOPTED_AT_ONCE)
        except (Outdated, StoreRefuses):  # those that were adopted before must not wait for that
            return False
        return True

    async def tend(self, *, every_s: float = TEND_S) -> None:
        """Put waiting jobs right, and bring RQ's view of them up to date."""
        with contextlib.suppress(Outdated, StoreRefuses):
            await tend(self._scripts, every_s=every_s, mirror=self._mirror)
            async for rows in tend_flights(self._scripts, every_s=every_s):
                self._followers(rows)

    async def check_schema(self) -> None:
        """Raise Outdated if this process may take no new work."""
        await self._scripts.check()

    async def claim(
        self,
        *,
        node: str,
        placements: Sequence[Placement],
        run: str,
        token: str,
        dispatcher: str,
        line: str = "",
        ttl_s: float,
        pool: str = "",
        peers: int = 1,
        speed: float = 1.0,
        ram: int = 0,
        patience_s: float = PATIENCE_S,
        unawaited: Sequence[str] = (),
        able: Mapping[Placement, Sequence[str]] = NOTHING_SAID,
        unable: Mapping[Placement, Sequence[str]] = NOTHING_SAID,
        spare: bool = False,
        ready: bool = False,
        runs: Sequence[str] = (),
    ) -> Claim | Refused:
        """Choose a job for a granted node."""
        answer = await self._scripts.begin(
            "claim",
            node=node,
            run=run,
            token=token,
            dispatcher=dispatcher,
            line=line or None,
            ttl_s=ttl_s,
            placements=[placement.key for placement in placements],
            pool=pool,
            peers=peers,
            speed=speed,
            ram=ram,
            patience_s=patience_s,
            unawaited=list(unawaited),
            able=_by_key(able),
            unable=_by_key(unable),
            spare=spare,
            ready=ready or None,
            runs=list(runs) or None,
        )
        why = answer[0].decode()
        if why == "waits":
            return Refused(why=why, node=answer[1].decode(), left_s=float(answer[2]))
        if why in ("spared", "gathers", "failover"):
            return Refused(why=why, left_s=float(answer[1]))
        if why == "nothing":
            return Refused(why=why, left_s=float(answer[1] or 0), node=answer[2].decode())
        if why != "ok":
            return Refused(why=why, run=answer[1].decode() if why == "leased" else None)
        claim = await self._claimed(*answer[1:4], *answer[5:7], node=node, run=run, token=token)
        others = [
            await self._claimed(job, *rest, node=node, run=other.decode(), token=f"{token}-{part}")
            for part, (job, other, *rest) in enumerate(answer[9], start=1)
        ]
        if claim is None:
            for other in filter(None, others):  # it would have had the node
                await self.requeue(other, counts=False, reason=UNMERGED)
            return Refused(why="broken")
        merged = MergeMode(answer[10].decode()) if others else None
        return replace(
            claim,
            jobs_behind=int(answer[4]),
            rule=answer[7].decode(),
            load_s=float(answer[8]),
            merged=merged,
            others=tuple(replace(other, merged=merged) for other in others if other is not None),
        )

    async def _claimed(
        self,
        job_id: bytes,
        record: list[bytes],
        graph: bytes | None,
        listeners: int,
        extra: bytes,
        *,
        node: str,
        run: str,
        token: str,
    ) -> Claim | None:
        """Return the claim of a job that runs now; None if it can't be read, and has ended."""
        try:
            if graph is None:
                raise ValueError("its graph is gone")
            job = job_records.load_job(job_id.decode(), job_records.to_dict(record))
            extra_data = job_records.load_extra_data(extra)
        except UNREADABLE as problem:
            await self._abandon(job_id.decode(), run, token, problem)
            return None
        claim = Claim(job=job, graph=graph, run=run, node=node, token=token, attempt=job.attempt)
        return replace(claim, heard=bool(listeners), extra_data=extra_data)

    async def beat(self, dispatcher: str, claims: Sequence[Claim], *, ttl_s: float) -> Beat:
        """Renew run leases."""
        lost: set[str] = set()
        cancel: set[str] = set()
        release: set[str] = set()
        heard: set[str] = set()
        for start in range(0, max(1, len(claims)), BEAT_CHUNK):  # without any, it shows that Redis answers
            tokens = _tokens(claims[start : start + BEAT_CHUNK])
            answer = await self._scripts.call("beat", ttl_s=ttl_s, tokens=tokens)
            lost |= {raw.decode() for raw in answer[0]}
            cancel |= {raw.decode() for raw in answer[1]}
            release |= {raw.decode() for raw in answer[2]}
            heard |= {raw.decode() for raw in answer[3]}
        return Beat(
            lost=frozenset(lost),
            cancel=frozenset(cancel),
            release=frozenset(release),
            heard=frozenset(heard),
        )

    async def stage(
        self, claim: Claim, asset_ids: Sequence[str], *, keep_s: float
    ) -> Mapping[str, StagedInput]:
        """Name a run's files on its node."""
        answer = await self._scripts.call(
            "stage",
            run=claim.run,
            token=claim.token,
            keep_s=keep_s,
            assets=list(asset_ids),
            drawn=[f"{uuid4()}/{uuid4()}" for _ in asset_ids],
        )
        rows = zip(asset_ids, _check(claim, answer), strict=True)
        return {
            asset_id: StagedInput(
                asset=load_asset(asset_fields(record)), folders=folders.decode(), new=bool(new)
            )
            for asset_id, (record, folders, new) in rows
            if record
        }

    async def accepted(self, claim: Claim) -> None:
        """Note that the node took the prompt."""
        _check(claim, await self._scripts.call("accepted", run=claim.run, token=claim.token))

    async def progress(self, claim: Claim, progress: Progress) -> None:
        """Store and publish a progress snapshot."""
        await self._note(claim, "progress", job_records.dump_progress(progress))

    async def followed(self, claim: Claim) -> bool:
        """Return True if anybody listens to the job's events."""
        ((_, listeners),) = await self._redis.pubsub_numsub(self._keys.events(claim.job.id))
        return bool(listeners)

    async def preview(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Store and publish a preview."""
        await self._note(claim, "preview", orjson.dumps(dict(data)))

    async def frames(self, sent: Sequence[tuple[Claim, Sequence[RawFrame]]]) -> list[int | None]:
        """Publish frames."""
        runs = [
            {
                "run": claim.run,
                "token": claim.token,
                "job": claim.job.id,
                "clients": client_channel(self._keys, claim.job.owner, claim.job.client_id),
                "only": "".join([frame.only[:1] or "." for frame in frames]),
            }
            for claim, frames in sent
        ]
        messages = [frame_message(frame) for _, frames in sent for frame in frames]
        answers = await self._scripts.call("frames", *messages, runs=runs)
        return [_heard(claim, answer) for (claim, _), answer in zip(sent, answers, strict=True)]

    async def commit(self, claim: Claim, made: StoredOutput) -> Asset:
        """Commit one output."""
        answer = await self._scripts.call(
            "commit_output", run=claim.run, token=claim.token, job=claim.job.id, output=_committed(made)
        )
        asset_id, path = _check(claim, answer)
        return replace(made.asset, id=asset_id.decode(), path=path.decode())

    async def name_outputs(self, claim: Claim, groups: Sequence[NumberGroup]) -> Mapping[OutputId, SavedFile]:
        """Draw the names under which the job's owner sees its files."""
        made: dict[OutputId, SavedFile] = {}
        for some in _chunks(groups):
            made |= await self._name_outputs(claim, some)
        return made

    async def _name_outputs(
        self, claim: Claim, groups: Sequence[NumberGroup]
    ) -> Mapping[OutputId, SavedFile]:
        answer = await self._scripts.call(
            "name_outputs",
            run=claim.run,
            token=claim.token,
            job=claim.job.id,
            owner=claim.job.owner,
            most=COUNTERS,
            groups=[
                {
                    "counter": group.counter,
                    "follows": group.follows,
                    "files": [_wanted(id_, file) for id_, file in group.files.items()],
                }
                for group in groups
            ],
        )
        ids = [id_ for group in groups for id_ in group.files]
        paths = [raw.decode() for raw in _check(claim, answer)]
        return {id_: SavedFile.parse(path) for id_, path in zip(ids, paths, strict=True)}

    async def _note(self, claim: Claim, kind: str, data: bytes | str) -> None:
        answer = await self._scripts.call(
            "note", data, run=claim.run, token=claim.token, job=claim.job.id, kind=kind
        )
        _check(claim, answer)

    async def waits(self, claim: Claim, why: str | None) -> None:
        """Note that a run waits for something of the fleet's own, or no longer does."""
        await self._note(claim, "waits", (why or "").encode(errors="replace"))

    async def left(self, claim: Claim, manifest: Sequence[Mapping[str, Any]], *, ui: str = "") -> None:
        """Note that the prompt has left the node."""
        data = orjson.dumps([dict(item) for item in manifest])
        answer = await self._scripts.call("left", data, ui, run=claim.run, token=claim.token)
        _check(claim, answer)

    async def finish(
        self,
        claim: Claim,
        status: JobStatus,
        *,
        error: JobError | None,
        duration_s: float | None,
        speed: float | None = None,
        models: Sequence[str] = (),
        ran_s: float | None = None,
        warm: bool = False,
        reused: bool = False,
        progress: Progress | None = None,
        ui: str = "",
        outputs: Sequence[StoredOutput] = (),
        times: str = "",
    ) -> JobStatus:
        """End the job and both leases."""
        done = replace(claim.job, run=claim.run, node=claim.node)
        result = (
            job_records.rq_success(done) if status is JobStatus.SUCCEEDED else job_records.rq_failure(error)
        )
        answer = await self._scripts.call(
            "finish",
            job_records.dump_error(error),
            result,
            job_records.dump_progress(progress),
            ui,
            run=claim.run,
            token=claim.token,
            status=status,
            seconds=None if duration_s is None else f"{duration_s:.3f}",
            share=SHARE,
            speed=speed,
            models=models[:MODELS],
            most_models=MODELS,
            ran_s=ran_s,
            warm=warm,
            reused=reused,
            reason=job_records.short_reason(error),
            outputs=[_committed(made) for made in outputs] or None,
            times=times or None,
        )
        return JobStatus(self._followers(_check(claim, answer), error).decode())

    async def requeue(
        self,
        claim: Claim,
        *,
        counts: bool,
        reason: JobError,
        rerun_nodes: frozenset[str] = frozenset(),
        placement: Placement | None = None,
        progress: Progress | None = None,
        ui: str = "",
        times: str = "",
    ) -> JobStatus:
        """Return the job to the queue, or end it if no attempt is left."""
        answer = await self._scripts.call(
            "requeue",
            job_records.dump_error(reason),
            job_records.rq_failure(reason),
            job_records.dump_progress(progress),
            ui,
            run=claim.run,
            token=claim.token,
            counts=counts,
            placement=None if placement is None else placement.key,
            rerun_nodes="\n".join(sorted(claim.job.rerun_nodes | rerun_nodes)),
            reason=job_records.short_reason(reason),
            times=times or None,
        )
        return JobStatus(self._followers(_check(claim, answer), reason).decode())

    def _followers(self, answer: Sequence[Any], error: JobError | None = None) -> Any:
        """Tell of the followers that ended with a job; return what the script says first."""
        if isinstance(answer, bytes):  # of a script without followers
            return answer
        first, *rows = answer
        for *row, status in rows:
            ended = JobStatus(status.decode())
            why = error if ended is JobStatus.FAILED else None
            self._tell(job_records.ended_job(row, ended, why, followed=True))
        return first

    async def hand_over(self, claims: Sequence[Claim]) -> None:
        """Make these leases expire now."""
        if claims:
            await self._scripts.call("hand_over", tokens=_tokens(claims))

    async def take_over(
        self,
        *,
        dispatcher: str,
        line: str = "",
        ttl_s: float,
        gone_s: float | None = None,
        expired: bool = True,
        limit: int,
    ) -> Sequence[Held]:
        """Transfer run leases that nobody holds any more."""
        tokens = [uuid4().hex for _ in range(limit)]
        held = []
        for run, token, job_id, node, phase, manifest, record, graph, merged in await self._scripts.call(
            "take_over",
            dispatcher=dispatcher,
            line=line or None,
            ttl_s=ttl_s,
            gone_s=gone_s,
            expired=expired,
            tokens=tokens,
        ):
            try:
                job = job_records.load_job(job_id.decode(), job_records.to_dict(record))
                left = orjson.loads(manifest)
                mode = MergeMode(merged.decode()) if merged else None
                if graph is None or not isinstance(left, list):
                    raise ValueError("its graph is gone, or its outputs are not a list")
            except UNREADABLE as problem:  # the other runs must not wait for this one
                await self._abandon(job_id.decode(), run.decode(), token.decode(), problem)
                continue
            claim = Claim(
                job=job,
                graph=graph,
                run=run.decode(),
                node=node.decode(),
                token=token.decode(),
                attempt=job.attempt,
                merged=mode,
            )
            held.append(Held(claim=claim, phase=phase.decode(), manifest=left))
        return held

    async def _abandon(self, job_id: str, run: str, token: str, problem: Exception) -> None:
        """End a job that can't be read, and its run."""
        logger.error("job ends, its record can't be read", exc_info=problem, extra={"job_id": job_id})
        error = job_records.dump_error(job_records.UNREADABLE_JOB)
        row = await self._scripts.call(
            "abandon", error, job_records.rq_failure(job_records.UNREADABLE_JOB), run=run, token=token
        )
        if row:
            self._tell(job_records.ended_job(row, JobStatus.FAILED, job_records.UNREADABLE_JOB))

    async def known(self, run: str) -> bool:
        """Return whether there is a record of a run."""
        return bool(await self._redis.exists(self._keys.run(run)))

    async def lease_of(self, node: str) -> str | None:
        """Return the run that occupies a node, or None."""
        raw = await self._redis.get(self._keys.lease(node))
        return raw.decode() if raw else None

    async def occupied(self, nodes: Sequence[str]) -> frozenset[str]:
        """Return those of the given nodes that a run occupies."""
        if not nodes:
            return frozenset()
        runs = await self._redis.mget([self._keys.lease(node) for node in nodes])
        return frozenset(node for node, run in zip(nodes, runs, strict=True) if run)

    async def secret(self, claim: Claim) -> bytes | None:
        """Return the encrypted part of the claimed job's ``extra_data``."""
        secret: bytes | None = await self._redis.get(self._keys.job_secret(claim.job.id))
        return secret

    async def overdue(self, limit: int) -> int:
        """End queued jobs that are past their deadline."""
        error = job_records.dump_error(DEADLINE)
        rows = await self._scripts.call("overdue", error, job_records.rq_failure(DEADLINE), limit=limit)
        for row in rows:
            self._tell(job_records.ended_job(row, JobStatus.EXPIRED, DEADLINE))
        return len(rows)

    async def forgettable(self, limit: int) -> Sequence[str]:
        """Return ids of jobs that are past their retention, or were removed; see the port."""
        return [raw.decode() for raw in await self._scripts.call("forgettable", limit=limit)]

    async def postpone(self, job_id: str, *, seconds: float) -> None:
        """Postpone the removal of a job that can't be forgotten yet; see the port."""
        await self._scripts.call("postpone", job=job_id, seconds=seconds)

    async def forget(self, job_id: str) -> None:
        """Remove every trace of a job from the store; see the port."""
        await self._scripts.call("forget", job=job_id)


def _by_key(named: Mapping[Placement, Sequence[str]]) -> dict[str, list[str]] | None:
    return {placement.key: list(names) for placement, names in named.items()} or None


def _tokens(claims: Sequence[Claim]) -> dict[str, str]:
    return {claim.run: claim.token for claim in claims}


def _chunks(groups: Iterable[NumberGroup]) -> Iterator[list[NumberGroup]]:
    """Yield the groups in lists of so many files that no call blocks the server for long."""
    some: list[NumberGroup] = []
    for group in groups:
        some.append(group)
        if sum(len(one.files) for one in some) >= NAME_CHUNK:
            yield some
            some = []
    if some:
        yield some


def _committed(made: StoredOutput) -> dict[str, Any]:
    """Return an output as ``outputs.lua`` reads it."""
    output = made.output
    facts = {
        "record": dump_asset(made.asset),
        "field": job_records.output_field(output.node_id, output.key, output.index),
        "data": job_records.dump_output(output).decode(),
    }
    return {**facts, "path": place_of(output).path} if output.saved else facts


def _wanted(id_: OutputId, file: NodeFile) -> dict[str, str]:
    before, after = file.around
    wanted = {"place": job_records.output_field(*id_), "before": before, "after": after}
    return wanted if file.unnumbered is None else {**wanted, "bare": file.unnumbered}


def _check(claim: Claim, answer: Any) -> Any:
    if not answer:
        raise LeaseLost(
            f"run {claim.run} of job {claim.job.id} belongs to another dispatcher now",
            details={"job_id": claim.job.id, "run": claim.run},
        )
    return answer


def _heard(claim: Claim, answer: Sequence[int] | int) -> int | None:
    """Return how many listen to a run's frames; None if its lease is gone."""
    if isinstance(answer, int):
        return None
    followers, clients = answer
    return ONLY_CLIENTS if clients and not followers else followers + clients
