"""When a dispatcher looks ahead for busy nodes, and what it sends them."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.errors import NodeError, Outdated
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.ports.ahead import NextJob, Peek
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.runs import Claim, StagedInput
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.staging_ahead import SENDERS, StagingAhead
from tests.factories import a_claim
from tests.fakes.base import Fake
from tests.fakes.comfyui import FakeNodeApi, chunks
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry
from tests.fleet import until
from tests.unit.test_staging import PICTURE

JOB = NextJob(id="next", asset_ids=["a1"])


class FakeAhead(Fake):
    """Peeks that a test has thought of.

    Attributes:
        next: What the next peek at any node finds.
        ahead: For which job files are on each node.
        sent: Which nodes have got a file.
        looked: At which nodes it was looked.
        outdated: Whether a newer version has come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next: NextJob | None = None
        self.ahead: dict[str, str] = {}
        self.sent: list[str] = []
        self.looked: list[str] = []
        self.outdated = False

    async def peek(self, *, node: str, **_: Any) -> Peek:
        self.answer("peek")
        self.looked.append(node)
        return Peek(next=self.next, ahead=self.ahead.get(node, ""))

    async def stage_ahead(
        self, node: str, job: NextJob | None, *, keep_s: float, most_bytes: int
    ) -> Mapping[str, StagedInput]:
        self.answer("stage_ahead")
        if self.outdated:
            raise Outdated("a newer version has come")
        self.ahead[node] = job.id if job is not None else ""
        new = node not in self.sent
        return (
            {"a1": StagedInput(asset=replace(PICTURE, id="a1"), folders=f"f/{node}", new=new)}
            if job is not None
            else {}
        )

    async def staged_ahead(self, node: str, staged: StagedInput, *, keep_s: float) -> bool:
        self.answer("staged_ahead")
        self.sent.append(node)
        return True


class Bytes:
    """Files whose bytes come when a test lets them.

    Attributes:
        opened: How many were begun.
        open_now: How many are being read.
        most: How many were at a time.
    """

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.opened = self.open_now = self.most = 0

    async def open(self, _: object) -> AsyncIterator[bytes]:
        self.opened += 1

        async def content() -> AsyncIterator[bytes]:
            self.open_now += 1
            self.most = max(self.most, self.open_now)
            try:
                await self.may.wait()
                async for chunk in chunks(b"picture"):
                    yield chunk
            finally:
                self.open_now -= 1

        return content()


class Told(NullTelemetry):
    """Counts files that were sent and used."""

    def __init__(self) -> None:
        self.sent = self.used = 0

    def staged_ahead(self, *, sent: int = 0, used: int = 0) -> None:
        self.sent += sent
        self.used += used


class World:
    """Nodes n0 to n5, all of which can run what waits."""

    def __init__(self, most_bytes: int = 1000) -> None:
        self.store, self.nodes, self.files = FakeAhead(), FakeNodeApi(), Bytes()
        registry = FakeNodeRegistry(Node(name=f"n{i}", url=f"http://10.0.0.{i}:8188") for i in range(6))
        self.directory = NodeDirectory(registry, FakeInventoryStore(registry))
        self.waiting = [Placement()]
        self.tasks: set[asyncio.Task[Any]] = set()
        self.told = Told()
        self.ahead = StagingAhead(
            self.store,
            self.nodes,
            cast(AssetStore, self.files),
            self.directory,
            most_bytes=most_bytes,
            waiting=lambda: self.waiting,
            patience=lambda _: 60.0,
            spawn=self.spawn,
            telemetry=self.told,
            now=time.monotonic,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)

    def begin(self, node: str, **job: Any) -> Claim:
        base = a_claim(node=node, run=f"run-{node}")
        made = replace(base, job=replace(base.job, **job))
        self.ahead.begin(made)
        return made

    async def look_again(self) -> None:
        before = len(self.store.looked)
        self.ahead.wanted(Placement())
        await until(lambda: len(self.store.looked) > before, what="it was looked at again")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name, value in {"LEAD_S": 0.02, "SOON_S": 0.01, "GAPS_S": (0.001, 0.001)}.items():
        monkeypatch.setattr(f"comfy_fleet.services.staging_ahead.{name}", value)
    made = World()
    await made.directory.look()
    made.spawn(made.ahead.watch())
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_each_node_that_computes_is_looked_at(world: World) -> None:
    world.begin("n1")
    world.begin("n2")
    await until(lambda: {"n1", "n2"} <= {*world.store.looked}, what="both were looked at")
    assert not world.store.calls["stage_ahead"], "nothing waits that reads files"


async def test_a_short_run_is_not_looked_at(world: World) -> None:
    world.ahead.end(world.begin("n1"))
    world.begin("n2")
    await until(lambda: world.store.looked, what="the other one was looked at")
    assert world.store.looked == ["n2"]


async def test_the_end_of_an_earlier_run_is_not_that_of_the_present_one(world: World) -> None:
    claim = world.begin("n1")
    world.ahead.end(replace(claim, run="an earlier one"))
    await until(lambda: world.store.looked, what="it was looked at")


async def test_nobody_is_asked_while_nothing_waits(world: World) -> None:
    world.waiting = []
    world.begin("n1")
    await asyncio.sleep(0.1)
    assert not world.store.calls
    world.waiting = [Placement()]
    world.ahead.wanted(Placement())
    await until(lambda: world.store.looked, what="it was looked at")


