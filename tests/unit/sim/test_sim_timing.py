"""How long a simulated GPU takes, and what it holds in memory meanwhile."""

import asyncio
import time

import httpx
import pytest

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming, execution
from comfy_fleet.sim.execution import MAX_DEBT_S
from comfy_fleet.sim.options import builtin_models
from comfy_fleet.sim.run import Clock, Interrupted
from tests.native_client import NativeClient
from tests.unit.sim.graphs import ident, node, picture, text_to_image

THREE = (
    ("diffusion_models", "z_image_turbo_bf16.safetensors"),
    ("text_encoders", "qwen_3_4b.safetensors"),
    ("vae", "ae.safetensors"),
)
"""The files of `text_to_image`."""


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> list[Clock]:
    """The clocks of all prompts: what the model says they take, however busy this machine is."""
    made: list[Clock] = []

    class Kept(Clock):
        def __init__(self, start: float) -> None:
            super().__init__(start)
            made.append(self)

    monkeypatch.setattr(execution, "Clock", Kept)
    return made


def modelled_s(clock: Clock) -> float:
    return clock.due - clock.start


def busy_s(sim: SimNode) -> float:
    start, end, _ = sim.stats.intervals[-1]
    return end - start


async def test_a_fixed_job_time_is_kept_whatever_the_graph(clocks: list[Clock]) -> None:
    options = NodeOptions(timing=SimTiming(job_s=0.1))
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        for graph in (picture(), text_to_image(), text_to_image(width=512, height=512)):
            late = sim.engine.debt_s
            await client.run(graph)
            assert modelled_s(clocks[-1]) == pytest.approx(0.1)
            assert busy_s(sim) >= 0.099 - late  # the wait is a real one
        assert client.of("progress")[-1]["value"] == 4
        repeated = picture()
        await client.run(repeated)
        await client.run(repeated)  # all of it from the cache
        assert modelled_s(clocks[-1]) == 0
        stats = (await client.http.get("/sim/stats")).json()
        assert stats["done"] == 5
        assert stats["busy_s"] == pytest.approx(sum(end - start for start, end, _ in stats["intervals"]))


async def test_fixed_jobs_do_not_drift(clocks: list[Clock]) -> None:
    options = NodeOptions(timing=SimTiming(job_s=0.02))
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        for _ in range(5):
            await client.run(picture())
        late = sim.engine.debt_s
        assert 0 <= late <= MAX_DEBT_S
        posted = asyncio.get_running_loop().time()
        await client.run(picture())
        began = clocks[-1].start + late  # what the one before took too long is taken off this one
        assert began >= posted


async def test_loading_and_steps_take_their_time(clocks: list[Clock]) -> None:
    timing = SimTiming(load_gb_per_s=200, step_s=1, vae_s=0.0)
    async with SimNode(NodeOptions(timing=timing)) as sim, NativeClient(sim.url, "c") as client:
        await client.run(text_to_image(seed=1))
        await client.run(text_to_image(seed=2))
        assert busy_s(sim) >= 4 * 256 * 256 / 1e6 - 0.001
        await client.run(text_to_image(seed=3, steps=2))
    first, second, shorter = map(modelled_s, clocks)
    loading = (12.3 + 8.04 + 0.34) / 200
    assert first - second == pytest.approx(loading + 0.05)  # and the prompt is encoded only once
    assert second == pytest.approx(4 * 256 * 256 / 1e6)
    assert shorter == pytest.approx(second / 2)


async def test_scale_changes_everything_and_node_time_is_added(clocks: list[Clock]) -> None:
    timing = SimTiming(node_s=0.1, scale=0.5)
    async with SimNode(NodeOptions(timing=timing)) as sim, NativeClient(sim.url, "c") as client:
        await client.run(picture())
        assert modelled_s(clocks[-1]) == pytest.approx(0.1)


async def test_what_is_loaded_shows_in_the_system_stats() -> None:
    options = NodeOptions(timing=SimTiming(scale=0), vram_bytes=24 * 2**30, foreign_bytes=2**30)
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:

        async def device() -> dict[str, int]:
            return dict((await client.http.get("/system_stats")).json()["devices"][0])

        before = await device()
        assert (before["vram_total"], before["vram_free"]) == (24 * 2**30, 23 * 2**30)
        await client.run(text_to_image())
        after = await device()
        assert before["vram_free"] - after["vram_free"] == sum(sim.vram.models.values())
        assert after["torch_vram_total"] - after["torch_vram_free"] == sum(sim.vram.models.values())


