"""Somebody edits a graph on four nodes while others work on three: a run gets what the last one computed."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.editing import SLEEP, Editor, EditorRun, edited_graph, editor, noise, strange_jobs
from benchmarks.stage import Fleet, Options, Stage, pid_of
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.jobs.job import JobFilter
from tests.fleet import until

pytestmark = pytest.mark.timeout(240)
LONG_S = 3.0
"""What the node takes that is not to run again."""
AGAIN_S = 80.0
"""For a run of some seconds whose node or dispatchers were killed: those start again before it goes on, and
a start is processor time, which a busy machine is long in giving."""


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


async def job_of(fleet: Fleet, prompt_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=fleet.api_url, trust_env=False) as http:
        found: dict[str, Any] = (await http.get(f"/api/v1/jobs/{prompt_id}")).json()
        return found


async def whether(
    fleet: Fleet, prompt_id: str, holds: Callable[[dict[str, Any]], bool], what: str, *, within_s: float = 20
) -> None:
    async def now() -> bool:
        return holds(await job_of(fleet, prompt_id))

    await until(now, what=what, timeout_s=within_s)


async def on_its_node(fleet: Fleet, one: Editor, seconds: float = LONG_S) -> str:
    """Let an editor's graph have run; returns the node that has its results."""
    prompt_id, _ = await press(one, edited_graph(seconds, "first"))
    node = await node_of(fleet, prompt_id)
    assert node is not None
    return node


async def press(one: Editor, graph: dict[str, Any]) -> tuple[str, EditorRun]:
    """Let a graph run; returns the prompt's id and what came of it."""
    prompt_id = await one.post(graph)
    return prompt_id, await one.ended(prompt_id, time.perf_counter())


async def taken(fleet: Fleet, before: str, after: str) -> bool:
    """Return whether somebody else's job began on the node of an editor's run before its next run did."""
    async with open_stores(fleet.settings) as stores:
        first, again = await stores.jobs.get(before), await stores.jobs.get(after)
        newest = (await stores.jobs.find(JobFilter(owner=None))).jobs
    assert first is not None and first.started_at and again is not None and again.started_at
    begun = [job.started_at for job in newest if job.node == first.node and job.started_at]
    return any(first.started_at < at < again.started_at for at in begun)


async def check_scenario(comfyui: Path | None, *, most_taken: int = 0) -> None:
    """Two rounds without and with a file, beside three strangers.

    Args:
        comfyui: Where real ComfyUIs' programs are; None: the nodes are simulated.
        most_taken: How many of the eight later runs may find that somebody else got their node, as is right
            while fewer than three others take jobs: a busy machine keeps nodes from it.
    """
    async with iterating(comfyui=comfyui) as (fleet, _), editor(fleet.url) as one, AsyncExitStack() as stack:
        for _ in range(3):
            stranger = asyncio.create_task(strange_jobs(fleet.url, seconds=1.0))
            stack.callback(stranger.cancel)
        for turn in range(2):
            for picture in (None, await one.upload(noise(64))):
                seconds = LONG_S + turn / 10
                before, first = await press(one, edited_graph(seconds, "first", picture=picture))
                assert SLEEP not in first.cached
                for last in ("second", "third"):
                    after, again = await press(one, edited_graph(seconds, last, picture=picture))
                    if SLEEP not in again.cached:
                        assert await taken(fleet, before, after), (turn, picture, last)
                        most_taken -= 1
                        assert most_taken >= 0, "others got the node too often"
                    before = after


async def test_the_node_that_takes_long_runs_once() -> None:
    await check_scenario(None)


@pytest.mark.comfyui
@pytest.mark.timeout(900)
async def test_the_node_that_takes_long_runs_once_on_real_comfyuis(comfyui_home: Path) -> None:
    await check_scenario(comfyui_home, most_taken=3)


async def test_who_presses_run_too_early_is_told_what_the_run_waits_for() -> None:
    async with iterating(nodes=3) as (fleet, _), editor(fleet.url) as one:
        node = await on_its_node(fleet, one, 2 * LONG_S)
        running = await one.post(edited_graph(LONG_S - 2, "other"))
        await whether(fleet, running, lambda job: job["status"] == "running", "it runs")
        assert await node_of(fleet, running) == node
        waiting = await one.post(edited_graph(LONG_S - 2, "another"))
        await whether(
            fleet,
            waiting,
            lambda job: str(job["waiting_for"]).startswith(f"{node} has this graph's results: at most "),
            "it says what it waits for",
        )
        beside = await one.post(edited_graph(LONG_S - 2, "a third one waits for nothing"))
        await whether(fleet, beside, lambda job: job["status"] == "running", "the third one runs")
        assert await node_of(fleet, beside) != node
        await one.ended(running, time.perf_counter())
        assert SLEEP in (await one.ended(waiting, time.perf_counter())).cached
        assert await node_of(fleet, waiting) == node


@pytest.mark.parametrize("what", ["drain", "node", "dispatcher"])
async def test_what_happens_while_a_run_waits_ends_well(what: str) -> None:
    """The node drains or dies, or a dispatcher is killed: the run goes on, and none is lost."""
    async with iterating(nodes=2, dispatchers=2) as (fleet, stage), editor(fleet.url) as one:
        node = await on_its_node(fleet, one, 2 * LONG_S)
        running = await one.post(edited_graph(LONG_S + 2, "other"))
        await whether(fleet, running, lambda job: job["status"] == "running", "it runs")
        assert await node_of(fleet, running) == node
        waiting = await one.post(edited_graph(LONG_S + 3, "another"))
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
            ended = "it has succeeded"
            await whether(fleet, prompt_id, lambda job: job["status"] == "succeeded", ended, within_s=AGAIN_S)
        if what == "drain":
            assert await node_of(fleet, waiting) != node
            assert (await job_of(fleet, waiting))["metrics"]["queue_ms"] < LONG_S * 1500, "it did not wait on"


async def test_two_who_alternate_each_keep_a_node() -> None:
    async with (
        iterating(nodes=2, dispatchers=2) as (fleet, _),
        editor(fleet.url) as ann,
        editor(fleet.url) as bob,
    ):
        await asyncio.gather(on_its_node(fleet, ann, 1.0), on_its_node(fleet, bob, 1.5))
        for turn in range(3):
            for one, seconds in ((ann, 1.0), (bob, 1.5)):
                assert SLEEP in (await one.run(edited_graph(seconds, f"turn {turn}"))).cached
        # And at the same time: nobody takes the other's.
        for turn in range(3):
            both = await asyncio.gather(
                ann.run(edited_graph(1.0, f"both {turn}")), bob.run(edited_graph(1.5, f"both {turn}"))
            )
            assert all(SLEEP in run.cached for run in both)
