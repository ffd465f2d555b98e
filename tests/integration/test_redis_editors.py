"""Jobs of editors: they wait a little for the node that has their graph's results."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.ports.runs import Claim, Refused
from tests.integration.redis_kit import BROKEN, add_nodes, submit

ANN, BOB = "a" * 32, "b" * 32


@pytest.fixture
async def store(stores: Stores) -> Stores:
    """Three nodes that are up."""
    await add_nodes(stores, "g1", "g2", "g3")
    for name in ("g1", "g2", "g3"):
        await stores.nodes.report(name, verdict="up", why="")
    return stores


async def edited(store: Stores, editor: str = ANN, *, patience_s: float = 10.0, **fields: Any) -> Job:
    return await submit(store, editor=editor, patience_s=patience_s, **fields)


async def asked(
    store: Stores,
    node: str,
    *,
    ttl_s: float = 5,
    unawaited: tuple[str, ...] = (),
    placement: str = "default",
    spare: bool = False,
) -> Claim | Refused:
    return await store.runs.claim(
        node=node,
        placements=[Placement.parse(placement)],
        run=str(uuid4()),
        token=uuid4().hex,
        dispatcher="d1",
        ttl_s=ttl_s,
        unawaited=unawaited,
        spare=spare,
    )


async def took(store: Stores, node: str, job: Job) -> Claim:
    """Claim a node and get this job."""
    got = await asked(store, node)
    assert isinstance(got, Claim), got
    assert got.job.id == job.id
    return got


async def over(
    store: Stores,
    claim: Claim,
    *,
    ran_s: float | None = 8.0,
    warm: bool = False,
    status: JobStatus = JobStatus.SUCCEEDED,
) -> None:
    await store.runs.finish(claim, status, error=None, duration_s=None, ran_s=ran_s, warm=warm)


async def has_run(store: Stores, node: str = "g1", editor: str = ANN, **end: Any) -> None:
    """Let an editor's run have been on a node."""
    await over(store, await took(store, node, await edited(store, editor)), **end)


def waits(got: Claim | Refused, node: str = "g1") -> float:
    """Return for how long the only job waits for a node."""
    assert isinstance(got, Refused), got
    assert (got.why, got.node) == ("waits", node)
    return got.left_s


async def test_the_next_run_is_left_to_the_node_that_has_the_results(store: Stores) -> None:
    await has_run(store)
    job = await edited(store)
    assert 7 < waits(await asked(store, "g2")) <= 8, "not longer than the last run took"
    told = await store.jobs.waits(job)
    assert told.results_on == "g1"
    assert 7 < told.results_s <= 8
    await took(store, "g1", job)


async def test_the_setting_bounds_the_wait_and_ends_it(store: Stores) -> None:
    await has_run(store)
    held = await took(store, "g1", await edited(store))
    job = await edited(store, patience_s=0.3)
    assert 0 < waits(await asked(store, "g2")) <= 0.3
    await asyncio.sleep(0.31)
    await took(store, "g2", job)
    await over(store, held)


async def test_with_no_patience_any_node_is_as_good(store: Stores) -> None:
    await has_run(store)
    await took(store, "g2", await edited(store, patience_s=0.0))


async def test_others_pass_while_it_waits_and_it_keeps_its_place(store: Stores) -> None:
    await has_run(store)
    job = await edited(store)
    other = await submit(store)
    got = await took(store, "g2", other)
    assert got.jobs_behind == 1
    await submit(store)
    await took(store, "g1", job)


async def test_somebody_else_s_run_takes_the_results_away(store: Stores) -> None:
    await has_run(store)
    await took(store, "g1", await submit(store))
    await took(store, "g2", await edited(store))


async def test_a_job_that_has_just_come_leaves_the_node_to_its_editor_for_a_moment(store: Stores) -> None:
    await has_run(store)
    other = await submit(store)
    got = await asked(store, "g1", spare=True)
    assert isinstance(got, Refused) and got.why == "spared" and 0 < got.left_s <= 0.25, got
    mine = await edited(store)
    claim = await asked(store, "g1", spare=True)
    assert isinstance(claim, Claim) and claim.job.id == mine.id
    await over(store, claim, warm=True, ran_s=1.0)
    await asyncio.sleep(0.26)
    claim = await asked(store, "g1", spare=True)
    assert isinstance(claim, Claim) and claim.job.id == other.id
    await over(store, claim)
    last = await submit(store)
    claim = await asked(store, "g1", spare=True)  # nobody's results are there any more
    assert isinstance(claim, Claim) and claim.job.id == last.id


async def test_without_another_node_to_wait_for_a_job_takes_the_editors_at_once(store: Stores) -> None:
    await has_run(store)
    await took(store, "g1", await submit(store))


async def test_two_editors_that_alternate_wait_for_nothing_that_is_not_there(store: Stores) -> None:
    await has_run(store, "g1", ANN)
    await has_run(store, "g1", BOB)
    job = await edited(store, ANN)
    await over(store, await took(store, "g2", job))
    for editor, node, other in ((ANN, "g2", "g3"), (BOB, "g1", "g3")):
        job = await edited(store, editor)
        waits(await asked(store, other), node)
        await over(store, await took(store, node, job), warm=True, ran_s=1.0)


