"""A node that joins takes leases on its agent's first ready; nothing else opens it, and later words count.

The agents here say ``ready`` to their first question only, and then nothing, which changes nothing: a server
that takes leases was opened by the first answer, however slow the machine is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from comfy_fleet.domain.nodes.node import Node
from tests.fakes.nodes import FakeNodeRegistry
from tests.integration.haproxy_kit import Broker, Listening, TinyNode, eventually, running

PATIENT_S = 30.0
READY, HOLD, DRAIN = b"ready up 40%\n", b"up\n", b"drain up 0%\n"


class TalkingAgent(Listening):
    """Says one thing to its first question, another one to all that follow, and counts them."""

    def __init__(self, first: bytes = READY, then: bytes = b"") -> None:
        super().__init__()
        self.first = first
        self.then = then
        self.asked: list[str] = []
        self.open = asyncio.Event()  # only the first question waits for it
        self.open.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = self.then if self.asked else self.first
        first = not self.asked
        self.asked.append("")
        at = len(self.asked) - 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.asked[at] = (await reader.readuntil(b"/")).decode()
            if first:
                await self.open.wait()
            writer.write(said)


@pytest.fixture
async def node() -> AsyncIterator[TinyNode]:
    async with TinyNode("g1") as one:
        yield one


def patient(
    data: Path, registry: FakeNodeRegistry, *, agent_grace_s: float = PATIENT_S
) -> AbstractAsyncContextManager[Broker]:
    """Run a controller that gives the first answer all the time that it needs on a slow machine."""
    return running(data, registry, first_answer_s=PATIENT_S, agent_grace_s=agent_grace_s)


async def closed(fleet: Broker, agent: TalkingAgent, name: str = "g1") -> None:
    """Assert that a node gets no lease, now and after HAProxy has asked its agent often enough itself."""
    asked = len(agent.asked)
    await eventually("HAProxy has asked, too", lambda: len(agent.asked) >= asked + 3)
    assert await fleet.grants(nodes=name) is None


async def maintained(fleet: Broker, name: str = "g1") -> bool:
    servers = await fleet.controller.broker.runtime.servers()
    return [s.maint for s in servers if s.name == name and s.backend != "be_direct"] == [True]


async def test_the_first_ready_opens_and_carries_the_weight(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await fleet.told("g1", "up")
        assert await fleet.grants(nodes="g1") == "g1"
        rows = await fleet.controller.broker.runtime.stats("be_pool_1")
        assert [(row["svname"], row["weight"]) for row in rows] == [("g1", "40")]
        assert set(agent.asked) == {"g1/"}
        assert agent.asked.count("g1/") == len(agent.asked)


async def test_nodes_that_come_together_wait_for_no_other(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with (
        TinyNode("g2") as second,
        TalkingAgent() as slow,
        TalkingAgent() as quick,
        patient(tmp_path, registry) as fleet,
    ):
        slow.open.clear()
        await registry.add(Node(name="g1", url=node.url, agent=slow.address))
        await registry.add(Node(name="g2", url=second.url, agent=quick.address))
        await fleet.told("g2", "up")
        assert await fleet.grants(nodes="g1 g2") == "g2"


@pytest.mark.parametrize("said", [DRAIN, HOLD, b"down 0% #gone\n", b"hello\n", b"ready up 40", b""])
async def test_no_other_word_opens(tmp_path: Path, node: TinyNode, said: bytes) -> None:
    registry = FakeNodeRegistry()
    async with (
        TalkingAgent(first=said, then=b"" if said.startswith(b"ready") else said) as agent,
        patient(tmp_path, registry) as fleet,
    ):
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await closed(fleet, agent)


async def test_a_cordoned_node_stays_closed(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        registry.put("g1", node=Node(name="g1", url=node.url, agent=agent.address, cordoned=True))
        registry.announce()
        await closed(fleet, agent)
        assert await maintained(fleet)


async def test_a_cordon_that_comes_while_the_agent_is_asked_wins(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        agent.open.clear()
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await eventually("it is asked", lambda: bool(agent.asked))
        await registry.cordon("g1", reason="now")
        await eventually("the controller knows", lambda: fleet.controller.nodes[0].cordoned)
        agent.open.set()
        await closed(fleet, agent)
        assert await maintained(fleet)


async def test_a_cordon_that_comes_right_after_the_opening_wins(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await fleet.told("g1", "up")
        await registry.cordon("g1", reason="later")
        await fleet.told("g1", "drain")
        await closed(fleet, agent)


async def test_whatever_the_agent_says_later_counts(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await fleet.told("g1", "up")
        agent.then = HOLD
        asked = len(agent.asked)
        await eventually("HAProxy asks", lambda: len(agent.asked) >= asked + 2)
        assert await fleet.grants(nodes="g1") == "g1"
        agent.then = DRAIN
        await fleet.told("g1", "drain")
        assert await fleet.grants(nodes="g1") is None
        agent.then = b"down 0% #gone\n"
        await fleet.told("g1", "down")
        assert registry.told["g1"] == ("down", "gone")
        agent.then = b"ready up 7%\n"
        await fleet.told("g1", "up")
        assert await fleet.grants(nodes="g1") == "g1"


async def test_a_node_whose_agent_dies_after_its_first_word_is_drained(
    tmp_path: Path, node: TinyNode
) -> None:
    registry = FakeNodeRegistry()
    async with (
        TalkingAgent() as agent,
        patient(tmp_path, registry, agent_grace_s=0.3) as fleet,
    ):
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await fleet.told("g1", "up")
        await agent.__aexit__()
        await fleet.told("g1", "drain")
        assert "agent is silent" in registry.told["g1"][1]
        assert await fleet.grants(nodes="g1") is None


async def test_a_node_that_left_and_came_back_is_asked_anew(tmp_path: Path, node: TinyNode) -> None:
    registry = FakeNodeRegistry()
    async with TalkingAgent() as agent, patient(tmp_path, registry) as fleet:
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await fleet.told("g1", "up")
        await registry.remove("g1")
        await eventually("its servers are gone", lambda: gone(fleet))
        await registry.add(Node(name="g1", url=node.url, agent=agent.address))
        await closed(fleet, agent)  # it says `up` by now: what it gave before is not taken again
        assert await maintained(fleet)


async def gone(fleet: Broker) -> bool:
    return all(server.name != "g1" for server in await fleet.controller.broker.runtime.servers())
