"""Every GPU of the fleet in one answer of ComfyUI's form."""

import json
from typing import Any

import pytest

from comfy_fleet.domain.nodes.fleet_stats import MAX_DEVICES, fleet_stats
from comfy_fleet.domain.nodes.node import Node, NodeState, Reading

DEVICE = {
    "name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync",
    "type": "cuda",
    "index": 0,
    "vram_total": 24_000,
    "vram_free": 20_000,
    "torch_vram_total": 3_000,
    "torch_vram_free": 1_000,
}
SYSTEM = {
    "os": "linux",
    "ram_total": 64_000,
    "ram_free": 32_000,
    "comfyui_version": "0.33.0",
    "python_version": "3.11.7 (main)",
    "pytorch_version": "2.9.0+cu128",
    "embedded_python": False,
    "deploy_environment": "local-git",
    "required_frontend_version": "1.49.6",
    "comfy_package_versions": [{"name": "comfy-kitchen", "installed": "0.2", "required": None}],
    "argv": ["main.py", "--output-directory", "/srv/secret"],
    "home": "/home/secret",
}


def state(name: str, **reading: Any) -> NodeState:
    return NodeState(node=Node(name=name, url="http://a:1"), reading=Reading(**reading))


def test_each_gpu_is_a_device_named_after_its_node() -> None:
    states = [state(name) for name in ("gpu10", "gpu2", "gpu1")]
    two = {"system": SYSTEM, "devices": [DEVICE, {**DEVICE, "index": 1}]}
    one = {"system": {**SYSTEM, "comfyui_version": "0.3.64"}, "devices": [DEVICE]}
    found = fleet_stats(states, [("gpu2", one), ("gpu1", one), ("gpu10", two)])
    name = "NVIDIA GeForce RTX 4090"
    assert [(one["name"], one["index"]) for one in found["devices"]] == [
        (f"gpu1: {name}", 0),
        (f"gpu2: {name}", 1),
        (f"gpu10: {name}", 2),
        (f"gpu10: {name}", 3),
    ]
    assert {**found["devices"][0], "name": DEVICE["name"]} == DEVICE
    assert found["system"] == {**{k: v for k, v in SYSTEM.items() if k != "home"}, "argv": []}
    assert "secret" not in json.dumps(found)


def test_a_node_that_has_not_answered_is_shown_as_it_was_read() -> None:
    known = state("gpu1", gpu="cuda:0 NVIDIA L40S : native", device="cuda", vram_bytes=48)
    (device,) = fleet_stats([known, state("new")], [])["devices"]
    assert device == {
        "name": "gpu1: NVIDIA L40S",
        "type": "cuda",
        "index": 0,
        "vram_total": 48,
        "vram_free": 0,
        "torch_vram_total": 0,
        "torch_vram_free": 0,
    }
    system = fleet_stats([known], [])["system"]
    assert (system["comfyui_version"], system["argv"]) == ("unknown", [])


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        {"system": 1, "devices": 2},
        {"system": {"os": 1, "ram_total": "x", "comfyui_version": ["a"], "comfy_package_versions": [1, {}]}},
        {"devices": [None, {"name": 7, "type": {}, "vram_total": -1, "vram_free": 1e300, "index": "x"}]},
    ],
)
def test_an_odd_answer_does_no_harm(odd: Any) -> None:
    found = fleet_stats([state("odd"), state("ok")], [("odd", odd), ("ok", {"devices": [DEVICE]})])
    assert found["devices"][-1]["name"].startswith("ok: ")
    for device in found["devices"]:
        assert all(isinstance(device[key], int) for key in DEVICE if key not in ("name", "type"))


def test_a_hostile_node_shows_a_bounded_number_of_devices() -> None:
    found = fleet_stats([state("odd")], [("odd", {"devices": [{"name": "x" * 10**6}] * 1000})])
    assert len(found["devices"]) == MAX_DEVICES
    assert len(json.dumps(found)) < 50_000
