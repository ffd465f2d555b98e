"""The version before beside this one, on one Redis: what it may still do, and what owners see of it."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis import owner_lists
from comfy_fleet.adapters.redis.owner_lists import OwnerLists
from comfy_fleet.adapters.redis.scripts import SCHEMA
from comfy_fleet.api import main
from comfy_fleet.bootstrap import Stores, check_schema, open_stores
from comfy_fleet.domain.errors import ConfigError, Outdated
from comfy_fleet.domain.jobs.job import Job, JobStatus, OwnerEvent, PromptFields
from comfy_fleet.domain.jobs.prompt_entries import ListedState
from comfy_fleet.ports.prompts import PromptFilter
from comfy_fleet.ports.runs import Claim
from tests.factories import picture
from tests.fleet import fleet_of, until
from tests.integration.native.socket_kit import facing
from tests.integration.redis_kit import BROKEN, add_nodes, news_of, submit
from tests.integration.redis_kit import claim as taken
from tests.older_version import OlderRuns, older

ALL = frozenset(ListedState)


async def claim(stores: Stores, node: str = "g1", ttl: float = 5) -> Claim:
    """Start the next job on a node, after a look at what waits, as a dispatcher does."""
    await stores.runs.waiting()
    return await taken(stores, node, ttl=ttl)


async def mended(stores: Stores) -> int:
    """Compare the lists now, whoever has done so a moment ago."""
    await stores.redis.delete("fleet:listed:mended")
    return await stores.jobs.lists.mend()


async def kept(stores: Stores, owner: str = "local") -> dict[str, list[str]]:
    """Return an owner's lists as they are in Redis: reading them otherwise may put them right."""
    client: Any = stores.redis
    lists = {"live": f"live:{owner}", "history": f"history:{owner}"}
    lists |= {state.value: f"listed:{owner}:{state.value}" for state in ListedState}
    return {
        name: sorted(raw.decode() for raw in await client.zrange(f"fleet:{key}", 0, -1))
        for name, key in lists.items()
    }


async def seen(stores: Stores, owner: str = "local") -> dict[str, list[str]]:
    """Return what an owner's client is told."""
    prompts = stores.prompts
    queue = await prompts.queue(owner)
    page = await prompts.page(PromptFilter(owner=owner, states=ALL))
    found = {
        "live": sorted(one.id for one in queue),
        "history": sorted(await prompts.history(owner, 0, -1)),
        **{state.value: sorted(id_ for id_, its in page.rows if its is state) for state in ListedState},
    }
    assert await stores.jobs.live_count(owner) == len(queue)
    assert page.total == len(page.rows)
    assert sorted(await prompts.queued_ids(owner)) == found["pending"]
    return found


async def ended(stores: Stores, run: Claim, status: JobStatus = JobStatus.SUCCEEDED) -> None:
    error = BROKEN if status is JobStatus.FAILED else None
    assert await stores.runs.finish(run, status, error=error, duration_s=1.0) == status


async def at_every_stage(old: Stores) -> dict[str, Job]:
    """Have an older version take a job to each stage; keys are stages."""
    await add_nodes(old, "g1", "g2", "g3")
    jobs = {stage: await submit(old) for stage in ("done", "failed", "canceled", "running", "canceling")}
    await ended(old, await claim(old))
    await ended(old, await claim(old), JobStatus.FAILED)
    await old.jobs.request_cancel((await claim(old)).job.id)
    await old.runs.take_over(dispatcher="d1", ttl_s=9, limit=9)  # nothing has lapsed
    await claim(old, "g2")
    await claim(old, "g3")
    await old.jobs.request_cancel(jobs["canceling"].id)
    return {**jobs, "queued": await submit(old)}


