"""Two owners whose jobs wait all the time on a real fleet: what each gets of the GPUs."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from benchmarks.operations import all_ended, submit
from benchmarks.stage import BenchError, Fleet, Options, Stage

NODES, JOB_S = 4, 0.32
WEIGHTS = {"two": 2, "one": 1}
SHARE_TARGET = 0.03
AT_ONCE = 8
WARM_UP = 8
"""Jobs that run before: how long such jobs take is known then, as on any fleet that is not new."""
SPARE = 1.3
"""How many times as many jobs as can run are submitted: each owner's must wait all the time."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What came out.

    Attributes:
        jobs: Of both together.
        job_s: Each takes so long.
        window_s: Length of the windows.
        off: The largest difference from the ideal share in any window, as a part of all that was used.
        worst: The share that is furthest from two thirds.
        used_s: GPU seconds by owner.
    """

    jobs: int
    job_s: float
    window_s: float
    off: float
    worst: float
    used_s: dict[str, float]


async def shares(options: Options) -> Shares:
    """Measure; about two minutes."""
    window_s = float(options.some(60, 8))
    lasts_s = window_s * 1.5
    total = sum(WEIGHTS.values())
    room = NODES * lasts_s / JOB_S * SPARE
    wanted = {owner: math.ceil(room * weight / total) for owner, weight in WEIGHTS.items()}
    async with Stage(options) as stage:
        keys = stage.folder / "keys"
        keys.write_text("".join(f"{owner} {_key(owner)}\n" for owner in WEIGHTS))
        keys.chmod(0o600)
        weights = ",".join(f"{owner}={weight}" for owner, weight in WEIGHTS.items())
        nodes = await stage.sims(NODES, job_s=JOB_S)
        fleet = await stage.fleet(
            nodes,
            env={"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": _key("agent"), "FLEET_SHARES": weights},
        )
        await fleet.until_up(NODES)
        options.say("shares: submitting")
        await _run(fleet, WARM_UP)
        ids = await _submitted(fleet, wanted)
        began = time.time()
        while (left := began + lasts_s - time.time()) > 0:
            options.say(f"shares: {left:.0f} s left")
            await asyncio.sleep(min(1.0, left))
        spans = await _spans(fleet, nodes, ids)
        stage.check()
    return measured(spans, began, lasts_s, window_s, sum(wanted.values()))


def _key(owner: str) -> str:
    return f"{owner}-key-of-the-benchmark-0123456789"


async def _run(fleet: Fleet, jobs: int) -> None:
    """Run some jobs of one owner."""
    headers = {"Authorization": f"Bearer {_key('two')}"}
    async with httpx.AsyncClient(base_url=fleet.url, trust_env=False, timeout=60, headers=headers) as http:
        ids = [await submit(http, fleet.url) for _ in range(jobs)]
        await all_ended(http, fleet.url, ids, within_s=60, tell=lambda _: None)


async def _submitted(fleet: Fleet, wanted: dict[str, int]) -> dict[str, str]:
    """Submit the jobs of all owners side by side; return owners by job."""
    owners: dict[str, str] = {}

    async def work(owner: str, count: int) -> None:
        headers = {"Authorization": f"Bearer {_key(owner)}"}
        async with httpx.AsyncClient(trust_env=False, timeout=60, headers=headers) as http:
            for _ in range(count):
                owners[await submit(http, fleet.url)] = owner

    async with asyncio.TaskGroup() as group:
        for owner, count in wanted.items():
            hands = AT_ONCE * WEIGHTS[owner] // sum(WEIGHTS.values())
            for hand in range(hands):
                group.create_task(work(owner, count // hands + (hand < count % hands)))
    return owners


Span = tuple[str, float, float]
"""Owner, start and end of a computation, in Unix seconds."""


async def _spans(fleet: Fleet, nodes: Sequence[str], owners: dict[str, str]) -> list[Span]:
    """Return when each owner's jobs computed, by the nodes' own accounts."""
    runs: dict[str, str] = {}
    async with fleet.stores() as stores:
        for job_id, owner in owners.items():
            job = await stores.jobs.get(job_id)
            if job is not None and job.run is not None:
                runs[job.run] = owner
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        answers = [(await http.get(f"{node}/sim/stats")).json() for node in nodes]
    return [(runs[run], start, end) for one in answers for start, end, run in one["intervals"] if run in runs]


def measured(spans: Sequence[Span], began: float, lasts_s: float, window_s: float, jobs: int) -> Shares:
    """Compare what owners got with two thirds, in windows that begin a second apart.

    Args:
        spans: Their computations.
        began: When the first window begins, in Unix seconds.
        lasts_s: When the last one ends, so many seconds later.
        window_s: Length of a window.
        jobs: Of both together.

    Raises:
        BenchError: Nothing was computed in a window.
    """
    total = sum(WEIGHTS.values())
    ideal = WEIGHTS["two"] / total
    off, worst = 0.0, ideal
    for second in range(int(lasts_s - window_s) + 1):
        first = began + second
        used = dict.fromkeys(WEIGHTS, 0.0)
        for owner, start, end in spans:
            used[owner] += max(0.0, min(end, first + window_s) - max(start, first))
        everything = sum(used.values())
        if not everything:
            raise BenchError("nothing was computed for a whole window")
        share = used["two"] / everything
        if abs(share - ideal) >= off:
            off, worst = abs(share - ideal), share
    everywhere = {owner: sum(end - start for who, start, end in spans if who == owner) for owner in WEIGHTS}
    return Shares(jobs=jobs, job_s=JOB_S, window_s=window_s, off=off, worst=worst, used_s=everywhere)
