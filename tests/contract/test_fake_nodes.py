"""The fakes of leases and nodes, held against simulated nodes behind HAProxy: every case runs on both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from comfy_fleet.domain.errors import NodeError, OutputGone
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.ports.comfyui import Lease, Leases, NodeApi, NoLease, RawAnswer
from tests.fakes.comfyui import FakeLeases, FakeNodeApi, chunks
from tests.integration.comfyui_kit import Fleet, a_fleet
from tests.integration.haproxy_kit import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Nodes ``g1`` and ``g2`` in the pool ``default``, from one side.

    Attributes:
        put: Have a file in the input folder of ``g1``.
    """

    leases: Leases
    nodes: NodeApi
    put: Callable[[str, bytes], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with a_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="module", params=["fake", "real"])
async def ports(request: pytest.FixtureRequest, fleet: Fleet) -> Ports:
    if request.param == "real":

        async def upload(name: str, data: bytes) -> None:
            content = chunks(data)
            await fleet.nodes.upload(
                "g1", name=name, subfolder="", content=content, content_type="text/plain"
            )

        return Ports(leases=fleet.leases, nodes=fleet.nodes, put=upload)
    nodes = FakeNodeApi()
    for name in ("g1", "g2"):
        nodes.classes[name] = {"EmptyImage": {"input": {}, "output": ["IMAGE"]}}
        nodes.stats[name] = {"system": {}, "devices": []}
        headers = {"content-type": "application/json; charset=utf-8"}
        nodes.raws[name] = {"/i18n": RawAnswer(status=200, headers=headers, body=b"{}")}

    async def put(name: str, data: bytes) -> None:
        nodes.files[f"input/{name}"] = data

    return Ports(leases=FakeLeases({"g1": "default", "g2": "default"}), nodes=nodes, put=put)


async def granted(ports: Ports, *nodes: str) -> Lease:
    """A lease on one of these nodes, as soon as HAProxy sees that it is free."""
    found: list[Lease] = []

    async def ask() -> bool:
        lease = await ports.leases.lease(run="r", pool="default", nodes=nodes)
        if not isinstance(lease, NoLease):
            found.append(lease)
        return bool(found)

    await eventually("a lease", ask)
    return found[0]


async def refused(ports: Ports, *nodes: str, pool: str = "default") -> NoLease:
    lease = await ports.leases.lease(run="r", pool=pool, nodes=nodes)
    assert isinstance(lease, NoLease)
    return lease


async def test_a_node_is_granted_once_until_it_is_given_back(ports: Ports) -> None:
    first = await granted(ports, "g2", "g1")
    assert (first.node, first.close_reason, first.limit) == ("g2", "", "")
    assert (await refused(ports, "g2")).why == "busy"
    second = await granted(ports, "g2", "g1")
    assert second.node == "g1"
    assert (await refused(ports)).why == "busy"
    first.release()
    first.release()
    third = await granted(ports)
    assert third.node == "g2"
    for lease in (second, third):
        lease.release()


async def test_no_node_of_another_pool_is_granted(ports: Ports) -> None:
    assert (await refused(ports, "g1", pool="none")).why in ("busy", "error")


async def test_frames_end_with_the_lease(ports: Ports) -> None:
    lease = await granted(ports, "g1")

    async def read() -> None:
        async for _ in lease.frames():
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    assert not reading.done()
    lease.release()
    async with asyncio.timeout(10):
        await reading


async def test_a_file_is_sent_whole_or_said_to_be_gone(ports: Ports) -> None:
    data = bytes(range(256)) * 20
    await ports.put("a.bin", data)
    async with ports.nodes.view("g1", FileRef("a.bin", "", "input")) as content:
        assert content.length == len(data)
        assert b"".join([chunk async for chunk in content.chunks]) == data
    with pytest.raises(OutputGone):
        async with ports.nodes.view("g1", FileRef("none.bin", "", "input")):
            pass


async def test_a_node_tells_what_it_has(ports: Ports) -> None:
    assert "EmptyImage" in (await ports.nodes.inventory("g1")).classes
    assert {"system", "devices"} <= (await ports.nodes.system_stats("g1")).keys()
    await ports.nodes.free("g1")


async def test_a_call_is_passed_on_and_its_answer_passed_back(ports: Ports) -> None:
    found = await ports.nodes.raw("g1", "GET", "/i18n")
    assert (found.status, found.body) == (200, b"{}")
    assert found.headers["content-type"] == "application/json; charset=utf-8"
    assert (await ports.nodes.raw("g1", "GET", "/extensions/none/none.js")).status == 404
    with pytest.raises(NodeError):
        await ports.nodes.raw("none", "GET", "/i18n")
    assert (await ports.nodes.raw("g1", "GET", "/i18n", most=2)).body == b"{}"
    with pytest.raises(NodeError, match="more than 1 bytes"):
        await ports.nodes.raw("g1", "GET", "/i18n", most=1)


async def test_a_node_that_does_not_answer_is_an_error(ports: Ports) -> None:
    with pytest.raises(NodeError):
        await ports.nodes.inventory("none")
    with pytest.raises(NodeError):
        await ports.nodes.system_stats("none")
