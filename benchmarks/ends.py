"""Whether jobs ended once, looked at while they are still known."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable

from redis.asyncio import Redis

from benchmarks.stage import Fleet
from benchmarks.visits import Ended
from comfy_fleet.adapters.redis.keys import Keyspace

AFTER_S = 5.0
"""A job is looked at again so long after its user saw it end: by then it would have ended a second time."""
LOOK_S = 1.0
SHOWN = 20


class EndsAudit:
    """Looks at each job once more some seconds after its end.

    Attributes:
        looked: How many it has looked at.
        states: Jobs by the state in which they ended.
        reasons: Failed jobs by their error's code.
        wrong: What is wrong with jobs; the first ones, and ``count`` of all.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._url = fleet.settings.redis_url
        self._keys = Keyspace(fleet.settings.namespace)
        self._waiting: deque[tuple[float, Ended]] = deque()
        self._open: set[str] = set()
        self._early: set[str] = set()
        self.looked = 0
        self.accepted = 0
        self.states: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.count = 0

    def add(self, accepted: Iterable[str], ended: Iterable[Ended]) -> None:
        """Note jobs that were accepted, and such that were seen to end."""
        for job_id in accepted:
            self.accepted += 1
            self._open.add(job_id)
        for one in ended:
            if one.id not in self._open:
                self._blame(f"{one.id} ({one.way}) was seen to end twice, or was never accepted")
            self._open.discard(one.id)
            self.states[one.status] += 1
            self.ways[one.way] += 1
            if one.status == "failed":
                self.reasons[one.reason] += 1
            if not one.removed:
                self._waiting.append((time.monotonic() + AFTER_S, one))

    @property
    def unfinished(self) -> frozenset[str]:
        """Accepted jobs that nobody has seen end."""
        return frozenset(self._open)

    @property
    def behind(self) -> int:
        """How many jobs it has still to look at."""
        return len(self._waiting)

    async def run(self) -> None:
        """Look, until canceled."""
        async with Redis.from_url(self._url, decode_responses=True) as store:
            while True:
                await self._look(store)
                await asyncio.sleep(LOOK_S)

    async def _look(self, store: "Redis") -> None:
        jobs: list[Ended] = []
        while self._waiting and self._waiting[0][0] <= time.monotonic() and len(jobs) < 1000:
            jobs.append(self._waiting.popleft()[1])
        if not jobs:
            return
        async with store.pipeline(transaction=False) as pipe:
            for one in jobs:
                pipe.hget(self._keys.job(one.id), "status")
                pipe.xlen(self._keys.rq_results(one.id))
            found = await pipe.execute()
        for one, status, ends in zip(jobs, found[::2], found[1::2], strict=True):
            self.looked += 1
            if status != one.status or ends != 1:
                told = f"{one.id} ({one.way}) ended {one.status}, is {status or 'unknown'} now"
                self._blame(f"{told}, and has {ends} ends")

    def _blame(self, what: str) -> None:
        self.count += 1
        if len(self.wrong) < SHOWN:
            self.wrong.append(what)
