"""The agent's answers on its port, and how it learns of its nodes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import cast

import httpx
import pytest

from comfy_fleet.agent import Agent, HttpNodes
from comfy_fleet.agent.agent_check_server import _Question
from comfy_fleet.agent.node_source import parse_nodes
from comfy_fleet.agent.reach import Reach
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import NodeOptions, SimNode
from tests.conftest import free_port
from tests.integration.haproxy_kit import eventually


class Told:
    """A source that says what the test says."""

    def __init__(self, *nodes: Node) -> None:
        self._queue: asyncio.Queue[Sequence[Node]] = asyncio.Queue()
        if nodes:
            self.say(*nodes)

    def say(self, *nodes: Node) -> None:
        self._queue.put_nowait(nodes)

    async def watch(self) -> AsyncIterator[Sequence[Node]]:
        while True:
            yield await self._queue.get()


class Trusting(Reach):
    """Takes every node on trust: the addresses of these tests lead nowhere."""

    def reached(self, node: Node) -> bool:
        return True

    def follow(self, nodes: Sequence[Node]) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def clock() -> Clock:
    return Clock()


G1 = Node(name="g1", url="http://10.0.0.1:8188")
G2 = Node(name="g2", url="http://10.0.0.2:8188", weight=37)
OUT = Node(name="out", url="http://10.0.0.3:8188", cordoned=True, cordon_reason="fans")


async def ask(agent: Agent, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
    writer.write(question)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_it_answers_for_every_node_on_one_port(clock: Clock) -> None:
    agent = Agent(Told(G1, G2, OUT), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await agent.start()
    await agent.heard()
    try:
        assert await ask(agent, b"g1/") == b"ready up 100%\n"
        assert await ask(agent, b"g2\n") == b"ready up 37%\n"
        assert await ask(agent, b"out/") == b"drain up 0%\n"
        for nonsense in (b"nobody/", b"/", b"\n", b"G1/", b"\xff\xfe/", b"x" * 200, b"g1/../x/"[3:]):
            assert await ask(agent, nonsense) == b"", nonsense
    finally:
        await agent.stop()


async def test_a_name_may_come_in_pieces(clock: Clock) -> None:
    agent = Agent(Told(G2), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await agent.start()
    await agent.heard()
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
    writer.write(b"g")

    def heard() -> bool:
        questions = [cast(_Question, transport.get_protocol()) for transport in agent._questions]
        return [question._text for question in questions] == [b"g"]

    await eventually("the first piece was heard", heard)
    writer.write(b"2/")
    assert await reader.read() == b"ready up 37%\n"
    writer.close()
    await writer.wait_closed()
    await agent.stop()


async def test_before_the_first_word_it_is_silent(clock: Clock) -> None:
    agent = Agent(Told(), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await agent.start()
    assert await ask(agent, b"g1/") == b""
    await agent.stop()


async def test_old_knowledge_neither_gives_nor_takes_but_a_cordon_stays(clock: Clock) -> None:
    source = Told(G1, OUT)
    agent = Agent(source, reach=Trusting(), host="127.0.0.1", port=0, grace_s=10, clock=clock)
    await agent.start()
    await agent.heard()
    clock.now += 10
    assert await ask(agent, b"g1/") == b"ready up 100%\n"
    clock.now += 1
    assert await ask(agent, b"g1/") == b"up\n"
    assert await ask(agent, b"out/") == b"drain up 0%\n"
    source.say(G1)
    await eventually("heard again", lambda: agent.answer("out") is None)
    assert await ask(agent, b"g1/") == b"ready up 100%\n"
    await agent.stop()


async def test_a_taken_port_is_told(clock: Clock) -> None:
    first = Agent(Told(), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await first.start()
    with pytest.raises(ConfigError, match=f"{first.port}.*FLEET_AGENT_PORT"):
        await Agent(Told(), reach=Trusting(), host="127.0.0.1", port=first.port, clock=clock).start()
    await first.stop()


@pytest.mark.parametrize("address", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_told_as_such(clock: Clock, address: str) -> None:
    with pytest.raises(ConfigError, match="no address of this machine: --advertise"):
        await Agent(Told(), reach=Trusting(), host=address, port=0, clock=clock).start()


async def test_who_still_asks_when_it_stops_is_not_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.agent.agent_check_server._QUESTION_TIMEOUT_S", 3600.0)
    agent = Agent(Told(G1), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await agent.start()
    await agent.heard()
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
    writer.write(b"g1")  # a name without its end
    await eventually("it was heard", lambda: bool(agent._questions))
    await agent.stop()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    assert not agent._questions
    writer.close()


async def test_a_question_without_an_end_is_given_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.agent.agent_check_server._QUESTION_TIMEOUT_S", 0.05)
    agent = Agent(Told(G1), reach=Trusting(), host="127.0.0.1", port=0, clock=clock)
    await agent.start()
    await agent.heard()
    with contextlib.suppress(ConnectionResetError):
        assert await ask(agent, b"g1") == b""
    await eventually("nobody asks", lambda: not agent._questions)
    await agent.stop()


async def test_run_ends_with_stop() -> None:
    agent = Agent(Told(G1), reach=Trusting(), host="127.0.0.1", port=0)
    stop = asyncio.Event()
    task = asyncio.create_task(agent.run(stop))
    await agent.heard()
    stop.set()
    await asyncio.wait_for(task, 5)


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


def test_a_row_that_can_t_be_read_is_left_out() -> None:
    body = {
        "nodes": [{"name": "BAD", "url": "http://h:1"}, {"url": 3}, None, {"name": "ok", "url": "http://h:1"}]
    }
    assert [node.name for node in parse_nodes(body)] == ["ok"]
    wrong: list[object] = [[], {}, {"nodes": {}}, None, "x"]
    for nonsense in wrong:
        with pytest.raises(ValueError, match="nodes"):
            parse_nodes(nonsense)


async def test_a_node_gets_nothing_before_it_has_answered_once(clock: Clock) -> None:
    async with SimNode(NodeOptions(name="late"), port=free_port()) as sim:
        url = sim.url
        await sim.crash()
        agent = Agent(Told(Node(name="late", url=url)), host="127.0.0.1", port=0, clock=clock)
        await agent.start()
        try:
            await agent.heard()
            assert await ask(agent, b"late/") == b"up\n"
            await sim.restart()

            async def ready() -> bool:
                return await ask(agent, b"late/") == b"ready up 100%\n"

            await eventually("it is ready", ready)
        finally:
            await agent.stop()