async def test_files_of_a_job_that_has_come_are_sent_once(world: World) -> None:
    world.begin("n1")
    await until(lambda: world.store.looked, what="it was looked at")
    world.store.next = JOB
    for _ in range(2):
        await world.look_again()
        await until(lambda: world.store.sent, what="the file is there")
    assert world.store.sent == ["n1"]
    assert world.nodes.inputs["n1"].keys() == {f"fleet/f/n1/{'ab' * 16}.PNG"}


async def test_what_was_staged_is_given_up_if_the_job_went_elsewhere(world: World) -> None:
    world.store.next = JOB
    world.begin("n1")
    await until(lambda: world.store.sent, what="the file is there")
    world.store.next = None
    world.begin("n2", id="next")
    await until(lambda: world.store.ahead["n1"] == "", what="it was given up")


async def test_files_that_were_sent_and_those_that_were_used_are_told(world: World) -> None:
    world.store.next = JOB
    world.begin("n1")
    await until(lambda: world.told.sent, what="the file is there")
    other = world.begin("n1", id="other", uploads={"1/image": "another"})
    await world.ahead.arrived(other)
    assert (world.told.sent, world.told.used) == (1, 0), "it may still be of use"
    elsewhere = world.begin("n2", id="elsewhere", uploads={"1/image": "a1"})
    await world.ahead.arrived(replace(elsewhere, node="n3"))
    assert world.told.used == 0, "that node has not got it"
    claim = world.begin("n1", id="next", uploads={"1/image": "a1", "2/image": "a1", "3/image": "more"})
    for _ in range(2):
        await world.ahead.arrived(claim)
    assert world.told.used == 1, "each once"


async def test_a_file_that_was_given_up_counts_as_sent_in_vain(world: World) -> None:
    world.store.next = JOB
    world.begin("n1")
    await until(lambda: world.told.sent, what="the file is there")
    world.store.next = None
    await world.look_again()
    await until(lambda: world.store.ahead["n1"] == "", what="it was given up")
    await world.ahead.arrived(world.begin("n1", id="next", uploads={"1/image": "a1"}))
    assert (world.told.sent, world.told.used) == (1, 0)


async def test_a_few_nodes_get_files_at_a_time(world: World) -> None:
    world.store.next = JOB
    world.files.may.clear()
    for number in range(SENDERS + 2):
        world.begin(f"n{number}")
    await until(lambda: world.files.open_now == SENDERS, what="files are being sent")
    await until(lambda: len({*world.store.looked}) == SENDERS + 2, what="all were looked at")
    world.files.may.set()
    await until(lambda: len(world.store.sent) == SENDERS + 2, what="all have theirs")
    assert world.files.most == SENDERS


async def test_a_run_waits_for_files_of_its_own_alone(world: World) -> None:
    world.store.next = JOB
    world.files.may.clear()
    claim = world.begin("n1")
    await until(lambda: world.files.open_now, what="a file is being sent")
    other = replace(claim, job=replace(claim.job, uploads={"1/image": "other"}))
    own = replace(claim, job=replace(claim.job, uploads={"1/image": "a1"}))
    waits = asyncio.create_task(world.ahead.arrived(own))
    await asyncio.sleep(0.05)
    assert not waits.done()
    async with asyncio.timeout(20):
        await world.ahead.arrived(other)
        await waits  # it sends its own
    assert world.store.sent == []
    assert world.files.open_now == 0


async def test_a_run_does_not_wait_until_other_nodes_have_their_files(world: World) -> None:
    world.store.next = JOB
    world.files.may.clear()
    for number in range(SENDERS):
        world.begin(f"n{number}")
    await until(lambda: world.files.open_now == SENDERS, what="files are being sent")
    claim = world.begin("n5", uploads={"1/image": "a1"})
    await until(lambda: "n5" in world.store.ahead, what="it is to get a file, too")
    async with asyncio.timeout(20):
        await world.ahead.arrived(claim)
    world.files.may.set()
    await until(lambda: len(world.store.sent) == SENDERS, what="the others have theirs")
    assert "n5" not in world.store.sent


async def test_a_file_that_could_not_be_sent_is_sent_at_another_look(world: World) -> None:
    world.nodes.troubles.append(NodeError("it is full"))
    world.store.next = JOB
    claim = world.begin("n1", uploads={"1/image": "a1"})
    await until(lambda: world.nodes.calls["upload"] == 1, what="it was tried")
    await world.ahead.arrived(claim)
    world.ahead.wanted(Placement())
    await until(lambda: world.store.sent, what="the file is there")


async def test_an_older_version_stages_nothing_any_more(world: World) -> None:
    world.store.next = JOB
    world.begin("n1")
    await until(lambda: world.store.sent, what="the file is there")
    world.store.outdated = True
    world.ahead.wanted(Placement())
    await until(lambda: world.store.calls["stage_ahead"] == 2, what="it has heard of it")
    world.store.outdated = False
    world.store.looked.clear()
    world.begin("n2")
    await asyncio.sleep(0.1)
    assert world.store.looked == []


async def test_it_can_be_switched_off() -> None:
    world = World(most_bytes=0)
    await world.directory.look()
    world.store.next = JOB
    world.begin("n1")
    world.spawn(world.ahead.watch())
    await asyncio.sleep(0.05)
    assert not world.store.calls
    for task in world.tasks:
        task.cancel()
