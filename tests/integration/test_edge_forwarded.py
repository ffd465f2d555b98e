"""Who asks, where a proxy stands in front: what it says counts, and what others say does not."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.nodes.node import Node
from tests.integration.edge_kit import Edge, edge_of
from tests.integration.haproxy_kit import TICKETS, TinyNode, eventually, raw_request

TRUSTED = "127.0.0.0/8, 10.0.0.0/8, fd00::/8"
NAMES: dict[str, Any] = {"trusted_user_header": "Remote-User", "trusted_groups_header": "Remote-Groups"}


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_of(tmp_path, trusted_proxies=TRUSTED, **NAMES) as it:
        yield it


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_of(tmp_path, trusted_proxies="192.0.2.0/24", **NAMES) as it:
        yield it


async def seen(edge: Edge, *headers: str, path: str = "/queue", console: bool = False) -> dict[str, Any]:
    """What the API gets of a request."""
    answer = await edge.raw(path, *headers, console=console)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]
    return found


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ((), "127.0.0.1"),
        (("X-Forwarded-For: 203.0.113.9",), "203.0.113.9"),
        (
            ("X-Forwarded-For: 198.51.100.1, 203.0.113.9",),
            "203.0.113.9",
        ),  # the first is the client's own word
        (("X-Forwarded-For: 203.0.113.9, 10.1.2.3, 127.0.0.5",), "203.0.113.9"),
        (("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 10.1.2.3"), "203.0.113.9"),
        (("X-Forwarded-For: 10.9.9.9, 10.1.2.3",), "10.9.9.9"),  # a proxy's own request
        (("X-Forwarded-For: 2001:db8::7, fd00::1",), "2001:db8::7"),
        (("X-Forwarded-For: 203.0.113.9, unknown",), "127.0.0.1"),
        (("X-Forwarded-For: 203.0.113.9, x, 10.1.2.3",), "10.1.2.3"),
        (("X-Real-IP: 203.0.113.9",), "127.0.0.1"),
        (("Forwarded: for=203.0.113.9;proto=https",), "203.0.113.9"),
        (('Forwarded: for=198.51.100.1, For="203.0.113.9:4711"',), "203.0.113.9"),
        (('Forwarded: proto=https;for="[2001:db8::7]:4711"',), "2001:db8::7"),
        (("Forwarded: for=_hidden",), "127.0.0.1"),
        (("Forwarded: for=198.51.100.1", "X-Forwarded-For: 203.0.113.9"), "203.0.113.9"),
    ],
)
async def test_the_client_is_the_last_that_is_no_trusted_proxy(
    trusting: Edge, headers: tuple[str, ...], client: str
) -> None:
    found = await seen(trusting, *headers)
    assert found["x-forwarded-for"] == client
    assert "forwarded" not in found and "x-real-ip" not in found


async def test_scheme_host_and_prefix_come_from_the_proxy(trusting: Edge) -> None:
    found = await seen(
        trusting,
        *("X-Forwarded-Proto: https", "X-Forwarded-Host: comfy.example", "X-Forwarded-Prefix: /comfy/a"),
    )
    assert found["x-forwarded-proto"] == "https"
    assert found["x-forwarded-host"] == "comfy.example"
    assert found["x-forwarded-prefix"] == "/comfy/a"
    assert (await seen(trusting, "Forwarded: for=203.0.113.9;proto=https"))["x-forwarded-proto"] == "https"
    plain = await seen(trusting, "X-Forwarded-Proto: gopher", "X-Forwarded-Prefix: //evil.example")
    assert (plain["x-forwarded-proto"], plain["x-forwarded-host"]) == ("http", "fleet.test")
    assert "x-forwarded-prefix" not in plain


async def test_one_request_says_nothing_of_the_next_on_its_connection(trusting: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", trusting.settings.port)
    for headers, client in (("X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"), ("", "127.0.0.1")):
        writer.write(f"GET /queue HTTP/1.1\r\nHost: fleet.test\r\n{headers}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        assert json.loads(await reader.readexactly(size))["headers"]["x-forwarded-for"] == client
    writer.close()


@pytest.mark.parametrize("console", [False, True])
async def test_from_anybody_else_all_of_it_is_dropped(strict: Edge, console: bool) -> None:
    found = await seen(
        strict,
        *(
            "X-Forwarded-For: 203.0.113.9",
            "Forwarded: for=203.0.113.9;proto=https",
            "X-Forwarded-Proto: https",
        ),
        *("X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /evil", "X-Request-Id: mine"),
        *("Remote-User: ada", "remote-groups: admins"),
        console=console,
    )
    assert (found["x-forwarded-for"], found["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert found["x-forwarded-host"] == "fleet.test"
    assert found["x-request-id"] != "mine"
    assert not {"x-forwarded-prefix", "forwarded", "remote-user", "remote-groups"} & found.keys()


async def test_without_the_setting_nobody_is_trusted(tmp_path: Path) -> None:
    async with edge_of(tmp_path, **NAMES) as edge:
        found = await seen(edge, "X-Forwarded-For: 203.0.113.9", "Remote-User: ada")
        assert found["x-forwarded-for"] == "127.0.0.1"
        assert "remote-user" not in found


async def test_a_trusted_proxy_says_who_asks_and_once(trusting: Edge) -> None:
    found = await seen(trusting, "Remote-User: ada", "Remote-Groups: a,b", "X-Forwarded-For: 203.0.113.9")
    assert (found["remote-user"], found["remote-groups"]) == ("ada", "a,b")
    answer = await trusting.raw("/queue", "Remote-User: ada", "Remote-User: eve")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_no_node_learns_who_asks(tmp_path: Path) -> None:
    async with (
        TinyNode("g1") as node,
        edge_of(tmp_path, Node(name="g1", url=node.url), trusted_proxies=TRUSTED, **NAMES) as edge,
    ):
        ticket = TICKETS.sign("g1", now=time.time())

        async def passes() -> bool:
            asked = (f"Cookie: fleet_editor={ticket}", "Remote-User: ada", "X-Forwarded-For: 203.0.113.9")
            return (await edge.raw("/user.css", *asked)).startswith(b"HTTP/1.1 200 ")

        await eventually("the file comes from the node", passes)
        told = next(one for one in node.requests if one["target"] == "/user.css")["headers"]
        assert not {"remote-user", "x-forwarded-for", "x-request-id", "x-forwarded-host"} & told.keys()


async def test_limits_count_clients_and_not_the_proxy(tmp_path: Path) -> None:
    async with edge_of(tmp_path, trusted_proxies=TRUSTED, rate_limit=2) as edge:

        async def status(client: str) -> int:
            return int((await edge.raw("/queue", f"X-Forwarded-For: {client}")).split()[1])

        assert [await status("203.0.113.9") for _ in range(3)] == [200, 200, 429]
        assert await status("203.0.113.10") == 200


async def test_a_request_has_one_id_everywhere(trusting: Edge, caplog: pytest.LogCaptureFixture) -> None:
    def id_in(answer: bytes) -> str:
        head = answer.partition(b"\r\n\r\n")[0].decode()
        (found,) = [line[14:] for line in head.split("\r\n") if line.lower().startswith("x-request-id: ")]
        return found

    answer = await trusting.raw("/queue")
    drawn = id_in(answer)
    assert len(drawn) == 36
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]["x-request-id"] == drawn
    assert id_in(await trusting.raw("/queue")) != drawn
    assert id_in(await trusting.raw("/queue", "X-Request-Id: proxy-7/a")) == "proxy-7/a"
    for odd in ("X-Request-Id: a b", "X-Request-Id: <x>", f"X-Request-Id: {'x' * 129}"):
        assert len(id_in(await trusting.raw("/queue", odd))) == 36
    caplog.set_level(logging.INFO)
    await trusting.api.__aexit__()
    refused = id_in(await trusting.raw("/queue", "X-Forwarded-For: 203.0.113.9"))

    def logged() -> bool:
        lines = [vars(one) for one in caplog.records if one.message == "haproxy request"]
        return any((one["request_id"], one["client"]) == (refused, "203.0.113.9") for one in lines)

    await eventually("the edge's log has it", logged)


async def test_only_listed_networks_are_served(tmp_path: Path) -> None:
    lists: dict[str, Any] = {
        "allow_from": "203.0.113.0/24,2001:db8::/32",
        "console_allow_from": "203.0.113.7",
    }
    async with edge_of(tmp_path, trusted_proxies=TRUSTED, **lists) as edge:

        async def status(client: str, *, console: bool = False) -> int:
            answer = await edge.raw("/queue", f"X-Forwarded-For: {client}", console=console)
            return int(answer.split()[1])

        assert [await status(one) for one in ("203.0.113.9", "2001:db8::9", "198.51.100.1")] == [
            200,
            200,
            403,
        ]
        assert [await status(one, console=True) for one in ("203.0.113.7", "203.0.113.9")] == [200, 403]
        answer = await raw_request(edge.settings.port, "GET", "/health")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "address_not_allowed"
