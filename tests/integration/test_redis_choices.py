"""Claims by the rules of choosing, and what ends of runs and changes of nodes do to them."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement
from comfy_fleet.domain.nodes.host import Joining
from comfy_fleet.ports.runs import Claim, Refused
from tests.integration.redis_kit import BROKEN, add_nodes, submit, wakes

GIB = 2**30
A, B = (("checkpoints/a", 18 * GIB),), (("checkpoints/b", 18 * GIB),)


async def asks(stores: Stores, node: str, *, patience_s: float = 60.0) -> Claim | Refused:
    """Ask for a job for a node of two with 24 GiB."""
    return await stores.runs.claim(
        node=node,
        placements=[Placement()],
        run=str(uuid4()),
        token=uuid4().hex,
        dispatcher="d1",
        ttl_s=5,
        pool="default",
        peers=2,
        ram=64 * GIB,
        patience_s=patience_s,
    )


async def starts(stores: Stores, node: str, **how: Any) -> Claim:
    got = await asks(stores, node, **how)
    assert isinstance(got, Claim), got
    return got


async def ends(stores: Stores, run: Claim, **how: Any) -> None:
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=0.1, **how)


async def warm(stores: Stores, node: str = "g1", models: Any = A) -> None:
    """Let a node of two have a set on its card, idle and able to take more."""
    await stores.nodes.report(node, verdict="up", why="")
    await submit(stores, models=models)
    run = await starts(stores, node)
    assert run.rule == "unheld" and run.load_s == 9.0
    await ends(stores, run)


async def test_a_single_job_waits_for_no_thousand_of_another_owner(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    for _ in range(200):
        await submit(stores, owner="eager", priority=1_000_000)
    run = await starts(stores, "g1")
    assert run.job.owner == "eager"
    single = await submit(stores, owner="quiet", priority=-1_000_000)
    assert (await starts(stores, "g2")).job.id == single.id


async def test_a_wrong_guess_of_how_long_runs_take_lets_nobody_through_before_others(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2", "g3")
    for _ in range(30):
        await submit(stores, owner="eager", weight=0.5)
    for run in [await starts(stores, node) for node in ("g1", "g2", "g3")]:  # nothing is known of them yet
        await ends(stores, run)  # within milliseconds
    for owner in ("ada", "bob"):
        await submit(stores, owner=owner)
    nexts = [(await starts(stores, node)).job.owner for node in ("g1", "g2", "g3")]
    assert {"ada", "bob"} < set(nexts)


async def test_shares_follow_weights(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    for _ in range(40):
        await submit(stores, owner="ada", weight=2.0)
        await submit(stores, owner="bob")
    had: Counter[str] = Counter()
    for _ in range(30):
        run = await starts(stores, "g1")
        had[run.job.owner] += 1
        # Each run uses as much as was expected of it.
        await stores.redis.hset(f"fleet:run:{run.run}", "used_s", "10")
        await ends(stores, run)
    assert had == {"ada": 20, "bob": 10}


async def test_a_job_is_left_to_the_node_that_has_its_models(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    await warm(stores)
    async with wakes(stores) as heard:
        job = await submit(stores, models=A)
    assert heard == [b"job@g1 default"]
    got = await asks(stores, "g2")
    assert isinstance(got, Refused)
    assert (got.why, got.node) == ("nothing", "g1") and got.left_s >= 1
    run = await starts(stores, "g1")
    assert (run.job.id, run.rule, run.load_s) == (job.id, "turn", 0.0)


async def test_nobody_is_left_to_another_node_for_longer_than_the_patience_and_a_load(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1", "g2")
    await warm(stores)
    await client.hset("fleet:sched:profile:*", "run_s", "0.001")
    await client.hset("fleet:sched:node:g2", "disk_rate", "1e12")  # a load takes 20 ms
    job = await submit(stores, models=A)
    assert isinstance(await asks(stores, "g2", patience_s=0.05), Refused)
    await asyncio.sleep(0.1)
    run = await starts(stores, "g2", patience_s=0.05)
    assert (run.job.id, run.rule) == (job.id, "overdue")


EVENTS = ("cordon", "down", "drain", "remove", "restart", "oom", "gpu", "pool", "url")
WAYS = ("finished", "left", "given back", "taken over", "unreadable", "removed node")


@pytest.mark.parametrize("event", EVENTS)
async def test_a_node_that_has_the_models_no_more_is_waited_for_by_nobody(stores: Stores, event: str) -> None:
    nodes, hosts = stores.nodes, stores.hosts
    joining = Joining(name="g1", url="http://127.0.0.1:9100", agent="127.0.0.1:9")
    await hosts.join("h", joining, now=1.0)
    await add_nodes(stores, "g2")
    await warm(stores)
    job = await submit(stores, models=A)
    assert isinstance(await asks(stores, "g2"), Refused)
    match event:
        case "cordon":
            await nodes.cordon("g1", reason="fans")
        case "down" | "drain":
            await nodes.report("g1", verdict=event, why="")
        case "remove":
            await nodes.remove("g1")
        case "restart":
            await nodes.started("g1")
        case "oom":
            await nodes.record_failure("g1", kind="oom", limit=9, reason="x")
        case "gpu":
            await nodes.record_failure("g1", kind="gpu", limit=1, reason="x")
        case "pool":
            await hosts.join("h", Joining(name="g1", url=joining.url, agent=joining.agent, pool="p"), now=1.0)
        case "url":
            await hosts.join(
                "h", Joining(name="g1", url="http://127.0.0.1:9101", agent=joining.agent), now=1.0
            )
    run = await starts(stores, "g2")
    assert (run.job.id, run.rule) == (job.id, "unheld")


async def test_a_node_that_was_cordoned_for_a_while_still_has_its_models(stores: Stores) -> None:
    await add_nodes(stores, "g1", "g2")
    await warm(stores)
    await stores.nodes.cordon("g1", reason="fans")
    await stores.nodes.uncordon("g1")
    await submit(stores, models=A)
    run = await starts(stores, "g1")
    assert (run.rule, run.load_s) == ("turn", 0.0)


@pytest.mark.parametrize("way", WAYS)
async def test_however_a_run_ends_its_owner_is_charged_once_and_the_node_is_free(
    stores: Stores, way: str
) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")
    await client.hset("fleet:sched:profile:graph", "run_s", "10")
    await submit(stores, owner="keeper", placement=Placement(pool="big"))
    job = await submit(stores, models=A)
    await submit(stores, placement=Placement(pool="big"))  # so that the owner's account stays
    run = await starts(stores, "g1")

    async def account() -> tuple[float, float, int]:
        found = await client.hmget("fleet:sched:used:local", "used", "credit", "active")
        return float(found[0]), float(found[1]), int(found[2])

    assert await account() == (19.0, 0.0, 2)  # 9 s of loading, 10 s of computing
    if way == "left":
        await stores.runs.left(run, [])
        assert await client.hget("fleet:sched:node:g1", "free_at") == b"-1"
        assert 18 < (await account())[1] <= 19
        await submit(stores, models=A)
        other = await starts(stores, "g1")  # while the first one's outputs are fetched
        await ends(stores, run)
        assert float(await client.hget("fleet:sched:node:g1", "free_at")) > 0  # the other one's
        await ends(stores, other)
    elif way == "given back":
        await stores.runs.requeue(run, counts=False, reason=BROKEN)
        await stores.jobs.request_cancel(job.id)
    elif way == "taken over":
        await stores.runs.hand_over([run])
        (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
        await ends(stores, held.claim)
    elif way == "unreadable":
        await stores.runs.hand_over([run])
        await client.hset(f"fleet:job:{job.id}", "priority", "high")
        assert not await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
    elif way == "removed node":
        with pytest.raises(Conflict):
            await stores.nodes.remove("g1")
        await stores.nodes.remove("g1", force=True)
        await ends(stores, run)
        assert not await client.keys("fleet:sched:node:*") + await client.keys("fleet:sched:holders:*")
    else:
        await ends(stores, run)
    used, credit, active = await account()
    assert active == 1 and used - credit < 1  # one queue, no run; and what it has really used
    if way != "removed node":
        assert await client.hget("fleet:sched:node:g1", "free_at") == b"-1"


async def test_runs_teach_how_long_their_profile_takes_unless_a_cache_answered(stores: Stores) -> None:
    client: Any = stores.redis
    await add_nodes(stores, "g1")

    async def expected(profile: str) -> float:
        job = await submit(stores, profile=profile, placement=Placement(pool="nowhere"))
        known = await client.hget(f"fleet:job:{job.id}", "run_s")
        return float(known or await client.hget("fleet:sched:profile:*", "run_s") or 10)

    async def runs(**how: Any) -> None:
        await submit(stores, profile="card")
        run = await starts(stores, "g1")
        await asyncio.sleep(0.02)
        await ends(stores, run, **how)

    assert await expected("card") == 10
    await runs(warm=True, reused=True)
    assert await expected("card") == 10
    await runs()
    assert 0.01 < await expected("card") < 5
    assert 0.01 < await expected("new") < 5  # as any


async def test_priorities_hold_among_an_owners_jobs_in_all_its_queues(stores: Stores) -> None:
    await add_nodes(stores, "g1")
    placements = [Placement(), Placement(without=frozenset({"g9"}))]
    jobs = [await submit(stores, placement=placements[number % 2], priority=number) for number in range(6)]
    found: list[str] = []
    for _ in jobs:
        got = await stores.runs.claim(
            node="g1", placements=placements, run=str(uuid4()), token="t", dispatcher="d", ttl_s=5
        )
        assert isinstance(got, Claim)
        found.append(got.job.id)
        await ends(stores, got)
    assert found == [job.id for job in reversed(jobs)]


async def test_no_queue_is_hidden_by_jobs_that_may_not_start(stores: Stores) -> None:
    """Deadlines that are over, and leftovers, are passed: many of one owner, and some of many."""
    await add_nodes(stores, "g1")
    bad: list[Job] = [await submit(stores, deadline_s=-1) for _ in range(10)]
    bad += [await submit(stores, owner=f"o{number % 10}", deadline_s=-1) for number in range(20)]
    good = await submit(stores, owner="zoe")
    assert (await starts(stores, "g1")).job.id == good.id
    assert await stores.jobs.depth() == len(bad) and await stores.runs.waiting() == []
    await stores.runs.tend()
    assert await stores.runs.overdue(99) == len(bad)
    assert await stores.jobs.depth() == 0
    ended = [await stores.jobs.get(job.id) for job in bad]
    assert {job.status for job in ended if job} == {JobStatus.EXPIRED}


async def test_what_is_hidden_by_more_expired_jobs_than_a_claim_reads_comes_with_the_next(
    stores: Stores,
) -> None:
    await add_nodes(stores, "g1")
    for number in range(200):
        await submit(stores, owner=f"o{number % 40}", deadline_s=-1)
    good = await submit(stores, owner="zoe")
    for _ in range(20):
        if isinstance(got := await asks(stores, "g1"), Claim):
            break
    else:
        raise AssertionError("it stays hidden")
    assert got.job.id == good.id


async def took(stores: Stores, run: Claim, seconds: float, **how: Any) -> None:
    """End a run that took its node so long."""
    await stores.redis.hset(f"fleet:run:{run.run}", "used_s", str(seconds))
    await ends(stores, run, **how)


async def test_a_load_is_measured_with_the_next_run_of_the_same_kind_there(stores: Stores) -> None:
    """Each model has a profile of its own as a rule, and its first run is the one that loads."""
    await add_nodes(stores, "g1")
    for _ in range(3):
        await submit(stores, models=A, profile="a")
    run = await starts(stores, "g1")
    assert run.load_s == 9.0
    await took(stores, run, 21.0)
    await took(stores, await starts(stores, "g1"), 0.1, reused=True)  # says nothing
    await took(stores, await starts(stores, "g1"), 3.0, warm=True)
    await submit(stores, models=B, profile="b")
    run = await starts(stores, "g1")
    assert run.load_s == pytest.approx(9.0 / (1 - 0.3 * 0.5)), "18 s were measured where 9 s were expected"
    await took(stores, run, 8.0)
    for profile in ("a", "b"):  # once more, and no load is measured twice
        await submit(stores, models=B, profile=profile)
        run = await starts(stores, "g1")
        assert run.load_s == 0.0
        await took(stores, run, 1.0)
    await submit(stores, models=A, profile="a")
    faster = 1 + 0.3 * (9.0 / 0.85 / 7.0 - 1)
    assert (await starts(stores, "g1")).load_s == pytest.approx(1.5), "from memory"
    client: Any = stores.redis
    rate = float(await client.hget("fleet:sched:node:g1", "disk_rate"))
    assert rate == pytest.approx(2 * GIB * 0.85 * faster)
