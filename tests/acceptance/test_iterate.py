"""Somebody edits a graph on four nodes while others work on three: a run gets what the last one computed."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from benchmarks.editing import SLEEP, Editor, EditorRun, edited_graph, editor, noise, strange_jobs
from benchmarks.stage import Fleet, Options, Stage, pid_of
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.jobs.job import Job, JobFilter
from tests.fleet import until

pytestmark = pytest.mark.timeout(240)
LONG_S = 3.0
"""What the node takes that is not to run again."""
AGAIN_S = 80.0
"""For a run of some seconds whose node or dispatchers were killed: those start again before it goes on, and
a start is processor time, which a busy machine is long in giving."""

RELEASED_LOOKS = 10
"""For how many looks, 50 ms each or more, a node may still not be free after its job or its lease has ended.

Not seconds: on a busy machine a dispatcher is as long in letting go of a node as this process in looking.
"""
LATE_S = 1.0
"""How much later a node's verdict may be noted than it holds."""


@asynccontextmanager
async def iterating(
    *, nodes: int = 4, dispatchers: int = 1, comfyui: Path | None = None
) -> AsyncIterator[tuple[Fleet, Stage]]:
    """Run a fleet of simulated nodes, or of real ComfyUIs."""
    options = Options(
        bench_python=Path(sys.executable), comfyui=comfyui, comfyui_python=os.environ.get("COMFYUI_PYTHON")
    )
    async with Stage(options) as stage:
        if comfyui is None:
            urls = [one.url for one in await stage.sims_apart(nodes)]
        else:
            urls = [await stage.comfyui(f"comfyui-{number}", testing=True) for number in range(nodes)]
        fleet = await stage.fleet(urls, dispatchers=dispatchers)
        await fleet.until_up(nodes)
        yield fleet, stage


async def node_of(fleet: Fleet, prompt_id: str) -> str | None:
    async with open_stores(fleet.settings) as stores:
        job = await stores.jobs.get(prompt_id)
        return None if job is None else job.node


async def whether(
    fleet: Fleet, prompt_id: str, holds: Callable[[dict[str, Any]], bool], what: str, *, within_s: float = 60
) -> None:
    async with httpx.AsyncClient(base_url=fleet.api_url, trust_env=False) as http:

        async def now() -> bool:
            return holds((await http.get(f"/api/v1/jobs/{prompt_id}")).json())

        await until(now, what=what, timeout_s=within_s)


async def on_its_node(fleet: Fleet, one: Editor, graph: dict[str, Any]) -> str:
    """Let an editor's graph have run; returns the node that has its results."""
    prompt_id, _ = await press(one, graph)
    node = await node_of(fleet, prompt_id)
    assert node is not None
    return node


async def press(one: Editor, graph: dict[str, Any]) -> tuple[str, EditorRun]:
    """Let a graph run; returns the prompt's id and what came of it."""
    prompt_id = await one.post(graph)
    return prompt_id, await one.ended(prompt_id, time.perf_counter())


