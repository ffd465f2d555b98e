"""Clients that want a job's end: by a submit that waits, by asking again, by the event stream."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from benchmarks.clients import trivial_graph
from benchmarks.stage import BenchError

WAITS, POLLS, STREAMS = "waits", "polls", "streams"
POLL_S = 0.25
WAIT_S = 60
ANSWER_S = 120.0
ENDED = ("succeeded", "failed", "canceled", "expired")


class EndClient:
    """One client, with one connection that it keeps.

    Attributes:
        late: Seconds from each job's end to the answer that tells of it.
        requests: How many it sent.
    """

    def __init__(self, base: str) -> None:
        self._http = httpx.AsyncClient(base_url=base, timeout=ANSWER_S, trust_env=False)
        self.late: list[float] = []
        self.requests = 0

    async def close(self) -> None:
        """Close its connection."""
        await self._http.aclose()

    async def trip(self, way: str) -> None:
        """Submit a job and learn of its end.

        Raises:
            BenchError: It did not succeed.
        """
        query = {"wait": WAIT_S} if way == WAITS else {}
        self.requests += 1
        answer = await self._http.post("/api/v2/jobs", json={"workflow": trivial_graph()}, params=query)
        job = answer.json()
        if answer.status_code not in (200, 201):
            raise BenchError(f"a submit was refused: {answer.text[:300]}")
        if way == STREAMS:
            self.requests += 1
            async with self._http.stream("GET", job["urls"]["events"]) as stream:
                async for _ in stream.aiter_lines():
                    pass
            heard = time.time()
            job = await self._ask(job["urls"]["self"])  # only to know when it ended
        else:
            while job["status"] not in ENDED:
                if way == POLLS:
                    await asyncio.sleep(POLL_S)
                self.requests += 1
                job = await self._ask(job["urls"]["self"])
            heard = time.time()
        if job["status"] != "succeeded":
            raise BenchError(f"a job ended as {job['status']}")
        self.late.append(heard - datetime.fromisoformat(job["completed_at"]).timestamp())

    async def _ask(self, url: str) -> Any:
        return (await self._http.get(url)).json()


async def want_ends(base: str, way: str, clients: int, trips_each: int) -> dict[str, Any]:
    """Let so many clients at once submit and learn of the end, one job after the other each."""
    made = [EndClient(base) for _ in range(clients)]

    async def work(one: EndClient) -> None:
        for _ in range(trips_each):
            await one.trip(way)

    began, cpu = time.perf_counter(), time.process_time()
    try:
        await asyncio.gather(*(work(one) for one in made))
        return {
            "wall_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu,
            "late": [seconds for one in made for seconds in one.late],
            "requests": sum(one.requests for one in made),
        }
    finally:
        for one in made:
            await one.close()


async def hold_waits(base: str, clients: int) -> Sequence[str]:
    """Let so many submits wait at once until their jobs are canceled; return how these ended."""

    async def one(http: httpx.AsyncClient) -> str:
        answer = await http.post(
            "/api/v2/jobs", json={"workflow": trivial_graph()}, params={"wait": 10 * WAIT_S}
        )
        return str(answer.json().get("status", answer.text[:200]))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=base, timeout=1200, limits=limits, trust_env=False) as http:
        return await asyncio.gather(*(one(http) for _ in range(clients)))
