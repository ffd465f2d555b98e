"""The agent's line to the API: what is sent, what is taken, and patience while it is away."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from comfy_fleet.agent.api_client import Answer, ApiClient
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.host import Cleanup, Heartbeat, Joining, NodeReport

timeout = asyncio.timeout  # the real one
JOB = "0b9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a11"
CLEANUP = Cleanup(node="g1", job=JOB, run=JOB)
BEAT = Heartbeat(
    host="h1",
    instance="i",
    nodes=[NodeReport(name="g1", readiness=Readiness.READY)],
    seen=["p1"],
    deleted=[CLEANUP],
)
JOIN = Joining(name="g1", url="http://h:1", agent="h:2")
WELL: dict[str, Any] = {
    "nodes": [{"name": "g1", "url": "http://h:1", "cordoned": True}],
    "joined": ["g1"],
    "refused": {"g2": "taken"},
    "explained": ["p1"],
    "clear": ["g1"],
    "delete": [str(CLEANUP)],
}


class Api:
    """Answers what the test says, and keeps what came."""

    def __init__(self, *replies: httpx.Response) -> None:
        self.replies = list(replies)
        self.asked: list[httpx.Request] = []
        self.taken: list[Answer] = []
        self.join = JOIN

    def compose(self) -> tuple[Heartbeat, Sequence[Joining]]:
        return BEAT, [self.join]

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.replies.pop(0) if self.replies else httpx.Response(200, json=WELL)

    def link(self, **more: Any) -> ApiClient:
        return ApiClient(
            "http://api.test/",
            "h1",
            compose=self.compose,
            take=self.taken.append,
            transport=httpx.MockTransport(self.handle),
            **more,
        )


async def until(api: Api, answers: int, link: ApiClient) -> None:
    running = asyncio.create_task(link.run())
    try:
        async with timeout(10):
            while len(api.taken) < answers:
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_everything_goes_out_and_comes_back() -> None:
    api = Api()
    link = api.link(token="t0k", clock=lambda: 7.0)
    await until(api, 1, link)
    request = api.asked[0]
    assert str(request.url) == "http://api.test/api/v1/agents/h1/heartbeat"
    assert request.headers["Authorization"] == "Bearer t0k"
    sent = json.loads(request.content)
    assert "host" not in sent
    assert sent["nodes"][0]["word"] == "ready"
    assert (sent["deleted"], sent["join"][0]["name"]) == ([str(CLEANUP)], "g1")
    answer = api.taken[0]
    assert (answer.asked, answer.asked_at) == (BEAT, 7.0)
    assert answer.nodes[0].cordoned
    assert (set(answer.joined), dict(answer.refused)) == ({"g1"}, {"g2": "taken"})
    assert (set(answer.explained), set(answer.clear), list(answer.delete)) == ({"p1"}, {"g1"}, [CLEANUP])
    assert [node.name for node in answer.nodes] == ["g1"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a link makes, none of which is waited for."""
    made: list[float] = []

    def at_once(pause: float) -> asyncio.Timeout:
        made.append(pause)
        return timeout(0)

    monkeypatch.setattr(asyncio, "timeout", at_once)
    return made


async def test_pauses_grow_while_the_api_is_away_and_shrink_when_it_is_back(pauses: list[float]) -> None:
    away = [httpx.Response(503, json={"error": {"message": "no redis"}}) for _ in range(3)]
    nonsense = httpx.Response(200, text="nonsense"), httpx.Response(200, json=[])
    api = Api(*away, *nonsense, httpx.Response(200, json=WELL), httpx.Response(503))
    await until(api, 2, api.link(every_s=1.0, again_s=0.25, jitter=lambda: 1.0))
    assert pauses[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 1.0, 0.25]


async def test_no_pause_is_longer_than_a_limit_and_none_is_like_another_agent_s(pauses: list[float]) -> None:
    api = Api(*(httpx.Response(503) for _ in range(20)))
    drawn = iter([0.0, 0.5] + [1.0] * 18)
    await until(api, 1, api.link(again_s=0.25, jitter=lambda: next(drawn)))
    assert pauses[:3] == [0.125, 0.375, 1.0]
    assert set(pauses[8:20]) == {15.0}


async def test_news_is_sent_at_once() -> None:
    api = Api()
    changed = asyncio.Event()
    link = api.link(every_s=100, changed=changed)
    running = asyncio.create_task(link.run())
    async with asyncio.timeout(10):
        while not api.taken:
            await asyncio.sleep(0.001)
        changed.set()
        while len(api.taken) < 2:
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_wrong_token_is_told_in_the_agent_s_words() -> None:
    refused = httpx.Response(401, json={"error": {"code": "unauthorized", "message": "send an API key"}})
    for token, words in (("old", "does not know this token"), (None, "wants the agents' token")):
        link = Api(refused).link(token=token)
        running = asyncio.create_task(link.run())
        async with asyncio.timeout(5):
            while not link.trouble:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert words in link.trouble
        assert "FLEET_AGENT_TOKEN" in link.trouble


@pytest.mark.parametrize(
    ("editor", "sent"),
    [(None, {}), (True, {"editor": True}), (False, {"editor": False})],
    ids=["unset", "yes", "never"],
)
async def test_the_editor_is_named_only_if_it_was_set(editor: bool | None, sent: dict[str, bool]) -> None:
    """APIs of earlier versions refuse registrations with fields that they don't know."""
    api = Api()
    api.join = replace(JOIN, editor=editor)
    await until(api, 1, api.link())
    (joined,) = json.loads(api.asked[0].content)["join"]
    assert {name: value for name, value in joined.items() if name == "editor"} == sent
