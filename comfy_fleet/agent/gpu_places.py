"""Which GPUs of a host its ComfyUIs run on, and what these are called."""

import re
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.gpu import Gpus, Nvml

ALL = "all"
CPU = "cpu"
_KEY = re.compile(r"[0-9]{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{1,80}")
"""The allowed names of GPUs where NVML can't list them."""


@dataclass(frozen=True, kw_only=True)
class GpuPlace:
    """A GPU to run on.

    Attributes:
        label: Its part of the node's name, such as ``gpu0``.
        device: For ``CUDA_VISIBLE_DEVICES``; None: the CPU.
        called: Its names for overrides.
    """

    label: str
    device: str | None
    called: frozenset[str] = frozenset()


def host_name() -> str:
    """Return this machine's name, made valid as a node's name."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-_")
    return name[:40] or "host"


def slots_of(host: str, wanted: str, gpus: Gpus, *, per_gpu: int = 1) -> dict[str, GpuPlace]:
    """Return the nodes to run, by name, with the GPU of each.

    Args:
        host: The host's name: every node's name begins with it.
        wanted: As in :class:`comfy_fleet.agent.supervisor.Supervision`.
        gpus: What NVML saw.
        per_gpu: How many for each time that a GPU is named.

    Raises:
        ConfigError: A GPU does not exist, or there is none.
    """
    places = [place for place in places_of(wanted, gpus) for _ in range(per_gpu)]
    several = {label for label, count in Counter(place.label for place in places).items() if count > 1}
    slots: dict[str, GpuPlace] = {}
    numbers: Counter[str] = Counter()
    for place in places:
        number = f"-{numbers[place.label]}" if place.label in several else ""
        slots[f"{host}-{place.label}{number}"] = place
        numbers[place.label] += 1
    return slots


def places_of(wanted: str, gpus: Gpus) -> list[GpuPlace]:
    """Return the GPUs to run on.

    Args:
        wanted: As in :class:`comfy_fleet.agent.supervisor.Supervision`.
        gpus: What NVML saw.

    Raises:
        ConfigError: One of them does not exist, or there is none.
    """
    labels = _labels(gpus)
    if wanted == ALL:
        found = [
            GpuPlace(label=label, device=device, called=frozenset({label, label.removeprefix("gpu"), device}))
            for device, label in labels.items()
        ]
        if not found:
            raise ConfigError(
                f"--gpus all: {gpus.why.value}{f' ({gpus.error})' if gpus.error else ''}; "
                f"{gpus.why.what_to_do or 'see nvidia-smi'}. To run on the CPU: --gpus cpu"
            )
        return found
    keys = [key.strip() for key in wanted.split(",") if key.strip()]
    if not keys:
        raise ConfigError(f"--gpus {wanted!r} names no GPU; say all, cpu, or indices or UUIDs with commas")
    return [_place(key, gpus, labels) for key in keys]


def _labels(gpus: Gpus) -> dict[str, str]:
    found: dict[str, str] = {}
    for gpu in gpus.gpus:
        if gpu.mig:
            found |= {one.uuid: f"gpu{gpu.index}m{one.index}" for one in gpu.instances}
        elif not gpu.lost:
            found[gpu.uuid or str(gpu.index)] = f"gpu{gpu.index}"
    return found


def _place(key: str, gpus: Gpus, labels: Mapping[str, str]) -> GpuPlace:
    if key == CPU:
        return GpuPlace(label="cpu0", device=None, called=frozenset({CPU, "cpu0"}))
    found = gpus.find(key)
    if found is None and gpus.why is Nvml.OK:
        there = ", ".join(f"{label.removeprefix('gpu')} ({device})" for device, label in labels.items())
        raise ConfigError(f"--gpus: there is no GPU {key}; there are: {there}")
    if found is None and not _KEY.fullmatch(key):
        raise ConfigError(f"--gpus: {key!r} is neither an index nor a UUID; use all, cpu, or for example 0,2")
    device = found.uuid or key if found is not None else key  # AMD's, too; the runtime interprets it
    label = labels.get(device, f"gpu{re.sub('[^a-z0-9]+', '-', key.lower().removeprefix('gpu-'))[:12]}")
    return GpuPlace(
        label=label, device=device, called=frozenset({key, label, label.removeprefix("gpu"), device})
    )
