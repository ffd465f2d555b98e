"""What ``/system_stats`` tells."""

from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.inventory import parse
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


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
NAMES = st.sampled_from(
    [
        *("system", "devices", "ram_total", "ram_free", "comfyui_version", "python_version", "argv", "name"),
        *("type", "vram_total", "vram_free", "torch_vram_total", "torch_vram_free", "index", "os"),
        *("input", "required", "optional", "hidden", "output", "output_node", "output_name", "options"),
    ]
)
ANYTHING = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, ANYTHING, max_size=6), ANYTHING)
def test_no_answer_raises_and_what_is_read_can_be_written(stats: dict[str, Any], info: object) -> None:
    reading = reading_of(stats)
    orjson.dumps([reading, room_bytes(stats)])
    assert 0 <= reading.vram_bytes < 2**63 and 0 <= reading.ram_bytes < 2**63
    try:
        parse(info, replacements=info)
    except ConfigError:
        assert not isinstance(info, dict)
