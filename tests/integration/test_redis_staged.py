"""Files that graphs read, on their nodes: under which names, and how long."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.adapters.redis.asset_record import dump_asset
from comfy_fleet.adapters.redis.hosts import RedisHosts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.host import Cleanup, Heartbeat, Joining
from comfy_fleet.ports.runs import Claim
from tests.integration.redis_kit import BROKEN, claim, submit

JOINING = Joining(name="g1", url="http://10.0.0.1:8188", agent="10.0.0.1:8193", cleans_up=True)


async def record(stores: Stores, asset_id: str, **fields: object) -> str:
    asset = Asset(
        id=asset_id,
        owner="ann",
        hash="blake3:00",
        size_bytes=1,
        content_type="image/png",
        file_path="a.png",
        path="ab/x",
        created_at=1.0,
    )
    changed = replace(asset, **fields)  # type: ignore[arg-type]
    redis: Any = stores.redis
    await redis.hset(stores.redis.keyspace.asset(asset_id), mapping=dump_asset(changed))
    return asset_id


async def node(stores: Stores, name: str = "g1", *, cleans: bool = True) -> None:
    port = 8188 + len(name)
    joining = replace(JOINING, name=name, url=f"http://10.0.0.1:{port}", cleans_up=cleans)
    await RedisHosts(stores.redis).join("h1", joining, now=1.0)


async def run_on(stores: Stores, name: str = "g1") -> Claim:
    await submit(stores)
    return await claim(stores, name)


async def let_time_pass(stores: Stores) -> None:
    """Have all names of g1 be past their time."""
    redis: Any = stores.redis
    files = await redis.hkeys("fleet:staged:g1")
    await redis.zadd("fleet:staged:g1:ends", dict.fromkeys(files, 0))


async def over(stores: Stores, run: Claim) -> None:
    await stores.runs.finish(run, JobStatus.SUCCEEDED, error=None, duration_s=None)


async def orders(stores: Stores, *deleted: Cleanup) -> set[tuple[str, str]]:
    """Return what the agent is to delete, as node and folders, but for what a run leaves under its id."""
    said = Heartbeat(host="h1", instance="i", deleted=deleted)
    found = (await RedisHosts(stores.redis).beat(said, now=time.time())).delete
    redis: Any = stores.redis
    jobs = {raw.decode() for raw in await redis.zrange("fleet:jobs", 0, -1)}
    return {(one.node, f"{one.job}/{one.run}") for one in found if one.job not in jobs}


async def place(stores: Stores, run: Claim, asset: str, keep_s: float = 60.0) -> str:
    return (await stores.runs.stage(run, [asset], keep_s=keep_s))[asset].folders


async def test_the_same_bytes_of_the_same_owner_keep_their_place_on_a_node(stores: Stores) -> None:
    await node(stores)
    first = await run_on(stores)
    asset = await record(stores, "a1")
    one = (await stores.runs.stage(first, [asset], keep_s=60))[asset]
    assert (one.asset.id, one.asset.owner, one.new) == (asset, "ann", True)
    await over(stores, first)
    second = await run_on(stores)
    again = await record(stores, "a2", file_path="other name.png")
    two = (await stores.runs.stage(second, [again, asset], keep_s=60))[again]
    assert (two.folders, two.new) == (one.folders, False)


async def test_each_owner_node_content_and_extension_has_a_place_of_its_own(stores: Stores) -> None:
    await node(stores)
    await node(stores, "node2")
    run = await run_on(stores)
    made = [
        await record(stores, "a1"),
        await record(stores, "a2", owner="bob"),
        await record(stores, "a3", hash="blake3:01"),
        await record(stores, "a4", file_path="a.jpg"),
    ]
    places = [one.folders for one in (await stores.runs.stage(run, made, keep_s=60)).values()]
    places.append(await place(stores, await run_on(stores, "node2"), made[0]))
    assert len(set(places)) == len(places) == 5


async def test_only_the_run_that_has_the_node_may_stage(stores: Stores) -> None:
    await node(stores)
    run, asset = await run_on(stores), await record(stores, "a1")
    with pytest.raises(LeaseLost):
        await stores.runs.stage(replace(run, token="old"), [asset], keep_s=60)
    assert await stores.redis.exists("fleet:staged:g1") == 0


async def test_an_asset_that_is_gone_is_left_out(stores: Stores) -> None:
    await node(stores)
    run = await run_on(stores)
    await stores.redis.set("fleet:asset:odd", "of another kind")
    assert await stores.runs.stage(run, ["gone", "odd"], keep_s=60) == {}


async def test_a_place_is_given_up_for_good_once_nobody_needs_it(stores: Stores) -> None:
    await node(stores)
    run, asset = await run_on(stores), await record(stores, "a1")
    first = await place(stores, run, asset, keep_s=0.0)
    assert await orders(stores) == set(), "a run needs it"
    await over(stores, run)
    await let_time_pass(stores)
    assert await orders(stores) == {("g1", first)}
    # The order to delete may be carried out at any time from now on: what is staged now must not be meant.
    second = await place(stores, await run_on(stores), asset)
    assert second != first
    assert await orders(stores) == {("g1", first)}
    job, folder = first.split("/")
    assert await orders(stores, Cleanup(node="g1", job=job, run=folder)) == set()


async def test_a_place_outlives_short_keeps_after_a_long_one(stores: Stores) -> None:
    await node(stores)
    run, asset = await run_on(stores), await record(stores, "a1")
    first = await place(stores, run, asset, keep_s=3600.0)
    await over(stores, run)
    run = await run_on(stores)
    assert await place(stores, run, asset, keep_s=0.0) == first
    await over(stores, run)
    assert await orders(stores) == set()


async def test_a_run_that_another_dispatcher_takes_over_keeps_its_files(stores: Stores) -> None:
    await node(stores)
    await submit(stores)
    run, asset = await claim(stores, ttl=0.05), await record(stores, "a1")
    await place(stores, run, asset, keep_s=0.0)
    await asyncio.sleep(0.1)
    assert await orders(stores) == set(), "its prompt may still be on the node"
    (held,) = await stores.runs.take_over(dispatcher="d2", ttl_s=5, limit=1)
    assert await orders(stores) == set()
    await stores.runs.requeue(held.claim, counts=True, reason=BROKEN)
    await let_time_pass(stores)
    assert len(await orders(stores)) == 1


async def test_where_nobody_deletes_a_file_keeps_its_name(stores: Stores) -> None:
    await node(stores, cleans=False)
    asset, found = await record(stores, "a1"), set()
    for _ in range(3):
        run = await run_on(stores)
        found.add(await place(stores, run, asset, keep_s=0.0))
        await over(stores, run)
        assert await orders(stores) == set()
    assert len(found) == 1


@pytest.mark.parametrize("cleans", [True, False])
async def test_the_oldest_of_very_many_places_are_given_up(stores: Stores, cleans: bool) -> None:
    await node(stores, cleans=cleans)
    run = await run_on(stores)
    many = [await record(stores, f"a{number}", hash=f"blake3:{number}") for number in range(1003)]
    for asset in many[:3]:
        await place(stores, run, asset, keep_s=3600.0)
    await stores.runs.stage(run, many[3:], keep_s=7200.0)
    assert await stores.redis.hlen("fleet:staged:g1") == 1000
    assert len(await orders(stores)) == (3 if cleans else 0)


async def test_a_removed_node_leaves_no_names_and_its_files_may_go(stores: Stores) -> None:
    await node(stores)
    run, asset = await run_on(stores), await record(stores, "a1")
    where = await place(stores, run, asset)
    await over(stores, run)
    await stores.nodes.remove("g1")
    assert [key async for key in stores.redis.scan_iter("fleet:staged:*")] == []
    assert await orders(stores) == {("g1", where)}


async def test_a_run_s_files_take_one_look(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    await node(stores)
    run = await run_on(stores)
    made = [await record(stores, f"a{number}") for number in range(3)]
    await stores.runs.stage(run, made, keep_s=60)  # now Redis has the script
    before = (await stores.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await stores.runs.stage(run, made, keep_s=60)
    assert (await stores.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == before + 1
