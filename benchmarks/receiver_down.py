"""A receiver of webhooks that is away while jobs end and the API is killed: does each message come?"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.clients import trivial_graph
from benchmarks.hook_receiver import HookReceiver, Mood
from benchmarks.operations import FINAL, kill
from benchmarks.people import Users
from benchmarks.stage import BenchError, Fleet, Options, Served, Stage, pid_of
from benchmarks.stats import Spread
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.webhooks.delivery import SCHEDULE_S, longest_s

NODES, USERS = 3, 3
JOB_S = 0.2
PER_S = 2.0
"""Jobs a second, all with a webhook."""
STARTS, CANCELS = 5, 10
"""Every so-manieth job asks to be told of its start, too, or is canceled."""
WELL_S = 5.0
KILLS = (0.3, 0.75)
"""When the API is killed, as parts of the time for which the receiver is away."""
NEWS_S = 300.0
"""After so long there must be a message to operators of a node that is down, or back."""
ENDED_S = 180.0
OPERATOR = "operator"


@dataclass(kw_only=True)
class Told:
    """What came of it; times in seconds.

    Attributes:
        jobs: Jobs that were accepted.
        expected: Messages that have to come.
        missing: Those that did not.
        unasked: Messages of jobs that came and should not have.
        operators: Types of the messages to the operator's URL that came, as often as they did.
        operators_missing: How many of those that the fleet had written did not come.
        repeated: How often a message was taken again.
        forged: What the reference library refused.
        asked: How often the receiver was asked while it was away, by how it was.
        after_s: How long after its return it had each message that was due before.
    """

    jobs: int = 0
    expected: int = 0
    missing: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    operators_missing: int = 0
    repeated: int = 0
    forged: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    after_s: list[float] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether each message came, and nothing else."""
        wrong = self.missing or self.unasked or self.forged or self.operators_missing
        return bool(not wrong and self.expected and self.operators)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A job whose messages are awaited."""

    id: str
    user: str
    start: bool


def run(seconds: float, console: Console, say: Callable[[str], None], json_file: Path | None) -> bool:
    """Have the receiver away for so long; show what came of it, and return whether it is as it should be.

    Raises:
        BenchError: It could not be tried.
    """
    told = asyncio.run(_run(seconds, say))
    _show(console, told, seconds)
    if json_file:
        json_file.write_text(json.dumps({"down_s": seconds, **asdict(told)}, indent=1) + "\n")
    return told.fine


async def _run(seconds: float, say: Callable[[str], None]) -> Told:
    options = Options(bench_python=Path(sys.executable), say=say, backoff=Backoff(first_s=0.1, longest_s=1.0))
    async with Stage(options) as stage, HookReceiver() as receiver:
        users = Users.write(stage, USERS)
        sims = await stage.sims_apart(NODES, job_s=JOB_S)
        env = {
            "FLEET_WEBHOOK_ALLOW": "127.0.0.1",
            "FLEET_OPERATOR_WEBHOOK_URL": f"{receiver.url}/{OPERATOR}",
            **users.env,
        }
        fleet = await stage.fleet([sim.url for sim in sims], env=env)
        await fleet.until_up(NODES)
        receiver.secrets = await signing_secrets(fleet, users)
        jobs: list[_Job] = []
        enough = asyncio.Event()
        submitting = asyncio.create_task(_submit(fleet, receiver, users, jobs, enough))
        news = asyncio.create_task(_stop_node(fleet, users, sims[-1]))
        try:
            await asyncio.sleep(WELL_S)
            await _away(seconds, stage, fleet, receiver, jobs, [submitting, news])
            await receiver.feel(Mood.TAKES)
            returned = time.monotonic()
            enough.set()
            await submitting  # its last job, too, is then one whose messages are expected
            due = frozenset(receiver.taken)
            told = Told(jobs=len(jobs))
            async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
                expected = await _expected(http, fleet, users, jobs, say)
                told.expected = len(expected)
                others = await _until_told(http, fleet, users, receiver, expected, news, returned, told, say)
        finally:
            for task in (submitting, news):
                task.cancel()
            await asyncio.gather(submitting, news, return_exceptions=True)
        assert fleet.api
        stage.check([fleet.api])
    told.unasked = sorted(receiver.taken.keys() - expected - others)
    told.repeated = sum(receiver.taken.values()) - len(receiver.taken)
    told.forged, told.asked = dict(receiver.forged), dict(receiver.asked)
    told.after_s = [at - returned for one, at in receiver.first_at.items() if one not in due]
    return told


async def signing_secrets(fleet: Fleet, users: Users) -> dict[str, str]:
    """Ask for what messages to each user are signed with, and those to the operator's URL, if it has one."""
    url = f"{fleet.console_url}/api/v1/webhooks/secret"
    found = {}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        for user, key in users.keys.items():
            answer = await http.get(url, headers={"Authorization": f"Bearer {key}"})
            found[user] = str(answer.raise_for_status().json()["secret"])
        query, headers = {"operator": "true"}, {"Authorization": f"Bearer {users.operator}"}
        answer = await http.get(url, params=query, headers=headers)
        if answer.is_success:
            found[OPERATOR] = str(answer.json()["secret"])
    return found


