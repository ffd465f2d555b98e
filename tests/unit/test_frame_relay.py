"""Frames of a run on their way to whoever listens; the store is played."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.domain.jobs.job import Job, JobStatus, Output
from comfy_fleet.domain.jobs.run_messages import Binary, Frame
from comfy_fleet.ports.runs import ONLY_CLIENTS, Claim, RunStore
from comfy_fleet.services import frame_publisher, frame_relay
from comfy_fleet.services.frame_publisher import FramePublisher
from comfy_fleet.services.frame_relay import BYTES_A_SECOND, MAX_FRAME_BYTES, FrameRelay
from comfy_fleet.tasks import start
from tests.factories import an_output
from tests.fleet import until

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")
CLAIM = Claim(job=JOB, graph=b"{}", run="r", node="g1", token="t", attempt=0)
PREVIEW = b"\0\0\0\1\0\0\0\1\xff\xd8\xff"


def text(type_: str, prompt: str | None = "r", size: int = 0) -> Frame:
    data = {"prompt_id": prompt, "x": "x" * size} if prompt else {"x": "x" * size}
    return Frame(type_, data, json.dumps({"type": type_, "data": data}).encode())


def picture(prompt: str) -> Binary:
    head = json.dumps({"prompt_id": prompt}).encode()
    return Binary(b"\0\0\0\4" + len(head).to_bytes(4, "big") + head + b"\xff\xd8\xff")


class Store:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.time = 0.0
        self.listeners: int | None = 1
        self.calls = 0
        self.published: list[RawFrame] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: Exception | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.relay = self.relay_of(CLAIM)

    def relay_of(self, claim: Claim, **options: Any) -> FrameRelay:
        publisher = FramePublisher(cast(RunStore, self), spawn=lambda work: self.tasks.add(start(work)))
        return FrameRelay(publisher, claim, lambda: self.time, **options)

    async def frames(self, sent: Sequence[tuple[Claim, Sequence[RawFrame]]]) -> list[int | None]:
        self.calls += 1
        await self.gate.wait()
        if self.trouble:
            raise self.trouble
        self.published += [frame for _, frames in sent for frame in frames]
        return [self.listeners for _ in sent]

    async def take(self, *frames: Frame | Binary, running: bool = True) -> list[bytes]:
        """Return what is published of some frames."""
        self.published = []
        for frame in frames:
            self.relay.take(frame, running=running)
        await self.relay.drain()
        return [bytes(frame.data) for frame in self.published]


async def test_frames_are_published_in_order_and_byte_for_byte() -> None:
    store = Store()
    frames: list[Frame | Binary] = [
        text("execution_start"),
        Binary(bytearray(PREVIEW)),
        text("an_extension's"),
        picture("r"),
    ]
    raw = [frame.raw if isinstance(frame, Frame) else frame.data for frame in frames]
    assert await store.take(*frames) == raw
    assert store.published == [
        RawFrame(run="r", data=data, text=isinstance(frame, Frame))
        for data, frame in zip(raw, frames, strict=True)
    ]


async def test_what_is_of_another_prompt_is_not_this_jobs() -> None:
    store = Store()
    others: list[Frame | Binary] = [text("executing", "other"), picture("other")]
    assert await store.take(*others) == []
    unnamed: list[Frame | Binary] = [text("status", None), Binary(PREVIEW)]
    assert len(await store.take(*unnamed)) == 2
    assert await store.take(*unnamed, running=False) == []  # of what the node computes before or after it
    assert len(await store.take(text("executing"), running=False)) == 1


async def test_what_is_too_large_is_left_out() -> None:
    store = Store()
    assert await store.take(text("x", size=MAX_FRAME_BYTES), Binary(PREVIEW + bytes(MAX_FRAME_BYTES))) == []
    assert len(await store.take(text("x", size=MAX_FRAME_BYTES - 200))) == 1


async def test_more_bytes_than_a_run_may_send_are_left_out_pictures_first() -> None:
    store = Store()
    mib = 1024 * 1024
    pictures = [Binary(PREVIEW + bytes(mib)) for _ in range(20)]
    assert len(await store.take(*pictures)) == BYTES_A_SECOND / mib / 2 - 1
    assert len(await store.take(*(text("x", size=mib // 4) for _ in range(40)))) >= 16
    assert await store.take(*pictures) == []
    store.time += 1
    assert len(await store.take(*pictures)) == BYTES_A_SECOND / mib / 2 - 1
    store.time += 3600
    told = await store.take(*(text("x") for _ in range(100_000)))
    assert 1000 < len(told) < BYTES_A_SECOND / 256  # tiny ones count, too


async def test_nothing_is_published_once_nobody_listens_and_again_as_soon_as_somebody_does() -> None:
    store = Store()
    store.listeners = 0
    await store.take(text("1"))
    store.calls = 0
    assert await store.take(*(text("2") for _ in range(100))) == [] and store.calls == 0
    store.listeners = 1
    store.relay.listen()
    assert len(await store.take(text("3"))) == 1


async def test_who_begins_to_listen_while_it_is_told_that_nobody_does_is_not_forgotten() -> None:
    store = Store()
    store.listeners = 0
    store.gate.clear()
    store.relay.take(text("1"), running=True)
    await until(lambda: store.calls, what="it is being published")
    store.relay.listen()
    store.gate.set()
    await store.relay.drain()
    assert len(await store.take(text("2"))) == 1


@pytest.mark.parametrize("trouble", [StoreDown("away"), None, ValueError("odd")])
async def test_trouble_ends_it_until_somebody_listens_again(
    trouble: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    store.trouble = trouble
    if trouble is None:
        store.listeners = None  # another dispatcher has the run
    await store.take(text("1"), text("2"))
    store.trouble, store.listeners = None, 1
    assert await store.take(text("3")) == []
    assert bool(caplog.records) == isinstance(trouble, ValueError)
    store.relay.listen()
    assert len(await store.take(text("4"))) == 1


async def test_a_store_that_hangs_holds_neither_the_run_nor_much_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_relay, "LAST_S", 0.01)
    store = Store()
    store.gate.clear()
    for _ in range(100):
        store.time += 1
        assert await store.take(*(text("x", size=100_000) for _ in range(100))) == []
    assert store.calls == 1  # it returned each time: nobody waits
    store.gate.set()
    await until(lambda: store.published, what="it goes on")
    await store.relay.drain()
    assert 0 < sum(len(frame.data) for frame in store.published) <= BYTES_A_SECOND


async def test_nothing_is_published_after_the_end() -> None:
    store = Store()
    store.gate.clear()
    store.relay.take(text("1"), running=True)
    await until(lambda: store.calls, what="it is being published")
    store.relay.take(text("2"), running=True)
    store.relay.close()
    store.gate.set()
    await until(lambda: store.published, what="what was on its way has come")
    assert await store.take(text("3")) == []
    assert store.calls == 1


CLIENTS = replace(CLAIM, job=replace(JOB, client_id="tab"))


class ClientStore(Store):
    """The same, of a job of a client's, whose outputs a test commits."""

    def __init__(self, claim: Claim = CLIENTS) -> None:
        super().__init__()
        self.commit: asyncio.Future[list[Output] | None] = asyncio.get_running_loop().create_future()
        self.relay = self.relay_of(claim, committed=lambda _: asyncio.shield(self.commit))

    def told(self, only: str) -> list[str]:
        """Return the types that went only there."""
        return [
            json.loads(frame.data)["type"] for frame in self.published if frame.text and frame.only == only
        ]


