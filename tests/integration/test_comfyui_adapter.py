"""The ComfyUI adapter through a real HAProxy, against simulated nodes with faults."""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from comfy_fleet.adapters.comfyui.lease import LeaseClient, WebsocketLease
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.errors import NodeError, OutputGone, OutputRefused
from comfy_fleet.domain.jobs.outputs import FileRef
from comfy_fleet.domain.jobs.run_messages import (
    AskFailed,
    AskHistory,
    AskQueue,
    Binary,
    CancelRequested,
    Event,
    Frame,
    HistoryAnswered,
    PostAnswered,
    PostUnknown,
    QueueAnswered,
    Report,
)
from comfy_fleet.ports.comfyui import Leases, NodeApi, NoLease
from tests.conftest import free_port
from tests.integration.comfyui_kit import Fleet, a_fleet, carry, granted, graph, kind
from tests.integration.haproxy_kit import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A fleet for tests that break nothing for good: starting one takes longer than they do."""
    async with a_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(shared: Fleet) -> AsyncIterator[Fleet]:
    """The shared fleet, whole again: HAProxy learns of a slot's end when it gets to it."""
    yield shared
    for sim in shared.sims.values():
        assert sim.alive
        sim.clear_faults()

    async def whole() -> bool:
        rows = await shared.broker.controller.broker.runtime.stats(_backend(shared))
        facts = {row["svname"]: (row["status"], row["scur"]) for row in rows}
        idle = [await _idle(shared, name) for name in shared.sims]
        return all(idle) and all(facts[name] == ("UP", "0") for name in shared.sims)

    await eventually("every node is up, free and idle", whole)


def _as_the_ports_ask_for(fleet: Fleet) -> tuple[Leases, NodeApi]:
    return fleet.leases, fleet.nodes  # for mypy


# Whole runs -----------------------------------------------------------------------------------------------


async def test_a_run_from_lease_to_picture(fleet: Fleet) -> None:
    prompt = graph()
    done = await carry(fleet, prompt)
    assert kind(done) == "succeeded"
    (item,) = done.left
    assert done.content[item.id].startswith(b"\x89PNG")
    assert done.count(AskQueue) == done.count(AskHistory) == 0
    last = [action.progress for action in done.actions if isinstance(action, Report)][-1]
    assert (last.value, last.nodes_done, last.nodes_total) == (1.0, 2, 2)
    again = await carry(fleet, prompt)
    assert kind(again) == "succeeded", "a graph that the node answers from its cache"


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ({"history_lag_s": 0.2}, {"succeeded"}),
        ({"drop_last": 1}, {"succeeded"}),
        ({"drop_types": ["executed"]}, {"succeeded"}),
        ({"drop_types": ["execution_start"], "history_lag_s": 0.2}, {"succeeded"}),
        ({"drop_clients": ["*"]}, {"succeeded"}),
        ({"close_sockets": 1}, {"succeeded"}),
        ({"history_lost": 1}, {"succeeded"}),
        ({"history_lost": 1, "close_sockets": 1}, {"lost"}),
        ({"execution_error": 1}, {"failed"}),
        ({"oom": 1}, {"failed"}),
        ({"reject": 1}, {"rejected"}),
        ({"partial": 1}, {"rejected"}),
    ],
    ids=str,
)
async def test_a_run_on_a_node_with_a_fault(fleet: Fleet, fault: dict[str, Any], kinds: set[str]) -> None:
    await fleet.sims["g1"].set_faults(fault)
    done = await carry(fleet, graph())
    assert kind(done) in kinds
    assert done.verdict is not None
    if kind(done) == "succeeded":
        assert len(done.left) == len(done.content) == 1
    if kind(done) in ("lost", "failed"):
        assert done.verdict.counts
    if kind(done) == "rejected":
        assert done.verdict.exclude_node
        assert not done.verdict.counts
        await eventually("the node is idle", lambda: _idle(fleet, "g1"))
    if "oom" in fault:
        assert done.verdict.error is not None
        assert done.verdict.error.code == "out_of_memory"


@pytest.mark.parametrize("restart_after_s", [None, 0.05])
async def test_a_run_on_a_node_that_dies(tmp_path: Path, restart_after_s: float | None) -> None:
    async with a_fleet(tmp_path) as fleet:
        await fleet.sims["g1"].set_faults({"crash_mid_run": 1, "restart_after_s": restart_after_s})
        done = await carry(fleet, graph())
        assert kind(done) == "lost"
        assert done.verdict is not None
        assert done.verdict.counts
        assert done.verdict.retryable


async def _idle(fleet: Fleet, node: str) -> bool:
    return not fleet.sims[node].engine.running and not fleet.sims[node].engine.pending


