"""``/system_stats`` of the whole fleet: every GPU of every node as one device, in ComfyUI's form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfy_fleet.domain.nodes.differences import bare_gpu
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.text import natural

MAX_DEVICES = 64
"""Most devices of one node that are shown."""

_MEMORY = ("vram_total", "vram_free", "torch_vram_total", "torch_vram_free")
_TEXTS = (
    "comfyui_version",
    "required_frontend_version",
    "installed_templates_version",
    "required_templates_version",
    "python_version",
    "pytorch_version",
    "deploy_environment",
)
_LONGEST = 200
_MAX_PACKAGES = 100


def fleet_stats(states: Sequence[NodeState], answers: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the answer.

    The system is that of the first node that has answered. Nothing of a machine's command line or folders is
    told. A node that has never answered is shown as it was last read, with no memory free.

    Args:
        states: The nodes, those with the newest ComfyUI first.
        answers: Their own answers, by node.
    """
    told = {name: answer for name, answer in answers if isinstance(answer, Mapping)}
    first = next((told[state.node.name] for state in states if state.node.name in told), {})
    devices: list[dict[str, Any]] = []
    for state in sorted(states, key=lambda state: natural(state.node.name)):
        own = _devices(told.get(state.node.name, {})) or _as_read(state)
        for device in own:
            name = f"{state.node.name}: {device['name']}"
            devices.append({**device, "name": name, "index": len(devices)})
    return {"system": _system(first.get("system")), "devices": devices}


def _system(given: Any) -> dict[str, Any]:
    system = given if isinstance(given, Mapping) else {}
    shown: dict[str, Any] = {
        "os": _text(system.get("os")) or "posix",
        "ram_total": _bytes(system.get("ram_total")),
        "ram_free": _bytes(system.get("ram_free")),
    }
    shown |= {key: text for key in _TEXTS if (text := _text(system.get(key)))}
    packages = system.get("comfy_package_versions")
    if isinstance(packages, list):
        shown["comfy_package_versions"] = [
            {key: _text(entry.get(key)) or None for key in ("name", "installed", "required")}
            for entry in packages[:_MAX_PACKAGES]
            if isinstance(entry, Mapping)
        ]
    for key in ("comfyui_version", "python_version", "pytorch_version"):
        shown.setdefault(key, "unknown")
    return {**shown, "embedded_python": system.get("embedded_python") is True, "argv": []}


def _devices(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    devices = answer.get("devices")
    return [
        {
            "name": bare_gpu(_text(device.get("name"))) or "unknown",
            "type": _text(device.get("type")) or "cpu",
            "index": None,
            **{key: _bytes(device.get(key)) for key in _MEMORY},
        }
        for device in (devices[:MAX_DEVICES] if isinstance(devices, list) else ())
        if isinstance(device, Mapping)
    ]


def _as_read(state: NodeState) -> list[dict[str, Any]]:
    reading = state.reading
    if not reading.device:
        return []
    memory = {**dict.fromkeys(_MEMORY, 0), "vram_total": reading.vram_bytes}
    return [{"name": bare_gpu(reading.gpu) or "unknown", "type": reading.device, "index": None, **memory}]


def _text(value: Any) -> str:
    return value[:_LONGEST] if isinstance(value, str) else ""


def _bytes(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return 0
    return int(value)