async def test_a_batch_does_not_line_up_behind_one_node(store: Stores) -> None:
    await has_run(store)
    first, second, third = [await edited(store) for _ in range(3)]
    await took(store, "g2", second)
    await took(store, "g3", third)
    await took(store, "g1", first)


@pytest.mark.parametrize("what", ["drain", "down", "cordon", "remove", "restart", "unawaited"])
async def test_a_node_that_can_t_be_had_is_not_waited_for(store: Stores, what: str) -> None:
    await has_run(store)
    job = await edited(store)
    waits(await asked(store, "g2"))
    match what:
        case "cordon":
            await store.nodes.cordon("g1", reason="fans")
        case "remove":
            await store.nodes.remove("g1")
        case "restart":
            await store.nodes.started("g1")
        case "unawaited":
            got = await asked(store, "g2", unawaited=("g1",))
            assert isinstance(got, Claim)
            return
        case verdict:
            await store.nodes.report("g1", verdict=verdict, why="")
    await took(store, "g2", job)


async def test_a_saving_is_what_the_cache_has_saved_last(store: Stores) -> None:
    await has_run(store, ran_s=8.0)
    await has_run(store, ran_s=6.0, warm=True)  # the change was early in the graph
    held = await took(store, "g1", await edited(store))
    job = await edited(store)
    assert 1 < waits(await asked(store, "g2")) <= 2
    await over(store, held, ran_s=1.0, warm=True)
    assert 6 < waits(await asked(store, "g2")) <= 7
    await over(store, await took(store, "g1", job), ran_s=9.0, warm=False)
    await edited(store)
    assert 8 < waits(await asked(store, "g2")) <= 9, "nothing was cached: the graph is another"


async def test_a_node_that_is_free_is_taken_for_the_smallest_saving(store: Stores) -> None:
    await has_run(store, ran_s=8.0)
    await has_run(store, ran_s=8.0, warm=True)
    job = await edited(store)
    assert waits(await asked(store, "g2")) == 0
    assert not (await store.jobs.waits(job)).results_on
    held = await took(store, "g1", job)
    job = await edited(store)
    await took(store, "g2", job)
    await over(store, held)


async def test_a_run_that_failed_or_was_stopped_has_left_results_too(store: Stores) -> None:
    for status in (JobStatus.FAILED, JobStatus.CANCELED):
        await has_run(store, status=status)
        job = await edited(store)
        waits(await asked(store, "g2"))
        await over(store, await took(store, "g1", job))


async def test_a_job_that_lost_its_node_starts_anywhere(store: Stores) -> None:
    await has_run(store)
    job = await edited(store, patience_s=0.2)
    claim = await took(store, "g1", job)
    await asyncio.sleep(0.2)
    await store.runs.requeue(claim, counts=True, reason=BROKEN)
    await took(store, "g2", job)


async def test_a_dispatcher_that_was_killed_leaves_nothing_to_be_mended(store: Stores) -> None:
    """The node's run is never ended by who began it: the job waits no longer for that."""
    await has_run(store)
    first = await edited(store)
    got = await asked(store, "g1", ttl_s=0.05)
    assert isinstance(got, Claim)
    job = await edited(store, patience_s=0.4)
    waits(await asked(store, "g2"))
    await asyncio.sleep(0.41)
    await took(store, "g2", job)
    (held,) = await store.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
    assert held.claim.job.id == first.id
    await over(store, held.claim, ran_s=None)


@pytest.mark.parametrize("field", ["patience", "created", "editor"])
async def test_a_record_that_can_t_be_read_stops_no_other_job(store: Stores, field: str) -> None:
    await has_run(store)
    job = await edited(store)
    await store.redis.hset(store.redis.keyspace.job(job.id), field, "odd")
    other = await submit(store)
    got = await asked(store, "g2")
    while isinstance(got, Refused) and got.why == "broken":
        got = await asked(store, "g2")
    assert isinstance(got, Claim)
    assert got.job.id in (job.id, other.id)


@pytest.mark.parametrize("key", ["fleet:editor:" + ANN, "fleet:node:g1"])
async def test_keys_of_another_kind_are_no_results(store: Stores, key: str) -> None:
    await has_run(store)
    await store.redis.delete(key)
    await store.redis.set(key, "somebody else's")
    job = await edited(store)
    await took(store, "g2", job)


async def test_jobs_of_nobody_s_editor_cost_redis_nothing_more(store: Stores) -> None:
    """The commands of a claim and an end are the same after an editor's run as without any."""

    async def cycle() -> dict[str, int]:
        job = await submit(store)
        await store.redis.config_resetstat()
        await over(store, await took(store, "g2", job), ran_s=None)
        stats = await store.redis.info("commandstats")
        return {name: facts["calls"] for name, facts in stats.items() if name != "cmdstat_config|resetstat"}

    await cycle()
    before = await cycle()
    await has_run(store, "g1")
    assert await cycle() == before
    assert before["cmdstat_evalsha"] == 2