async def test_cancel_frees_the_node(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, job_s=30) as fleet:

        async def cancel(events: asyncio.Queue[Event], run: str) -> None:
            await eventually("it runs", lambda: bool(fleet.sims["g1"].engine.running))
            events.put_nowait(CancelRequested())

        done = await carry(fleet, graph(), meanwhile=cancel)
        assert kind(done) == "canceled"
        assert await _idle(fleet, "g1")


async def test_cancel_of_a_prompt_that_waits_behind_another(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, job_s=30) as fleet:
        other = str(uuid4())
        assert isinstance(
            await fleet.nodes.post_prompt("g1", graph=graph(), run=other, job="x"), PostAnswered
        )

        async def cancel(events: asyncio.Queue[Event], run: str) -> None:
            await eventually("it waits", lambda: bool(fleet.sims["g1"].engine.pending))
            events.put_nowait(CancelRequested())

        done = await carry(fleet, graph(), meanwhile=cancel)
        assert kind(done) == "canceled"
        assert await fleet.nodes.queue_state("g1", other) == QueueAnswered("running"), "only ours was stopped"
        assert await fleet.nodes.interrupt("g1", other)


async def test_a_dead_haproxy_is_survived(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, job_s=2) as fleet:

        async def kill(_: asyncio.Queue[Event], run: str) -> None:
            await eventually("it runs", lambda: bool(fleet.sims["g1"].engine.running))
            pid = fleet.broker.controller.broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

        done = await carry(fleet, graph(), meanwhile=kill)
        assert kind(done) == "succeeded"
        assert done.count(AskQueue) >= 1


# Calls ----------------------------------------------------------------------------------------------------


async def test_questions_about_a_run(tmp_path: Path) -> None:
    async with a_fleet(tmp_path, job_s=30) as fleet:
        await _ask_about_a_run(fleet, str(uuid4()))


async def _ask_about_a_run(fleet: Fleet, run: str) -> None:
    assert await fleet.nodes.queue_state("g1", run) == QueueAnswered("absent")
    assert await fleet.nodes.history("g1", run) == HistoryAnswered(None)
    extra: dict[str, Any] = {"extra_pnginfo": {"workflow": {}}}
    answer = await fleet.nodes.post_prompt("g1", graph=graph(), run=run, job="j7", extra_data=extra)
    assert isinstance(answer, PostAnswered)
    assert answer.status == 200
    assert answer.body is not None
    assert (answer.body["prompt_id"], answer.body["node_errors"]) == (run, {})

    async def it_is(state: str) -> None:
        async def so() -> bool:
            told = await fleet.nodes.queue_state("g1", run)
            assert isinstance(told, QueueAnswered)
            return told.state == state

        await eventually(f"it is {state}", so)

    await it_is("running")
    assert await fleet.nodes.queue_state("g2", run) == QueueAnswered("absent"), "calls are pinned"
    assert await fleet.nodes.history("g1", run) == HistoryAnswered(None)
    assert await fleet.nodes.interrupt("g1", run)
    await it_is("absent")
    history = await fleet.nodes.history("g1", run)
    assert isinstance(history, HistoryAnswered)
    assert history.entry is not None
    told = dict(history.entry["prompt"][3])
    assert isinstance(told.pop("create_time"), int)  # 0.33 adds it
    assert told == {**extra, "fleet": {"job": "j7", "run": run}, "client_id": run}


async def test_a_graph_that_the_node_refuses(fleet: Fleet) -> None:
    bad = {"1": {"class_type": "NopeNode", "inputs": {}}}
    answer = await fleet.nodes.post_prompt("g1", graph=bad, run=str(uuid4()), job="j")
    assert isinstance(answer, PostAnswered)
    assert answer.status == 400
    assert answer.body is not None


