"""The clients of ``scripts/chaos``: they submit, upload and cancel, and keep a record of every answer."""

import asyncio
import contextlib
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from benchmarks.aftermath import Colour, Expected, Spell
from benchmarks.clients import trivial_graph
from benchmarks.operations import FINAL

UPLOADS, CANCELS = 5, 10  # every so-manieth job has an input file, or is canceled
CANCEL_S = 3.0  # at the latest so long after it was accepted
PATIENCE_S = 30.0
AGAIN_S = 0.3
ACCEPTED, LATER, SILENT = "accepted", "503 with Retry-After", "no answer"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try to submit a job (monotonic seconds).

    Attributes:
        start: When it was sent.
        end: When it was answered, or given up.
        outcome: :data:`ACCEPTED`, :data:`LATER`, :data:`SILENT` with the error's class,
            or the answer itself.
    """

    start: float
    end: float
    outcome: str


@dataclass(kw_only=True)
class Account:
    """What clients were told, and what nodes told.

    Attributes:
        accepted: When each job was accepted, by id, on this process's monotonic clock.
        expected: What must become of it.
        attempts: Every try to submit a job.
        odd: Answers that no client should get, by status and text.
        listed: Jobs that the fleet has listed.
        spells: What nodes told of their runs.
        ended: When it was first seen in a final state, and which.
        changed: Jobs that were seen in two final states.
    """

    accepted: dict[str, float] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)
    spells: set[Spell] = field(default_factory=set)
    ended: dict[str, tuple[float, str]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def saw(self, job_id: str, status: str) -> None:
        """Note a job's state; a final one must never change."""
        self.listed.add(job_id)
        if status not in FINAL:
            return
        before = self.ended.setdefault(job_id, (time.monotonic(), status))
        if before[1] != status:
            self.changed.append(f"{job_id}: {before[1]}, then {status}")


async def submit_all(base: str, jobs: int, rate: float, seed: int, account: Account) -> None:
    """Submit jobs evenly, each until it is accepted."""
    rng = random.Random(seed)

    async def answered(send: Callable[[], Awaitable[httpx.Response]]) -> None:
        """Send until there is an answer that says something."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await send()
                if answer.status_code < 500:
                    return
                if not _may_come(answer):
                    what = answer.request.url.path.rsplit("/", 1)[-1]
                    account.odd[f"POST {what}: {_words(answer)}"] += 1
            await asyncio.sleep(AGAIN_S)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        graph, expected = _job(number, rng)
        name = graph["1"]["inputs"].get("image")
        if name is not None:
            files = {"file": (name, _picture(expected.colour), "image/png")}
            what = {"file_path": name}
            await answered(lambda: http.post(f"{base}/api/v2/assets", data=what, files=files))
        headers = {"Idempotency-Key": f"chaos-{number}"}
        url = f"{base}/api/v2/jobs"
        while True:
            if (found := await _attempt(http, url, graph, headers, account)) is not None:
                break
            await asyncio.sleep(AGAIN_S)
        account.accepted[found], account.expected[found] = time.monotonic(), expected
        if expected.canceled:
            await asyncio.sleep(rng.uniform(0, CANCEL_S))
            await answered(lambda: http.post(f"{url}/{found}/cancel"))

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for number in range(jobs):
            group.create_task(one(http, number))
            await asyncio.sleep(1 / rate)


async def _attempt(
    http: httpx.AsyncClient, url: str, graph: dict[str, Any], headers: dict[str, str], account: Account
) -> str | None:
    """Submit once; return the job's id if it was accepted."""
    start, found = time.monotonic(), None
    try:
        answer = await http.post(url, json={"workflow": graph}, headers=headers)
    except httpx.HTTPError as error:
        outcome = f"{SILENT} ({type(error).__name__})"
    else:
        found = _accepted(answer)
        if found is not None:
            outcome = ACCEPTED
        elif _may_come(answer):
            outcome = LATER
        else:
            outcome = _words(answer)
            account.odd[f"POST jobs: {outcome}"] += 1
    account.attempts.append(Attempt(start=start, end=time.monotonic(), outcome=outcome))
    return found


def _may_come(answer: httpx.Response) -> bool:
    """Return whether an answer is one that the fleet may give while something is wrong."""
    return answer.status_code == 503 and answer.headers.get("retry-after", "").isdigit()


def _words(answer: httpx.Response) -> str:
    later = "" if "retry-after" in answer.headers else " without Retry-After"
    return f"{answer.status_code}{later} {answer.text[:160]}"


def _job(number: int, rng: random.Random) -> tuple[dict[str, Any], Expected]:
    """Return a graph that makes a picture of one colour, and what must become of it."""
    graph = trivial_graph()
    colour = int(graph["1"]["inputs"]["color"])
    if number % UPLOADS == 0:
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": f"chaos-{number}-{rng.random()}.png"}}
    rgb = (colour >> 16, colour >> 8 & 255, colour & 255)
    return graph, Expected(colour=rgb, canceled=number % CANCELS == 1)


def _picture(colour: Colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def _accepted(answer: httpx.Response) -> str | None:
    """Return the job's id, also from the answer that an earlier submit with the same key had made it."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        return None
    if answer.status_code == 201:
        return str(body["id"])
    error = body.get("error") or {}
    if error.get("code") == "idempotency_key_reuse":
        return str((error.get("details") or {})["job_id"])
    return None


async def watch(base: str, account: Account) -> None:
    """Read the states again and again: one that is final must stay as it is."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                await list_all(http, base, account)
            await asyncio.sleep(0.5)


async def list_all(http: httpx.AsyncClient, base: str, account: Account) -> None:
    """Read the states of all jobs."""
    cursor: str | None = None
    while True:
        query = {"limit": "100", **({"cursor": cursor} if cursor else {})}
        page = (await http.get(f"{base}/api/v2/jobs", params=query)).raise_for_status().json()
        for job in page["jobs"]:
            account.saw(job["id"], job["status"])
        cursor = page.get("next_cursor")
        if not cursor:
            return


async def overhear(nodes: Sequence[str], account: Account) -> None:
    """Ask the nodes again and again what they have computed: whoever is killed forgets it."""
    async with httpx.AsyncClient(trust_env=False, timeout=1) as http:

        async def one(node: str) -> None:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                told = (await http.get(f"{node}/sim/stats")).json()
                account.spells |= {
                    Spell(run=run, node=node, start=start, end=end) for start, end, run in told["intervals"]
                }

        while True:
            await asyncio.gather(*(one(node) for node in nodes))
            await asyncio.sleep(0.25)
