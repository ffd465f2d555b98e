"""The agent's answers on its port, and how it learns of its nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from comfy_fleet.agent import AgentCheckServer, HttpNodes
from comfy_fleet.agent.node_source import parse_nodes
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from tests.integration.haproxy_kit import eventually

STATES = {
    "g1": AgentState(readiness=Readiness.READY, weight=100),
    "g2": AgentState(readiness=Readiness.READY, weight=37),
    "out": AgentState(readiness=Readiness.DRAIN, reason="fans"),
    "new": AgentState(readiness=Readiness.HOLD, reason="has not answered yet"),
    "lost": AgentState(readiness=Readiness.DOWN, reason="the GPU has\nfallen off"),
}


@asynccontextmanager
async def serving() -> AsyncIterator[AgentCheckServer]:
    server = AgentCheckServer(STATES.get, host="127.0.0.1", port=0)
    await server.start()
    yield server
    await server.stop()


async def ask(agent: AgentCheckServer, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
    writer.write(question)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_it_answers_for_every_node_on_one_port() -> None:
    async with serving() as agent:
        assert await ask(agent, b"g1/") == b"ready up 100%\n"
        assert await ask(agent, b"g2\n") == b"ready up 37%\n"
        assert await ask(agent, b"out/") == b"drain up 0%\n"
        assert await ask(agent, b"new/") == b"up\n"
        assert await ask(agent, b"lost/") == b"down 0% #the GPU has fallen off\n"
        for nonsense in (b"nobody/", b"/", b"\n", b"G1/", b"\xff\xfe/", b"x" * 200, b"g1/../x/"[3:]):
            assert await ask(agent, nonsense) == b"", nonsense


async def test_a_name_may_come_in_pieces() -> None:
    async with serving() as agent:
        reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
        writer.write(b"g")

        def heard() -> bool:
            return agent.questions == [b"g"]

        await eventually("the first piece was heard", heard)
        writer.write(b"2/")
        assert await reader.read() == b"ready up 37%\n"
        writer.close()
        await writer.wait_closed()


async def test_a_taken_port_is_told() -> None:
    async with serving() as first:
        with pytest.raises(ConfigError, match=f"{first.port}.*FLEET_AGENT_PORT"):
            await AgentCheckServer(STATES.get, host="127.0.0.1", port=first.port).start()


@pytest.mark.parametrize("address", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_told_as_such(address: str) -> None:
    with pytest.raises(ConfigError, match="not an address of this machine: --advertise"):
        await AgentCheckServer(STATES.get, host=address, port=0).start()


async def test_who_still_asks_when_it_stops_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.agent.agent_check_server.QUESTION_TIMEOUT_S", 3600.0)
    async with serving() as agent:
        reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
        writer.write(b"g1")  # a name without its end
        await eventually("it was heard", lambda: bool(agent.questions))
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(60):
            assert await reader.read() == b""
    assert not agent.questions
    writer.close()


async def test_a_question_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.agent.agent_check_server.QUESTION_TIMEOUT_S", 0.05)
    async with serving() as agent:
        with contextlib.suppress(ConnectionResetError):
            assert await ask(agent, b"g1") == b""
        await eventually("nobody asks", lambda: not agent.questions)


async def test_the_api_is_asked_with_token_and_etag_and_outages_are_survived() -> None:
    asked: list[httpx.Request] = []
    rows = [{"name": "g1", "url": "http://h:1", "pool": "default", "weight": 7, "cordoned": True}]
    replies: list[httpx.Response | httpx.ConnectError] = [
        httpx.Response(200, json={"nodes": rows}, headers={"ETag": '"a"'}),
        httpx.Response(304, headers={"ETag": '"a"'}),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.Response(200, text="not JSON"),
        httpx.Response(200, json={"nodes": []}, headers={"ETag": '"b"'}),
    ]

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        reply = replies[len(asked) - 1]
        if isinstance(reply, httpx.ConnectError):
            raise reply
        return reply

    source = HttpNodes("http://api.test/", token="t0k", poll_s=0.001, transport=httpx.MockTransport(handle))
    watching = source.watch()
    first = await anext(watching)
    assert [(node.name, node.weight, node.cordoned) for node in first] == [("g1", 7, True)]
    assert await anext(watching) == first  # a 304 confirms
    assert await anext(watching) == []
    assert [request.headers.get("If-None-Match") for request in asked] == [
        None,
        '"a"',
        '"a"',
        '"a"',
        '"a"',
        '"a"',
    ]
    assert {str(request.url) for request in asked} == {"http://api.test/api/v1/nodes?sealed=true"}
    assert {request.headers["Authorization"] for request in asked} == {"Bearer t0k"}


async def test_an_api_that_starts_is_asked_again_soon() -> None:
    replies: list[httpx.Response | httpx.ConnectError] = [
        httpx.ConnectError("refused"),
        httpx.Response(200, json={"nodes": []}),
    ]

    def handle(_: httpx.Request) -> httpx.Response:
        reply = replies.pop(0)
        if isinstance(reply, httpx.ConnectError):
            raise reply
        return reply

    source = HttpNodes("http://api.test/", poll_s=600, transport=httpx.MockTransport(handle))
    assert await anext(source.watch()) == []


def test_a_row_that_can_t_be_read_is_left_out() -> None:
    body = {
        "nodes": [{"name": "BAD", "url": "http://h:1"}, {"url": 3}, None, {"name": "ok", "url": "http://h:1"}]
    }
    assert [node.name for node in parse_nodes(body)] == ["ok"]
    wrong: list[object] = [[], {}, {"nodes": {}}, None, "x"]
    for nonsense in wrong:
        with pytest.raises(ValueError, match="nodes"):
            parse_nodes(nonsense)
