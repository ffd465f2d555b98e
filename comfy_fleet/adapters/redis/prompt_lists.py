"""An owner's jobs as ComfyUI's clients list them (port :class:`comfy_fleet.ports.prompts.PromptLists`).

Every editor asks for two of these lists after each change of a job, so no question reads more records than
it answers with. The scripts that change a job's status keep the lists; :mod:`.owner_lists` puts right what
versions without lists change.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import hashed, load_extra_data, load_ui
from comfy_fleet.adapters.redis.jobs import LOOKED_AT, WINDOW, RedisJobStore
from comfy_fleet.adapters.redis.owner_lists import parts
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import ListedState
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.ports.prompts import PromptContent, PromptFilter, PromptPage, QueuedPrompt

_QUEUE_FIELDS = ("status", "number", "created", "graph", "prompt_id", "client_id", "output_nodes")
_CHUNK = 50  # jobs whose large parts are read at once


class RedisPromptLists:
    """The lists.

    Args:
        redis: A client that returns bytes.
        jobs: Reads the records.
    """

    def __init__(self, redis: FleetRedis, jobs: RedisJobStore) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._jobs = jobs

    async def queue(self, owner: str) -> Sequence[QueuedPrompt]:
        """Return all jobs that run or wait; see the port."""
        await self._jobs.lists.complete(owner)
        ids = await self._redis.zrange(self._keys.live(owner), 0, -1)
        found: list[QueuedPrompt] = []
        for part in parts([raw.decode() for raw in ids], WINDOW):
            rows = await self._scripts.call("facts", ids=part, fields=_QUEUE_FIELDS)
            found += [made for job_id, row in zip(part, rows, strict=True) if (made := _queued(job_id, row))]
        return [*(one for one in found if one.running), *(one for one in found if not one.running)]

    async def queued_ids(self, owner: str) -> Sequence[str]:
        """Return the ids of the jobs that wait."""
        await self._jobs.lists.complete(owner)
        ids = await self._redis.zrange(self._keys.listed(owner, ListedState.PENDING.value), 0, -1)
        return [raw.decode() for raw in ids]

    async def page(self, wanted: PromptFilter) -> PromptPage:
        """Return a page; see the port."""
        await self._jobs.lists.complete(wanted.owner)
        if wanted.workflow_id is not None or wanted.by_duration:
            return await self._looked_through(wanted)
        # Lists are walked together from their beginnings, while the server does nothing else.
        limit = wanted.limit if len(wanted.states) == 1 else min(wanted.limit, LOOKED_AT - wanted.offset)
        if limit <= 0:
            keys = [self._keys.listed(wanted.owner, state.value) for state in wanted.states]
            return PromptPage(rows=(), total=sum([int(await self._redis.zcard(key)) for key in keys]))
        total, *rows = await self._scripts.call(
            "listing",
            owner=wanted.owner,
            lists=sorted(wanted.states),
            offset=wanted.offset,
            limit=limit,
            oldest=wanted.oldest_first or None,
        )
        pairs = zip(rows[::2], rows[1::2], strict=True)
        return PromptPage(
            rows=tuple((job_id.decode(), ListedState(state.decode())) for job_id, state in pairs),
            total=int(total),
        )

    async def _looked_through(self, wanted: PromptFilter) -> PromptPage:
        """Look at the record of each job: for what no list is sorted by."""
        rows: list[tuple[float, str, ListedState]] = []
        for state in wanted.states:
            listed = await self._redis.zrevrange(
                self._keys.listed(wanted.owner, state.value), 0, LOOKED_AT - 1, withscores=True
            )
            made = dict(listed)
            for part in parts(list(made), WINDOW):
                ids = [raw.decode() for raw in part]
                found = await self._scripts.call("listed_facts", ids=ids, workflow=wanted.workflow_id)
                rows += [
                    (float(ran) if wanted.by_duration else made[raw], raw.decode(), state)
                    for raw, ran in zip(found[::2], found[1::2], strict=True)
                ]
        rows.sort(key=lambda row: row[:2], reverse=not wanted.oldest_first)
        shown = rows[wanted.offset : wanted.offset + wanted.limit]
        return PromptPage(rows=tuple((job_id, state) for _, job_id, state in shown), total=len(rows))

    async def ended(self, owner: str) -> int:
        """Return how many jobs are in the history."""
        await self._jobs.lists.complete(owner)
        return int(await self._redis.zcard(self._keys.history(owner)))

    async def history(self, owner: str, first: int, last: int) -> Sequence[str]:
        """Return the ids at these places of the history."""
        await self._jobs.lists.complete(owner)
        return [raw.decode() for raw in await self._redis.zrange(self._keys.history(owner), first, last)]

    async def load(self, job_ids: Sequence[str]) -> Sequence[Job]:
        """Return those jobs that are still there, with their outputs."""
        return [job for job in await self._jobs.load(job_ids) if job is not None]

    async def ended_prompt(
        self, owner: str, prompt_id: str, *, or_job_id: bool
    ) -> tuple[Job, PromptContent] | None:
        """Return a job that is over, by its client's name for it; see the port."""
        answer = await self._scripts.call(
            "ended_prompt",
            owner=owner,
            prompt_hash=hashed(prompt_id),
            id=prompt_id if or_job_id else None,
        )
        if not answer:
            return None
        job_id, record, outputs, graph, extra, ui = answer
        job = self._jobs.shown(job_id.decode(), _pairs(record), _pairs(outputs))
        if job is None or not job.status.terminal:
            return None
        return job, _content(graph, extra, ui)

    async def contents(self, jobs: Sequence[Job | QueuedPrompt], most_bytes: int) -> Sequence[PromptContent]:
        """Return the large parts of the first jobs; see the port."""
        found: list[PromptContent] = []
        left = most_bytes
        for part in parts(jobs, _CHUNK):
            keys = [(self._keys.graph(job.graph_hash), self._keys.job_ui(job.id)) for job in part]
            sizes = await self._many([("strlen", key) for pair in keys for key in pair])
            room, fits = left, 0
            for graph, ui in zip(sizes[::2], sizes[1::2], strict=True):
                room -= _number(graph) + _number(ui)
                if room < 0 and (found or fits):
                    break
                fits += 1
            for content in await self._read(part[:fits]):
                left -= content.size
                if left < 0 and found:  # extra data is compressed: how large it is shows only now
                    return found
                found.append(content)
            if fits < len(part):
                break
        return found

    async def _read(self, jobs: Sequence[Job | QueuedPrompt]) -> list[PromptContent]:
        keys = [
            key
            for job in jobs
            for key in (
                self._keys.graph(job.graph_hash),
                self._keys.job_extra(job.id),
                self._keys.job_ui(job.id),
            )
        ]
        raw = iter(await self._many([("get", key) for key in keys]))
        return [_content(graph, extra, ui) for graph, extra, ui in zip(raw, raw, raw, strict=True)]

    async def _many(self, commands: Sequence[tuple[str, str]]) -> list[Any]:
        """Return the answers to several commands; a value of another kind counts as none."""
        if not commands:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, key in commands:
                getattr(pipe, name)(key)
            return list(await pipe.read())


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return a hash from Lua's form."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _queued(job_id: str, row: Sequence[Any]) -> QueuedPrompt | None:
    """Read a row of the queue; None if the job does not wait and does not run."""
    record = {name: value for name, value in zip(_QUEUE_FIELDS, row, strict=False) if value is not None}
    try:
        status = record["status"].decode()
        if status not in ("queued", "running", "canceling"):
            return None
        client = record.get("client_id")
        return QueuedPrompt(
            id=job_id,
            prompt_id=record["prompt_id"].decode() if record.get("prompt_id") else job_id,
            running=status != "queued",
            number=float(record.get("number", 0)),
            client_id=None if client is None else client.decode(),
            created_at=float(record["created"]),
            output_nodes=tuple(map(str, orjson.loads(record.get("output_nodes", b"[]")))),
            graph_hash=record["graph"].decode(),
        )
    except UNREADABLE:
        return None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _content(graph: Any, extra: Any, ui: Any) -> PromptContent:
    data, size = _extra(extra)
    return PromptContent(
        graph=_bytes(graph), extra_data=data, ui=load_ui(ui), size=len(graph or b"") + len(ui or b"") + size
    )


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


def _extra(value: Any) -> tuple[dict[str, Any], int]:
    """Return extra data, and its size as JSON."""
    try:
        found = load_extra_data(_bytes(value))
    except UNREADABLE:
        return {}, 0
    return found, len(orjson.dumps(found)) if found else 0
