"""Hosts in Redis: heartbeats, joining, what explains a prompt, and files that may be deleted."""

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from comfy_fleet.adapters.redis.hosts import RedisHosts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import Conflict, NotFound, StoreDown
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import (
    HOST_LABEL,
    Cleanup,
    GpuAllocation,
    Heartbeat,
    Joining,
    NodeReport,
    Orders,
)
from comfy_fleet.domain.nodes.node import AGENT_DRAINS, Node
from tests.integration.haproxy_kit import eventually
from tests.integration.redis_kit import claim, output, stored, submit, wakes

BROKEN = JobError(code="node_lost", message="gone")
G1 = Joining(name="h1-gpu0", url="http://10.0.0.1:8188", agent="10.0.0.1:8193", cleans_up=True)


@pytest.fixture
def hosts(stores: Stores) -> RedisHosts:
    return RedisHosts(stores.redis)


async def beat(hosts: RedisHosts, host: str = "h1", **fields: Any) -> Orders:
    said = replace(Heartbeat(host=host, instance="i1"), **fields)
    return await hosts.beat(said, now=time.time())


async def test_a_host_s_nodes_are_registered_and_moved_but_the_operator_s_word_stays(
    stores: Stores, hosts: RedisHosts
) -> None:
    made = await hosts.join("h1", G1, now=5.0)
    assert (made.agent, made.pool, made.labels) == (G1.agent, "default", {HOST_LABEL: "h1"})
    assert await hosts.join("h1", G1, now=6.0) == made
    await stores.nodes.cordon("h1-gpu0", reason="fans")
    moved = await hosts.join("h1", replace(G1, url="http://10.0.0.1:9999", pool="video"), now=7.0)
    (known,) = (await beat(hosts)).nodes
    assert known == replace(moved, cordoned=True, cordon_reason="fans")
    assert (known.url, known.pool, known.added_at) == ("http://10.0.0.1:9999", "video", 5.0)
    assert (await hosts.join("h1", G1, now=8.0)).pool == "video"
    pools = [await stores.redis.smembers(f"fleet:pool:{pool}") for pool in ("default", "video")]
    assert pools == [set(), {b"h1-gpu0"}]
    await stores.nodes.remove("h1-gpu0")
    assert (await beat(hosts)).nodes == []
    assert await stores.redis.exists("fleet:host:h1:nodes") == 0


def overtaken(stores: Stores, monkeypatch: pytest.MonkeyPatch, *pools: str) -> None:
    """Let another API move G1 into these pools, one at a time, each after ours has read what is there."""
    client: Any = stores.redis
    read, left, twin = client.hget, list(pools), RedisHosts(client)

    async def then_moved(key: str, field: str) -> Any:
        raw = await read(key, field)
        monkeypatch.setattr(client, "hget", read)
        if left:
            await twin.join("h1", replace(G1, pool=left.pop(0)), now=2.0)
            monkeypatch.setattr(client, "hget", then_moved)
        return raw

    monkeypatch.setattr(client, "hget", then_moved)