@pytest.mark.parametrize("started", [True, False], ids=["at the start", "with the first submit"])
async def test_no_older_dispatcher_takes_a_job_with_targets_and_extra_data(
    stores: Stores, started: bool
) -> None:
    old = older(stores)
    await add_nodes(stores, "g1")
    if started:
        await check_schema(stores)
    job = await submit(stores, prompt=PromptFields(targets=("2",)), extra_data={"a": 1})
    with pytest.raises(Outdated):
        await claim(old)
    assert await stores.jobs.depth() == 1
    run = await claim(stores)
    assert (run.job.id, run.job.targets, run.extra_data) == (job.id, ("2",), {"a": 1})


async def test_no_older_dispatcher_takes_over_a_run_that_it_can_not_go_on_with(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await submit(stores, prompt=PromptFields(targets=("2",)))
    await claim(stores, ttl=-1)
    assert not await older(stores).runs.take_over(dispatcher="old", ttl_s=9, limit=9)
    assert len(await stores.runs.take_over(dispatcher="new", ttl_s=9, limit=9)) == 1


async def test_an_older_api_takes_nothing_after_a_newer_dispatcher_has_started(stores: Stores) -> None:
    old = older(stores)
    await add_nodes(stores, "g1")
    before = await submit(old)
    await check_schema(stores)
    with pytest.raises(Outdated, match=f"holds layout {SCHEMA} and this process knows layout 1"):
        await submit(old)
    run = await claim(stores)
    assert run.job.id == before.id
    await ended(stores, run)
    assert await old.jobs.get(before.id)  # it goes on reading
    with pytest.raises(Outdated):
        await old.runs.check_schema()


async def test_what_an_older_version_has_left_is_listed(stores: Stores) -> None:
    old = older(stores)
    jobs = await at_every_stage(old)
    await check_schema(stores)
    ids = {stage: job.id for stage, job in jobs.items()}
    expected = {
        "live": sorted([ids["running"], ids["canceling"], ids["canceled"], ids["queued"]]),
        "history": sorted([ids["done"], ids["failed"]]),
        "pending": [ids["queued"]],
        "in_progress": sorted([ids["running"], ids["canceling"], ids["canceled"]]),
        "completed": [ids["done"]],
        "failed": [ids["failed"]],
        "cancelled": [],
    }
    async with news_of(stores) as news:
        assert await stores.jobs.live_count("local") == 4  # the first question of a websocket
        last = await submit(stores)
        event = await asyncio.wait_for(anext(news), 60)
        assert (event.job_id, event.live) == (last.id, 5)  # and no event for each job of before
        await stores.jobs.request_cancel(last.id)
    assert await seen(stores) == expected == await kept(stores)
    assert [job.id for job in await stores.jobs.live("local")][-1] == ids["queued"]


async def test_a_low_number_goes_before_the_owners_jobs_of_an_older_version(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    first = await submit(older(stores))
    front = await submit(stores, prompt=PromptFields(front=True))
    assert [(await claim(stores)).job.id] == [front.id]
    assert [one.id for one in await stores.prompts.queue("local")] == [front.id, first.id]


async def test_what_an_older_version_ends_leaves_the_lists(stores: Stores) -> None:
    old = older(stores)
    await add_nodes(stores, "g1", "g2", "g3", "g4", "g5")
    jobs = [await submit(old, deadline_s=deadline) for deadline in (None, None, None, None, None, None, 0.05)]
    runs = [await claim(old, f"g{number}", ttl=-1 if number == 5 else 9) for number in range(1, 6)]
    done, failed, again, canceled, lapsed = (run.job.id for run in runs)
    waiting, overdue = jobs[5].id, jobs[6].id
    await check_schema(stores)
    before = await seen(stores)
    assert len(before["live"]) == 7 and await mended(stores) == 0

    async with news_of(stores) as news:
        await ended(old, runs[0])
        await ended(old, runs[1], JobStatus.FAILED)
        await old.runs.requeue(runs[2], counts=False, reason=BROKEN)
        await old.jobs.request_cancel(canceled)
        assert await old.runs.requeue(runs[3], counts=False, reason=BROKEN) == "canceled"
        (held,) = await old.runs.take_over(dispatcher="d2", ttl_s=9, limit=9)
        assert held.claim.job.id == lapsed
        await ended(old, held.claim)
        await old.jobs.request_cancel(waiting)
        await until(lambda: old.runs.overdue(9), what="the deadline is over")
        assert await kept(stores) == before  # an older version leaves them

        assert await mended(stores) == 7
        events: dict[str, OwnerEvent] = {}
        for _ in range(7):
            event = await asyncio.wait_for(anext(news), 60)
            assert event.job_id not in events
            events[event.job_id] = event
    assert {id_: event.status for id_, event in events.items()} == {
        done: "succeeded",
        failed: "failed",
        again: "queued",
        canceled: "canceled",
        lapsed: "succeeded",
        waiting: "canceled",
        overdue: "expired",
    }
    assert min(event.live for event in events.values()) == 1
    expected = {
        "live": [again],
        "history": sorted([done, failed, canceled, lapsed, overdue]),
        "pending": [again],
        "in_progress": [],
        "completed": sorted([done, lapsed]),
        "failed": sorted([failed, overdue]),
        "cancelled": [canceled],
    }
    assert await kept(stores) == expected == await seen(stores)
    assert await mended(stores) == 0
    await ended(stores, await claim(stores))  # given back by the older version, and run by this one
    assert await stores.jobs.live_count("local") == 0


async def test_who_looks_first_tells_the_others_what_an_older_version_has_done(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    job = await submit(older(stores))
    run = await claim(older(stores))
    await check_schema(stores)
    assert (await seen(stores))["in_progress"] == [job.id]
    async with news_of(stores) as news:
        await ended(older(stores), run)
        found = await stores.prompts.page(PromptFilter(owner="local", states=ALL))
        assert found.rows == ((job.id, ListedState.COMPLETED),)
        event = await asyncio.wait_for(anext(news), 60)
        assert (event.job_id, event.status, event.live) == (job.id, "succeeded", 0)
    assert await stores.jobs.live_count("local") == 0


async def test_a_job_that_an_older_version_has_forgotten_is_in_no_list(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    ran, waits = await submit(stores), await submit(stores)
    await ended(stores, await claim(stores))
    await seen(stores)
    await older(stores).jobs.request_cancel(waits.id)
    for job in (ran, waits):
        await older(stores).runs.forget(job.id)
    assert await mended(stores) == 1
    await stores.jobs.hide("local", [ran.id])  # "clear" of the history
    assert not any((await kept(stores)).values())


async def test_comparing_takes_small_steps_and_one_process_does_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_lists, "MENDED_AT_ONCE", 7)
    monkeypatch.setattr(owner_lists, "OWNERS", 3)
    owners = [f"o{number}" for number in range(8)]
    for number, owner in enumerate(owners):
        jobs = [await submit(stores, owner=owner) for _ in range(3 * number)]
        await seen(stores, owner)
        for job in jobs[::2]:
            await older(stores).jobs.request_cancel(job.id)
    other = OwnerLists(stores.redis)
    wrong = sum((3 * number + 1) // 2 for number in range(8))
    counts = await asyncio.gather(stores.jobs.lists.mend(), other.mend())
    assert sorted(counts) == [0, wrong]
    for number, owner in enumerate(owners):
        lists = await kept(stores, owner)
        assert len(lists["live"]) == len(lists["pending"]) == 3 * number // 2
    assert await stores.jobs.lists.mend() == 0  # not so soon again
    assert await mended(stores) == 0


async def test_an_older_version_that_finds_redis_emptied_hides_no_job(stores: Stores) -> None:
    await submit(stores)
    assert len((await seen(stores))["live"]) == 1
    await stores.redis.flushall()
    job = await submit(older(stores))
    await mended(stores)
    assert (await seen(stores))["live"] == [job.id]
    with pytest.raises(Outdated):  # looking has raised the layout: nothing is added unseen
        await submit(older(stores))


async def test_an_older_process_leaves_a_newer_layouts_lists_alone(stores: Stores) -> None:
    await submit(stores)
    await stores.redis.set("fleet:schema", SCHEMA + 1)
    before = await kept(stores)
    assert await stores.jobs.live_count("local") == 1
    assert await mended(stores) == 0
    assert await kept(stores) == before
    assert not await stores.redis.exists("fleet:listed")


async def test_a_queue_can_be_read_and_emptied_while_redis_is_full(stores: Stores) -> None:
    job = await submit(stores)
    await stores.redis.config_set("maxmemory", 1)
    try:
        assert [one.id for one in await stores.prompts.queue("local")] == [job.id]
        assert await stores.jobs.live_count("local") == 1
        assert await stores.jobs.withdraw("local", await stores.prompts.queued_ids("local")) == 1
    finally:
        await stores.redis.config_set("maxmemory", 0)


class Held(OlderRuns):
    """Lets no run end before the gate opens."""

    gate: asyncio.Event

    async def finish(self, claim: Claim, status: JobStatus, **rest: Any) -> JobStatus:
        await self.gate.wait()
        return await super().finish(claim, status, **rest)


async def test_a_new_api_first_and_dispatchers_later(
    redis_port: int, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's queue empties although an older dispatcher ends what runs; its prompt waits for a new."""
    monkeypatch.setattr(main, "MEND_S", 0.05)
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(fleet_of(redis_port, "g1", dispatch=False))
        new, old = fleet.stores, older(fleet.stores)
        held = Held(new.redis, 1)
        held.gate = asyncio.Event()
        fleet.stores = replace(old, runs=held)
        dispatcher = await fleet.dispatcher("old")
        job = await fleet.submit(picture(1))
        await until(lambda: len(dispatcher.dispatcher.flying) == 1, what="it runs")
        fleet.stores = new
        await check_schema(new)
        world = await stack.enter_async_context(facing(fleet, redis_port))  # it would raise the layout itself

        client = await world.client()
        assert client.seen[0][1]["status"]["exec_info"]["queue_remaining"] == 1
        (running,) = (await client.http.get("/queue")).json()["queue_running"]
        assert running[1] == job.id
        held.gate.set()
        await client.until(
            lambda type_, data: type_ == "status" and data["status"]["exec_info"]["queue_remaining"] == 0
        )
        assert (await client.http.get("/queue")).json() == {"queue_running": [], "queue_pending": []}
        assert list((await client.http.get("/history")).json()) == [job.id]
        with pytest.raises(ConfigError, match="newer version"):
            await asyncio.wait_for(asyncio.shield(dispatcher.task), 30)

        await until(lambda: "g1" in world.apis[0].deps.inventories.known, what="the node is read")
        prompt = await client.post(picture(2), extra_data={"extra_pnginfo": {"a": 1}})
        assert (await client.http.get("/queue")).json()["queue_pending"][0][1] == prompt
        await fleet.dispatcher("new")
        await client.ended(prompt)
        assert set((await client.http.get("/history")).json()) == {job.id, prompt}


@pytest.mark.parametrize("layout", [1, 2])
async def test_dispatchers_first_and_a_new_api_later(redis_port: int, redis: Redis, layout: int) -> None:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(fleet_of(redis_port, "g1", dispatch=False))
        new = fleet.stores
        old = older(await stack.enter_async_context(open_stores(fleet.settings)), layout)
        jobs = [await submit(old) for _ in range(3)]
        await check_schema(new)
        await fleet.dispatcher("new")
        assert [(await fleet.ended(job.id)).status for job in jobs] == ["succeeded"] * 3
        with pytest.raises(Outdated):
            await submit(old)
        world = await stack.enter_async_context(facing(fleet, redis_port))
        client = await world.client()
        assert set((await client.http.get("/history")).json()) == {job.id for job in jobs}
        assert client.seen[0][1]["status"]["exec_info"]["queue_remaining"] == 0
