"""Redis' clock is set by an hour: what ends too early, and how soon a dead dispatcher's runs move."""

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import httpx
from redis.asyncio import Redis

from benchmarks.clients import trivial_graph
from benchmarks.figures.takeovers import NEVER, all_compute, runs_on_record, taken, works
from benchmarks.hook_receiver import HookReceiver
from benchmarks.operations import all_ended, audit, kill, until
from benchmarks.report import Result, Verdict
from benchmarks.stage import BenchError, Fleet, Options, Stage, bounded, pid_of, sim_stats
from benchmarks.stats import TIMES, Spread
from benchmarks.stepped_clock import SteppedClock
from comfy_fleet.cli.up.supervisor import Supervised

NODES = 60
JOB_S = 30.0
REPEATS = 3
STEP_S = 3600
LATE_S = 5.0  # after the TTL
KEPT_S = 3000
"""Less than the step, which could be the end of what is kept for so long, or may wait for so long."""
PARKED = 20  # jobs that wait all the while
SHORT_S = 8.0  # how long one job of each round may wait: it has to expire, and not before
SUBMITS = 16  # at once
TOLD_S = 60  # for the last messages
POOL, OWNER = "parked", "local"


@dataclass(kw_only=True)
class Steps:
    """What came of it.

    Attributes:
        took_s: By direction and signal, how long after the step the other dispatcher had each run, in
            seconds.
        runs: How many runs the stopped dispatchers had, by the same.
        jobs: Jobs that were accepted.
        expired: Jobs that expired before their time.
        late_s: How long after their time those expired that had to, in seconds.
        deleted: What could not be read any more although it was to be kept, in words.
        doubled: Repeated submits that made a second job.
        again: Jobs that had another run than the one that was taken over.
        twice: Runs that succeeded on a node beyond one for each job.
        lost: Jobs that did not end.
        failed: Jobs that did not succeed.
        untold: Messages to webhooks that did not come.
    """

    took_s: dict[str, list[float]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    jobs: int = 0
    expired: int = 0
    late_s: list[float] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    doubled: int = 0
    again: int = 0
    twice: int = 0
    lost: int = 0
    failed: int = 0
    untold: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing ended before its time, was lost or ran twice."""
        early = self.expired or self.deleted or self.doubled
        return not (early or self.untold or self.lost or self.failed or self.twice)

    def in_time(self, what: str, bound_s: float) -> bool:
        """Return whether each run was taken over in time."""
        took = self.took_s[what]
        return bool(took) and len(took) == self.runs[what] and max(took) <= bound_s

    def words(self, what: str) -> str:
        """Return how soon runs were taken over, in a few words."""
        took = self.took_s[what]
        times = Spread.of(took).words() if took else "none taken over"
        return f"{times}; {len(took)} of {self.runs[what]} taken over"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An accepted job, and how to submit it again."""

    id: str
    key: str
    body: dict[str, Any]


async def measure(options: Options) -> Result:
    """Measure; about twelve minutes."""
    nodes, repeats = options.some(NODES, 6), options.some(REPEATS, 1)
    found, ttl_s = await _Rounds(options, nodes).played(repeats)
    bound_s = ttl_s + LATE_S
    early = Verdict(
        figure=f"Redis' clock is set by ± 1 h, {4 * repeats} times → what ends before its time",
        target="no job expires early, nothing is deleted, none lost or run twice",
        ours=f"{found.expired} of {found.jobs} jobs expired early, {len(found.deleted)} records and files "
        f"deleted, {found.doubled} keyed submits made a second job, {found.untold} messages did not come; "
        f"{found.lost} lost, {found.failed} failed, {found.twice} run twice",
        baseline="",
        ratio=None,
        met=found.whole,
    )
    return Result(
        name="clock-steps",
        title="Steps of Redis' clock",
        verdicts=[
            early,
            *(
                Verdict(
                    figure=f"{what} of 1 dispatcher of 2 → the other one has its runs",
                    target=f"≤ {bound_s:g} s (TTL + {LATE_S:g} s), every run",
                    ours=found.words(what),
                    baseline="",
                    ratio=None,
                    met=found.in_time(what, bound_s),
                )
                for what in found.took_s
            ),
        ],
        columns=["what", *TIMES],
        rows=[
            *([f"{what} → taken over", *Spread.of(one).row(3)] for what, one in found.took_s.items() if one),
            ["expiry of a job, after its time", *Spread.of(found.late_s).row(3)],
        ],
        notes=[
            f"A fleet with two dispatchers and {nodes} simulated nodes, all of which compute a job of "
            f"{JOB_S:g} s when the time of day of its Redis, and of nothing else, is set by an hour; forward "
            "and back in turns. The dispatcher that has more runs is killed or frozen at once. The time is "
            "from the step to the first look at which Redis names the other dispatcher as the run's. A "
            "killed one is replaced, a frozen one goes on once everything was taken over.",
            f"Meanwhile {PARKED} jobs wait that may wait for {KEPT_S} s and wish to be done by then; they "
            f"run at the end. In each round one more may wait for {SHORT_S:g} s, and must expire, but not "
            f"sooner. Records, pictures and an upload are kept for {KEPT_S} s. After each round all of them "
            "are read again, and a submit is repeated with its idempotency key. Each job has a webhook.",
            f"{found.again} jobs began another run after a take-over.",
        ],
        data={**asdict(found), "ttl_s": ttl_s},
        quick=options.quick,
    )


class _Rounds:
    """A fleet whose Redis has a clock that is stepped, and all that is accepted by it."""

    def __init__(self, options: Options, nodes: int) -> None:
        self._options = replace(options, backoff=NEVER)
        self._nodes = nodes
        self._found = Steps()
        self._ended: list[_Job] = []
        self._records: dict[str, dict[str, Any]] = {}
        self._parked: list[_Job] = []
        self._number = 0
        self._said = "start"
        self._fleet: Fleet

    async def played(self, repeats: int) -> tuple[Steps, float]:
        """Play all rounds; return what came of it and the dispatchers' TTL in seconds."""
        found = self._found
        async with (
            Stage(self._options) as self._stage,
            bounded(KEPT_S - 300, "the figure of clock steps"),
            HookReceiver() as self._receiver,
            httpx.AsyncClient(trust_env=False, timeout=60) as self._http,
        ):
            self._clock = await asyncio.to_thread(SteppedClock.make, self._stage.folder)
            await self._open()
            store: Any = Redis.from_url(self._fleet.settings.redis_url, decode_responses=True)
            async with store:
                self._store = store
                for number in range(4 * repeats):
                    ahead = STEP_S if number % 2 == 0 else 0
                    frozen = number % 4 >= 2
                    what = f"{'+' if ahead else '−'}1 h, {'SIGSTOP' if frozen else 'kill -9'}"
                    self._said = f"round {number + 1} of {4 * repeats}, {what}"
                    await self._round(what, ahead, frozen=frozen)
                await self._finish()
        return found, self._fleet.settings.lease_ttl_s

    def _say(self, text: str) -> None:
        self._options.say(f"{self._said}: {text}")

    async def _open(self) -> None:
        stage = self._stage
        self._urls = await stage.sims(self._nodes, job_s=JOB_S)
        self._quick = await stage.sims(1, job_s=0.2, name="sim-parked")
        redis = await stage.redis(env=self._clock.env)
        env = {
            "FLEET_WEBHOOK_ALLOW": "127.0.0.1",
            "FLEET_RETENTION_S": str(KEPT_S),
            "FLEET_UPLOAD_RETENTION_S": str(KEPT_S),
        }
        self._fleet = fleet = await stage.fleet(self._urls, env=env, redis_url=redis.url)
        await fleet.add(POOL, self._quick[0], pool=POOL)
        await fleet.until_up(self._nodes + 1)
        await fleet.cordon(POOL)
        answer = await self._http.get(f"{fleet.console_url}/api/v1/webhooks/secret")
        self._receiver.secrets = {OWNER: str(answer.raise_for_status().json()["secret"])}
        answer = await self._http.post(
            f"{fleet.url}/api/v2/assets", files={"file": ("kept.bin", b"kept" * 1000)}
        )
        self._upload = str(answer.raise_for_status().json()["id"])
        wish = {"ttl_s": KEPT_S, "finish_by": time.time() + KEPT_S, "pool": POOL}
        self._parked = await self._submitted(PARKED, wish)

    # -- one round ------------------------------------------------------------------------------------

    async def _round(self, what: str, ahead: int, *, frozen: bool) -> None:
        found, store = self._found, self._store
        await self._two_dispatchers()
        self._say(f"{self._nodes} jobs begin")
        jobs = await self._submitted(self._nodes, {"ttl_s": KEPT_S})
        await all_compute(self._http, self._urls)
        runs = await runs_on_record(store)
        count = Counter(dispatcher for _, dispatcher in runs.values())
        victim = max(self._alive(), key=lambda child: count[child.spec.name])
        (other,) = (child.spec.name for child in self._alive() if child is not victim)
        his = {run for run, (_, dispatcher) in runs.items() if dispatcher == victim.spec.name}
        short = asyncio.create_task(self._short())
        await asyncio.sleep(1)  # it waits by now
        at = time.monotonic()
        await self._step(ahead)
        if frozen:
            os.kill(pid_of(victim), signal.SIGSTOP)
        else:
            kill(pid_of(victim))
        took = await taken(store, his, other, at)
        if frozen:
            os.kill(pid_of(victim), signal.SIGCONT)
        found.took_s.setdefault(what, []).extend(took)
        found.runs[what] = found.runs.get(what, 0) + len(his)
        self._say(f"{len(took)} of {len(his)} runs taken over; waiting until they end")
        await short
        ids = [job.id for job in jobs]
        records = await all_ended(self._http, self._fleet.url, ids, within_s=4 * JOB_S, tell=lambda _: None)
        for run, (job_id, _) in runs.items():
            found.again += await store.hget(f"fleet:job:{job_id}", "run") != run
        self._records |= records
        self._ended += jobs
        await self._look()
        self._stage.check(but=[child for child in self._fleet.dispatchers if child.pid is None])

    def _alive(self) -> list[Supervised]:
        return [child for child in self._fleet.dispatchers if child.pid is not None]

    async def _two_dispatchers(self) -> None:
        if len(self._alive()) < 2:
            name = f"dispatch-{len(self._fleet.dispatchers) + 1}"
            self._say(f"{name} starts")
            await self._stage.dispatcher(self._fleet, name)
            await works(self._store, name)
            await asyncio.sleep(self._fleet.settings.lease_ttl_s + 1)  # for so long it takes nothing over

    async def _step(self, ahead: int) -> None:
        self._clock.step(ahead)

        async def shown() -> bool:
            seconds, _ = await self._store.time()
            return bool(abs(seconds - time.time() - ahead) < 60)

        # One answer may still have the time at which the server last woke up.
        await until(f"Redis' clock is {ahead} s ahead", shown, within_s=5)

    async def _short(self) -> None:
        """Submit a job that may not wait for long, and see when it expires."""
        began = time.monotonic()
        (job,) = await self._submitted(1, {"ttl_s": SHORT_S, "pool": POOL})
        accepted = time.monotonic()

        async def expired() -> bool:
            answer = await self._http.get(f"{self._fleet.url}/api/v1/jobs/{job.id}")
            return answer.status_code == 200 and answer.json()["status"] == "expired"

        at = await until("a job expires that may wait no longer", expired, within_s=60, every_s=0.1)
        self._found.expired += at - began < SHORT_S
        self._found.late_s.append(max(0.0, at - accepted - SHORT_S))

    # -- what is kept ---------------------------------------------------------------------------------

    async def _submitted(self, count: int, more: dict[str, Any]) -> list[_Job]:
        turns = asyncio.Semaphore(SUBMITS)

        async def one(number: int) -> _Job:
            hook = f"{self._receiver.url}/{OWNER}"
            body = {"workflow": trivial_graph(), "webhook_url": hook, **more}
            async with turns:
                answer = await self._post(body, key := f"step-{number}")
            if answer.status_code != 201:
                raise BenchError(f"a submit was answered {answer.status_code}: {answer.text[:300]}")
            return _Job(id=str(answer.json()["id"]), key=key, body=body)

        first, self._number = self._number, self._number + count
        self._found.jobs += count
        return list(await asyncio.gather(*(one(first + number) for number in range(count))))

    async def _post(self, body: dict[str, Any], key: str) -> httpx.Response:
        url = f"{self._fleet.url}/api/v2/jobs"
        return await self._http.post(url, json=body, headers={"Idempotency-Key": key})

    async def _look(self) -> None:
        """Read again what has to be there."""
        self._say("everything is read again")
        found, base = self._found, self._fleet.url
        for job in self._ended:
            answer = await self._http.get(f"{base}/api/v2/jobs/{job.id}")
            if answer.status_code != 200:
                found.deleted.append(f"job {job.id}: {answer.status_code}")
                continue
            for output in answer.json()["outputs"]:
                await self._readable(output["url"])
        await self._readable(f"{base}/api/v2/assets/{self._upload}/content")
        for job in self._parked:
            answer = await self._http.get(f"{base}/api/v1/jobs/{job.id}")
            if answer.status_code != 200:
                found.deleted.append(f"job {job.id}: {answer.status_code}")
            elif answer.json()["status"] != "queued":
                found.expired += 1
        first = self._ended[0]
        answer = await self._post(first.body, first.key)
        told = answer.json().get("error", {}).get("details", {})
        found.doubled += answer.status_code == 201 or told.get("job_id") != first.id

    async def _readable(self, url: str) -> None:
        answer = await self._http.get(url)
        if answer.status_code != 200 or not answer.content:
            self._found.deleted.append(f"{url}: {answer.status_code}")

    async def _finish(self) -> None:
        """Let the waiting jobs run, and count."""
        found, fleet, self._said = self._found, self._fleet, "end"
        self._say("the jobs that waited run")
        async with fleet.stores() as stores:
            await stores.nodes.uncordon(POOL)
        ids = [job.id for job in self._parked]
        self._records |= await all_ended(self._http, fleet.url, ids, within_s=120, tell=lambda _: None)
        every = [*self._ended, *self._parked]
        done = sum(one["done"] for one in await sim_stats([*self._urls, *self._quick]))
        counted = audit([job.id for job in every], self._records, done)
        found.lost, found.failed, found.twice = counted.lost, counted.failed, counted.twice
        messages = {f"msg_{job.id}_{self._status(job)}" for job in every}

        self._say("the last messages come")
        for _ in range(TOLD_S):
            if messages <= self._receiver.taken.keys():
                break
            await asyncio.sleep(1)
        found.untold = len(messages - self._receiver.taken.keys())

    def _status(self, job: _Job) -> str:
        return str(self._records.get(job.id, {}).get("status"))
