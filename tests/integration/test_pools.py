"""Pools: set by an operator, obeyed by running processes, and nothing that waits for them is lost."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.bootstrap import Stores
from comfy_fleet.cli.client import Client
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import JobStatus, Placement
from comfy_fleet.domain.nodes.pool import Pool
from comfy_fleet.sim import NodeOptions, SimNode
from tests.factories import picture
from tests.fakes.nodes import FakeNodeRegistry, FakePoolStore
from tests.fleet import until
from tests.integration.agent_kit import host_of
from tests.integration.haproxy_kit import make_settings
from tests.integration.haproxy_kit import running as broker
from tests.integration.redis_kit import add_nodes
from tests.integration.test_host_verdict import beside
from tests.integration.test_lifecycle import operated

UNSET = {"free_idle_s": None, "free_on_oom": None, "silence_s": None}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def test_a_pool_is_what_was_set_whatever_its_slot(stores: Stores) -> None:
    pools = stores.pools
    assert await pools.get("big") == Pool(name="big")
    assert await pools.pools() == []
    await pools.set(Pool(name="big", free_idle_s=120, free_on_oom=False))
    await pools.place({"default": 1, "big": 2})
    await pools.set(Pool(name="big", free_idle_s=60))
    assert await pools.pools() == [Pool(name="big", slot=2, free_idle_s=60), Pool(name="default", slot=1)]
    await pools.place({"default": 3})
    await pools.set(Pool(name="big"))
    assert await pools.pools() == [Pool(name="default", slot=3)]
    await pools.place({})
    assert await pools.pools() == []


async def test_what_somebody_else_sets_at_the_same_moment_stays(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Pool(name="big", free_idle_s=60), Pool(name="big", free_idle_s=120)]
    real = Scripts.call

    async def meanwhile(scripts: Scripts, script: str, *args: Any, **more: Any) -> Any:
        if script == "swap_pool" and others:
            await stores.pools.set(others.pop(0))
        return await real(scripts, script, *args, **more)

    monkeypatch.setattr(Scripts, "call", meanwhile)
    await stores.pools.change("big", {"free_on_oom": False})
    assert not others
    assert await stores.pools.get("big") == Pool(name="big", free_idle_s=120, free_on_oom=False)


async def test_two_operators_change_one_pool_at_once(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Client._send  # noqa: SLF001 - all that changes something passes here
    others: list[Mapping[str, Any]] = [{"free_idle_s": 120.0}]

    def meanwhile(client: Client, method: str, path: str, body: Any, *args: Any) -> Any:
        if others:
            real(client, "PUT", path, others.pop())
        return real(client, method, path, body, *args)

    monkeypatch.setattr(Client, "_send", meanwhile)
    async with operated(redis_port, tmp_path) as world:
        assert (await world.cli("pool", "set", "big", "--free-on-oom", "no")).exit_code == 0
        found = (await world.client.get("/api/v1/pools/big")).json()
        assert (found["free_idle_s"], found["free_on_oom"]) == (120, False)
        changes = [{"free_idle_s": 60}, {"free_on_oom": True}] * 5
        sent = (world.client.patch("/api/v1/pools/big", json=change) for change in changes)
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}
        found = (await world.client.get("/api/v1/pools/big")).json()
        assert (found["free_idle_s"], found["free_on_oom"]) == (60, True)


async def test_a_record_of_another_version_or_a_broken_one_hides_no_pool(
    stores: Stores, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.hset("fleet:pools", "new", b'{"free_idle_s": 5, "weight": 3}')
    await redis.hset("fleet:pools", "old", b'{"free_idle_s": 7}')
    await redis.hset("fleet:pools", "odd", b'{"free_idle_s": -1}')
    await redis.hset("fleet:pools", "torn", b"{")
    await redis.hset("fleet:pools:slots", "torn", b"4")
    for name in (b"Upper", b"no name", b"\xff"):  # those of no pool hide none either
        await redis.hset("fleet:pools", name, b'{"free_idle_s": 5}')
        await redis.hset("fleet:pools:slots", name, b"5")
    assert await stores.pools.pools() == [
        Pool(name="new", free_idle_s=5),
        Pool(name="odd"),
        Pool(name="old", free_idle_s=7),
        Pool(name="torn", slot=4),
    ]
    assert {"odd", "torn"} <= {getattr(record, "name_of_record", "") for record in caplog.records}


async def test_an_operator_sets_pools_and_sees_them(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1") as world:
        client = world.client
        await until(lambda: _slot(world.fleet.stores, "default", 1), what="its slot is known")
        default = {"slot": 1, "nodes": 1, "up": 1, "patience_s": None, **UNSET}
        assert (await client.get("/api/v1/pools")).json() == {"pools": [{"name": "default", **default}]}
        assert (await client.get("/api/v1/pools/big")).status_code == 404
        done = await world.cli("pool", "set", "big", "--free-idle-s", "120")
        assert done.exit_code == 0, done.output
        done = await world.cli("pool", "set", "big", "--free-on-oom", "no")  # what was set stays
        assert "after 120 s" in done.stdout and "no" in done.stdout
        big = {"name": "big", "slot": None, "nodes": 0, "up": 0, "free_idle_s": 120, "free_on_oom": False}
        big |= {"patience_s": None, "silence_s": None}
        assert (await client.get("/api/v1/pools/big")).json() == big
        listed = (await world.cli("pool", "ls")).stdout
        assert "Unload when idle" in listed and "after 120 s" in listed and "default" in listed
        shown = (await world.cli("pool", "show", "big")).stdout
        assert "0 (0 up)" in shown and "none yet" in shown
        put = await client.put("/api/v1/pools/big", json={"free_on_oom": True})
        assert put.json() == {**big, "free_idle_s": None, "free_on_oom": True}
        done = await world.cli("pool", "set", "big", "--free-on-oom", "default")
        assert done.exit_code == 0
        assert (await client.get("/api/v1/pools/big")).status_code == 404  # nothing is left of it
        assert (await client.get("/api/v1/pools")).json()["pools"] == [{"name": "default", **default}]
        done = await world.cli("pool", "set", "big", "--patience-s", "20")
        assert done.exit_code == 0 and "20 s" in done.stdout, done.output
        assert (await client.get("/api/v1/pools/big")).json() == {**big, "patience_s": 20, **UNSET}
        assert "20 s" in (await world.cli("pool", "ls")).stdout
        done = await world.cli("pool", "set", "big", "--silence-s", "120")
        assert done.exit_code == 0 and "after 120 s without progress" in done.stdout, done.output


@pytest.mark.parametrize(
    ("name", "body", "status", "told"),
    [
        ("big", {"free_idle_s": -1}, 422, "free_idle_s"),
        ("big", {"free_idle_s": 1e12}, 422, "free_idle_s"),
        ("big", {"free_idle_s": "120"}, 422, "free_idle_s"),
        ("big", {"free_on_oom": 1}, 422, "free_on_oom"),
        ("big", {"patience_s": -1}, 422, "patience_s"),
        ("big", {"silence_s": 0}, 422, "silence_s"),
        ("big", {"patience_s": 86401}, 422, "patience_s"),
        ("big", {"patience_s": "20"}, 422, "patience_s"),
        ("big", {"weight": 2}, 422, "there is no such field; there are free_idle_s, free_on_oom, patience_s"),
        ("Big", {}, 400, "pool 'Big' must be 1 to 63 of a-z"),
        ("x" * 64, {}, 400, "must be 1 to 63 of a-z"),
    ],
)
async def test_what_no_pool_can_be_is_refused_with_the_field(
    redis_port: int, tmp_path: Path, name: str, body: dict[str, object], status: int, told: str
) -> None:
    async with operated(redis_port, tmp_path) as world:
        for method in ("PUT", "PATCH"):
            answer = await world.client.request(method, f"/api/v1/pools/{name}", json=body)
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (status, True), method
        assert (await world.client.get("/api/v1/pools")).json() == {"pools": []}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--free-idle-s", "soon"], "--free-idle-s 'soon' must be a number of seconds"),
        (["--free-idle-s", "nan"], "--free-idle-s 'nan' must be a number of seconds"),
        (["--free-idle-s", "inf"], "--free-idle-s 'inf' must be a number of seconds"),
        (["--free-idle-s=-1"], "--free-idle-s '-1' must be a number of seconds from 0"),
        (["--patience-s=-1"], "--patience-s '-1' must be a number of seconds from 0 to 86400, or default"),
        (["--patience-s", "86401"], "--patience-s '86401' must be a number of seconds from 0 to 86400"),
        (["--free-on-oom", "1"], "--free-on-oom '1' must be yes, no or default"),
        ([], "nothing to set: --free-idle-s S, --free-on-oom yes|no"),
    ],
)
async def test_the_command_says_what_to_type(
    redis_port: int, tmp_path: Path, argv: list[str], told: str
) -> None:
    async with operated(redis_port, tmp_path) as world:
        assert told in str((await world.cli("pool", "set", "big", *argv)).exception)


@pytest.mark.parametrize("name", ["", "Big", "a b", "../x", "ü", "x" * 64])
async def test_the_command_says_what_a_pool_may_be_called(redis_port: int, tmp_path: Path, name: str) -> None:
    async with operated(redis_port, tmp_path) as world:
        refused = (await world.cli("pool", "set", name, "--free-idle-s", "5")).exception
        assert f"pool {name!r} must be 1 to 63 of a-z 0-9 _ . -" in str(refused)


async def test_a_running_agent_obeys_within_seconds(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    async with (
        SimNode(NodeOptions(name="g1")) as sim,
        host_of(redis_port, tmp_path, options=beside(sim), free_idle_s=0) as host,
    ):
        await host.said("g1", "ready")
        sim.vram.load("m.safetensors", 2**30)
        rows = (await host.http.get(f"{host.api.url}/api/v1/nodes")).json()["nodes"]
        assert "free_idle_s" not in rows[0]
        body = {"free_idle_s": 0.3}
        assert (await host.http.put(f"{host.api.url}/api/v1/pools/default", json=body)).status_code == 200
        await until(lambda: not sim.vram.models, what="its models are unloaded")
        rows = (await host.http.get(f"{host.api.url}/api/v1/nodes")).json()["nodes"]
        assert rows[0]["free_idle_s"] == 0.3


async def test_a_running_dispatcher_obeys_at_once(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operated(redis_port, tmp_path, "g1", quarantine_ooms=50) as world:
        sim, asked = world.fleet.sims["g1"], list[bool]()
        for on_oom in (False, True, False):
            monkeypatch.setattr(sim.engine, "free", lambda *_, now=on_oom, **__: asked.append(now))
            await world.client.put("/api/v1/pools/default", json={"free_on_oom": on_oom})
            await sim.set_faults({"oom": 1})
            job = await world.fleet.submit(picture(len(asked)), profile=str(on_oom))
            assert (await world.fleet.ended(job.id)).status is JobStatus.FAILED
        assert asked == [True]


async def test_jobs_wait_for_a_pool_through_all_that_becomes_of_it(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1") as world:
        fleet, client = world.fleet, world.client
        late = Placement(pool="late")
        jobs = [(await fleet.submit(picture(number), placement=late)).id for number in range(5)]
        for body in ({"free_idle_s": 60}, {}, {"free_on_oom": False}, {}):
            assert (await client.put("/api/v1/pools/late", json=body)).status_code == 200
            assert {(await fleet.job(job)).status for job in jobs} == {JobStatus.QUEUED}
        await fleet.add_sim("g2", node={"pool": "late"})
        await fleet.verdict("g2")
        await client.delete("/api/v1/nodes/g2?force=true")  # the pool's only node is gone
        jobs += [(await fleet.submit(picture(10 + number), placement=late)).id for number in range(5)]
        await client.put("/api/v1/pools/late", json={"free_idle_s": 1})
        await fleet.add_sim("g3", node={"pool": "late"})
        ended = [await fleet.ended(job) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}


async def test_a_controller_takes_the_slots_that_pools_have(stores: Stores, tmp_path: Path) -> None:
    await stores.pools.place({"default": 3, "gone": 2})
    await add_nodes(stores, "g1")
    nodes = await stores.nodes.nodes()
    async with broker(tmp_path, FakeNodeRegistry(nodes), pools=stores.pools) as fleet:
        await until(lambda: "be_pool_3" in files(fleet.settings).pools.read_text(), what="written")
        assert await fleet.raw(f"show map {files(fleet.settings).pools}")
        kept = {pool.name: pool.slot for pool in await stores.pools.pools()}
        assert kept == {"default": 3, "gone": 2}


async def test_slots_that_can_t_be_kept_keep_no_node_out(stores: Stores, tmp_path: Path) -> None:
    class Away(FakePoolStore):
        async def place(self, slots: Mapping[str, int]) -> None:
            if self.calls["place"] < 2:
                self.troubles = [StoreDown("away")]
            await super().place(slots)

    away = Away()
    await add_nodes(stores, "g1")
    settings = make_settings(tmp_path)
    nodes = await stores.nodes.nodes()
    async with broker(tmp_path, FakeNodeRegistry(nodes), settings=settings, pools=away) as fleet:
        await until(lambda: away.calls["place"] >= 3, what="it is tried again")
        assert "be_pool_1" in files(fleet.settings).pools.read_text()


async def _slot(stores: Stores, name: str, slot: int) -> bool:
    return (await stores.pools.get(name)).slot == slot
