"""What a node tells of its memory: recorded, simulated, and made up for devices that nobody here has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from comfy_fleet.adapters.comfyui.direct_node import NodeSession
from comfy_fleet.adapters.comfyui.system_stats import SystemStats, counted
from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.gpu_assessment import State, assess
from comfy_fleet.domain.nodes.vram import CONTEXT_BYTES, GIB, Device, MemoryClaim, Source, usage
from comfy_fleet.sim import NodeOptions, SimNode

RECORDED = Path(__file__).parents[1] / "recordings" / "GET_system_stats.json"


def stats(kind: str, total: float, free: float, torch: float, cached: float) -> Mapping[str, Any]:
    figures = {"vram_total": total, "vram_free": free, "torch_vram_total": torch, "torch_vram_free": cached}
    device = {"name": f"{kind}:0", "type": kind, "index": 0}
    return {"devices": [{**device, **{name: int(value * GIB) for name, value in figures.items()}}]}


def test_a_recorded_cpu_node_tells_nothing_of_its_own() -> None:
    recorded = json.loads(RECORDED.read_text())
    found = counted(recorded)
    assert (found.device, found.own) == (Device.UNSEEN, None)
    assert found.total == 25276502016
    assert usage(None, [MemoryClaim(node="g1", counted=found)]).source is Source.UNSEEN
    beside = counted(recorded, rss_bytes=GIB)
    assert (beside.device, beside.own, beside.used) == (Device.HOST, GIB, 25276502016 - 23960375296)


def test_what_pytorch_keeps_in_its_cache_is_used_and_own() -> None:
    # 24 GiB: 10 taken by PyTorch, 3 of them cache; 4 of others; the driver has 10 free.
    found = counted(stats("cuda", 24, free=13, torch=10, cached=3))
    assert (found.total, found.used, found.own) == (24 * GIB, 14 * GIB, 10 * GIB)
    use = usage(None, [MemoryClaim(node="g1", counted=found)])
    assert (use.source, use.foreign) == (Source.STATS, 4 * GIB - CONTEXT_BYTES)


@pytest.mark.parametrize(
    ("told", "rss", "device"),
    [
        (stats("xpu", 16, free=12, torch=6, cached=2), None, Device.UNSEEN),  # free: total less its own
        (stats("xpu", 16, free=9, torch=6, cached=2), None, Device.CARD),
        (stats("mps", 64, free=30, torch=64, cached=30), 5 * GIB, Device.UNSEEN),
        (stats("privateuseone", 1, free=1, torch=1, cached=1), None, Device.UNSEEN),
        (stats("npu", 64, free=30, torch=20, cached=1), None, Device.CARD),
    ],
)
def test_devices_differ_in_what_they_tell(told: Mapping[str, Any], rss: int | None, device: Device) -> None:
    assert counted(told, rss_bytes=rss).device is device


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"devices": []},
        {"devices": "none"},
        {"devices": [{"type": "cuda"}]},
        {"devices": [{**stats("cuda", 1, 1, 0, 0)["devices"][0], "vram_free": "many"}]},
        {"devices": [{**stats("cuda", 1, 1, 0, 0)["devices"][0], "vram_free": -1}]},
        {"devices": [{**stats("cuda", 1, 1, 0, 0)["devices"][0], "vram_free": float("nan")}]},
    ],
)
def test_nonsense_is_refused(told: Mapping[str, Any]) -> None:
    with pytest.raises(NodeError):
        counted(told)


async def test_the_last_answer_ages() -> None:
    now = 100.0
    answers: list[web.Response | None] = [
        web.json_response(stats("cuda", 24, free=13, torch=10, cached=3)),
        None,
        web.Response(body=b"<html>"),
        web.Response(status=500),
        web.json_response([]),
        web.json_response({"devices": [{}]}),
    ]

    async def answer(request: web.Request) -> web.Response:
        found = answers.pop(0)
        if found is None:
            assert request.transport is not None
            request.transport.abort()
            found = web.Response()
        return found

    app = web.Application()
    app.router.add_get("/system_stats", answer)
    async with TestServer(app) as server, NodeSession() as session:
        node = SystemStats(str(server.make_url("/")), session, clock=lambda: now)
        assert node.last() is None
        await node.ask()
        now = 101.5
        while answers:
            with pytest.raises(NodeError):
                await node.ask()
        last = node.last()
        assert last is not None
        assert (last.age_s, last.fresh, last.own) == (1.5, True, 10 * GIB)
        now = 110.0
        last = node.last()
        assert last is not None
        assert not last.fresh


async def test_a_simulated_node_shows_what_others_take() -> None:
    async with SimNode(NodeOptions(vram_bytes=24 * GIB)) as sim, NodeSession() as session:
        node = SystemStats(sim.url, session)
        state, told = State(), []
        for now, gib in enumerate([0, 10, 0]):
            await sim.set_faults({"foreign_gib": gib})
            await node.ask()
            use = usage(None, [MemoryClaim(node="g1", counted=node.last())])
            judgement, state = assess(None, use, state, now_s=now)
            told.append(judgement.readiness)
        assert told == [Readiness.READY, Readiness.DRAIN, Readiness.DRAIN]
