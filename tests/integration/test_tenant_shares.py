"""Tenants' shares in Redis: who starts next, and what was written by a version that knew no tenants."""

from collections import Counter
from typing import Any

import pytest

from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim
from tests.integration.redis_kit import add_nodes, claim, submit

EACH = 12
NODES = ["g1", *(f"n{number}" for number in range(EACH))]


async def started(stores: Stores, count: int) -> list[Claim]:
    """Start jobs one after the other; each takes as long as any."""
    runs = []
    for _ in range(count):
        run = await claim(stores)
        assert await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
        runs.append(run)
    return runs


async def prepare(stores: Stores) -> None:
    """Add idle nodes, and have every run charged with one second."""
    await add_nodes(stores, *NODES)
    client: Any = stores.redis
    await client.hset("fleet:sched:profile:graph", mapping={"run_s": "1.0", "runs": "9"})
    await client.hset("fleet:sched:profile:*", mapping={"run_s": "1.0", "runs": "9"})


async def test_a_crowd_gets_as_much_as_a_single_user(stores: Stores) -> None:
    await prepare(stores)
    for number in range(EACH):
        await submit(stores, owner="ada")
        await submit(stores, owner=f"u{number}", tenant="shop")
    running, tenants = [], Counter[str]()
    client: Any = stores.redis
    for number in range(EACH):  # nothing ends meanwhile: each is charged what is expected
        run = await claim(stores, f"n{number}")
        running.append(run)
        tenants["shop" if run.job.owner.startswith("u") else "default"] += 1
    assert tenants == {"shop": EACH // 2, "default": EACH // 2}
    assert len({run.job.owner for run in running}) == EACH // 2 + 1
    for run in running:
        await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    await started(stores, EACH)
    assert await client.keys("fleet:sched:owners:*") == []
    for name in ("/", "/shop", "ada"):
        record = await client.hgetall(f"fleet:sched:used:{name}")
        assert int(record.get(b"active", 0)) == 0, name


async def test_a_tenant_has_its_share(stores: Stores) -> None:
    await prepare(stores)
    for _ in range(EACH):
        await submit(stores, owner="ada")
        await submit(stores, owner="bob", tenant="shop", tenant_weight=3.0)
    tenants = Counter[str]()
    for number in range(EACH):
        tenants[(await claim(stores, f"n{number}")).job.owner] += 1
    assert tenants == {"ada": EACH // 4, "bob": 3 * EACH // 4}


@pytest.mark.parametrize("tenants", [False, True])
async def test_jobs_that_an_earlier_version_queues_wait_with_the_others(
    stores: Stores, tenants: bool
) -> None:
    """It knows no indexes of tenants: what it queues is in those of owners alone."""
    client: Any = stores.redis
    await prepare(stores)
    if tenants:
        await submit(stores, owner="bob", tenant="shop")
    earlier = [await submit(stores, owner="ada") for _ in range(3)]
    for kind in ("owners", "unpassed", "family"):
        for key in await client.keys(f"fleet:sched:{kind}:*\t"):
            await client.delete(key)
        for key in await client.keys(f"fleet:sched:{kind}:*\t\t"):
            await client.delete(key)
    if tenants:
        await client.delete("fleet:queued:tended")
        await stores.runs.tend()
    await submit(stores, owner="eve", tenant="shop")
    found = [(await claim(stores, f"n{number}")).job.owner for number in range(4 + tenants)]
    assert Counter(found) == Counter({"ada": len(earlier), "eve": 1}) + Counter({"bob": int(tenants)})
    assert {"ada", "eve"} <= set(found[: 2 + 2 * tenants])


async def test_why_a_job_waits_names_the_tenants_share(stores: Stores) -> None:
    await prepare(stores)
    first = await submit(stores, owner="bob", tenant="shop")
    assert (await claim(stores)).job.id == first.id
    await submit(stores, owner="ada")
    later = await submit(stores, owner="eve", tenant="shop")
    place = (await stores.jobs.waits(later)).place
    assert place and place.tenant_used and not place.share_used