def executed(output: object, node: str = "2") -> Frame:
    data = {"node": node, "prompt_id": "r", "output": output}
    return Frame("executed", data, json.dumps({"type": "executed", "data": data}).encode())


async def test_a_client_is_told_of_outputs_once_they_are_stored_under_their_own_names() -> None:
    store = ClientStore()
    file = {"filename": "t_00001_.png", "subfolder": "fleet/j/r", "type": "output"}
    store.relay.take(executed({"images": [file], "note": ["x"]}), running=True)
    store.relay.take(text("progress"), running=True)
    await store.relay.drain()
    assert store.told("job") == ["executed"] and store.told("clients") == []
    assert store.told("") == ["progress"]  # it does not wait for long
    store.commit.set_result([an_output(name="t_00042_.png", subfolder="", saved=True)])
    await store.relay.drain()
    (one,) = [frame for frame in store.published if frame.only == "clients"]
    shown = {"filename": "t_00042_.png", "subfolder": "", "type": "output"}
    assert json.loads(one.data)["data"]["output"] == {"images": [shown], "note": ["x"]}


async def test_outputs_that_can_not_be_stored_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_relay, "LAST_S", 0.01)
    store = ClientStore()
    store.relay.take(executed({"images": []}), running=True)
    store.commit.set_result(None)
    await store.relay.drain()
    assert store.told("clients") == []
    other = ClientStore()
    other.relay.take(executed({"images": []}), running=True)
    await other.relay.drain()  # it does not wait for long
    other.relay.close()
    other.commit.set_result([])
    await asyncio.sleep(0)
    assert other.told("clients") == []