async def _away(
    seconds: float,
    stage: Stage,
    fleet: Fleet,
    receiver: HookReceiver,
    jobs: Sequence[_Job],
    others: Sequence[asyncio.Task[None]],
) -> None:
    """Let the receiver be away in every way, and kill the API."""
    began = time.monotonic()
    ways = (Mood.REFUSES, Mood.FAILS, Mood.HANGS)
    moods = {number * seconds / len(ways): mood for number, mood in enumerate(ways)}
    kills = [part * seconds for part in KILLS]
    while (passed := time.monotonic() - began) < seconds:
        for at in [at for at in moods if at <= passed]:
            await receiver.feel(moods.pop(at))
        if kills and kills[0] <= passed and fleet.api and fleet.api.pid:
            kills.pop(0)
            kill(pid_of(fleet.api))
        for task in others:
            if task.done():
                task.result()
        stage.options.say(
            f"{seconds - passed:.0f} s until the receiver is back; {len(jobs)} jobs, "
            f"{receiver.asked.total()} tries that it has seen"
        )
        await asyncio.sleep(0.25)


async def _stop_node(fleet: Fleet, users: Users, node: Served) -> None:
    """Stop a node until operators are told that it is down, and then until they are told that it is back."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        await _until_written(fleet, users, "node.down")
    finally:
        os.kill(node.pid, signal.SIGCONT)
    await _until_written(fleet, users, "node.up")


async def _until_written(fleet: Fleet, users: Users, kind: str) -> None:
    deadline = time.monotonic() + NEWS_S
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        while kind not in {one["type"] for one in await _operators(http, fleet, users)}:
            if time.monotonic() > deadline:
                raise BenchError(f"{NEWS_S:g} s after a node changed, there is no message {kind}")
            await asyncio.sleep(1)


async def _operators(http: httpx.AsyncClient, fleet: Fleet, users: Users) -> list[dict[str, Any]]:
    """Return the messages to the operator's URL; none while nobody answers."""
    url, query = f"{fleet.console_url}/api/v1/webhooks", {"operator": "true"}
    with contextlib.suppress(httpx.HTTPError):
        answer = await http.get(url, params=query, headers={"Authorization": f"Bearer {users.operator}"})
        if answer.is_success:
            found: list[dict[str, Any]] = answer.json()["webhooks"]
            return found
    return []


async def _submit(
    fleet: Fleet, receiver: HookReceiver, users: Users, jobs: list[_Job], enough: asyncio.Event
) -> None:
    """Submit jobs until there are enough; each is sent again until it is accepted."""
    names = list(users.keys)
    began = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        number = 0
        while not enough.is_set():
            await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
            user, start = names[number % len(names)], number % STARTS == 0
            body: dict[str, Any] = {
                "workflow": trivial_graph(),
                "webhook_url": f"{receiver.url}/{user}",
            }
            if start:
                ends = ("succeeded", "failed", "canceled", "expired")
                body["webhook_events"] = ["job.started", *(f"job.{one}" for one in ends)]
            headers = {
                "Authorization": f"Bearer {users.keys[user]}",
                "Idempotency-Key": f"down-{number}",
            }
            job_id = await _accepted(http, f"{fleet.url}/api/v2/jobs", body, headers)
            jobs.append(_Job(id=job_id, user=user, start=start))
            if number % CANCELS == 1:
                with contextlib.suppress(httpx.HTTPError):  # then it succeeds
                    await http.post(f"{fleet.url}/api/v2/jobs/{job_id}/cancel", headers=headers)
            number += 1


