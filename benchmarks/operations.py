"""What an operator does to a running fleet, and how an auditor looks at every job afterwards."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidHandshake

from benchmarks.clients import trivial_graph
from benchmarks.stage import BenchError, Fleet

FINAL = ("succeeded", "failed", "canceled", "expired")
LOOK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of jobs, by their own records and by the nodes' accounts.

    Attributes:
        jobs: How many were accepted.
        lost: Jobs that are unknown or have not ended.
        failed: Jobs that ended in another way than succeeded.
        twice: Runs that succeeded on a node beyond one for each job.
        counted: Attempts that were counted against jobs.
        ends: Jobs by state.
    """

    jobs: int
    lost: int
    failed: int
    twice: int
    counted: int
    ends: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """Whether every job ran to its good end, once."""
        return not (self.lost or self.failed or self.twice)

    def __str__(self) -> str:
        return f"{self.lost} lost, {self.failed} failed, {self.twice} run twice"


async def submit(http: httpx.AsyncClient, base: str) -> str:
    """Submit a trivial job and return its id.

    Raises:
        BenchError: It was not accepted.
    """
    answer = await http.post(f"{base}/api/v2/jobs", json={"workflow": trivial_graph()})
    if answer.status_code != 201:
        raise BenchError(f"a submit was answered {answer.status_code}: {answer.text[:300]}")
    return str(answer.json()["id"])


@asynccontextmanager
async def submitting(
    http: httpx.AsyncClient, base: str, jobs: int, rate: float
) -> AsyncIterator[asyncio.Task[list[str]]]:
    """Submit trivial jobs meanwhile, so many a second; the task returns their ids and ends with the block."""

    async def work() -> list[str]:
        ids = []
        began = time.monotonic()
        for number in range(jobs):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            ids.append(await submit(http, base))
        return ids

    task = asyncio.create_task(work())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def all_ended(
    http: httpx.AsyncClient, base: str, ids: Sequence[str], *, within_s: float, tell: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Wait until jobs have ended, or the time is over; return every job's record, by id."""
    deadline = time.monotonic() + within_s
    found: dict[str, dict[str, Any]] = {}
    for number, job_id in enumerate(ids):
        while True:
            answer = await http.get(f"{base}/api/v1/jobs/{job_id}")
            if answer.status_code == 200:
                found[job_id] = answer.json()
                if found[job_id]["status"] in FINAL:
                    break
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        tell(number + 1)
    return found


def audit(ids: Sequence[str], records: Mapping[str, Mapping[str, Any]], done: int) -> Audit:
    """Compare jobs' records with how many runs succeeded on the nodes.

    Args:
        ids: Every accepted job.
        records: What the API says of them now.
        done: Succeeded runs, as the nodes counted them.
    """
    ends = Counter(str(records[job_id]["status"]) if job_id in records else "unknown" for job_id in ids)
    ended = sum(ends[state] for state in FINAL)
    return Audit(
        jobs=len(ids),
        lost=len(ids) - ended,
        failed=ended - ends["succeeded"],
        twice=max(0, done - ends["succeeded"]),
        counted=sum(int(record.get("attempt") or 0) for record in records.values()),
        ends=dict(ends),
    )


async def granted(fleet: Fleet, node: str, pool: str = "default") -> bool:
    """Ask HAProxy for a lease on one node, and give it back at once."""
    headers = {"X-Fleet-Pool": pool, "X-Fleet-Nodes": node}
    url = f"ws://localhost/ws?clientId={uuid4()}"
    try:
        path = str(fleet.settings.lease_socket)
        async with unix_connect(path, url, additional_headers=headers, compression=None) as socket:
            assert socket.transport is not None
            socket.transport.abort()
            return True
    except (InvalidHandshake, OSError):
        return False


async def until(
    what: str, there: Callable[[], Awaitable[bool]], *, within_s: float = 30.0, every_s: float = LOOK_S
) -> float:
    """Poll until something holds, and return when that was (monotonic seconds).

    Raises:
        BenchError: It does not in time.
    """
    deadline = time.monotonic() + within_s
    while not await there():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {within_s:g} s in vain until {what}")
        await asyncio.sleep(every_s)
    return time.monotonic()


def kill(pid: int) -> float:
    """Kill a process as ``kill -9`` does; return when (Unix seconds)."""
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return at


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step: who reads it sees the old text or the new."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


async def order(http: httpx.AsyncClient, method: str, url: str, body: Any = None) -> httpx.Response:
    """Send an operator's order.

    Raises:
        BenchError: It was refused.
    """
    with contextlib.suppress(httpx.RemoteProtocolError):
        answer = await http.request(method, url, json=body)
        if answer.is_success:
            return answer
        raise BenchError(f"{method} {url} was answered {answer.status_code}: {answer.text[:300]}")
    raise BenchError(f"{method} {url} was not answered")
