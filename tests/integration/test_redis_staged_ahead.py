"""Files on nodes for jobs that have not started: recorded before they are sent, deleted if not used."""

from collections.abc import Mapping
from typing import Any

import pytest

from comfy_fleet.adapters.redis.ahead import RedisAhead
from comfy_fleet.adapters.redis.scripts import source
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.domain.nodes.host import Cleanup
from comfy_fleet.ports.ahead import NextJob
from comfy_fleet.ports.runs import StagedInput
from tests.integration.redis_kit import add_nodes, claim, submit
from tests.integration.schedule_port_kit import everything
from tests.integration.test_peek import peek
from tests.integration.test_redis_staged import let_time_pass, node, orders, place, record

MOST = 1000


async def reads(stores: Stores, *assets: str, **fields: Any) -> Job:
    """Have a job wait that reads these files."""
    return await submit(stores, assets=frozenset(assets), **fields)


async def ahead(
    stores: Stores, job: Job | None, *assets: str, name: str = "g1", most_bytes: int = MOST
) -> Mapping[str, StagedInput]:
    wanted = NextJob(id=job.id, asset_ids=assets) if job is not None else None
    return await RedisAhead(stores.redis).stage_ahead(name, wanted, keep_s=60, most_bytes=most_bytes)


async def sent(stores: Stores, staged: StagedInput, name: str = "g1") -> bool:
    return await RedisAhead(stores.redis).staged_ahead(name, staged, keep_s=60)