async def _accepted(http: httpx.AsyncClient, url: str, body: Any, headers: Mapping[str, str]) -> str:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.post(url, json=body, headers=headers)
            if answer.status_code == 201:
                return str(answer.json()["id"])
            if answer.status_code not in (429, 502, 503, 504):
                error = answer.json()["error"]
                if error["code"] == "idempotency_key_reuse":
                    return str(error["details"]["job_id"])
                raise BenchError(f"a submit was answered {answer.status_code}: {answer.text[:300]}")
        await asyncio.sleep(0.3)


async def _expected(
    http: httpx.AsyncClient,
    fleet: Fleet,
    users: Users,
    jobs: Sequence[_Job],
    say: Callable[[str], None],
) -> frozenset[str]:
    """Wait until all jobs have ended, and return the ids of the messages that have to come."""
    expected: set[str] = set()
    deadline = time.monotonic() + ENDED_S
    for number, one in enumerate(jobs):
        headers = {"Authorization": f"Bearer {users.keys[one.user]}"}
        while True:
            job = (await http.get(f"{fleet.url}/api/v2/jobs/{one.id}", headers=headers)).json()
            if job.get("status") in FINAL:
                break
            if time.monotonic() > deadline:
                raise BenchError(f"job {one.id} has not ended: {str(job)[:300]}")
            await asyncio.sleep(0.1)
        say(f"{number} of {len(jobs)} jobs have ended")
        expected.add(f"msg_{one.id}_{job['status']}")
        if one.start and job["started_at"]:
            expected.add(f"msg_{one.id}_started")
    return frozenset(expected)


async def _until_told(
    http: httpx.AsyncClient,
    fleet: Fleet,
    users: Users,
    receiver: HookReceiver,
    expected: frozenset[str],
    news: asyncio.Task[None],
    returned: float,
    told: Told,
    say: Callable[[str], None],
) -> frozenset[str]:
    """Wait until each message has come, or would have been given up; return the operator's."""
    while True:
        await asyncio.sleep(1)
        listed = await _operators(http, fleet, users)
        told.operators = dict(Counter(one["type"] for one in listed if one["id"] in receiver.taken))
        told.operators_missing = sum(one["id"] not in receiver.taken for one in listed)
        told.missing = sorted(expected - receiver.taken.keys())
        passed = time.monotonic() - returned
        if news.done():
            news.result()
            if listed and not told.missing and not told.operators_missing:
                break
        if passed > longest_s(SCHEDULE_S):
            break
        missing = len(told.missing) + told.operators_missing
        say(f"{passed:.0f} s after the receiver's return: {missing} messages to come, {told.operators}")
    return frozenset(one["id"] for one in listed)


def _show(console: Console, told: Told, seconds: float) -> None:
    table = Table(title=f"A receiver that was away for {seconds:g} s", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    rows: Mapping[str, int] = {
        "jobs": told.jobs,
        "messages that have to come": told.expected,
        "did not come": len(told.missing),
        "came and should not have": len(told.unasked),
        "came again": told.repeated,
        "were refused by the reference library": sum(told.forged.values()),
        **{f"tries while it {how}": count for how, count in told.asked.items()},
        **{f"to the operator's URL: {kind}": count for kind, count in told.operators.items()},
        "to the operator's URL: did not come": told.operators_missing,
    }
    for what, count in rows.items():
        table.add_row(what, str(count))
    console.print(table)
    if told.after_s:
        spread = Spread.of(told.after_s)
        console.print(
            f"after its return, it had them in {spread.words()}, p99 {spread.p99:.1f} s", highlight=False
        )
    for line in [*told.missing[:10], *told.unasked[:10], *told.forged]:
        console.print(f"[red]{line}[/]", highlight=False)
    console.print(
        "[bold green]each message came[/]" if told.fine else "[bold red]not each message came[/]",
        highlight=False,
    )
