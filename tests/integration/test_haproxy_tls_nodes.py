"""Nodes behind a proxy: https, a path before every path, a name of their own, a password."""

from base64 import b64encode
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from comfy_fleet.adapters.comfyui.node_address import check_place
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.adapters.haproxy.server_lines import entries_of
from comfy_fleet.domain.errors import BrokerError, Conflict
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import fleet_of
from tests.integration.haproxy_kit import (
    Broker,
    TinyNode,
    eventually,
    make_settings,
    raw_request,
    running,
    why_held,
)
from tests.tls_proxy import HOST, Authority, Proxy

PASSWORD = "an operator:s3cr+t/=% |\\\"' \u00fc"


@pytest.mark.parametrize(
    ("tls", "prefix", "credentials"),
    [
        *((True, "", ""), (True, "/comfy", ""), (True, "/a/b-1.c", ""), (False, "/comfy", "")),
        *(
            (True, "", PASSWORD),
            (True, "/comfy", "u:"),
            (False, "/comfy", PASSWORD),
            (False, "", "u:????>>>>"),
        ),
    ],
)
@pytest.mark.parametrize("from_file", [True, False])
async def test_it_works_like_any_other(
    tmp_path: Path, tls: bool, prefix: str, credentials: str, from_file: bool
) -> None:
    authority = Authority(tmp_path)
    context = authority.context(HOST) if tls else None
    settings = make_settings(tmp_path / "data", node_ca_file=authority.file)
    async with (
        TinyNode("far") as tiny,
        Proxy(tiny.port, prefix=prefix, context=context, credentials=credentials) as proxy,
    ):
        node = Node(name="far", url=proxy.url, sealed=credentials)
        registry = FakeNodeRegistry([node] if from_file else [])
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
            assert not proxy.refused


