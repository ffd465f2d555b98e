"""What is left of a fleet when everything has settled: every job, every output, every key in Redis."""

import asyncio
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from redis.asyncio import Redis

from benchmarks.operations import FINAL
from benchmarks.stage import Fleet

Colour = tuple[int, int, int]

RUNNING = ("fleet:run:*", "fleet:lease:*", "fleet:node:*:runs", "fleet:job:*:secret", "fleet:job:*:traces")
"""Keys that only something at work may have."""
EXPIRES_S = 10
"""Some of these keys are left to expire; in this time they do."""
WAITING = (
    "fleet:runs",
    "fleet:placements",
    "fleet:queue:*",
    "fleet:queued",
    "fleet:sched:count",
    "fleet:sched:owners:*",
    "fleet:sched:jobs:*",
    "fleet:deadlines",
    "rq:queue:fleet",
    "rq:queue:fleet.jobs",
    "rq:wip:fleet",
    "rq:wip:fleet.jobs",
)
EXECUTIONS = ("rq:execution:*", "rq:executions:*")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a job must come to.

    Attributes:
        colour: Of its picture.
        canceled: Whether its client asked for its end.
    """

    colour: Colour
    canceled: bool = False


@dataclass(frozen=True, kw_only=True)
class Spell:
    """A run on a node, from its start to its end there (Unix seconds)."""

    run: str
    node: str
    start: float
    end: float


@dataclass(kw_only=True)
class Findings:
    """What is wrong; the mappings are only told.

    Attributes:
        refused: Jobs that were never accepted, though the killing was over.
        missing: Accepted jobs that nobody knows any more.
        unfinished: Jobs that have not ended.
        twice: Jobs whose end was written more than once, or that stand in two registries.
        unasked: Jobs that ended as canceled, and nobody had asked for that.
        unreadable: Outputs of succeeded jobs that can't be read, or are another job's.
        changed: Jobs that were seen in two final states.
        overlapping: Jobs of which two runs were computed at the same time.
        orphans: Prompts that are left on nodes, or that nodes computed for no accepted job; jobs that nobody
            knows to have submitted.
        answers: Answers to clients that none should get, see :mod:`benchmarks.chaos_clients`.
        leftover: Keys in Redis that only something at work may have.
        states: Jobs by final state.
        reasons: Failed jobs by error code.
        again: Runs that came to their end on a node beyond one for each job: the work that kills cost.
    """

    refused: Sequence[str] = ()
    missing: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    changed: Sequence[str] = ()
    overlapping: Sequence[str] = ()
    orphans: list[str] = field(default_factory=list)
    answers: Sequence[str] = ()
    leftover: Sequence[str] = ()
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    again: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled or left behind."""
        return not any(getattr(self, name) for name in BROKEN)


BROKEN = (
    *("refused", "missing", "unfinished", "twice", "unasked", "unreadable", "changed", "overlapping"),
    *("orphans", "answers", "leftover"),
)


async def look(fleet: Fleet, expected: Mapping[str, Expected], found: Findings) -> None:
    """Look at every job, its outputs and Redis; note what is wrong.

    Args:
        fleet: Which has come to rest.
        expected: Every accepted job, by id.
        found: Gets it.
    """
    store: Any = Redis.from_url(fleet.settings.redis_url)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http, store:
        for job_id, wanted in expected.items():
            answer = await http.get(f"{fleet.url}/api/v2/jobs/{job_id}")
            if answer.status_code != 200:
                found.missing.append(f"{job_id}: {answer.status_code}")
                continue
            job = answer.json()
            found.states[job["status"]] += 1
            if job["status"] not in FINAL:
                found.unfinished.append(f"{job_id}: {job['status']}")
                continue
            if job["status"] == "failed":
                found.reasons[(job["error"] or {}).get("code", "no reason")] += 1
            if job["status"] == "canceled" and not wanted.canceled:
                found.unasked.append(job_id)
            if job["status"] == "succeeded":
                found.unreadable += await _unreadable(http, job, wanted.colour)
            if wrong := await _twice(store, job_id):
                found.twice.append(wrong)
        for _ in range(EXPIRES_S):
            found.leftover = await _leftover(store)
            if not found.leftover:
                break
            await asyncio.sleep(1)


async def _unreadable(http: httpx.AsyncClient, job: Mapping[str, Any], colour: Colour) -> list[str]:
    if len(job["outputs"]) != 1:
        return [f"{job['id']}: succeeded with {len(job['outputs'])} outputs"]
    (output,) = job["outputs"]
    answer = await http.get(output["url"])
    if answer.status_code != 200:
        return [f"{job['id']}: {output['name']}: {answer.status_code}"]
    try:
        seen = Image.open(io.BytesIO(answer.content)).convert("RGB").getpixel((0, 0))
    except OSError as error:
        return [f"{job['id']}: {output['name']}: {error}"]
    return [] if seen == colour else [f"{job['id']}: {output['name']} is {seen}, not {colour}"]


async def _twice(store: Any, job_id: str) -> str:
    ends = await store.xlen(f"rq:results:{job_id}")
    places = [
        name
        for name in ("finished", "failed", "canceled")
        if await store.zscore(f"rq:{name}:fleet.jobs", job_id) is not None
    ]
    return "" if ends == 1 and len(places) == 1 else f"{job_id}: ended {ends} times, stands in {places}"


async def _leftover(store: Any) -> list[str]:
    return [
        key.decode()
        for pattern in (*RUNNING, *WAITING, *EXECUTIONS)
        async for key in store.scan_iter(pattern, count=1000)
    ]


async def orphans(
    nodes: Sequence[str], jobs: Mapping[str, str], listed: set[str], known: set[str]
) -> list[str]:
    """Return what nobody asked for.

    Args:
        nodes: URLs of the nodes, which have come to rest.
        jobs: The jobs of the runs that nodes computed.
        listed: Jobs that the fleet lists.
        known: Jobs that clients know to have been accepted.
    """
    found = [f"job {job} was accepted for nobody" for job in sorted(listed - known)]
    found += [f"run {run} is of job {job}, nobody's" for run, job in jobs.items() if job not in known]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        for node in nodes:
            queue = (await http.get(f"{node}/queue")).json()
            found += [f"prompt {item[1]} is left on {node}" for part in queue.values() for item in part]
    return found


def jobs_of_runs(folders: Iterable[Path]) -> dict[str, str]:
    """Return the job of every run that left a file on a node, by the nodes' data folders."""
    return {run.name: run.parent.name for folder in folders for run in folder.glob("**/output/fleet/*/*")}


def overlapping(spells: Iterable[Spell], jobs: Mapping[str, str]) -> list[str]:
    """Return jobs of which two runs were computed at the same time.

    Args:
        spells: What nodes told of their runs, in any order, also more than once.
        jobs: The runs' jobs.
    """
    by_job: defaultdict[str, set[Spell]] = defaultdict(set)
    for spell in spells:
        if spell.run in jobs:
            by_job[jobs[spell.run]].add(spell)
    found = []
    for job_id, ran in by_job.items():
        last, *rest = sorted(ran, key=lambda spell: spell.start)
        for spell in rest:
            if spell.start < last.end:
                when = f"on {last.node} until {last.end:.3f}, on {spell.node} from {spell.start:.3f}"
                found.append(f"{job_id}: {when}")
            last = max(last, spell, key=lambda one: one.end)
    return found
