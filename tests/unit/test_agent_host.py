"""What an agent makes of the API's answers."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.agent.link import Answer
from comfy_fleet.agent.probe import NodeProbe
from comfy_fleet.agent.process import Process, Spec
from comfy_fleet.domain.supervise import Phase, Watch

UP = Watch(phase=Phase.UP, restarts=0)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as made:
        yield made


def test_one_order_to_restart_restarts_once(tmp_path: Path, client: httpx.AsyncClient) -> None:
    probe = NodeProbe("g1", "http://127.0.0.1:1", client)
    process = Process(
        Spec(name="g1", argv=(sys.executable,), log=tmp_path / "log"), probe, client_id="fleet-agent-g1"
    )
    host = HostAgent("h1")
    host.add(Member(probe=probe, process=process))
    process.watch = UP
    first = host.heartbeat()
    host.take(Answer(asked=first, asked_at=0.0, restart=frozenset({"g1"})))
    assert process.watch.phase is Phase.LEAVING

    process.watch = Watch(phase=Phase.STARTING, restarts=1)
    starting = host.heartbeat()
    process.watch = Watch(phase=Phase.UP, restarts=1)  # while the question is under way
    for asked in (first, starting):
        host.take(Answer(asked=asked, asked_at=0.0, restart=frozenset({"g1"})))
        assert process.watch.phase is Phase.UP
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, restart=frozenset({"g1"})))
    assert process.watch.phase is Phase.LEAVING
