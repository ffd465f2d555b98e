"""Every fault switch, seen from a client."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
import websockets

from comfy_fleet.sim import ALWAYS, BadFault, NodeOptions, SimNode, SimTiming
from comfy_fleet.sim.messages import Request
from tests.native_client import NativeClient
from tests.unit.sim.graphs import ident, picture, sleeping, text_to_image


@pytest.fixture
async def sim() -> AsyncIterator[SimNode]:
    async with SimNode(NodeOptions(name="gpu-1", timing=SimTiming(scale=0))) as running:
        yield running


@pytest.fixture
async def client(sim: SimNode) -> AsyncIterator[NativeClient]:
    async with NativeClient(sim.url, "client") as connected:
        yield connected


async def switch(client: NativeClient, **values: Any) -> dict[str, Any]:
    answer = await client.http.post("/sim/faults", json=values)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def finish(client: NativeClient, prompt_id: str) -> dict[str, Any]:
    await client.post(picture(), prompt_id)
    await client.until(lambda: client.finished(prompt_id))
    return dict((await client.http.get(f"/history/{prompt_id}")).json())


async def test_a_counted_fault_hits_that_many_prompts(client: NativeClient) -> None:
    assert (await switch(client, oom=2))["oom"] == 2
    ended = [(await finish(client, ident(index)))[ident(index)]["status"]["status_str"] for index in range(3)]
    assert ended == ["error", "error", "success"]
    assert {error["exception_type"] for error in client.of("execution_error")} == {"torch.OutOfMemoryError"}


async def test_always_never_ends_until_it_is_switched_off(sim: SimNode, client: NativeClient) -> None:
    await switch(client, execution_error="always")
    assert sim.faults.execution_error == ALWAYS
    for index in range(3):
        await finish(client, ident(index))
    assert [error["exception_type"] for error in client.of("execution_error")] == ["RuntimeError"] * 3
    await switch(client, clear=True)
    assert (await finish(client, ident("good")))[ident("good")]["status"]["completed"]


async def test_a_gpu_fault_lasts_until_the_node_starts_anew(sim: SimNode, client: NativeClient) -> None:
    await switch(client, gpu_fault=1)
    for index in range(2):
        await client.post(picture(color=index), ident(index))
        await client.until(partial(client.finished, ident(index)))
    errors = client.of("execution_error")
    assert [error["exception_type"] for error in errors] == ["torch.AcceleratorError"] * 2
    assert all(error["exception_message"].startswith("CUDA error: ") for error in errors)
    await sim.restart()
    async with NativeClient(sim.url, "again") as again:
        assert (await finish(again, ident("good")))[ident("good")]["status"]["completed"]


async def test_reject(client: NativeClient) -> None:
    await switch(client, reject=1)
    refused = await client.post(picture())
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_prompt"
    assert (await client.post(picture())).status_code == 200


async def test_partial(client: NativeClient) -> None:
    await switch(client, partial=1)
    answer = await client.post(picture(), ident("p"))
    assert answer.status_code == 200
    assert answer.json()["node_errors"]["2"]["errors"][0]["type"] == "value_not_in_list"
    await client.until(lambda: client.finished(ident("p")))


async def test_history_lost(client: NativeClient) -> None:
    await switch(client, history_lost=1)
    assert await finish(client, ident("lost")) == {}
    assert ident("kept") in await finish(client, ident("kept"))


async def test_dropped_types(client: NativeClient) -> None:
    await switch(client, drop_types=["executed", "progress_state"])
    await finish(client, ident("p"))
    assert not {"executed", "progress_state"} & set(client.kinds())
    assert "execution_success" in client.kinds()


async def test_dropped_clients(sim: SimNode, client: NativeClient) -> None:
    await switch(client, drop_clients=["client"])
    async with NativeClient(sim.url, "other") as other:
        await client.post(picture(), ident("p"))
        await other.until(lambda: len(other.of("status")) == 4)
    assert client.kinds() == ["status"]
    await switch(client, drop_clients=["*"])
    with pytest.raises(TimeoutError):
        async with websockets.connect(f"ws://{sim.host}:{sim.port}/ws") as socket:
            await asyncio.wait_for(socket.recv(), 0.1)


async def test_dropped_last_frames(client: NativeClient) -> None:
    await switch(client, drop_last=1)
    await client.post(picture(), ident("p"))
    await client.until(lambda: "executed" in client.kinds())
    while ident("p") not in (await client.http.get(f"/history/{ident('p')}")).json():
        await asyncio.sleep(0.005)
    assert "execution_success" not in client.kinds()
    await client.run(picture(), ident("next"))
    assert not client.finished(ident("p"))


async def test_closed_sockets(sim: SimNode, client: NativeClient) -> None:
    await switch(client, close_sockets=1)
    await client.post(picture(), ident("p"))
    with pytest.raises(websockets.ConnectionClosedError):
        await asyncio.wait_for(_closed(client), 5)
    while ident("p") not in (await client.http.get(f"/history/{ident('p')}")).json():
        await asyncio.sleep(0.005)


async def _closed(client: NativeClient) -> None:
    await client.socket.wait_closed()
    await client.socket.recv()


async def test_a_crash_in_a_run_loses_everything_and_may_be_followed_by_a_restart(
    sim: SimNode, client: NativeClient
) -> None:
    await client.run(text_to_image(), ident("before"))
    await switch(client, crash_mid_run=1, restart_after_s=0.2)
    await client.post(picture(), ident("p"))
    await asyncio.wait_for(client.socket.wait_closed(), 5)
    async with httpx.AsyncClient(base_url=sim.url) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/queue")
        while not sim.alive:
            await asyncio.sleep(0.01)
        assert (await http.get("/history")).json() == {}
        assert (await http.get("/queue")).json() == {"queue_running": [], "queue_pending": []}
        assert sim.vram.models == {}
    async with NativeClient(sim.url, "client") as again:
        assert (await again.run(picture(), ident("p")))["status"]["completed"]


async def test_a_crash_now_and_a_restart_by_hand(sim: SimNode, client: NativeClient) -> None:
    port = sim.port
    await client.http.post("/sim/faults", json={"crash": True})
    await asyncio.wait_for(client.socket.wait_closed(), 5)
    assert not sim.alive
    await sim.restart()
    assert sim.port == port
    async with NativeClient(sim.url, "client") as again:
        await again.run(picture())


async def test_a_frozen_node_accepts_and_answers_nothing_until_it_thaws(
    sim: SimNode, client: NativeClient
) -> None:
    await client.post(sleeping(0.3), ident("p"))
    await client.until(lambda: bool(client.of("progress")))
    await switch(client, freeze=True)
    seen = len(client.frames)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(await client.socket.ping(), 0.1)
    async with httpx.AsyncClient(base_url=sim.url, timeout=0.1) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/queue")
    with pytest.raises(TimeoutError):
        await websockets.connect(f"ws://{sim.host}:{sim.port}/ws", open_timeout=0.1)
    assert len(client.frames) == seen
    assert (await switch(client, freeze=False))["freeze"] is False
    await client.until(lambda: client.finished(ident("p")))
    await asyncio.wait_for(await client.socket.ping(), 5)


async def test_a_frozen_node_learns_only_later_that_a_client_has_gone(
    sim: SimNode, client: NativeClient
) -> None:
    await switch(client, freeze=True)
    reader, writer = await asyncio.open_connection(sim.host, sim.port)
    writer.write_eof()
    for _ in range(3):  # answered even then, and after the end of the other connection was seen
        await client.http.get("/sim/faults")
    assert not reader.at_eof()
    await switch(client, freeze=False)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_a_freeze_may_end_by_itself(sim: SimNode, client: NativeClient) -> None:
    await switch(client, freeze=0.1)
    start = time.monotonic()
    await client.http.get("/queue")
    assert time.monotonic() - start > 0.05
    assert not sim.frozen


async def test_only_the_frozen_node_freezes(sim: SimNode, client: NativeClient) -> None:
    async with SimNode() as other, httpx.AsyncClient(base_url=other.url) as http:
        sim.freeze()
        assert (await http.get("/queue")).status_code == 200
        sim.thaw()  # or the client's farewell would wait


async def test_a_slow_node_delays_and_trickles(sim: SimNode, client: NativeClient) -> None:
    entry = await client.run(picture())
    image = entry["outputs"]["2"]["images"][0]
    size = len((await client.http.get("/view", params=image)).content)
    sim.slow(bytes_per_s=size * 5)
    start = time.monotonic()
    assert len((await client.http.get("/view", params=image)).content) == size
    assert time.monotonic() - start >= 0.15
    assert (await switch(client, slow={"delay_s": 0.1}))["slow"] == {"delay_s": 0.1, "bytes_per_s": 0.0}
    start = time.monotonic()
    await client.http.get("/queue")
    assert time.monotonic() - start >= 0.1


async def test_foreign_memory_can_be_set(sim: SimNode, client: NativeClient) -> None:
    await switch(client, foreign_gib=20)
    device = (await client.http.get("/system_stats")).json()["devices"][0]
    assert device["vram_free"] == 4 * 2**30
    await client.post(text_to_image(), ident("p"))
    await client.until(lambda: client.finished(ident("p")))
    assert client.of("execution_error")[0]["exception_type"] == "torch.OutOfMemoryError"
    assert (await client.http.get("/sim/faults")).json()["foreign_gib"] == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"oops": 1},
        {"oom": -2},
        {"oom": "often"},
        {"drop_types": "executed"},
        {"restart_after_s": "soon"},
        {"exit_process": 1},
        {"slow": {"speed": 1}},
        {"slow": {"delay_s": -1}},
        {"freeze": "yes"},
        {"foreign_gib": None, "clear": True, "nope": 1},
    ],
)
async def test_a_wrong_switch_is_named_and_changes_nothing(
    sim: SimNode, client: NativeClient, wrong: dict[str, Any]
) -> None:
    sim.faults.oom = 3
    answer = await client.http.post("/sim/faults", json={"reject": 1, **wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert (sim.faults.oom, sim.faults.reject) == (3, 0)
    with pytest.raises(BadFault):
        await sim.set_faults(wrong)


async def test_steering_is_refused_to_other_machines(sim: SimNode) -> None:
    request = Request(method="POST", path="/sim/faults", query={}, headers={}, body=b"{}", peer="10.0.0.7")
    assert (await sim.app(request)).status == 403
    assert (await sim.app(replace(request, peer="127.0.0.1"))).status == 200


async def test_reset_starts_anew(sim: SimNode, client: NativeClient) -> None:
    graph = text_to_image()
    await client.run(graph, ident("p"))
    sim.faults.oom = 1
    await client.http.post("/sim/reset")
    assert (await client.http.get("/history")).json() == {}
    assert (sim.stats.done, sim.vram.models, sim.faults.oom) == (0, {}, 0)
    await client.run(graph, ident("again"))
    assert client.of("execution_cached")[-1]["nodes"] == []