async def test_a_join_undoes_nothing_that_came_between(
    stores: Stores, hosts: RedisHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hosts.join("h1", G1, now=1.0)
    overtaken(stores, monkeypatch, "video")
    moved = await hosts.join("h1", replace(G1, url="http://10.0.0.1:9999"), now=3.0)
    assert (moved.pool, moved.url) == ("video", "http://10.0.0.1:9999")
    assert await stores.nodes.get("h1-gpu0") == moved
    assert await stores.redis.smembers("fleet:pool:video") == {b"h1-gpu0"}


async def test_a_join_that_is_always_overtaken_is_put_off(
    stores: Stores, hosts: RedisHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hosts.join("h1", G1, now=1.0)
    overtaken(stores, monkeypatch, *(f"p{number}" for number in range(9)))
    with pytest.raises(StoreDown, match="changes all the time"):
        await hosts.join("h1", replace(G1, url="http://10.0.0.1:9999"), now=3.0)
    node = await stores.nodes.get("h1-gpu0")
    assert node is not None and node.url == G1.url


async def test_a_node_that_joins_again_as_it_is_wakes_nobody(stores: Stores, hosts: RedisHosts) -> None:
    async with wakes(stores) as heard:
        await hosts.join("h1", G1, now=1.0)
    assert heard == [b"nodes"]
    async with wakes(stores) as heard:
        await hosts.join("h1", G1, now=2.0)
    assert heard == []
    async with wakes(stores) as heard:
        await hosts.join("h1", replace(G1, cleans_up=False, pool="video"), now=3.0)
    assert heard == [b"nodes"]


async def test_the_address_that_a_node_left_is_free(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=5.0)
    await hosts.join("h1", replace(G1, url="http://10.0.0.1:9999"), now=6.0)
    taken = await hosts.join("h2", replace(G1, name="h2-gpu0"), now=7.0)
    assert taken.url == G1.url


async def test_the_central_agent_says_nothing_of_a_node_that_has_its_own(
    stores: Stores, hosts: RedisHosts
) -> None:
    await hosts.join("h1", G1, now=1.0)
    await beat(hosts, nodes=[NodeReport(name="h1-gpu0", readiness=Readiness.READY)])
    await beat(
        hosts,
        "center",
        central=True,
        nodes=[NodeReport(name="h1-gpu0", readiness=Readiness.DRAIN, reason="no")],
    )
    assert await hosts.words("h1-gpu0") == ("ready", "")


async def test_the_first_that_is_heard_of_a_process_is_no_restart(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    for boot_id, starts in (("a", 0), ("a", 0), ("b", 1)):
        await beat(hosts, nodes=[NodeReport(name="h1-gpu0", readiness=Readiness.READY, boot_id=boot_id)])
        (state,) = await stores.nodes.states()
        assert state.reading.starts == starts


async def test_a_neighbour_that_fell_silent_holds_nothing(stores: Stores, hosts: RedisHosts) -> None:
    gpu_allocation = GpuAllocation(gpu="GPU-a", pids=(1,), own=5, used=9)
    for number in (1, 2):
        joining = replace(G1, name=f"h{number}-gpu0", url=f"http://10.0.0.{number}:8188")
        await hosts.join(f"h{number}", joining, now=1.0)
    reports = [
        [NodeReport(name=f"h{number}-gpu0", readiness=Readiness.READY, gpu_allocation=gpu_allocation)]
        for number in (1, 2)
    ]
    await beat(hosts, "h1", nodes=reports[0])
    assert set((await beat(hosts, "h2", nodes=reports[1])).neighbours) == {"h1-gpu0"}
    raw = await stores.redis.hget("fleet:gpu:GPU-a", "h1-gpu0")
    assert isinstance(raw, bytes)
    await stores.redis.hset("fleet:gpu:GPU-a", "h1-gpu0", b"1.0 " + raw.partition(b" ")[2])  # long ago
    assert (await beat(hosts, "h2", nodes=reports[1])).neighbours == {}
    assert await stores.redis.hkeys("fleet:gpu:GPU-a") == [b"h2-gpu0"]


async def test_agents_hear_of_each_other_s_nodes_on_one_gpu(stores: Stores, hosts: RedisHosts) -> None:
    async def sits(host: str, gpu: str, pid: int) -> Orders:
        gpu_allocation = GpuAllocation(gpu=gpu, pids=(pid,), own=5, used=9, age_s=0.25)
        return await beat(
            hosts,
            host,
            nodes=[NodeReport(name=f"{host}-gpu0", readiness=Readiness.READY, gpu_allocation=gpu_allocation)],
        )

    for number in (1, 2, 3):
        url = f"http://10.0.0.{number}:8188"
        await hosts.join(f"h{number}", replace(G1, name=f"h{number}-gpu0", url=url), now=1.0)
    assert (await sits("h1", "GPU-a", 100)).neighbours == {}
    await sits("h3", "GPU-b", 300)
    ((name, gpu_allocation),) = (await sits("h2", "GPU-a", 200)).neighbours.items()
    assert (name, replace(gpu_allocation, age_s=0)) == (
        "h1-gpu0",
        GpuAllocation(gpu="GPU-a", pids=(100,), own=5, used=9),
    )
    assert 0.25 <= gpu_allocation.age_s < 5
    assert set((await sits("h1", "GPU-a", 100)).neighbours) == {"h2-gpu0"}
    await stores.nodes.remove("h2-gpu0")
    assert (await sits("h1", "GPU-a", 100)).neighbours == {}
    assert await stores.redis.hkeys("fleet:gpu:GPU-a") == [b"h1-gpu0"]


async def test_one_agent_speaks_for_a_host_and_another_start_of_it_soon_does(
    stores: Stores, hosts: RedisHosts
) -> None:
    await hosts.join("h1", G1, now=1.0)
    await beat(hosts)
    with pytest.raises(Conflict, match="--host"):
        await hosts.admit("h1", "i2")
    report = NodeReport(name="h1-gpu0", readiness=Readiness.DRAIN, boot_id="2")
    with pytest.raises(Conflict, match="speaks for host h1"):
        await beat(hosts, instance="i2", nodes=[report])
    assert await hosts.words("h1-gpu0") == ("", "")
    await beat(hosts)
    await beat(hosts, "h2", instance="i2")

    async def silent() -> bool:
        try:
            await hosts.admit("h1", "i2")
        except Conflict:
            return False
        return True

    await eventually("the next start may speak", silent)
    with pytest.raises(Conflict):
        await beat(hosts)


async def test_a_gpu_fault_has_the_agent_restart_its_node_once(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)

    async def boots(boot_id: str) -> Orders:
        return await beat(
            hosts, nodes=[NodeReport(name="h1-gpu0", readiness=Readiness.READY, boot_id=boot_id)]
        )

    async def breaks() -> None:
        assert await stores.nodes.record_failure("h1-gpu0", kind="gpu", limit=1, reason="quarantined")

    await boots("1")
    assert await stores.nodes.record_failure("h1-gpu0", kind="oom", limit=1, reason="quarantined")
    assert (await boots("1")).restart == frozenset()  # a new process would have no more memory
    await stores.nodes.uncordon("h1-gpu0")
    await breaks()
    assert (await boots("1")).restart == {"h1-gpu0"}
    back = await boots("2")
    assert (back.restart, back.nodes[0].cordoned) == (frozenset(), False)
    await breaks()  # and the new process is no better
    left = await boots("2")
    assert (left.restart, left.nodes[0].cordoned) == (frozenset(), True)
    await stores.nodes.uncordon("h1-gpu0")
    await breaks()
    assert (await boots("2")).restart == {"h1-gpu0"}


async def test_nobody_takes_another_s_name_or_url(stores: Stores, hosts: RedisHosts) -> None:
    await stores.nodes.add(Node(name="hand", url="http://10.0.0.7:8188"))
    await hosts.join("h1", G1, now=1.0)
    with pytest.raises(Conflict, match="--host"):
        await hosts.join("h2", replace(G1, url="http://10.0.0.2:1"), now=1.0)
    with pytest.raises(Conflict, match="hand"):
        await hosts.join("h1", replace(G1, name="hand"), now=1.0)
    with pytest.raises(Conflict, match="one ComfyUI is one node"):
        await hosts.join("h2", replace(G1, name="h2-gpu0"), now=1.0)


async def test_an_agent_s_reason_is_shown_where_haproxy_knows_none(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    await stores.nodes.add(Node(name="far", url="http://10.0.0.7:8188"))
    said = [
        NodeReport(
            name=name, readiness=Readiness.DRAIN, reason=f"{name} is full", facts={"vram": {"total": 5}}
        )
        for name in ("h1-gpu0", "far", "nobody")
    ]
    await beat(hosts, nodes=said)
    await stores.nodes.report("h1-gpu0", verdict="drain", why=AGENT_DRAINS)
    await stores.nodes.report("far", verdict="drain", why=AGENT_DRAINS)
    assert {s.node.name: s.why for s in await stores.nodes.states()} == {
        "far": AGENT_DRAINS,  # not a node of this host's
        "h1-gpu0": "h1-gpu0 is full",
    }
    assert await hosts.report("h1-gpu0") == {"vram": {"total": 5}}
    assert await hosts.report("far") is None
    assert await stores.redis.exists("fleet:node:nobody") == 0
    await beat(hosts, "center", central=True, nodes=said)
    assert {s.node.name: s.why for s in await stores.nodes.states()}["far"] == "far is full"
    assert await hosts.words("far") == ("drain", "far is full")
    await stores.nodes.report("h1-gpu0", verdict="down", why="Connection refused")
    assert await _why(stores, "h1-gpu0") == "h1-gpu0 is full (Connection refused)"
    await stores.redis.delete("fleet:report:h1-gpu0")  # in time: the agent is gone
    assert await _why(stores, "h1-gpu0") == "Connection refused"
    held = NodeReport(name="h1-gpu0", readiness=Readiness.HOLD, reason="the owner of its memory is unknown")
    await beat(hosts, nodes=[held])
    assert await _why(stores, "h1-gpu0") == "Connection refused"
    await stores.nodes.report("h1-gpu0", verdict="drain", why=AGENT_DRAINS)
    assert await _why(stores, "h1-gpu0") == held.reason  # it has not given back what it took before
    await stores.nodes.report("h1-gpu0", verdict="drain", why="cordoned: fans")
    assert {s.node.name: s.why for s in await stores.nodes.states()}["h1-gpu0"] == "cordoned: fans"


async def test_a_run_explains_its_prompt_also_when_its_lease_has_expired(
    stores: Stores, hosts: RedisHosts
) -> None:
    await hosts.join("h1", G1, now=1.0)
    await submit(stores)
    got = await claim(stores, "h1-gpu0", ttl=-1)
    stranger = str(uuid4())
    orders = await beat(hosts, seen=[got.run, stranger], leaving=["h1-gpu0", "h1-gpu1"])
    assert orders.explained == {got.run}
    assert orders.clear == {"h1-gpu1"}
    await stores.runs.left(got, [])  # its outputs are still to be fetched
    assert (await beat(hosts, leaving=["h1-gpu0"])).clear == frozenset()
    await stores.runs.finish(got, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    orders = await beat(hosts, seen=[got.run], leaving=["h1-gpu0"])
    assert not orders.explained
    assert orders.clear == {"h1-gpu0"}


async def test_files_may_go_when_the_job_is_final_and_not_before(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    await hosts.join("h1", replace(G1, name="far", url="http://10.0.0.2:1", cleans_up=False), now=1.0)
    job = await submit(stores)
    first = await claim(stores, "h1-gpu0")
    await stores.runs.requeue(first, counts=True, reason=BROKEN)
    assert (await beat(hosts)).delete == []
    far = await claim(stores, "far")
    await stores.runs.requeue(far, counts=True, reason=BROKEN)
    last = await claim(stores, "h1-gpu0")
    await stores.runs.finish(last, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    wanted = [Cleanup(node="h1-gpu0", job=job.id, run=run) for run in (first.run, last.run)]
    orders = await beat(hosts)
    assert sorted(map(str, orders.delete)) == sorted(map(str, wanted))
    assert (await beat(hosts, "h2")).delete == []
    assert (await beat(hosts, deleted=wanted[:1])).delete == wanted[1:]
    assert (await beat(hosts, deleted=wanted)).delete == []
    assert await stores.redis.keys("fleet:job:*:traces") == []


async def test_copies_that_preview3d_left_may_go_with_their_run(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    job = await submit(stores)
    first = await claim(stores, "h1-gpu0")
    await stores.runs.commit(first, stored(first, output(name=f"preview3d_{'f' * 32}.glb")))
    await stores.runs.requeue(first, counts=True, reason=BROKEN)
    last = await claim(stores, "h1-gpu0")
    names = [
        f"preview3d_{'a' * 32}.glb",
        "a.png",
        f"preview3d_{'b' * 31}.glb",
        f"preview3d_{'c' * 32}.glb x",
        f"preview3d_advanced_{'d' * 32}.glb",
        f"preview3d_{'0' * 32}.usdz",
    ]
    for index, name in enumerate(names):
        await stores.runs.commit(last, stored(last, output(index, name=name)))
    await stores.runs.finish(last, JobStatus.SUCCEEDED, error=None, duration_s=1.0)
    gone = {cleanup.run: set(cleanup.strays) for cleanup in (await beat(hosts)).delete}
    assert gone == {first.run: set(), last.run: {names[0], names[5]}}
    assert {cleanup.job for cleanup in (await beat(hosts)).delete} == {job.id}


async def test_a_cancelled_job_s_files_may_go(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    job = await submit(stores)
    run = await claim(stores, "h1-gpu0")
    await stores.runs.requeue(run, counts=False, reason=BROKEN)
    await stores.jobs.request_cancel(job.id)
    assert (await beat(hosts)).delete == [Cleanup(node="h1-gpu0", job=job.id, run=run.run)]


async def test_hosts_are_listed_alive_or_not(stores: Stores, hosts: RedisHosts) -> None:
    await beat(hosts, "h2", gpus=[{"index": 0, "name": "card"}])
    await beat(hosts, "h1", gpus_why="no NVIDIA driver is installed")
    await stores.redis.delete("fleet:host:h1")
    first, second = await hosts.hosts()
    assert (first.host, first.alive, first.record) == ("h1", False, {})
    assert (second.host, second.alive) == ("h2", True)
    assert second.record["gpus"] == [{"index": 0, "name": "card"}]
    client: Any = stores.redis
    await client.zadd("fleet:hosts", {"h1": time.time() - 8 * 86400})
    assert len(await hosts.hosts()) == 2  # looking changes nothing
    await beat(hosts, "h2")
    assert [state.host for state in await hosts.hosts()] == ["h2"]


async def test_a_new_start_of_its_process_ends_a_quarantine(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    said = NodeReport(name="h1-gpu0", readiness=Readiness.READY, boot_id="a.0")
    await beat(hosts, nodes=[said])
    await stores.nodes.cordon("h1-gpu0", reason="CUDA error")
    await stores.redis.hset("fleet:node:h1-gpu0", "quarantined", "1")
    await beat(hosts, nodes=[said])
    await beat(hosts, nodes=[replace(said, boot_id="")])
    (known,) = (await beat(hosts)).nodes
    assert known.cordoned
    await beat(hosts, nodes=[replace(said, boot_id="a.1")])
    (known,) = (await beat(hosts)).nodes
    assert not known.cordoned


async def test_a_node_s_weight_follows_its_gpu_also_for_its_agent(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    await stores.redis.hset("fleet:node:h1-gpu0", "gpu", "NVIDIA GeForce RTX 3060")
    (told,) = (await beat(hosts)).nodes
    (known,) = await stores.nodes.nodes()
    assert told == known
    assert told.weight != 100


async def test_the_order_to_restart_is_told_until_it_was_done(stores: Stores, hosts: RedisHosts) -> None:
    await hosts.join("h1", G1, now=1.0)
    said = NodeReport(name="h1-gpu0", readiness=Readiness.READY, boot_id="a.0")
    assert (await beat(hosts, nodes=[said])).restart == frozenset()
    await stores.nodes.want_restart("h1-gpu0")
    for _ in range(2):
        assert (await beat(hosts, nodes=[said])).restart == {"h1-gpu0"}
    assert (await beat(hosts, nodes=[replace(said, boot_id="a.1")])).restart == frozenset()
    with pytest.raises(NotFound):
        await stores.nodes.want_restart("nobody")


async def _why(stores: Stores, name: str) -> str:
    state = await stores.nodes.state(name)
    assert state is not None
    return state.why


async def test_a_store_that_was_emptied_says_so(stores: Stores, hosts: RedisHosts) -> None:
    first = await stores.nodes.store_id()
    assert first
    assert [await stores.nodes.store_id(), (await beat(hosts)).store] == [first, first]
    await stores.redis.flushall()
    second = (await beat(hosts)).store
    assert second
    assert second != first
    assert await stores.nodes.store_id() == second
