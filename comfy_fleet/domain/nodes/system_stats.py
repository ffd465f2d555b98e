"""What a ComfyUI's ``/system_stats`` says about its node.

``vram_free`` counts what PyTorch keeps in its cache (``torch_vram_free``); ``torch_vram_total`` is what it
has taken from the driver (ComfyUI 0.3.64).
"""

from collections.abc import Mapping
from typing import Any

from comfy_fleet.domain.nodes.node import Reading

_NO_MEMORY = ("privateuseone",)  # DirectML reports a constant
_LONGEST = 200  # longest name or version, in characters: lists show it


def reading_of(stats: Mapping[str, Any]) -> Reading:
    """Read an answer; missing values stay empty."""
    system = stats.get("system")
    system = system if isinstance(system, Mapping) else {}
    device = _device(stats)
    kind = _text(device, "type")
    return Reading(
        comfyui=_text(system, "comfyui_version"),
        pytorch=_text(system, "pytorch_version"),
        python=_text(system, "python_version").partition(" ")[0],
        gpu=_text(device, "name"),
        device=kind,
        vram_bytes=0 if kind in _NO_MEMORY else _bytes(device, "vram_total"),
        ram_bytes=_bytes(system, "ram_total"),
    )


def room_bytes(stats: Mapping[str, Any]) -> int:
    """Return how many bytes of the card this ComfyUI could use, its own included; 0 if unknown."""
    device = _device(stats)
    if _text(device, "type") in (*_NO_MEMORY, ""):
        return 0
    total = _bytes(device, "vram_total")
    free = _bytes(device, "vram_free") - _bytes(device, "torch_vram_free")
    return max(0, min(total, free + _bytes(device, "torch_vram_total")))


def _device(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    devices = stats.get("devices")
    first = devices[0] if isinstance(devices, list) and devices else None
    return first if isinstance(first, Mapping) else {}


def _bytes(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return 0
    return int(value)


def _text(facts: Mapping[str, Any], name: str) -> str:
    return str(facts.get(name) or "")[:_LONGEST]
