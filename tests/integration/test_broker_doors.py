"""Who gets in at the broker: its sockets are the fleet's user's, its ports ask for the fleet's secret."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.broker_headers import secret_digest
from comfy_fleet.adapters.comfyui.lease import LeaseClient
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.jobs.run_messages import AskFailed, PostUnknown
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.comfyui import NoLease
from comfy_fleet.settings import Settings
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import fleet_of
from tests.integration.haproxy_kit import (
    SECRET,
    SOUND,
    Broker,
    TinyNode,
    eventually,
    make_settings,
    raw_request,
    running,
)

UPGRADE = ("Upgrade: websocket", "Sec-WebSocket-Key: dGVzdHRlc3R0ZXN0dGVzdA==", "Sec-WebSocket-Version: 13")
LEASE = (*UPGRADE, "X-Fleet-Pool: default")
SHOWN = f"X-Fleet-Secret: {SECRET}"
NODE = "X-Fleet-Node: g1"


def with_ports(data: Path) -> Settings:
    here = "127.0.0.1"
    ports = {"lease_port": free_port(), "direct_port": free_port()}
    return make_settings(data, broker_bind=here, broker_host=here, **ports)


@pytest.fixture
async def node() -> AsyncIterator[TinyNode]:
    async with TinyNode("g1") as one:
        yield one


@pytest.fixture
async def broker(tmp_path: Path, node: TinyNode) -> AsyncIterator[Broker]:
    registry = FakeNodeRegistry([Node(name="g1", url=node.url)])
    async with running(tmp_path, registry, settings=with_ports(tmp_path)) as it:
        await it.told("g1", "up")
        yield it


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process listens, as the kernel shows them."""
    own = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.add(words[1])
    return found


async def test_on_one_machine_the_broker_has_no_port_but_sockets_of_its_user(
    tmp_path: Path, node: TinyNode
) -> None:
    async with running(tmp_path, FakeNodeRegistry([Node(name="g1", url=node.url)])) as it:
        await it.told("g1", "up")
        assert it.controller.broker.pid is not None
        assert listening(it.controller.broker.pid) == set()
        for path in (it.settings.lease_socket, it.settings.direct_socket):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        leases = LeaseClient(it.settings.lease_url)
        lease = await leases.lease(run=str(uuid4()), pool="default")
        assert not isinstance(lease, NoLease)
        assert lease.node == "g1"
        refused = await leases.lease(run=str(uuid4()), pool="default")
        assert isinstance(refused, NoLease)
        assert refused.why == "busy"
        lease.release()
        await eventually("its slot is free", lambda: _grants(leases))


async def _grants(leases: LeaseClient) -> bool:
    lease = await leases.lease(run=str(uuid4()), pool="default")
    if isinstance(lease, NoLease):
        return False
    lease.release()
    return True


async def test_who_does_not_show_the_secret_reaches_no_node(broker: Broker, node: TinyNode) -> None:
    lease, direct = broker.settings.lease_port, broker.settings.direct_port
    strange = [
        (),
        ("X-Fleet-Secret:",),
        ("X-Fleet-Secret: yes",),
        (f"X-Fleet-Secret: {secret_digest(SECRET)}",),
        (f"X-Fleet-Secret: {SECRET[:-1]}",),
        (f"X-Fleet-Secret: {SECRET.upper()}",),
        (SHOWN, SHOWN),
        (f"Cookie: X-Fleet-Secret={SECRET}",),
        (f"Authorization: Bearer {SECRET}",),
    ]
    asked = len(node.requests)
    for headers in strange:
        for where, method, path, more in (
            (lease, "GET", "/ws", LEASE),
            (direct, "POST", "/prompt", (NODE, "Content-Length: 0")),
            (direct, "GET", "/view?filename=a.png", (NODE,)),
            (direct, "GET", "/queue", (NODE,)),
        ):
            answer = await raw_request(where, method, path, *more, *headers)
            assert answer.startswith(b"HTTP/1.1 403 "), (headers, path, answer)
            assert b"x-fleet-refused: secret" in answer
    assert node.tunnels == 0
    strangers = [one for one in node.requests[asked:] if one["headers"].get("user-agent") != "comfy-fleet"]
    assert strangers == []  # the fleet itself may ask meanwhile
    let_in = await raw_request(direct, "GET", "/queue", NODE, SHOWN)
    assert let_in.startswith(b"HTTP/1.1 200 ")
    assert SECRET.encode() not in let_in  # the node, which tells the headers it got, has not seen it


