"""What a job's record knows for ComfyUI's own interface: ids, numbers, owners' lists and events."""

import asyncio
from uuid import uuid4

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobFilter, JobStatus, OwnerEvent, Placement, PromptFields
from tests.integration.redis_kit import BROKEN, add_nodes, claim, forget, news_of, submit


async def posted(stores: Stores, owner: str = "local", **prompt: object) -> Job:
    return await submit(stores, owner=owner, prompt=PromptFields(**prompt))  # type: ignore[arg-type]


async def order(stores: Stores, count: int) -> list[str]:
    """Run the next jobs to their ends; return their prompts' ids in this order."""
    ids = []
    for _ in range(count):
        got = await claim(stores)
        ids.append(got.job.prompt_id)
        await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
    return ids


async def test_a_record_keeps_what_the_client_said(stores: Stores) -> None:
    prompt_id = str(uuid4())
    made = await posted(stores, prompt_id=prompt_id, client_id="tab \u00e9", targets=("9", "12"))
    read = await stores.jobs.get(made.id)
    assert read is not None
    for job in (made, read):
        assert (job.prompt_id, job.client_id, job.targets) == (prompt_id, "tab \u00e9", ("9", "12"))
    assert made == read
    plain = await submit(stores)
    assert (plain.prompt_id, plain.client_id, plain.targets) == (plain.id, None, ())


async def test_a_chosen_id_is_its_owners_and_means_the_newest_job(stores: Stores) -> None:
    first = await posted(stores, prompt_id="mine")
    assert await stores.jobs.by_prompt("local", "mine") == first.id
    second = await posted(stores, prompt_id="mine")
    other = await posted(stores, owner="ada", prompt_id="mine")
    assert await stores.jobs.by_prompt("local", "mine") == second.id
    assert await stores.jobs.by_prompt("ada", "mine") == other.id
    assert await stores.jobs.by_prompt("local", second.id) is None
    for job in (first, second):
        await stores.jobs.request_cancel(job.id)
    await forget(stores, first.id)
    assert await stores.jobs.by_prompt("local", "mine") == second.id
    await forget(stores, second.id)
    assert await stores.jobs.by_prompt("local", "mine") is None
    assert await stores.jobs.by_prompt("ada", "mine") == other.id


async def test_a_prompt_that_is_over_is_found_by_its_name_or_its_jobs_id(stores: Stores) -> None:
    async def found(owner: str, name: str, *, or_job_id: bool = True) -> str | None:
        got = await stores.prompts.ended_prompt(owner, name, or_job_id=or_job_id)
        return None if got is None else got[0].id

    await add_nodes(stores, "g1")
    job = await posted(stores, prompt_id="mine")
    assert await found("local", "mine") is await found("local", job.id) is None
    run = await claim(stores)
    assert await found("local", "mine") is await found("local", job.id) is None
    await stores.jobs.request_cancel(job.id)
    assert await found("local", "mine") is None
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
    assert await found("local", "mine") == await found("local", job.id) == job.id
    assert await found("local", job.id, or_job_id=False) is await found("local", f"{job.id}:outputs") is None
    assert await found("ada", "mine") is await found("ada", job.id) is None

    again = await posted(stores, prompt_id="mine")
    assert await found("local", "mine") is None  # the name means the newer one now
    await order(stores, 1)
    assert (await found("local", "mine"), await found("local", job.id)) == (again.id, job.id)
    await forget(stores, again.id)
    assert await found("local", "mine") is await found("local", again.id) is None


async def test_numbers_count_up_for_each_owner(stores: Stores) -> None:
    numbers = [(await posted(stores, owner=owner)).number for owner in ("local", "ada", "local", "local")]
    assert numbers == [1, 1, 2, 3]
    assert [(await posted(stores, front=True)).number, (await posted(stores, number=0.5)).number] == [-4, 0.5]
    assert (await posted(stores)).number == 6