@dataclass
class Watch:
    """Which nodes of a fleet are up and which are leased, looked at all the time.

    Attributes:
        fleet: The fleet.
        looks: Unix seconds of each look, the nodes that were up, and those that a run had.
    """

    fleet: Fleet
    looks: list[tuple[float, frozenset[str], frozenset[str]]] = field(default_factory=list)

    async def look(self) -> None:
        """Look until cancelled."""
        async with open_stores(self.fleet.settings) as stores:
            while True:
                states = await stores.nodes.states()
                up = frozenset(state.node.name for state in states if state.verdict == "up")
                leased = frozenset(state.node.name for state in states if state.run is not None)
                self.looks.append((time.time(), up, leased))
                await asyncio.sleep(0.05)

    async def lost(self, before: str, after: str) -> bool:
        """Return whether the node of an editor's run was rightly another's before its next run began.

        That is so if it was not up when the next run went elsewhere, or if somebody else's job got it as the
        only one: every other node had a job then, or was not up meanwhile.
        """
        async with open_stores(self.fleet.settings) as stores:
            first, again = await stores.jobs.get(before), await stores.jobs.get(after)
            newest = (await stores.jobs.find(JobFilter(owner=None, limit=200))).jobs
        assert first is not None and first.started_at and again is not None and again.started_at
        thieves = [
            job
            for job in newest
            if job.node == first.node
            and job.started_at
            and first.started_at < job.started_at < again.started_at
        ]
        if not thieves:
            assert again.node != first.node, "its own node has forgotten it"
            return first.node not in self._always_up(again.created_at, again.started_at)
        for job in thieves:
            assert self._only_one(job, newest), f"another node was free: {self._told(job, newest)}"
        return True

    def _told(self, thief: Job, jobs: Sequence[Job]) -> str:
        """Say for each node what it did and when, in seconds from the moment when one got the wrong job."""
        began = thief.started_at or 0.0
        parts = [f"{thief.node} was taken; created {thief.created_at - began:+.2f}"]
        for job in sorted(jobs, key=lambda job: (job.node or "", job.started_at or 0.0)):
            if job.started_at and abs(job.started_at - began) < 20 * LONG_S:
                ended = "runs" if job.completed_at is None else f"{job.completed_at - began:+.2f}"
                parts.append(f"{job.node} {job.started_at - began:+.2f} {ended}")
        always = sorted(self._always_up(thief.created_at, began))
        since, leased = self._before(began)
        looked = f"up all the time: {always}; leased since {since - began:+.2f}: {sorted(leased)}"
        return "; ".join([*parts, looked])

    def _only_one(self, thief: Job, jobs: Sequence[Job]) -> bool:
        began = thief.started_at or 0.0
        since, leased = self._before(began)
        working = {
            job.node
            for job in jobs
            if job.started_at and job.started_at <= began and (job.completed_at or began) >= since
        }
        return self._always_up(thief.created_at, began) <= working | leased | {thief.node}

    def _before(self, began: float) -> tuple[float, frozenset[str]]:
        """Return when the last looks before a moment began, and every node that was leased at one of them."""
        last = [(at, leased) for at, _, leased in self.looks if at <= began][-RELEASED_LOOKS:]
        return last[0][0] if last else began, frozenset[str]().union(*(leased for _, leased in last))

    def _always_up(self, since: float, by: float) -> frozenset[str]:
        since, by = since - LATE_S, by + LATE_S
        looks = [
            # The next ones on both sides, too, if it was slow.
            *[up for at, up, _ in self.looks if at <= since][-1:],
            *[up for at, up, _ in self.looks if since < at < by],
            *[up for at, up, _ in self.looks if at >= by][:1],
        ]
        return frozenset.intersection(*looks)


async def check_scenario(comfyui: Path | None, *, most_lost: int = 0) -> None:
    """Two rounds without and with a file, beside three strangers.

    Args:
        comfyui: Where real ComfyUIs' programs are; None: the nodes are simulated.
        most_lost: How many of the eight later runs may find that somebody else got their node because no
            other one took jobs, or that it took none: a busy machine keeps nodes from it.
    """
    async with iterating(comfyui=comfyui) as (fleet, _), editor(fleet.url) as one, AsyncExitStack() as stack:
        for _ in range(3):
            stranger = asyncio.create_task(strange_jobs(fleet.url, seconds=1.0))
            stack.callback(stranger.cancel)
        watch = Watch(fleet)
        stack.callback(asyncio.create_task(watch.look()).cancel)
        for turn in range(2):
            for picture in (None, await one.upload(noise(64))):
                seconds = LONG_S + turn / 10
                before, first = await press(one, edited_graph(seconds, "first", picture=picture))
                assert SLEEP not in first.cached
                for last in ("second", "third"):
                    after, again = await press(one, edited_graph(seconds, last, picture=picture))
                    if SLEEP not in again.cached:
                        assert await watch.lost(before, after), (turn, picture, last)
                        most_lost -= 1
                        assert most_lost >= 0, "the node was lost too often"
                    before = after


async def test_the_node_that_takes_long_runs_once() -> None:
    await check_scenario(None)


