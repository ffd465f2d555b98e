"""What an agent's first answer is good for, and who is asked how often."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from comfy_fleet.adapters.haproxy.agent_preflight import Given, Preflight, given_by, question
from comfy_fleet.adapters.haproxy.server_lines import Entry
from comfy_fleet.agent.agent_check_server import line
from comfy_fleet.domain.nodes.agent_state import HEAVIEST, AgentState, Readiness
from tests.stream_server import StreamServer


@pytest.mark.parametrize("weight", [1, 40, 100, HEAVIEST])
def test_an_agents_ready_gives_its_weight(weight: int) -> None:
    assert given_by(line(AgentState(readiness=Readiness.READY, weight=weight))) == weight


@pytest.mark.parametrize("word", [Readiness.DRAIN, Readiness.HOLD, Readiness.DOWN])
def test_no_other_word_gives(word: Readiness) -> None:
    assert given_by(line(AgentState(readiness=word, weight=100, reason="ready up 100%"))) is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\n",
        b"ready\n",
        b"ready up\n",
        b"ready up 100%",  # cut off: 1000 might have followed, or a drain
        b"ready up 100\n",
        b"ready up 0%\n",
        b"ready up 007%\n",
        b"ready up 257%\n",
        b"ready up 1000%\n",
        b"ready up -5%\n",
        b"ready up 100% drain\n",
        b"ready up 100% maxconn:0\n",
        b"ready down 100%\n",
        b" ready up 100%\n",
        b"READY UP 100%\n",
        b"ready up 100%\nready up 100%\n",
        b"drain ready up 100%\n",
        "ready up \N{ARABIC-INDIC DIGIT FIVE}%\n".encode(),
    ],
)
def test_what_is_not_just_that_line_gives_nothing(said: bytes) -> None:
    assert given_by(said) is None


class Talker:
    """An agent that says one thing after the other, the last one for good."""

    def __init__(self, *said: bytes) -> None:
        self.said = list(said)
        self.heard: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()
        self.answering = 0
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answering += 1
        try:
            await self._answer(reader, writer)
        finally:
            self.answering -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.readuntil(b"/"))
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        await self.open.wait()
        writer.write(said)


@asynccontextmanager
async def talking(*said: bytes) -> AsyncIterator[Talker]:
    talker = Talker(*said)
    async with StreamServer(talker.answer) as server:
        talker.port = server.port
        yield talker


def entry(port: int, name: str = "g1") -> Entry:
    return Entry(name=name, backend="be_pool_1", host="h", port=8188, agent_host="127.0.0.1", agent_port=port)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.005)


async def test_the_question_is_haproxys() -> None:
    async with talking(b"ready up 40%\n") as agent:
        assert await question("g1", ("127.0.0.1", agent.port)) == b"ready up 40%\n"
        assert agent.heard == [b"g1/"]


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async with talking(b"x" * 100_000) as agent:
        assert given_by(await question("g1", ("127.0.0.1", agent.port))) is None


async def test_a_ready_is_asked_for_once_and_kept_until_haproxy_asks_itself() -> None:
    now = 0.0
    woken: list[bool] = []
    async with talking(b"ready up 40%\n") as agent:
        first = Preflight(lambda: woken.append(True), window_s=5.0, clock=lambda: now)
        first.ask(entry(agent.port), "127.0.0.1")
        await until(lambda: bool(woken))
        assert first.ready() == {"g1": Given(agent=("127.0.0.1", agent.port), percent=40)}
        assert agent.heard == [b"g1/"]
        now = 4.9
        assert first.ready()
        now = 5.0
        assert not first.ready()
        await first.stop()


async def test_an_agent_that_has_just_joined_may_take_a_moment() -> None:
    async with talking(b"", b"up\n", b"ready up 7%\n") as agent:
        woken = asyncio.Event()
        first = Preflight(woken.set, window_s=60.0)
        first.ask(entry(agent.port), "127.0.0.1")
        await asyncio.wait_for(woken.wait(), 10)
        assert first.ready()["g1"].percent == 7
        assert len(agent.heard) == 3
        await first.stop()


@pytest.mark.parametrize("said", [b"drain up 0%\n", b"down 0% #gone\n", b"nonsense\n"])
async def test_a_clear_word_is_not_asked_for_again(said: bytes) -> None:
    async with talking(said, b"ready up 100%\n") as agent:
        first = Preflight(lambda: None, window_s=60.0)
        first.ask(entry(agent.port), "127.0.0.1")
        await until(lambda: not first.asking)
        assert not first.ready()
        assert len(agent.heard) == 1


async def test_an_agent_without_a_word_is_not_asked_for_ever() -> None:
    async with talking(b"") as agent:
        first = Preflight(lambda: None, window_s=60.0)
        first.ask(entry(agent.port), "127.0.0.1")
        await until(lambda: not first.asking)
        assert not first.ready()
        assert 2 <= len(agent.heard) <= 5


async def test_nobody_there_and_one_that_hangs() -> None:
    async with talking(b"ready up 100%\n") as agent:
        agent.open.clear()
        first = Preflight(lambda: None, window_s=0.2)
        first.ask(entry(agent.port), "127.0.0.1")
        first.ask(entry(1, "g2"), "127.0.0.1")
        await until(lambda: not first.asking)
        assert not first.ready()


async def test_a_node_that_left_meanwhile_is_forgotten() -> None:
    async with talking(b"ready up 100%\n") as agent:
        first = Preflight(lambda: None, window_s=60.0)
        first.ask(entry(agent.port), "127.0.0.1")
        await until(lambda: bool(first.ready()))
        first.forget("g1")
        assert not first.ready()
        agent.open.clear()
        first.ask(entry(agent.port), "127.0.0.1")
        await until(lambda: len(agent.heard) == 2)
        first.forget("g1")
        agent.open.set()
        await until(lambda: not agent.answering)
        assert not first.asking
        assert not first.ready()


async def test_nodes_are_asked_side_by_side() -> None:
    names = [f"g{number}" for number in range(8)]
    async with talking(b"ready up 100%\n") as agent:
        agent.open.clear()
        first = Preflight(lambda: None, window_s=60.0)
        for name in names:
            first.ask(entry(agent.port, name), "127.0.0.1")
        await until(lambda: len(agent.heard) == len(names))  # and none has been answered
        agent.open.set()
        await until(lambda: len(first.ready()) == len(names))
