"""Bounds of running jobs: never more run, those that wait hide nobody, and nothing waits for ever."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.people import RedisPeople
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobStatus, Placement
from comfy_fleet.domain.people import Tenant
from comfy_fleet.ports.runs import Claim
from tests.integration.redis_kit import BROKEN, add_nodes, submit

NODES = [f"n{number}" for number in range(12)]


async def ask(stores: Stores, node: str) -> Claim | None:
    """Look for a job as a dispatcher does, in the classes that wait."""
    classes = [one.placement for one in await stores.runs.waiting()]
    if not classes:
        return None
    got = await stores.runs.claim(
        node=node, placements=classes, run=str(uuid4()), token=uuid4().hex, dispatcher="d1", ttl_s=5
    )
    return got if isinstance(got, Claim) else None


async def fill(stores: Stores, nodes: list[str]) -> list[Claim]:
    """Ask for each node until there is nothing for any of them."""
    found: list[Claim] = []
    for _ in range(3):  # a look may go past no more than some that wait
        for node in [one for one in nodes if one not in {run.node for run in found}]:
            got = await ask(stores, node)
            found += [got] if got else []
    return found


async def end(stores: Stores, run: Claim) -> None:
    assert await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)


async def test_a_user_at_its_bound_waits_and_hides_nobody(stores: Stores) -> None:
    await add_nodes(stores, *NODES)
    for _ in range(60):
        await submit(stores, owner="ada", bounds={"user:ada": 2}, priority=100)
    others = [await submit(stores, owner=f"u{number}") for number in range(4)]
    runs = await fill(stores, NODES)
    assert Counter(run.job.owner for run in runs) == Counter({"ada": 2, **{job.owner: 1 for job in others}})
    assert await stores.runs.waiting() == []  # nobody asks for what can't start
    late = await submit(stores, owner="late")
    got = await ask(stores, NODES[-1])
    assert got and got.job.id == late.id
    mine = next(run for run in runs if run.job.owner == "ada")
    await end(stores, mine)
    again = await fill(stores, [mine.node, NODES[-2], NODES[-3]])
    assert [run.job.owner for run in again] == ["ada"]


@pytest.mark.parametrize("tenant", ["studio", ""])
async def test_a_tenants_bound_counts_all_its_users_and_they_take_turns(stores: Stores, tenant: str) -> None:
    await add_nodes(stores, *NODES)
    bounds = {f"tenant:{tenant or 'default'}": 3}
    for number in range(40):
        await submit(stores, owner=f"u{number % 4}", tenant=tenant, bounds=bounds)
    await submit(stores, owner="guest", tenant="guests")
    runs, ended = await fill(stores, NODES), Counter[str]()
    assert Counter(run.job.owner for run in runs)["guest"] == 1
    runs = [run for run in runs if run.job.owner != "guest"]
    for _ in range(40):
        assert len(runs) == 3 or sum(ended.values()) >= 37
        first = runs.pop(0)
        await end(stores, first)
        ended[first.job.owner] += 1
        runs += await fill(stores, [first.node])
    assert ended == {f"u{number}": 10 for number in range(4)} and not runs
    client: Any = stores.redis
    assert await client.keys("fleet:bounds*") == []


@pytest.mark.parametrize("tenant", ["studio", "default"])
async def test_a_tenants_changed_bound_counts_for_what_waits(stores: Stores, tenant: str) -> None:
    await add_nodes(stores, *NODES)
    people = RedisPeople(stores.redis)

    async def bound(most: str | None) -> None:
        limits = {} if most is None else {"running": most}
        made = Tenant(name=tenant, limits=limits)
        await people.change(lambda known: replace(known, tenants={**known.tenants, tenant: made}))

    await bound("1")
    jobs = [
        await submit(
            stores, owner="ada", tenant="" if tenant == "default" else tenant, bounds={f"tenant:{tenant}": 1}
        )
        for _ in range(30)
    ]
    runs = await fill(stores, NODES)
    assert len(runs) == 1 and await stores.runs.waiting() == []
    await bound("3")
    assert await stores.runs.waiting()  # dispatchers are woken, and find what to ask for
    runs += await fill(stores, [node for node in NODES if node != runs[0].node])
    assert len(runs) == 3
    waits = [place for job in jobs if (place := (await stores.jobs.waits(job)).place)]
    assert {(one.bounded_by, one.most_running) for one in waits} == {("tenant", 3)}

    def free() -> list[str]:
        return [node for node in NODES if node not in {run.node for run in runs}]

    await bound("2")
    await end(stores, runs.pop(0))
    assert await fill(stores, free()) == []
    await end(stores, runs.pop(0))
    runs += await fill(stores, free())
    assert len(runs) == 2

    await bound(None)
    runs += await fill(stores, free())
    assert len(runs) == len(NODES)


@pytest.mark.parametrize(("tenant", "other"), [("studio", ""), ("", "studio"), ("", None)])
async def test_who_comes_while_all_others_of_its_tenant_are_at_their_bounds_waits_for_none(
    stores: Stores, tenant: str, other: str | None
) -> None:
    await add_nodes(stores, *NODES)
    for _ in range(3):
        await submit(stores, owner="ada", tenant=tenant, bounds={"user:ada": 1}, models=[("unet/a", 2**33)])
    if other is not None:
        await submit(stores, owner="guest", tenant=other)
    runs = await fill(stores, NODES)
    assert len(runs) == (1 if other is None else 2)
    free = [node for node in NODES if node not in {run.node for run in runs}]
    came = await submit(stores, owner="zoe", tenant=tenant, models=[("unet/a", 2**33)])
    got = await ask(stores, free.pop())
    assert got and got.job.id == came.id
    more = await submit(stores, owner="ada", tenant=tenant, bounds={"user:ada": 2})
    got = await ask(stores, free.pop())
    assert got and got.job.id == more.id  # its bound was raised
    assert await ask(stores, free.pop()) is None


async def test_why_it_waits_is_said(stores: Stores) -> None:
    await add_nodes(stores, *NODES)
    bounds = {"user:ada": 1, "tenant:default": 5}
    _, job = [await submit(stores, owner="ada", bounds=bounds) for _ in range(2)]
    [run] = await fill(stores, NODES)
    waits = (await stores.jobs.waits(job)).place if run.job.id != job.id else None
    assert waits and (waits.bounded_by, waits.most_running) == ("user", 1)


async def test_what_a_version_without_bounds_has_ended_is_forgotten(stores: Stores) -> None:
    await add_nodes(stores, *NODES)
    for _ in range(3):
        await submit(stores, owner="ada", bounds={"user:ada": 1})
    client: Any = stores.redis
    [run] = await fill(stores, NODES)
    await client.hdel(f"fleet:run:{run.run}", "bounds")  # so its script knows nothing to forget
    await end(stores, run)
    assert await fill(stores, NODES) == []
    await client.delete("fleet:queued:tended")
    await stores.runs.tend()
    assert len(await fill(stores, NODES)) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_no_more_run_whatever_happens(stores: Stores, seed: int) -> None:
    chance = Random(seed)
    await add_nodes(stores, *NODES)
    bounds = {"ada": {"user:ada": 2}, "eve": {"user:eve": 3, "tenant:studio": 4}, "zoe": {"tenant:studio": 4}}
    tenants = {"eve": "studio", "zoe": "studio"}
    runs: list[Claim] = []
    waiting: set[str] = set()
    owners: dict[str, str] = {}
    for _ in range(250):
        match chance.choice(["submit", "submit", "ask", "ask", "ask", "end", "requeue", "cancel", "fill"]):
            case "submit":
                owner = chance.choice(
                    ["ada", "bob", "eve", "zoe"] if len(runs) < 8 else ["ada", "eve", "zoe"]
                )
                job = await submit(
                    stores,
                    owner=owner,
                    tenant=tenants.get(owner, ""),
                    bounds=bounds.get(owner, {}),
                    models=chance.choice([(), (("checkpoints/a", 2**33),), (("unet/b", 2**33),)]),
                    placement=chance.choice([Placement(), Placement(pool="default")]),
                )
                waiting.add(job.id)
                owners[job.id] = owner
            case "ask":
                free = [node for node in NODES if node not in {run.node for run in runs}]
                if free and (got := await ask(stores, chance.choice(free))):
                    runs.append(got)
                    waiting.remove(got.job.id)
            case "end" if runs:
                await end(stores, runs.pop(chance.randrange(len(runs))))
            case "requeue" if runs:
                run = runs.pop(chance.randrange(len(runs)))
                await stores.runs.requeue(run, counts=False, reason=BROKEN)
                waiting.add(run.job.id)
            case "cancel" if waiting:
                job_id = chance.choice(sorted(waiting))
                await stores.jobs.request_cancel(job_id)
                waiting.remove(job_id)
            case "fill" if len(runs) < len(NODES):
                for _ in range(2):  # the first look that meets somebody at its bound goes past it
                    for node in [node for node in NODES if node not in {run.node for run in runs}]:
                        if got := await ask(stores, node):
                            runs.append(got)
                            waiting.remove(got.job.id)
                if len(runs) < len(NODES):
                    running = Counter(run.job.owner for run in runs)
                    left = {owners[job_id] for job_id in waiting}
                    assert "bob" not in left and ("ada" not in left or running["ada"] == 2)
                    full = running["eve"] + running["zoe"] == 4
                    assert full or ("zoe" not in left and ("eve" not in left or running["eve"] == 3))
        running = Counter(run.job.owner for run in runs)
        assert running["ada"] <= 2 and running["eve"] <= 3 and running["eve"] + running["zoe"] <= 4
    rounds = 0
    while waiting or runs:
        rounds += 1
        assert rounds < 500, waiting
        for run in runs:
            await end(stores, run)
        runs = await fill(stores, NODES)
        waiting -= {run.job.id for run in runs}
    client: Any = stores.redis
    assert await client.keys("fleet:bounds*") == []