@pytest.mark.parametrize("host", ["evil.test", "localhost", "127.0.0.1"])
async def test_a_page_that_was_rebound_to_the_broker_is_refused(broker: Broker, host: str) -> None:
    for headers in ((NODE, f"Origin: http://{host}"), (NODE, "Sec-Fetch-Site: same-origin")):
        raw = ["POST /prompt HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0", *headers]
        answer = await send(broker.settings.direct_port, "\r\n".join(raw).encode() + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 "), answer


async def send(where: int | Path, data: bytes) -> bytes:
    """Send bytes and read until the other side closes, or says nothing more."""
    if isinstance(where, int):
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
    else:
        reader, writer = await asyncio.open_unix_connection(str(where))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize("kind", ["port", "socket"])
async def test_http_2_is_not_spoken(broker: Broker, kind: str) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    settings = broker.settings
    ways: Sequence[int | Path] = (
        (settings.lease_port, settings.direct_port)
        if kind == "port"
        else (settings.lease_socket, settings.direct_socket)
    )
    for where in ways:
        answer = await send(where, preface)
        assert not answer or answer.startswith(b"HTTP/1."), answer
    upgrade = await raw_request(
        settings.direct_socket,
        "GET",
        "/queue",
        NODE,
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
    )
    assert b"101 " not in upgrade.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/object_info/%252e%252e",
        "/object_info/%25..",
        "/object_info/%25%32%65",
        "/object_info/a%252fb",
        "/view_metadata/%25252e",
        "/object_info/%2525252e",
    ],
)
async def test_what_would_be_an_escape_once_decoded_twice_is_refused(broker: Broker, path: str) -> None:
    answer = await raw_request(broker.settings.direct_socket, "GET", path, NODE)
    assert answer.startswith(b"HTTP/1.1 404 "), answer


async def test_a_name_with_a_percent_sign_is_none(broker: Broker) -> None:
    answer = await raw_request(broker.settings.direct_socket, "GET", "/object_info/50%25%20grey", NODE)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


@pytest.mark.parametrize(
    "headers",
    [
        (NODE, "X-Fleet-Node: g2"),
        (NODE, NODE),
        ("X-Fleet-Node: g2, g1",),
        ("X-Fleet-Node: g1,",),
    ],
)
async def test_a_node_that_is_named_twice_is_refused(broker: Broker, headers: Sequence[str]) -> None:
    answer = await raw_request(broker.settings.direct_socket, "GET", "/queue", *headers)
    assert answer.startswith(b"HTTP/1.1 400 "), answer


@pytest.mark.parametrize("header", ["X-Fleet-Pool: default", "X-Fleet-Nodes: g1"])
async def test_a_lease_that_is_asked_for_in_two_ways_is_refused(broker: Broker, header: str) -> None:
    asked = (*LEASE, "X-Fleet-Nodes: g1", header)
    answer = await raw_request(broker.settings.lease_socket, "GET", "/ws", *asked)
    assert answer.startswith(b"HTTP/1.1 400 "), answer


class Forger(TinyNode):
    """A node that says of each answer that it is another's, and the broker's own refusal."""

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(SOUND).encode()
        lines = [
            b"HTTP/1.1 503 Service Unavailable" if head.startswith(b"GET /ws") else b"HTTP/1.1 200 OK",
            *(b"X-Fleet-Node: g2", b"x-fleet-node: g2", b"X-Fleet-Refused: busy", b"X-Fleet-Secret: x"),
            b"Content-Length: %d" % len(body),
        ]
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        await writer.drain()
        return True