async def test_a_run_finds_what_was_sent_before_it_began(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    assert there.new
    assert await sent(stores, there)
    again = (await ahead(stores, job, asset))[asset]
    assert (again.folders, again.new) == (there.folders, False)
    run = await claim(stores)
    assert run.job.id == job.id
    found = (await stores.runs.stage(run, [asset], keep_s=60))[asset]
    assert (found.folders, found.new) == (there.folders, False)
    # It is the run's from now on: another choice does not take it away.
    await ahead(stores, None)
    assert await orders(stores) == set()
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
    await let_time_pass(stores)
    assert await orders(stores) == {("g1", there.folders)}


async def test_a_run_never_reads_a_file_that_is_still_being_sent(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    run = await claim(stores)
    found = (await stores.runs.stage(run, [asset], keep_s=60))[asset]
    assert found.new
    assert found.folders != there.folders
    assert not await sent(stores, there), "the run has its own"
    assert await orders(stores) == {("g1", there.folders)}


@pytest.mark.parametrize("done", [False, True])
async def test_what_nobody_uses_is_deleted_even_if_its_dispatcher_was_killed(
    stores: Stores, done: bool
) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    if done:
        await sent(stores, there)
    assert await orders(stores) == set()
    await let_time_pass(stores)
    assert await orders(stores) == {("g1", there.folders)}
    assert await stores.redis.exists("fleet:staged:g1") == 0


async def test_a_file_that_comes_after_its_place_was_given_up_is_deleted_again(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    await let_time_pass(stores)
    folder, inner = there.folders.split("/")
    await orders(stores)
    assert await orders(stores, Cleanup(node="g1", job=folder, run=inner)) == set()
    assert not await sent(stores, there)
    await let_time_pass(stores)
    assert await orders(stores) == {("g1", there.folders)}
    assert await stores.redis.exists("fleet:staged:g1") == 0


async def test_another_choice_gives_up_what_was_sent_for_the_one_before(stores: Stores) -> None:
    await node(stores)
    one, two = await record(stores, "a1"), await record(stores, "a2", hash="blake3:02")
    both = await record(stores, "a3", hash="blake3:03")
    first, second = await reads(stores, one, both), await reads(stores, two, both)
    there = await ahead(stores, first, one, both)
    for each in there.values():
        await sent(stores, each)
    later = await ahead(stores, second, two, both)
    assert (later[both].folders, later[both].new) == (there[both].folders, False)
    assert await orders(stores) == {("g1", there[one].folders)}
    assert await sent(stores, later[two])
    await ahead(stores, None)
    assert {where for _, where in await orders(stores)} == {
        each.folders for each in [*there.values(), later[two]]
    }


async def test_what_is_being_sent_gets_a_moment_to_come_before_it_is_deleted(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    await ahead(stores, None)
    assert await orders(stores) == set()
    redis: Any = stores.redis
    left_s = (
        float(await redis.zscore("fleet:staged:g1:ends", f"ahead {there.folders}")) - (await redis.time())[0]
    )
    assert left_s < 10
    await let_time_pass(stores)
    assert await orders(stores) == {("g1", there.folders)}


async def test_a_job_that_waits_no_more_gets_nothing(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    await sent(stores, there)
    await stores.jobs.request_cancel(job.id)
    assert await ahead(stores, job, asset) == {}
    assert await orders(stores) == {("g1", there.folders)}


async def test_only_a_node_that_takes_jobs_and_is_cleaned_gets_files(stores: Stores) -> None:
    await node(stores)
    await node(stores, "other", cleans=False)
    await add_nodes(stores, "plain")
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    for name in ("other", "plain", "nobody"):
        assert await ahead(stores, job, asset, name=name) == {}
    (there,) = (await ahead(stores, job, asset)).values()
    await sent(stores, there)
    await stores.nodes.cordon("g1", reason="")
    assert await ahead(stores, job, asset) == {}
    assert await orders(stores) == {("g1", there.folders)}


async def test_no_more_than_so_many_bytes_are_there_ahead(stores: Stores) -> None:
    await node(stores)
    made = [
        await record(stores, f"a{number}", hash=f"blake3:0{number}", size_bytes=size)
        for number, size in enumerate((400, 700, 600))
    ]
    job = await reads(stores, *made)
    there = await ahead(stores, job, *made)
    assert there.keys() == {made[0], made[2]}, "the second would be too much"
    for each in there.values():
        await sent(stores, each)
    next_ = await reads(stores, made[1])
    assert (await ahead(stores, next_, made[1])).keys() == {made[1]}
    # What may still come counts until it is deleted.
    assert await ahead(stores, job, *made) == {}
    await let_time_pass(stores)
    assert (await ahead(stores, job, *made)).keys() == {made[0], made[2]}


async def test_a_removed_node_s_files_may_go(stores: Stores) -> None:
    await node(stores)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    (there,) = (await ahead(stores, job, asset)).values()
    await stores.nodes.remove("g1")
    assert [key async for key in stores.redis.scan_iter("fleet:staged:*")] == []
    assert await orders(stores) == {("g1", there.folders)}


async def test_nodes_are_not_all_sent_the_files_of_one_job(stores: Stores) -> None:
    for name in ("g1", "node2"):
        await node(stores, name)
    asset = await record(stores, "a1")
    first, second = await reads(stores, asset), await reads(stores, asset)
    for name in ("g1", "node2"):
        assert (await peek(stores, name)).next == NextJob(id=first.id, asset_ids=[asset])
    await ahead(stores, first, asset)
    assert (await peek(stores, "g1")).ahead == first.id
    there = await peek(stores, "node2")
    assert (there.next and there.next.id, there.ahead) == (second.id, "")
    # Who is free first gets the first, whatever was staged where.
    assert (await claim(stores, "node2")).job.id == first.id


async def test_a_job_is_free_for_others_once_its_files_are_given_up(stores: Stores) -> None:
    for name in ("g1", "node2"):
        await node(stores, name)
    asset, job = await record(stores, "a1"), await reads(stores, "a1")
    await ahead(stores, job, asset)
    assert (await peek(stores, "node2")).next is None
    await ahead(stores, None)
    found = (await peek(stores, "node2")).next
    assert found is not None and found.id == job.id


async def test_the_same_bytes_twice_are_sent_once(stores: Stores) -> None:
    await node(stores)
    made = [await record(stores, "a1"), await record(stores, "a2", file_path="other.png")]
    job = await reads(stores, *made)
    assert len(await ahead(stores, job, *made)) == 1


async def test_a_file_that_a_run_has_there_is_not_sent_again(stores: Stores) -> None:
    await node(stores)
    await submit(stores)
    run, asset = await claim(stores), await record(stores, "a1")
    where = await place(stores, run, asset)
    job = await reads(stores, asset)
    (there,) = (await ahead(stores, job, asset)).values()
    assert (there.folders, there.new) == (where, False)
    await ahead(stores, None)
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)
    assert await orders(stores) == set(), "it is not ahead's to give up"


async def test_nothing_that_a_choice_reads_changes(stores: Stores) -> None:
    """So the same jobs are chosen as without."""
    await node(stores)
    made = [await record(stores, f"a{number}", hash=f"blake3:0{number}") for number in range(2)]
    jobs = [await reads(stores, asset, models=(("checkpoints/m", 10**9),)) for asset in made]
    before = await read_by_choices(stores)
    for job, asset in zip(jobs, made, strict=True):
        (there,) = (await ahead(stores, job, asset)).values()
        await sent(stores, there)
    await ahead(stores, None)
    assert await read_by_choices(stores) == before
    text = source("claim", "fleet")
    assert not [word for word in ("'ahead'", ":staged:", ":ahead") if word in text]


async def read_by_choices(stores: Stores) -> dict[bytes, Any]:
    """Return all that is in Redis but for what only staging and agents read."""
    found = await everything(stores.redis)
    for value in found.values():
        if isinstance(value, dict):
            value.pop(b"ahead", None)
    return {
        key: value for key, value in found.items() if not key.startswith((b"fleet:staged:", b"fleet:trash:"))
    }
