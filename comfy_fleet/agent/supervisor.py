"""Which ComfyUIs a host runs: one or more per GPU, each with a fixed name, port and folders."""

import asyncio
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.cleaner import Folders
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.gpu_places import ALL, GpuPlace, slots_of
from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.gpu import Gpus
from comfy_fleet.domain.nodes.host import Joining
from comfy_fleet.domain.nodes.process_supervision import RestartLimits

logger = logging.getLogger(__name__)


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
            turn=lambda: self._host.turn(name),
        )
        self._processes.append(process)
        return Member(
            probe=probe,
            gpu=place.device,
            on_cpu=place.device is None,
            process=process,
            joining=join(name=name, url=url, cleans_up=True, simulated=wanted.simulated),
            folders=Folders(output=folder / "output", input=folder / "input"),
            models=_models(launch.cwd or wanted.checkout.home, launch.argv),
        )

    async def run(self) -> None:
        """Keep them running until canceled, then end them all at once."""
        async with asyncio.TaskGroup() as group:
            for process in self._processes:
                group.create_task(process.run())


def _models(home: Path, argv: Sequence[str]) -> Path:
    """Return the folder ``models`` of a ComfyUI with these arguments."""
    base = home
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == "--base-directory":
            base = home / value
        elif flag.startswith("--base-directory="):
            base = home / flag.partition("=")[2]
    return base / "models"


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