async def test_a_node_answers_in_no_other_name_and_refuses_in_none(tmp_path: Path) -> None:
    async with Forger("g1") as forger, TinyNode("g2") as other:
        registry = FakeNodeRegistry([Node(name=one.name, url=one.url) for one in (forger, other)])
        async with running(tmp_path, registry) as it:
            await it.told("g1", "up")
            await it.told("g2", "up")
            answer = await it.call("g1")
            told = {name: value for name, value in answer.headers.items() if name.startswith("x-fleet-")}
            assert (answer.status_code, told) == (200, {"x-fleet-node": "g1"})
            lease = await LeaseClient(it.settings.lease_url).lease(
                run=str(uuid4()), pool="default", nodes=["g1"]
            )
            # Busy would mean that no node is free: that is the broker's word alone.
            assert isinstance(lease, NoLease) and (lease.why, "g2" in lease.detail) == ("error", False)


async def test_the_ports_open_once_the_secret_is_known(tmp_path: Path, node: TinyNode) -> None:
    known: dict[str, str] = {}
    registry = FakeNodeRegistry([Node(name="g1", url=node.url)])
    settings = with_ports(tmp_path)
    async with running(
        tmp_path, registry, settings=settings, broker_secret=lambda: known.get("secret")
    ) as it:
        await it.told("g1", "up")
        answer = await raw_request(settings.direct_port, "GET", "/queue", NODE, SHOWN)
        assert answer.startswith(b"HTTP/1.1 403 ")
        known["secret"] = SECRET

        async def open_() -> bool:
            said = await raw_request(settings.direct_port, "GET", "/queue", NODE, SHOWN)
            return said.startswith(b"HTTP/1.1 200 ")

        await eventually("the port is open", open_)
        for path in files(settings).folder.iterdir():
            if path.is_file():
                assert SECRET not in path.read_text()


async def test_a_client_without_the_secret_knows_that_no_node_has_answered(broker: Broker) -> None:
    for secret, why in (("", "403 secret"), ("wrong", "403 secret")):
        leases = LeaseClient(broker.settings.lease_url, secret=secret)
        refused = await leases.lease(run=str(uuid4()), pool="default")
        assert isinstance(refused, NoLease)
        assert (refused.why, refused.detail) == ("error", why)
        async with NodeClient(broker.settings.direct_url, secret=secret) as nodes:
            assert await nodes.queue_state("g1", str(uuid4())) == AskFailed("queue", "unreachable")
            posted = await nodes.post_prompt("g1", graph={}, run=str(uuid4()), job=str(uuid4()))
            assert isinstance(posted, PostUnknown)


async def test_without_the_brokers_socket_it_is_said_what_to_start_or_set(tmp_path: Path) -> None:
    """As by an API on another machine than the broker's."""
    async with NodeClient(Settings(data=tmp_path).direct_url) as nodes:
        with pytest.raises(NodeError, match=r"start `fleet haproxy run`, or set FLEET_BROKER_HOST") as raised:
            await nodes.system_stats("g1")
        assert str(tmp_path) not in raised.value.message
        posted = await nodes.post_prompt("g1", graph={}, run=str(uuid4()), job=str(uuid4()))
        assert isinstance(posted, PostUnknown)
        assert "FLEET_BROKER_HOST" in posted.reason


async def test_a_whole_fleet_works_through_ports(redis: Redis, redis_port: int) -> None:
    here = "127.0.0.1"
    ports: dict[str, Any] = {"lease_port": free_port(), "direct_port": free_port()}
    async with fleet_of(redis_port, "g1", broker_bind=here, broker_host=here, **ports) as fleet:
        job = await fleet.ended((await fleet.submit()).id)
        assert job.status is JobStatus.SUCCEEDED


async def test_a_node_that_answers_a_lease_with_a_redirect_leads_nowhere(tmp_path: Path) -> None:
    async with TinyNode("other") as other:

        class Redirects(TinyNode):
            async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"Upgrade" not in head and b"upgrade" not in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    return True
                to = f"ws://127.0.0.1:{other.port}/stolen"
                writer.write(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())
                return True

        async with Redirects("g1") as one:
            client = LeaseClient(one.url.replace("http", "ws"), secret=SECRET)
            refused = await client.lease(run=str(uuid4()), pool="default")
            assert isinstance(refused, NoLease)
            assert refused.detail.startswith("302")
        assert other.tunnels == other.most_tunnels == 0
        assert other.requests == []