async def test_a_dead_node_an_unknown_node_and_a_dead_haproxy_are_told_apart(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        run = str(uuid4())
        await fleet.sims["g1"].crash()
        for node in ("g1", "nobody"):
            assert await fleet.nodes.queue_state(node, run) == AskFailed("queue", "node_down")
            assert await fleet.nodes.history(node, run) == AskFailed("history", "node_down")
            answer = await fleet.nodes.post_prompt(node, graph=graph(), run=run, job="j")
            assert isinstance(answer, PostAnswered)
            assert (answer.status, answer.body) == (503, None)
            assert not await fleet.nodes.interrupt(node, run)
            with pytest.raises(NodeError, match="can't be reached"):
                await fleet.nodes.system_stats(node)
        async with NodeClient(f"http://127.0.0.1:{free_port()}") as nowhere:
            assert await nowhere.queue_state("g1", run) == AskFailed("queue", "unreachable")
            assert isinstance(await nowhere.post_prompt("g1", graph=graph(), run=run, job="j"), PostUnknown)
            assert not await nowhere.delete_pending("g1", run)
            with pytest.raises(NodeError):
                await nowhere.free("g1")


async def test_a_node_that_breaks_off_leaves_the_post_open(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        node = fleet.sims["g1"]
        node.freeze()
        posting = asyncio.create_task(fleet.nodes.post_prompt("g1", graph=graph(), run=str(uuid4()), job="j"))
        asking = asyncio.create_task(fleet.nodes.queue_state("g1", str(uuid4())))

        async def under_way() -> bool:
            rows = await fleet.broker.controller.broker.runtime.stats("be_direct")
            calls = [int(row["scur"]) for row in rows if row["svname"] == "g1"]
            return calls == [2] and node.calls >= 2

        await eventually("the node has both", under_way)
        assert not posting.done()
        await node.crash()
        assert isinstance(await posting, PostUnknown)
        assert await asking == AskFailed("queue", "error")


async def test_files_in_and_out(fleet: Fleet, tmp_path: Path) -> None:
    picture = bytes(range(256)) * 3000

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    stored = await fleet.nodes.upload(
        "g1",
        name="a b.png",
        subfolder="fleet/j1",
        content=whole(picture),
        content_type="image/png",
        size_bytes=len(picture),
    )
    assert stored == FileRef("a b.png", "fleet/j1", "input")
    streamed = await fleet.nodes.upload(
        "g1", name="b.bin", subfolder="", content=chunks(), content_type="application/octet-stream"
    )
    assert await fleet.nodes.holds("g1", stored, size_bytes=len(picture))
    assert not await fleet.nodes.holds("g1", stored, size_bytes=len(picture) - 1)
    assert not await fleet.nodes.holds("g1", FileRef("a b.png", "fleet/j2", "input"), size_bytes=len(picture))
    assert not await fleet.nodes.holds("nobody", stored, size_bytes=len(picture))
    async with fleet.nodes.view("g1", stored) as content:
        assert content.length == len(picture)
        assert b"".join([chunk async for chunk in content.chunks]) == picture
    async with fleet.nodes.view("g1", streamed) as content:
        assert b"".join([chunk async for chunk in content.chunks]) == b"one two"


async def test_files_that_are_not_there(fleet: Fleet) -> None:
    with pytest.raises(OutputGone, match=r"g1 has no output file 'gone\.png'"):
        async with fleet.nodes.view("g1", FileRef("gone.png")):
            pass
    for status, ref in ((400, FileRef("a..b.png")), (403, FileRef("x.png", "../../.."))):
        with pytest.raises(OutputRefused, match=rf"g1 answers {status} for output file '{ref.filename}'"):
            async with fleet.nodes.view("g1", ref):
                pass
    with pytest.raises(NodeError) as caught:
        async with fleet.nodes.view("nobody", FileRef("gone.png")):
            pass
    assert not isinstance(caught.value, OutputGone | OutputRefused)


async def test_what_goes_wrong_with_the_fleets_own_files_is_no_fault_of_the_node(
    fleet: Fleet, tmp_path: Path
) -> None:
    ref = await fleet.nodes.upload(
        "g1", name="a.bin", subfolder="", content=whole(b"data"), content_type="x/y"
    )
    for local in (OSError(errno.ENOSPC, "No space left on device"), TimeoutError("ours")):
        with pytest.raises(type(local)) as caught:  # noqa: PT012 - in mid-stream
            async with fleet.nodes.view("g1", ref) as content:
                async for _ in content.chunks:
                    raise local
        assert caught.value is local


async def test_what_a_source_of_bytes_raises_is_its_own(fleet: Fleet) -> None:
    for local in (OSError(errno.EIO, "Input/output error"), TimeoutError("ours"), ValueError("odd")):

        async def chunks(local: Exception = local) -> AsyncIterator[bytes]:
            yield b"one"
            raise local

        with pytest.raises(type(local)) as caught:
            await fleet.nodes.upload("g1", name="x", subfolder="", content=chunks(), content_type="x/y")
        assert caught.value is local


async def test_a_node_that_dies_while_it_sends_a_file(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        node = fleet.sims["g1"]
        large = whole(bytes(900_000))
        ref = await fleet.nodes.upload("g1", name="l.bin", subfolder="", content=large, content_type="x/y")
        node.slow(bytes_per_s=400_000)
        with pytest.raises(NodeError, match=r"reading 'l\.bin' from node g1"):  # noqa: PT012 - in mid-stream
            async with fleet.nodes.view("g1", ref) as content:
                async for _ in content.chunks:
                    await node.crash()


async def test_what_a_node_says_of_itself(fleet: Fleet) -> None:
    assert "SaveImage" in (await fleet.nodes.inventory("g1")).classes
    assert (await fleet.nodes.system_stats("g1"))["devices"]
    assert set(await fleet.nodes.listing("g1", "/object_info/LoadImage")) == {"LoadImage"}
    assert not await fleet.nodes.listing("g1", "/object_info/No such, class?#")
    await fleet.nodes.free("g1")


# Leases ---------------------------------------------------------------------------------------------------


async def test_leases_are_granted_refused_and_given_back(fleet: Fleet) -> None:
    first = await granted(fleet, str(uuid4()), "g2", "g1")
    assert first.node == "g2"
    second = await fleet.leases.lease(run=str(uuid4()), pool="default")
    assert isinstance(second, WebsocketLease)
    assert second.node == "g1"
    assert await fleet.leases.lease(run="r", pool="default") == NoLease(why="busy", detail="503 busy")
    first.release()
    first.release()
    third = await granted(fleet, str(uuid4()), "g2")
    assert await fleet.leases.lease(run="r", pool="default", nodes=["g1", "x"]) == NoLease(
        why="busy", detail="503 busy"
    )
    third.release()

    async def refused_by_list() -> bool:
        answer = await fleet.leases.lease(run=str(uuid4()), pool="default", nodes=["g1"])
        return answer == NoLease(why="busy", detail="503 nodes")

    await eventually("only the other node is free", refused_by_list)
    second.release()


async def test_leases_that_cannot_be_had(fleet: Fleet) -> None:
    wrong = await fleet.leases.lease(run="r", pool="nobodys")
    assert wrong == NoLease(why="error", detail="404 pool")
    nowhere = await LeaseClient(f"ws://127.0.0.1:{free_port()}").lease(run="r", pool="default")
    assert isinstance(nowhere, NoLease)
    assert nowhere.why == "unreachable"
    # The direct frontend does not lead to a node's websocket, and no other server names a node.
    direct = await LeaseClient(fleet.broker.settings.direct_url).lease(run="r", pool="p")
    assert isinstance(direct, NoLease)
    node = await LeaseClient(fleet.sims["g1"].url.replace("http", "ws")).lease(run="r", pool="p")
    assert isinstance(node, NoLease)
    assert "names no node" in node.detail
    await eventually("its websocket is closed", lambda: not fleet.sims["g1"].websockets)


async def test_a_frozen_node_gives_no_lease_and_keeps_no_slot(fleet: Fleet) -> None:
    node = fleet.sims["g1"]
    node.freeze()
    hasty = LeaseClient(fleet.broker.settings.lease_url, open_timeout_s=0.2)
    answer = await hasty.lease(run=str(uuid4()), pool="default", nodes=["g1"])
    assert isinstance(answer, NoLease)
    assert answer.why == "error"
    node.thaw()
    (await granted(fleet, str(uuid4()), "g1")).release()


async def test_frames_come_in_order_and_end_with_the_websocket(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        run = str(uuid4())
        lease = await granted(fleet, run, "g1")
        ws_graph = graph()
        ws_graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
        assert isinstance(await fleet.nodes.post_prompt("g1", graph=ws_graph, run=run, job="j"), PostAnswered)
        frames: list[Frame | Binary] = []
        async for frame in lease.frames():
            frames.append(frame)
            if isinstance(frame, Frame) and frame.type == "executing" and frame.data["node"] is None:
                assert lease.close_reason == ""
                await fleet.sims["g1"].crash()
        types = [frame.type for frame in frames if isinstance(frame, Frame)]
        assert types[0] == "status"
        assert types.index("execution_start") < types.index("executed") < types.index("execution_success")
        assert [frame for frame in frames if isinstance(frame, Binary)]
        assert lease.close_reason
        lease.release()


async def test_release_ends_the_frames_of_whoever_reads_them(fleet: Fleet) -> None:
    lease = await granted(fleet, str(uuid4()), "g1")

    async def read() -> int:
        return len([frame async for frame in lease.frames()])

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    lease.release()
    assert await asyncio.wait_for(reading, 60) in (0, 1)
    assert lease.close_reason == "released"


async def test_a_slot_comes_back_at_once_even_from_a_frozen_node(fleet: Fleet) -> None:
    """The node's own event loop has no part in it: a model load holds it up for a minute."""
    lease = await granted(fleet, str(uuid4()), "g1")
    fleet.sims["g1"].freeze()
    lease.release()

    async def free() -> bool:
        rows = await fleet.broker.controller.broker.runtime.stats(_backend(fleet))
        return any(row["svname"] == "g1" and row["scur"] == "0" for row in rows)

    # Whoever waits for the node, or for HAProxy's own patience, waits for 20 s or more.
    await eventually("the slot is free", free, within_s=10)
    with contextlib.suppress(TimeoutError):
        fleet.sims["g1"].thaw()


def _backend(fleet: Fleet) -> str:
    line = (fleet.broker.settings.run_dir / "pools.map").read_text().split()
    return line[line.index("default") + 1]