async def test_who_comes_late_is_told_how_far_the_run_is() -> None:
    store = ClientStore()
    store.relay = store.relay_of(CLIENTS, heard=False)
    data = {"prompt_id": "r", "node": "2"}
    begun = Frame("executing", data, json.dumps({"type": "executing", "data": data}).encode())
    await store.take(text("execution_start"), text("execution_cached"), begun, text("progress_state"))
    assert store.calls == 0
    store.relay.listen(anew=True)
    await store.relay.drain()
    assert store.told("clients") == ["execution_start", "execution_cached", "executing", "progress_state"]
    store.published = []
    store.relay.listen()  # as each beat says it
    await store.relay.drain()
    assert store.published == []
    last = {"prompt_id": "r", "node": None}
    await store.take(Frame("executing", last, json.dumps({"type": "executing", "data": last}).encode()))
    store.relay.listen(anew=True)
    await store.relay.drain()
    assert store.told("clients") == []  # it has left its node


async def test_of_a_job_that_is_no_clients_only_progress_is_for_anybody() -> None:
    store = ClientStore(CLAIM)
    frames: list[Frame | Binary] = [
        text("progress"),
        text("progress_state"),
        Binary(b"\0\0\0\3\0\0\0\0012hi"),
    ]
    await store.take(*frames)
    assert [frame.only for frame in store.published] == ["job", "", ""]
    store.listeners = ONLY_CLIENTS
    await store.take(text("progress_state"))
    assert len(await store.take(*frames)) == 2
    store.listeners = 1
    store.relay.listen()
    assert len(await store.take(*frames)) == 3


async def test_pictures_that_are_outputs_are_not_left_out_for_their_rate() -> None:
    store = ClientStore()
    mib = 1024 * 1024
    for place in range(40):
        store.relay.take(Binary(PREVIEW + bytes(mib)), running=True, place=("2", place))
        await store.relay.drain()
    assert [frame.place for frame in store.published] == [("2", place) for place in range(40)]


async def test_the_order_stays_if_outputs_are_stored_quickly() -> None:
    store = ClientStore()
    store.relay.take(text("executing"), running=True)
    store.relay.take(executed({}), running=True)
    store.relay.take(text("progress"), running=True)
    await until(lambda: store.calls, what="what came before it is told")
    assert store.told("") == ["executing"]
    store.commit.set_result([])
    await store.relay.drain()
    told = [json.loads(frame.data)["type"] for frame in store.published if frame.only != "job"]
    assert told == ["executing", "executed", "progress"]


async def test_what_the_end_tells_at_once_is_not_told_before_it() -> None:
    store = ClientStore()
    await store.take(text("executing"))
    calls = store.calls
    store.listeners = ONLY_CLIENTS
    await store.take(text("progress"))
    store.relay.take(executed({"images": []}), running=True)
    store.relay.leave({"2"})
    store.commit.set_result([])
    for type_ in ("execution_success", "status"):
        store.relay.take(text(type_), running=True)
    await asyncio.wait_for(store.relay.drain(), 5)
    assert (store.told("clients"), store.calls) == ([], calls + 1)


async def test_what_the_end_does_not_tell_is_told_before_it() -> None:
    store = ClientStore()
    store.relay.take(executed({"images": []}, node="2"), running=True)
    store.relay.take(executed({"text": ["too long for the record"]}, node="3"), running=True)
    store.relay.take(text("an_extension's"), running=True)
    store.relay.leave({"2"})
    store.commit.set_result([])
    await store.relay.drain()
    told = [json.loads(frame.data) for frame in store.published if frame.only != "job"]
    assert [(one["type"], one["data"].get("node")) for one in told] == [
        ("executed", "3"),
        ("an_extension's", None),
    ]


async def test_results_are_told_before_an_end_that_is_far_away() -> None:
    store = ClientStore()
    store.relay.take(executed({"images": []}), running=True)
    store.relay.leave({"2"})
    store.commit.set_result([])
    await until(lambda: store.told("clients"), what="another output is still being stored")
    store.relay.take(executed({"images": []}), running=True)  # the timer of the end is over
    await store.relay.drain()
    assert store.told("clients") == ["executed", "executed"]


