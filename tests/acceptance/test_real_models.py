"""Model files on a real ComfyUI: how large they are, and for how long they stay loaded."""

import json
import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.model_sizes import RedisModelSizes
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.services.fleet_model_sizes import FleetModelSizes
from tests.comfyui_server import ANSWER_S, ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

SHAPE = (64, 4, 3, 3)
"""Of the one tensor by which ComfyUI knows a tiny VAE; the others may be missing."""
SIZES = count(64, 8)


def tiny_vae(name: str) -> bytes:
    """Return a file that ComfyUI loads as a VAE; its size depends on its name."""
    length = 4 * SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3]
    about = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, length]}
    header = json.dumps({"__metadata__": {"name": name}, "taesd_decoder.1.weight": about}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(length)


@pytest.fixture(scope="module")
def bare(comfyui_server: ComfyServer) -> ComfyServer:
    """The real ComfyUI with models: it looks for some below ``output``, too."""
    for name in ("vae/sized/a.safetensors", "vae/b.safetensors", "loras/sub/c.safetensors"):
        path = comfyui_server.folder / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_vae(name))
    return comfyui_server


class RealFleet:
    """One real node, as the fleet sees it."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._http = http
        node = NodeState(node=Node(name="real", url=url))
        self.states = {"real": replace(node, verdict="up")}
        self.inventories: list[Inventory] = []

    async def read(self) -> None:
        """Read the node's classes."""
        self.inventories = [parse((await self._http.get("/object_info")).json())]

    async def listing(self, _: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Ask the node."""
        answer = await self._http.get(path, params=dict(query or {}))
        return None if answer.status_code == 404 else answer.json()


async def test_a_graphs_files_are_found_with_their_sizes(bare: ComfyServer, redis: FleetRedis) -> None:
    async with httpx.AsyncClient(base_url=bare.url, timeout=ANSWER_S) as http:
        fleet = RealFleet(bare.url, http)
        await fleet.read()
        known = FleetModelSizes(fleet, fleet, RedisModelSizes(redis))
        await known.look()
    graph = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "sized/a.safetensors"}},
        "7:2": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "sub\\c.safetensors"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": ["4", 0]}},
        "4": {"class_type": "AnyText", "inputs": {"text": "b.safetensors"}},
    }
    assert dict(known.of(graph)) == {
        name: (bare.folder / "output" / name).stat().st_size
        for name in ("vae/sized/a.safetensors", "vae/b.safetensors", "loras/sub/c.safetensors")
    }


def test_only_the_models_of_the_last_prompt_stay_loaded(bare: ComfyServer) -> None:
    """The scheduler counts on it, and a simulated node does the same (tests/unit/sim/test_sim_timing.py)."""
    log = bare.folder / "log"

    def loads() -> int:
        return log.read_bytes().count(b"Requested to load TAESD")

    def run(vae: str) -> tuple[bool, int]:
        """Return whether the loader's result was remembered, and how often a model was loaded."""
        before = loads()
        side = next(SIZES)
        source = {
            "1": {"class_type": "VAELoader", "inputs": {"vae_name": vae}},
            "2": {"class_type": "EmptyLatentImage", "inputs": {"width": side, "height": 64, "batch_size": 1}},
            "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        }
        if not vae:
            inputs = {"width": side, "height": 64, "batch_size": 1, "color": 0}
            source = {"3": {"class_type": "EmptyImage", "inputs": inputs}}
        graph = {**source, "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}}
        posted = httpx.post(f"{bare.url}/prompt", json={"prompt": graph}, timeout=ANSWER_S)
        prompt_id = posted.json()["prompt_id"]
        deadline = time.monotonic() + 60
        while not (entry := httpx.get(f"{bare.url}/history/{prompt_id}", timeout=ANSWER_S).json()):
            assert time.monotonic() < deadline, "it did not end"
            time.sleep(0.05)
        assert entry[prompt_id]["status"]["status_str"] == "success", entry
        messages = dict(entry[prompt_id]["status"]["messages"])
        return "1" in messages["execution_cached"]["nodes"], loads() - before

    a, b = "sized/a.safetensors", "b.safetensors"
    assert [run(vae) for vae in (a, a, b, a, "", a)] == [
        (False, 1),
        (True, 0),
        (False, 1),
        (False, 1),
        (False, 0),
        (False, 1),
    ]