async def test_a_job_that_does_not_fit_is_out_of_memory_and_the_next_may_fit() -> None:
    options = NodeOptions(timing=SimTiming(scale=0), vram_bytes=10 * 10**9)
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        await client.post(text_to_image(), ident("big"))
        await client.until(lambda: client.finished(ident("big")))
        error = client.of("execution_error")[0]
        assert error["exception_type"] == "torch.OutOfMemoryError"
        assert (error["node_id"], error["node_type"]) == ("7", "KSampler")
        assert sim.vram.models == {}
        entry = (await client.http.get(f"/history/{ident('big')}")).json()[ident("big")]
        assert entry["status"]["status_str"] == "error"
        work = node("SimWork", value=1, seconds=0.0, steps=2, vram_gb=9.0)
        fits = await client.run({"1": work, "2": node("PreviewAny", source=["1", 0])})
        assert fits["outputs"]["2"] == {"text": ["1"]}
        assert len(client.of("progress")) == 2


async def test_an_interrupt_ends_a_long_wait_at_once() -> None:
    options = NodeOptions(timing=SimTiming(job_s=30))
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        await client.post(picture(), ident("p"))
        await client.until(lambda: bool(client.of("executing")))
        await client.http.post("/interrupt", json={"prompt_id": ident("p")})
        await client.until(lambda: client.finished(ident("p")))
        assert busy_s(sim) < 20
        assert sim.stats.interrupted == 1


async def test_a_running_prompt_counts_up_to_now() -> None:
    options = NodeOptions(timing=SimTiming(job_s=30))
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        await client.post(picture(), ident("p"))
        await client.until(lambda: bool(client.of("executing")))
        first = (await client.http.get("/sim/stats")).json()
        second = (await client.http.get("/sim/stats")).json()
        assert 0 < first["busy_s"] < second["busy_s"]
        assert second["queue_remaining"] == 1
        await asyncio.sleep(0.1)  # so that what ran before the reset is more than what the answer takes
        asked = time.time()
        await client.http.post("/sim/reset")
        counted = (await client.http.get("/sim/stats")).json()["busy_s"]
        assert 0 < counted <= time.time() - asked


async def test_the_clock_keeps_to_its_plan_whatever_happens_between() -> None:
    loop = asyncio.get_running_loop()
    clock = Clock(loop.time())
    for _ in range(5):
        time.sleep(0.005)  # noqa: ASYNC251 - work that blocks the loop
        await clock.spend(0.02)
    assert modelled_s(clock) == pytest.approx(0.1)
    assert loop.time() >= clock.due - 0.001
    clock.interrupt()
    with pytest.raises(Interrupted):
        await clock.spend(1)


async def test_many_nodes_live_in_one_loop() -> None:
    async with asyncio.TaskGroup() as group:
        for index in range(20):
            group.create_task(_one_job(f"gpu-{index}"))


async def _one_job(name: str) -> None:
    async with SimNode(NodeOptions(name=name, timing=SimTiming(scale=0))) as sim:
        async with httpx.AsyncClient(base_url=sim.url) as http:
            await http.post("/prompt", json={"prompt": picture()})
            while (await http.get("/prompt")).json()["exec_info"]["queue_remaining"]:
                await asyncio.sleep(0.005)
        assert sim.stats.done == 1


async def test_a_prompt_with_other_loaders_drops_the_models_of_the_one_before() -> None:
    """As both versions of ComfyUI do, however much room there is (tests/acceptance/test_real_models.py)."""
    options = NodeOptions(timing=SimTiming(scale=0), vram_bytes=2**40)
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        loads = []
        for graph in (text_to_image(seed=1), text_to_image(seed=2), picture(), text_to_image(seed=3)):
            await client.run(graph)
            loads.append((await client.http.get("/sim/stats")).json()["loads"])
        assert loads == [3, 3, 3, 6]
        await client.run(picture())
        stats = (await client.http.get("/sim/stats")).json()
        assert stats["models_loaded"] == {}
        size = sum(builtin_models()[folder][name] for folder, name in THREE)
        assert stats["loaded_bytes"] == 2 * size