async def test_a_client_is_not_sent_what_a_node_says_about_itself_or_its_end() -> None:
    store = ClientStore()
    end = {"prompt_id": "r", "node": None}
    frames = [text(type_) for type_ in ("status", "feature_flags", "logs", "execution_success", "progress")]
    frames.append(Frame("executing", end, json.dumps({"type": "executing", "data": end}).encode()))
    assert len(await store.take(*frames)) == 6  # somebody may follow the job itself
    assert store.told("") == ["progress"]
    store.listeners = ONLY_CLIENTS
    await store.take(*frames)
    assert await store.take(*frames) == [frames[4].raw]


async def test_an_end_does_not_wait_for_the_next_call_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_publisher, "GAP_S", 60.0)
    monkeypatch.setattr(frame_relay, "LAST_S", 30.0)
    store = Store()
    for turn in range(3):
        store.relay.take(text(str(turn)), running=True)
        await asyncio.wait_for(store.relay.drain(), 10)
    assert len(store.published) == 3


async def test_results_that_wait_for_their_files_hold_little_memory() -> None:
    store = ClientStore()
    begun: list[object] = []

    async def committed(ids: object) -> list[Output] | None:
        begun.append(ids)
        return await asyncio.shield(store.commit)

    store.relay = store.relay_of(CLIENTS, committed=committed)
    size = frame_relay.MOST_TOLD_BYTES - 1000
    for number in range(100):
        store.time += 10  # the node is not too quick: the disk is full
        store.relay.take(executed({"text": ["x" * size]}, node=str(number)), running=True)
    await asyncio.sleep(0)
    assert 0 < len(begun) * size <= BYTES_A_SECOND
    assert len(store.told("clients")) == 0
    store.commit.set_result([])
    await store.relay.drain()
    few = len(begun)
    assert len(store.told("clients")) == few  # the record tells the others at the end
    store.relay.take(executed({"text": ["x"]}), running=True)
    await store.relay.drain()
    assert len(store.told("clients")) == few + 1  # there is room again


async def test_results_count_where_a_run_says_too_much() -> None:
    store = ClientStore()
    store.commit.set_result([])
    for number in range(1000):
        store.relay.take(executed({"text": ["x" * 100_000]}, node=str(number)), running=True)
        await store.relay.drain()
    assert len(store.told("clients")) * 100_000 <= BYTES_A_SECOND


@pytest.mark.parametrize("runs", [1, 20])
async def test_frames_of_all_runs_go_in_few_calls(runs: int) -> None:
    store = Store()
    publisher = FramePublisher(cast(RunStore, store), spawn=lambda work: store.tasks.add(start(work)))
    claims = [replace(CLAIM, run=f"r{number}") for number in range(runs)]
    relays = [FrameRelay(publisher, claim, lambda: 0.0) for claim in claims]
    for turn in range(50):
        for relay in relays:
            relay.take(text(str(turn), relay.claim.run), running=True)
        await asyncio.sleep(0)
    for relay in relays:
        await relay.drain()
    assert len(store.published) == 50 * runs
    assert store.calls <= 50
    for claim in claims:  # each run's in their order
        mine = [json.loads(frame.data)["type"] for frame in store.published if frame.run == claim.run]
        assert mine == [str(turn) for turn in range(50)]


async def test_a_call_is_no_larger_than_it_may_be_and_every_run_gets_its_turn() -> None:
    store = Store()
    calls: list[list[str]] = []

    async def frames(sent: Sequence[tuple[Claim, Sequence[RawFrame]]]) -> list[int | None]:
        calls.append([frame.run for _, frames in sent for frame in frames])
        return [1 for _ in sent]

    store.frames = frames  # type: ignore[method-assign]
    publisher = FramePublisher(cast(RunStore, store), spawn=lambda work: store.tasks.add(start(work)))
    relays = [FrameRelay(publisher, replace(CLAIM, run=run), lambda: 0.0) for run in ("a", "b")]
    size = frame_publisher.MOST_BYTES // 4
    for relay in relays:
        for _ in range(8):
            relay.take(text("x", relay.claim.run, size=size), running=True)
    for relay in relays:
        await relay.drain()
    assert all(len(call) <= 4 for call in calls) and sum(map(len, calls)) == 16
    assert calls[0][0] == "a" and calls[1][0] == "b"
