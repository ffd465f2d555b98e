"""Nodes behind a proxy: https, a path before every path, a name of their own."""

from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from comfy_fleet.adapters.places import check_place
from comfy_fleet.agent.reach import Reach
from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.job import JobStatus
from comfy_fleet.domain.node import Node
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.conftest import free_port
from tests.fleet import fleet_of
from tests.integration.haproxy_kit import MemoryRegistry, TinyNode, eventually, make_settings, running
from tests.tls_proxy import HOST, Authority, Proxy


@pytest.mark.parametrize(
    ("tls", "prefix"), [(True, ""), (True, "/comfy"), (True, "/a/b-1.c"), (False, "/comfy")]
)
@pytest.mark.parametrize("from_file", [True, False])
async def test_it_works_like_any_other(tmp_path: Path, tls: bool, prefix: str, from_file: bool) -> None:
    authority = Authority(tmp_path)
    context = authority.context(HOST) if tls else None
    settings = make_settings(tmp_path / "data", node_ca_file=authority.file)
    async with TinyNode("far") as tiny, Proxy(tiny.port, prefix=prefix, context=context) as proxy:
        node = Node(name="far", url=proxy.url)
        registry = MemoryRegistry([node] if from_file else [])
        async with running(settings.data, registry, settings=settings, ca_file=authority.file) as fleet:
            if not from_file:
                await registry.add(node)
            await fleet.told("far", "up")
            answer = await fleet.call("far", path="/queue?a=1")
            assert answer.json()["target"] == "/queue?a=1"
            assert answer.headers["X-Fleet-Node"] == "far"
            name, socket = await fleet.lease(nodes="far")
            await socket.send("hello")
            assert (name, await socket.recv()) == ("far", "hello")


async def test_beside_plain_ones_and_moved(tmp_path: Path) -> None:
    """A node's URL may become another one: what HAProxy had of the old one is not used any more."""
    authority = Authority(tmp_path)
    settings = make_settings(tmp_path / "data", node_ca_file=authority.file)
    async with (
        TinyNode("far") as tiny,
        TinyNode("near") as near,
        Proxy(tiny.port, prefix="/x", context=authority.context(HOST)) as proxy,
    ):
        registry = MemoryRegistry([Node(name="far", url=proxy.url), Node(name="near", url=near.url)])
        async with running(settings.data, registry, settings=settings, ca_file=authority.file) as fleet:
            await fleet.told("far", "up")
            await fleet.told("near", "up")
            assert (await fleet.call("near")).json()["headers"]["host"].startswith("127.0.0.1:")
            assert (await fleet.call("far")).json()["node"] == "far"
            for url in (tiny.url, proxy.url):
                await registry._change("far", url=url)

                async def moved(url: str = url) -> bool:
                    answer = await fleet.call("far")
                    told = await fleet.raw(f"show map {settings.data / 'run' / 'nodes.map'}")
                    return answer.status_code == 200 and ("far " in told) == (url == proxy.url)

                await eventually(f"moved to {url}", moved)
                await fleet.told("far", "up")


@pytest.mark.parametrize("fault", ["name", "authority"])
async def test_a_wrong_certificate_is_a_node_that_is_not_up(tmp_path: Path, fault: str) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right, wrong = Authority(tmp_path / "right"), Authority(tmp_path / "wrong")
    context = right.context("other.test") if fault == "name" else wrong.context(HOST)
    settings = make_settings(tmp_path / "data", node_ca_file=right.file)
    async with TinyNode("far") as tiny, Proxy(tiny.port, prefix="/x", context=context) as proxy:
        node = Node(name="far", url=proxy.url)
        reach = Reach(right.file)
        reach.follow([node])
        await eventually("told", lambda: "CERTIFICATE_VERIFY_FAILED" in reach.trouble(node))
        assert not reach.reached(node)
        await reach.stop()
        async with running(settings.data, MemoryRegistry([node]), settings=settings) as fleet:
            await fleet.told("far", "new")
            runtime = fleet.controller.broker.runtime
            # Whoever opened it all the same: its health check fails, and no call gets through.
            await runtime.order("set server be_pool_1/far state ready")
            await fleet.told("far", "down")
            with pytest.raises(InvalidStatus):
                await fleet.lease(nodes="far")
            assert (await fleet.call("far")).status_code == 503


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("tls", [True, False])
async def test_jobs_run_on_it(tmp_path: Path, redis_port: int, tls: bool) -> None:
    """Without a list of able nodes, too, HAProxy must know which one it is before it asks."""
    authority = Authority(tmp_path)
    context = authority.context(HOST) if tls else None
    async with (
        fleet_of(redis_port, look=True, node_ca_file=authority.file) as fleet,
        SimNode(NodeOptions(name="far", timing=SimTiming(scale=0)), port=free_port()) as sim,
        Proxy(sim.port, prefix="/comfy", context=context) as proxy,
    ):
        await fleet.stores.nodes.add(Node(name="far", url=proxy.url, simulated=True))
        await fleet.verdict("far")
        jobs = [await fleet.submit() for _ in range(3)]
        for job in jobs:
            done = await fleet.ended(job.id)
            assert (done.status, done.node) == (JobStatus.SUCCEEDED, "far")
            assert done.outputs


async def test_one_proxy_serves_several() -> None:
    """They share an address: their names and paths tell them apart."""
    known = [Node(name="a", url="https://localhost:1/a"), Node(name="b", url="http://localhost:1")]
    for url in ("https://localhost:1/b", "https://localhost.localdomain:1/a", "http://localhost:1/c"):
        await check_place(Node(name="c", url=url), known)
    with pytest.raises(Conflict):
        await check_place(Node(name="c", url="http://127.0.0.1:1"), known)
