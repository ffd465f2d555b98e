"""Which ComfyUIs a host runs: one or more per GPU, each with a fixed name, port and folders."""

import asyncio
import json
import logging
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.cleaner import Folders
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.gpu import Gpus, Nvml
from comfy_fleet.domain.nodes.host import Joining
from comfy_fleet.domain.nodes.process_supervision import ProcessPhase, RestartLimits

logger = logging.getLogger(__name__)

ALL = "all"
CPU = "cpu"
_KEY = re.compile(r"[0-9]{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{1,80}")
"""The allowed names of GPUs where NVML can't list them."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What to run.

    Attributes:
        checkout: The ComfyUI.
        gpus: ``all``, or GPUs by index or UUID, and ``cpu``, separated by commas. One that is named twice
            gets two.
        per_gpu: ComfyUIs for each time that a GPU is named.
        env: Variables for all of them.
        envs: More variables by GPU, under its name in ``gpus`` or its index.
        overrides: More arguments by GPU, in the same way.
        limits: When a ComfyUI is restarted.
        simulated: Whether they are simulated nodes.
    """

    checkout: Checkout
    gpus: str = ALL
    per_gpu: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limits: RestartLimits = field(default_factory=RestartLimits)
    simulated: bool = False


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


class Join(Protocol):
    """Makes a node's registration."""

    def __call__(self, *, name: str, url: str, cleans_up: bool, simulated: bool) -> Joining:
        """Return a node's registration."""


class Supervisor:
    """Runs a host's ComfyUIs."""

    def __init__(self, wanted: Supervision, host: HostAgent, *, address: str, data: Path) -> None:
        """Set up; nothing runs before :meth:`run`.

        Args:
            wanted: What to run.
            host: Whose nodes they are.
            address: Their address, as HAProxy reaches it.
            data: Folder for their files, logs and ports.
        """
        self._wanted = wanted
        self._host = host
        self._address = address
        self._folder = data / "comfyui"
        self._logs = data / "logs"
        self._processes: list[ComfyUIProcess] = []

    def plan(self, gpus: Gpus, join: Join) -> list[Member]:
        """Choose GPUs and ports, and return the nodes.

        Args:
            gpus: What NVML saw.
            join: Makes registrations.

        Raises:
            ConfigError: A GPU does not exist, or one that runs nothing has its own arguments or variables.
        """
        wanted = self._wanted
        slots = slots_of(self._host.host, wanted.gpus, gpus, per_gpu=wanted.per_gpu)
        called = frozenset[str]().union(*(place.called for place in slots.values()))
        for key in (*wanted.overrides, *wanted.envs):
            if key not in called:
                raise ConfigError(f"nothing runs on a GPU {key}; there are: {', '.join(sorted(called))}")
        self._logs.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        ports = _ports(self._folder / "ports.json", list(slots), self._address)
        return [self._member(place, name, ports[name], join) for name, place in slots.items()]

    def _member(self, place: GpuPlace, name: str, port: int, join: Join) -> Member:
        wanted = self._wanted
        folder = self._folder / name
        more = [arg for key in place.called for arg in wanted.overrides.get(key, ())]
        variables = {name: value for key in place.called for name, value in wanted.envs.get(key, {}).items()}
        launch = wanted.checkout.launch(
            port=port, folder=folder, gpu=place.device, address=self._address, args=more
        )
        host = f"[{self._address}]" if ":" in self._address else self._address
        url = f"http://{host}:{port}"
        probe = self._host.probe(name, url)
        process = ComfyUIProcess(
            ProcessSpec(
                name=name,
                argv=launch.argv,
                env={**launch.env, **wanted.env, **variables},
                cwd=launch.cwd,
                log=self._logs / f"{name}.log",
            ),
            probe,
            client_id=f"fleet-agent-{name}",
            limits=wanted.limits,
            gpu_busy=lambda: self._host.busy_gpu(place.device),
            on_change=self._host.changed.set,
            turn=lambda: self._turn(name),
        )
        self._processes.append(process)
        return Member(
            probe=probe,
            gpu=place.device,
            on_cpu=place.device is None,
            process=process,
            joining=join(name=name, url=url, cleans_up=True, simulated=wanted.simulated),
            folders=Folders(output=folder / "output", input=folder / "input"),
        )

    def _turn(self, name: str) -> bool:
        """Return whether a process may be recycled: one of a host at a time."""
        away = (ProcessPhase.LEAVING, ProcessPhase.STOPPING, ProcessPhase.STARTING)
        return not any(one.watch.phase in away for one in self._processes if one.spec.name != name)

    async def run(self) -> None:
        """Keep them running until canceled, then end them all at once."""
        async with asyncio.TaskGroup() as group:
            for process in self._processes:
                group.create_task(process.run())


def host_name() -> str:
    """Return this machine's name, made valid as a node's name."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-_")
    return name[:40] or "host"


def slots_of(host: str, wanted: str, gpus: Gpus, *, per_gpu: int = 1) -> dict[str, GpuPlace]:
    """Return the nodes to run, by name, with the GPU of each.

    Args:
        host: The host's name: every node's name begins with it.
        wanted: As in :class:`Supervision`.
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
        wanted: As in :class:`Supervision`.
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


def _ports(path: Path, names: Sequence[str], address: str) -> dict[str, int]:
    """Return a port for each node: its earlier one if that is free."""
    try:
        known = {str(name): int(port) for name, port in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        known = {}
    ports: dict[str, int] = {}
    for name in names:
        port = known.get(name, 0)
        ports[name] = port if port and port not in ports.values() and _free(port, address) else 0
    held = []
    for name, port in ports.items():
        if not port:
            held.append(_bound(0, address))
            ports[name] = int(held[-1].getsockname()[1])
    for sock in held:
        sock.close()
    path.write_text(json.dumps({**known, **ports}))
    return ports


def _free(port: int, address: str) -> bool:
    try:
        _bound(port, address).close()
    except OSError:
        return False
    return True


def _bound(port: int, address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