async def test_a_low_number_goes_before_its_owners_jobs_and_nobody_elses(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    await posted(stores, owner="ada", prompt_id="ada 1")
    await posted(stores, prompt_id="one")
    await posted(stores, owner="ada", prompt_id="ada 2")
    await posted(stores, prompt_id="two")
    await posted(stores, prompt_id="front", front=True)
    await posted(stores, prompt_id="before it", front=True)
    await posted(stores, prompt_id="between", number=1.5)
    assert [job.prompt_id for job in await stores.jobs.live("local")] == [
        *("before it", "front", "one", "between", "two")
    ]
    assert await order(stores, 7) == ["ada 1", "before it", "ada 2", "front", "one", "between", "two"]


async def test_a_low_number_takes_no_place_in_another_queue(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    elsewhere = Placement(pool="big")
    await submit(stores, placement=elsewhere)  # the oldest: no node is there for it
    await posted(stores, owner="ada", prompt_id="ada")
    await posted(stores, prompt_id="front", front=True)
    assert await order(stores, 2) == ["ada", "front"]


async def test_live_jobs_are_those_that_are_not_final(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    done, given_back, waits, canceled = [await posted(stores, prompt_id=str(i)) for i in range(4)]
    await submit(stores, owner="ada", placement=Placement(pool="big"))
    await order(stores, 1)
    await stores.jobs.request_cancel(canceled.id)
    run = await claim(stores)
    assert [job.id for job in await stores.jobs.live("local")] == [given_back.id, waits.id]
    await stores.runs.requeue(run, counts=False, reason=BROKEN)
    assert [job.id for job in await stores.jobs.live("local")] == [given_back.id, waits.id]
    assert await stores.jobs.live_count("local") == 2
    # A version that does not know the list has ended a job.
    await stores.redis.zadd(stores.redis.keyspace.live("local"), {done.id: 1, str(uuid4()): 2})
    assert len(await stores.jobs.live("local")) == 2
    assert await stores.jobs.live_count("local") == 2


async def test_only_final_jobs_of_ones_own_leave_the_history(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    done, waits = await posted(stores), await posted(stores)
    await order(stores, 1)
    assert await stores.jobs.hide("ada", [done.id]) == 0
    assert await stores.jobs.hide("local", [done.id, waits.id, str(uuid4())]) == 1
    shown = await stores.jobs.find(JobFilter(owner="local", hidden=False))
    every = await stores.jobs.find(JobFilter(owner="local"))
    assert ([job.id for job in shown.jobs], [job.id for job in every.jobs]) == (
        [waits.id],
        [waits.id, done.id],
    )


async def test_what_may_be_read_of_extra_data_lasts_as_long_as_the_job(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    extra = {"extra_pnginfo": {"workflow": {"nodes": ["x" * 5000]}}, "preview_method": "auto"}
    job = await submit(stores, extra_data=extra, secret=b"sealed")
    got = await claim(stores)
    assert got.extra_data == extra
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=None)
    read = await stores.jobs.get(job.id)
    assert read is not None
    assert [one.extra_data for one in await stores.prompts.contents([read], 10**6)] == [extra]
    await forget(stores, job.id)
    assert not await stores.redis.keys(f"*{job.id}*")
    assert [one.extra_data for one in await stores.prompts.contents([await submit(stores)], 10**6)] == [{}]


async def test_an_owner_is_told_of_each_status(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    seen: list[OwnerEvent] = []
    async with news_of(stores) as news:
        await posted(stores, owner="ada")
        await stores.runs.claim(
            node="g1", placements=[Placement()], run="r0", token="t", dispatcher="d", ttl_s=5
        )
        job = await posted(stores, prompt_id='say "hi"', client_id="tab")
        run = await claim(stores, "g2")
        await stores.runs.requeue(run, counts=False, reason=BROKEN)
        again = await claim(stores, "g2")
        await stores.jobs.request_cancel(job.id)
        await stores.runs.finish(again, JobStatus.CANCELED, error=None, duration_s=None)
        async with asyncio.timeout(60):
            while not (seen and seen[-1].status.terminal):
                seen.append(await anext(news))
    assert [(one.status.value, one.run, one.live) for one in seen] == [
        ("queued", None, 1),
        ("running", run.run, 1),
        ("queued", None, 1),
        ("running", again.run, 1),
        ("canceling", again.run, 1),
        ("canceled", again.run, 0),
    ]
    assert {(one.job_id, one.client_id, one.prompt_id) for one in seen} == {(job.id, "tab", 'say "hi"')}
