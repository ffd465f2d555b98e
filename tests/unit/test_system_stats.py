"""What ``/system_stats`` tells."""

from pathlib import Path

import orjson

from comfy_fleet.domain.nodes.system_stats import reading_of, room_bytes

GIB = 2**30
RECORDED = orjson.loads((Path(__file__).parents[1] / "recordings" / "GET_system_stats.json").read_bytes())
CARD = {
    "type": "cuda",
    "name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync",
    "vram_total": 24 * GIB,
    "vram_free": 9 * GIB,  # 5 that the driver has free, 4 in PyTorch's cache
    "torch_vram_total": 9 * GIB,
    "torch_vram_free": 4 * GIB,
}


def test_a_real_answer() -> None:
    reading = reading_of(RECORDED)
    assert (reading.comfyui, reading.device, reading.gpu) == ("0.3.64", "cpu", "cpu")
    assert reading.python == "3.11.7" and reading.vram_bytes == 25276502016 == reading.ram_bytes


def test_what_is_not_told_stays_empty() -> None:
    assert reading_of({}).vram_bytes == reading_of({}).ram_bytes == 0
    assert reading_of({"system": {"ram_total": "64"}, "devices": []}).ram_bytes == 0
    assert reading_of({"devices": [{"type": "privateuseone", "vram_total": GIB}]}).vram_bytes == 0
    assert room_bytes({}) == 0


def test_room_is_what_others_don_t_hold() -> None:
    assert room_bytes({"devices": [CARD]}) == 14 * GIB  # 5 free, 9 its own: 10 belong to somebody else
