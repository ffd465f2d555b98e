"""What an agent makes of the API's answers."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from comfy_fleet.adapters.comfyui.direct_node import NodeSession
from comfy_fleet.adapters.nvml import NvmlProbe
from comfy_fleet.agent.api_client import Answer
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.agent.node_poller import NodePoller
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Memory, Nvml
from comfy_fleet.domain.nodes.gpu import GpuProcess as OnGpu
from comfy_fleet.domain.nodes.host import Cleanup, GpuAllocation, Joining
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.nodes.process_supervision import ProcessPhase, Watch
from comfy_fleet.domain.nodes.vram import GIB
from comfy_fleet.sim import NodeOptions, SimNode
from tests.conftest import free_port
from tests.fleet import until
from tests.integration.haproxy_kit import Listening, TinyNode

G1 = Node(name="g1", url="http://10.0.0.1:8188")
UP = Watch(phase=ProcessPhase.UP, restarts=0)


@pytest.fixture
async def session() -> AsyncIterator[NodeSession]:
    async with NodeSession() as made:
        yield made


def test_one_order_to_restart_restarts_once(tmp_path: Path, session: NodeSession) -> None:
    probe = NodePoller("g1", "http://127.0.0.1:1", session)
    process = ComfyUIProcess(
        ProcessSpec(name="g1", argv=(sys.executable,), log=tmp_path / "log"),
        probe,
        client_id="fleet-agent-g1",
    )
    host = HostAgent("h1")
    host.add(Member(probe=probe, process=process))
    process.watch = UP
    first = host.heartbeat()
    host.take(Answer(asked=first, asked_at=0.0, restart=frozenset({"g1"})))
    assert process.watch.phase is ProcessPhase.LEAVING

    process.watch = Watch(phase=ProcessPhase.STARTING, restarts=1)
    starting = host.heartbeat()
    process.watch = Watch(phase=ProcessPhase.UP, restarts=1)  # while the question is under way
    for asked in (first, starting):
        host.take(Answer(asked=asked, asked_at=0.0, restart=frozenset({"g1"})))
        assert process.watch.phase is ProcessPhase.UP
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, restart=frozenset({"g1"})))
    assert process.watch.phase is ProcessPhase.LEAVING


class Card:
    """A GPU on which two processes hold 7 and 9 GiB."""

    async def look(self) -> Gpus:
        memory = Memory(total=24 * GIB, used=16 * GIB, free=8 * GIB)
        held = OnGpu(pid=1, used=7 * GIB), OnGpu(pid=2, used=9 * GIB)
        return Gpus(why=Nvml.OK, gpus=(Gpu(index=0, uuid="GPU-aa", memory=memory, processes=held),))


@pytest.mark.parametrize(("neighbour", "word"), [(True, Readiness.READY), (False, Readiness.DRAIN)])
async def test_whose_memory_it_is_is_not_told_before_the_api_has_said_who_else_is_there(
    session: NodeSession, neighbour: bool, word: Readiness
) -> None:
    host = HostAgent("h1", nvml=cast(NvmlProbe, Card()))
    probe = NodePoller("g1", "http://127.0.0.1:1", session)
    probe.heard_at = 0.0
    host.add(Member(probe=probe, gpu="0", pids=frozenset({1})))
    await host.look_at_gpus()
    host.judge_all()
    allocations = {"g2": GpuAllocation(gpu="GPU-aa", pids=(2,))} if neighbour else {}
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, nodes=[G1], neighbours=allocations))
    assert host.answer("g1") == AgentState(readiness=Readiness.HOLD, reason="was not looked at yet")
    host.judge_all()
    state = host.answer("g1")
    assert state is not None and state.readiness is word


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state_of(host: HostAgent, name: str) -> tuple[Readiness, str] | None:
    state = host.answer(name)
    return None if state is None else (state.readiness, state.reason)


@asynccontextmanager
async def looking(**more: Any) -> AsyncIterator[HostAgent]:
    """Run a central agent."""
    host = HostAgent("central", central=True, **more)
    task = asyncio.create_task(host.run())
    try:
        yield host
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_before_the_api_is_heard_haproxy_is_told_nothing() -> None:
    host = HostAgent("h1")
    host.add(Member(probe=host.probe("g1", G1.url)))
    assert host.answer("g1") is None
    assert [(report.readiness, report.reason) for report in host.heartbeat().nodes] == [
        (Readiness.HOLD, "was not looked at yet")
    ]
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, nodes=[G1]))
    assert host.answer("g1") is not None
    assert host.answer("g2") is None


async def test_old_knowledge_neither_gives_nor_takes_but_a_cordon_stays() -> None:
    clock = Clock()
    out = Node(name="out", url="http://10.0.0.3:8188", cordoned=True, cordon_reason="fans")
    async with SimNode(NodeOptions(name="g1"), port=0) as sim, looking(clock=clock, grace_s=10.0) as host:
        g1 = replace(G1, url=sim.url)
        host.follow([g1, out])
        await until(lambda: state_of(host, "g1") == (Readiness.READY, ""), what="g1 is ready")
        clock.now += 10
        assert state_of(host, "g1") == (Readiness.READY, "")
        clock.now += 1
        assert state_of(host, "g1") == (Readiness.HOLD, "nothing heard from the API for 11 s")
        assert state_of(host, "out") == (Readiness.DRAIN, "fans")
        host.follow([g1])
        assert state_of(host, "g1") == (Readiness.READY, "")
        assert state_of(host, "out") is None


async def test_a_node_gets_no_job_before_it_has_answered_at_the_url_that_it_has_now() -> None:
    async with SimNode(NodeOptions(name="g1"), port=free_port()) as sim, looking() as host:
        await sim.crash()
        nobody = f"nothing listens at {sim.url}: connection refused"
        held = Readiness.HOLD, f"has not answered yet: {nobody}"
        g1 = replace(G1, url=sim.url)
        host.follow([g1])
        await until(lambda: state_of(host, "g1") == held, what="it says why it holds")
        await sim.restart()
        await until(lambda: state_of(host, "g1") == (Readiness.READY, ""), what="it is ready")
        host.follow([replace(g1, url=f"http://127.0.0.1:{free_port()}")])
        assert state_of(host, "g1") == (Readiness.HOLD, "has not answered yet")
        host.follow([g1])
        await until(lambda: state_of(host, "g1") == (Readiness.READY, ""), what="it is ready again")
        await sim.crash()  # HAProxy's own checks see that sooner, and know better
        await until(lambda: bool(host.members["g1"].probe.trouble), what="it was looked at")
        assert state_of(host, "g1") == (Readiness.READY, "")


class Refusing(Listening):
    """Counts connections and answers none."""

    tried = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tried += 1


async def test_a_node_that_never_answered_is_looked_at_often_in_a_large_fleet_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("comfy_fleet.agent.host.PROBES_PER_S", 0.02)  # as if there were a thousand
    async with TinyNode("known") as known, Refusing() as new, looking() as host:
        new_node = Node(name="g2", url=f"http://127.0.0.1:{new.port}")
        host.follow([replace(G1, url=known.url), new_node])
        await until(lambda: new.tried >= 5, what="it was looked at")
        asked = [request["target"] for request in known.requests]
        assert asked == ["/api/v1/health", "/queue"], "it was asked if it is a fleet, and looked at once"


async def test_what_was_deleted_is_told_until_the_api_has_heard_it() -> None:
    host = HostAgent("h1")
    cleanup = Cleanup(node="g1", job=str(uuid4()), run=str(uuid4()))
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, delete=[cleanup]))
    await until(lambda: host.heartbeat().deleted == [cleanup], what="it is told")
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, delete=[cleanup]))  # on its way meanwhile
    assert host.heartbeat().deleted == [cleanup]
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0))
    assert host.heartbeat().deleted == []


def test_nodes_are_registered_again_in_a_store_that_was_emptied_and_only_there(
    session: NodeSession,
) -> None:
    host = HostAgent("h1")
    joining = Joining(name="g1", url="http://127.0.0.1:1", agent="127.0.0.1:2")
    host.add(Member(probe=NodePoller("g1", "http://127.0.0.1:1", session), joining=joining))

    def answer(store: str, *joined: str) -> Answer:
        return Answer(asked=host.heartbeat(), asked_at=0.0, store=store, joined=frozenset(joined))

    assert host.compose()[1] == [joining]
    host.take(answer("first", "g1"))
    for store in ("first", "", "first"):  # an operator removed it; an older API says nothing of its store
        host.take(answer(store))
        assert host.compose()[1] == []
    host.take(answer("second"))
    assert host.compose()[1] == [joining]
    host.take(answer("second", "g1"))
    assert host.compose()[1] == []