@pytest.mark.comfyui
@pytest.mark.timeout(900)
async def test_the_node_that_takes_long_runs_once_on_real_comfyuis(comfyui_home: Path) -> None:
    await check_scenario(comfyui_home, most_lost=3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[tuple[Fleet, Stage]]:
    """A fleet of two nodes and two dispatchers.

    Each test has an editor of its own, whose picture is in no node's cache: what others did says nothing.
    """
    async with iterating(nodes=2, dispatchers=2) as started:
        yield started


by_two = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def at_work(fleet: Fleet) -> AsyncIterator[None]:
    """Begin with both nodes, also if another test has killed or drained one."""
    async with fleet.stores() as stores:
        for state in await stores.nodes.states():
            await stores.nodes.uncordon(state.node.name)
    await fleet.until_up(2)
    yield


@by_two
async def test_who_presses_run_too_early_is_told_what_the_run_waits_for(two: tuple[Fleet, Stage]) -> None:
    fleet, _ = two
    async with at_work(fleet), editor(fleet.url) as one:
        edited = partial(edited_graph, picture=await one.upload(noise(64)))
        node = await on_its_node(fleet, one, edited(2 * LONG_S, "first"))
        running = await one.post(edited(LONG_S - 2, "other"))
        await whether(fleet, running, lambda job: job["status"] == "running", "it runs")
        assert await node_of(fleet, running) == node
        waiting = await one.post(edited(LONG_S - 2, "another"))
        await whether(
            fleet,
            waiting,
            lambda job: str(job["waiting_for"]).startswith(f"{node} has this graph's results: at most "),
            "it says what it waits for",
        )
        beside = await one.post(edited(LONG_S - 2, "a third one waits for nothing"))
        await whether(fleet, beside, lambda job: job["status"] == "running", "the third one runs")
        assert await node_of(fleet, beside) != node
        await one.ended(running, time.perf_counter())
        assert SLEEP in (await one.ended(waiting, time.perf_counter())).cached
        assert await node_of(fleet, waiting) == node


@by_two
@pytest.mark.parametrize("what", ["drain", "node", "dispatcher"])
async def test_what_happens_while_a_run_waits_ends_well(two: tuple[Fleet, Stage], what: str) -> None:
    """The node drains or dies, or a dispatcher is killed: the run goes on, and none is lost."""
    fleet, stage = two
    async with at_work(fleet), editor(fleet.url) as one:
        edited = partial(edited_graph, picture=await one.upload(noise(64)))
        node = await on_its_node(fleet, one, edited(2 * LONG_S, "first"))
        running = await one.post(edited(LONG_S + 2, "other"))
        await whether(fleet, running, lambda job: job["status"] == "running", "it runs")
        assert await node_of(fleet, running) == node
        waiting = await one.post(edited(LONG_S + 3, "another"))
        await whether(fleet, waiting, lambda job: bool(job["waiting_for"]), "it waits")
        if what == "drain":
            await fleet.cordon(node)
        elif what == "node":
            number = int(node.rpartition("-")[2]) - 1
            os.kill(pid_of(stage.children[number]), signal.SIGKILL)
        else:
            for dispatcher in fleet.dispatchers:
                os.kill(pid_of(dispatcher), signal.SIGKILL)
        for prompt_id in (running, waiting):
            await whether(
                fleet,
                prompt_id,
                lambda job: job["status"] == "succeeded",
                "it has succeeded",
                within_s=AGAIN_S,
            )
        if what == "drain":
            assert await node_of(fleet, waiting) != node
            async with fleet.stores() as stores:
                before, after = await stores.jobs.get(running), await stores.jobs.get(waiting)
            assert before and after and after.started_at and before.completed_at
            assert after.started_at < before.completed_at, "it waited on"


@by_two
async def test_two_who_alternate_each_keep_a_node(two: tuple[Fleet, Stage]) -> None:
    fleet, _ = two
    async with at_work(fleet), editor(fleet.url) as ann, editor(fleet.url) as bob:
        await asyncio.gather(
            on_its_node(fleet, ann, edited_graph(1.0, "first")),
            on_its_node(fleet, bob, edited_graph(1.5, "first")),
        )
        for turn in range(3):
            for one, seconds in ((ann, 1.0), (bob, 1.5)):
                assert SLEEP in (await one.run(edited_graph(seconds, f"turn {turn}"))).cached
        # And at the same time: nobody takes the other's.
        for turn in range(3):
            both = await asyncio.gather(
                ann.run(edited_graph(1.0, f"both {turn}")), bob.run(edited_graph(1.5, f"both {turn}"))
            )
            assert all(SLEEP in run.cached for run in both)
