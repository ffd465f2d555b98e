"""What an agent makes of the API's answers."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import httpx
import pytest

from comfy_fleet.adapters.nvml import NvmlProbe
from comfy_fleet.agent.api_client import Answer
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.agent.node_poller import NodePoller
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Memory, Nvml
from comfy_fleet.domain.nodes.gpu import GpuProcess as OnGpu
from comfy_fleet.domain.nodes.host import Joining, Seat, Trash
from comfy_fleet.domain.nodes.process_supervision import ProcessPhase, Watch
from comfy_fleet.domain.nodes.vram import GIB
from tests.fleet import until

UP = Watch(phase=ProcessPhase.UP, restarts=0)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as made:
        yield made


def test_one_order_to_restart_restarts_once(tmp_path: Path, client: httpx.AsyncClient) -> None:
    probe = NodePoller("g1", "http://127.0.0.1:1", client)
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
    client: httpx.AsyncClient, neighbour: bool, word: Readiness
) -> None:
    host = HostAgent("h1", nvml=cast(NvmlProbe, Card()))
    host.add(Member(probe=NodePoller("g1", "http://127.0.0.1:1", client), gpu="0", pids=frozenset({1})))
    await host.look_at_gpus()
    host._judge_all()
    assert host.opinion("g1") is None
    seats = {"g2": Seat(gpu="GPU-aa", pids=(2,))} if neighbour else {}
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, neighbours=seats))
    host._judge_all()
    said = host.opinion("g1")
    assert said is not None and said.word is word


async def test_what_was_deleted_is_told_until_the_api_has_heard_it() -> None:
    host = HostAgent("h1")
    trash = Trash(node="g1", job=str(uuid4()), run=str(uuid4()))
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, delete=[trash]))
    await until(lambda: host.heartbeat().deleted == [trash], what="it is told")
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0, delete=[trash]))  # on its way meanwhile
    assert host.heartbeat().deleted == [trash]
    host.take(Answer(asked=host.heartbeat(), asked_at=0.0))
    assert host.heartbeat().deleted == []


def test_nodes_are_registered_again_in_a_store_that_was_emptied_and_only_there(
    client: httpx.AsyncClient,
) -> None:
    host = HostAgent("h1")
    joining = Joining(name="g1", url="http://127.0.0.1:1", agent="127.0.0.1:2")
    host.add(Member(probe=NodePoller("g1", "http://127.0.0.1:1", client), joining=joining))

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