async def test_a_password_that_is_wrong_or_changes(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    async with (
        TinyNode("far") as tiny,
        Proxy(tiny.port, prefix="", context=None, credentials="u:one") as proxy,
    ):
        registry = FakeNodeRegistry([Node(name="far", url=proxy.url, sealed="u:one")])
        async with running(settings.data, registry, settings=settings) as fleet:
            await fleet.told("far", "up")
            proxy.credentials = "u:two"
            await fleet.told("far", "down")
            assert "Unauthorized" in registry.told["far"][1]
            await registry.change("far", sealed="u:two")
            await fleet.told("far", "up")
            assert (await fleet.call("far")).status_code == 200
            for name in ("nodes.map", "broker.cfg"):
                assert (settings.data / "run" / name).stat().st_mode & 0o077 == 0
            answer = await raw_request(
                settings.direct_socket, "GET", "/queue?mine", "X-Fleet-Node: far", "Authorization: x"
            )
            assert b" 200 " in answer.split(b"\r\n")[0]


async def forgotten(fleet: Broker, password: str) -> None:
    """Wait until neither HAProxy nor its file holds a password."""
    file = fleet.settings.data / "run" / "nodes.map"

    async def nowhere() -> bool:
        return password not in await fleet.raw(f"show map {file}") and password not in file.read_text()

    await eventually("the password is nowhere", nowhere)


@pytest.mark.parametrize("used", [False, True])
async def test_a_password_goes_with_its_node(tmp_path: Path, used: bool) -> None:
    settings = make_settings(tmp_path / "data")
    password = b64encode(b"u:s3cret").decode()
    async with (
        TinyNode("far") as tiny,
        Proxy(tiny.port, prefix="", context=None, credentials="u:s3cret") as proxy,
    ):
        registry = FakeNodeRegistry([Node(name="far", url=proxy.url, sealed="u:s3cret")])
        async with running(settings.data, registry, settings=settings) as fleet:
            await fleet.told("far", "up")
            assert password in (settings.data / "run" / "nodes.map").read_text()
            if not used:
                await registry.remove("far")
            else:
                _, tunnel = await fleet.lease(nodes="far")
                await registry.remove("far")

                async def leaves() -> bool:
                    known = await fleet.controller.broker.runtime.servers()
                    return any(server.backend == "be_pool_1" and server.maint for server in known)

                await eventually("it leaves with its last connection", leaves)
                assert (await fleet.call("far")).status_code == 200  # what runs there still has to be ended
                await tunnel.close()
            await forgotten(fleet, password)


async def test_a_password_goes_with_the_last_node_also_if_the_start_did_not_hear_of_it(
    tmp_path: Path,
) -> None:
    settings = make_settings(tmp_path / "data")
    password = b64encode(b"u:s3cret").decode()
    registry = FakeNodeRegistry([Node(name="far", url="http://127.0.0.1:9/x", sealed="u:s3cret")])
    async with running(settings.data, registry, settings=settings) as fleet:
        pass
    registry.down = True
    async with running(settings.data, registry, settings=settings) as fleet:
        assert password in await fleet.raw(f"show map {settings.data / 'run' / 'nodes.map'}")
        registry.held.clear()
        registry.down = False
        await forgotten(fleet, password)


async def test_a_callers_own_password_goes_to_no_node(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    async with TinyNode("far") as tiny:
        registry = FakeNodeRegistry([Node(name="far", url=tiny.url)])
        async with running(settings.data, registry, settings=settings) as fleet:
            await fleet.told("far", "up")
            await raw_request(
                settings.direct_socket, "GET", "/queue?mine", "X-Fleet-Node: far", "Authorization: Bearer k"
            )
            mine = [request for request in tiny.requests if request["target"] == "/queue?mine"]
            assert ["authorization" in request["headers"] for request in mine] == [False]


async def test_an_order_is_repeated_without_the_password_in_it(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "nobody.sock")
    entry = entries_of(
        [Node(name="far", url="https://h", sealed="u:p")], {"default": 1}, agent=("h", 1), credentials=str
    )[0]
    assert entry.via == "h||Basic%20dTpw"
    assert "dTpw" not in repr(entry)
    with pytest.raises(BrokerError) as refused:
        await runtime.order(f"add map x far {entry.via}")
    assert "dTpw" not in f"{refused.value} {refused.value.details}"


async def test_beside_plain_ones_and_moved(tmp_path: Path) -> None:
    """A node's URL may become another one: what HAProxy had of the old one is not used any more."""
    authority = Authority(tmp_path)
    settings = make_settings(tmp_path / "data", node_ca_file=authority.file)
    async with (
        TinyNode("far") as tiny,
        TinyNode("near") as near,
        Proxy(tiny.port, prefix="/x", context=authority.context(HOST)) as proxy,
    ):
        registry = FakeNodeRegistry([Node(name="far", url=proxy.url), Node(name="near", url=near.url)])
        async with running(settings.data, registry, settings=settings, ca_file=authority.file) as fleet:
            await fleet.told("far", "up")
            await fleet.told("near", "up")
            assert (await fleet.call("near")).json()["headers"]["host"] == "localhost"
            assert (await fleet.call("far")).json()["node"] == "far"
            for url in (tiny.url, proxy.url):
                await registry.change("far", url=url)

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
        assert "CERTIFICATE_VERIFY_FAILED" in await why_held(node, ca_file=right.file)
        async with running(settings.data, FakeNodeRegistry([node]), settings=settings) as fleet:
            await fleet.told("far", "new")
            runtime = fleet.controller.broker.runtime
            # Whoever opened it all the same: its health check fails, and no call gets through.
            await runtime.order("set server be_pool_1/far state ready")
            await fleet.told("far", "down")
            with pytest.raises(InvalidStatus):
                await fleet.lease(nodes="far")
            assert (await fleet.call("far")).status_code == 503


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize(
    ("tls", "prefix", "credentials"),
    [(True, "/comfy", ""), (False, "/comfy", ""), (True, "", PASSWORD), (False, "", PASSWORD)],
)
async def test_jobs_run_on_it(
    tmp_path: Path, redis_port: int, tls: bool, prefix: str, credentials: str
) -> None:
    """Without a list of able nodes, too, HAProxy must know which one it is before it asks."""
    authority = Authority(tmp_path)
    context = authority.context(HOST) if tls else None
    async with (
        fleet_of(redis_port, node_ca_file=authority.file) as fleet,
        SimNode(NodeOptions(name="far", timing=SimTiming(scale=0)), port=free_port()) as sim,
        Proxy(sim.port, prefix=prefix, context=context, credentials=credentials) as proxy,
    ):
        await fleet.stores.nodes.add(Node(name="far", url=proxy.url, sealed=credentials, simulated=True))
        await fleet.verdict("far")
        jobs = [await fleet.submit() for _ in range(3)]
        for job in jobs:
            done = await fleet.ended(job.id)
            assert (done.status, done.node) == (JobStatus.SUCCEEDED, "far")
            assert done.outputs
        assert not proxy.refused


async def test_one_proxy_serves_several() -> None:
    """They share an address: their names and paths tell them apart."""
    known = [Node(name="a", url="https://localhost:1/a"), Node(name="b", url="http://localhost:1")]
    for url in ("https://localhost:1/b", "https://localhost.localdomain:1/a", "http://localhost:1/c"):
        await check_place(Node(name="c", url=url), known)
    with pytest.raises(Conflict):
        await check_place(Node(name="c", url="http://127.0.0.1:1"), known)
