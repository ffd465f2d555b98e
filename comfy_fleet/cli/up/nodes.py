"""Which nodes ``fleet up`` serves: simulated ones, ComfyUIs that it starts, or ComfyUIs that run already."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.domain.node import Node

MANAGED = "managed-by"
MANAGER = "fleet-up"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process to keep running.

    Attributes:
        name: Name of the process and of its log file.
        argv: Program and arguments.
        env: Variables on top of our own.
        cwd: Folder to run in.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """The nodes to register, and the processes that serve them (none for ComfyUIs that run already)."""

    nodes: tuple[Node, ...] = ()
    processes: tuple[Process, ...] = ()

    def __add__(self, other: "NodePlan") -> "NodePlan":
        return NodePlan(nodes=self.nodes + other.nodes, processes=self.processes + other.processes)


def visible_gpus(count: int, visible: str | None) -> list[str]:
    """Return one ``CUDA_VISIBLE_DEVICES`` entry per GPU that this process may use.

    Args:
        count: GPUs that the driver sees.
        visible: This process's own ``CUDA_VISIBLE_DEVICES``, if it is set.
    """
    if visible is None:
        return [str(index) for index in range(count)]
    return [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]


def simulated(ports: Sequence[int], *, data: Path, args: Sequence[str] = ()) -> NodePlan:
    """Return simulated nodes ``sim-1`` to ``sim-N``, all served by one ``fleet sim``.

    Args:
        ports: Consecutive ports, one per node.
        data: The fleet's folder.
        args: More arguments for ``fleet sim``.
    """
    argv = fleet(
        *("sim", "--nodes", str(len(ports)), "--port", str(ports[0]), "--name-prefix", "sim"),
        *("--data", str(data / "sim"), *args),
    )
    return NodePlan(
        nodes=tuple(_node(f"sim-{index}", port, simulated=True) for index, port in enumerate(ports, start=1)),
        processes=(Process(name="sim", argv=argv),),
    )


def comfyuis(home: Checkout, ports: Sequence[int], *, data: Path, gpus: Sequence[str]) -> NodePlan:
    """Return one ComfyUI process per port, dealt over the GPUs; on the CPU where there is none."""
    names = [f"gpu-{index}" if gpus else f"cpu-{index}" for index in range(len(ports))]
    processes = []
    for index, (name, port) in enumerate(zip(names, ports, strict=True)):
        gpu = gpus[index % len(gpus)] if gpus else None
        launch = home.launch(port=port, folder=data / "comfyui" / name, gpu=gpu)
        processes.append(Process(name=name, argv=launch.argv, env=launch.env, cwd=launch.cwd))
    return NodePlan(
        nodes=tuple(_node(name, port) for name, port in zip(names, ports, strict=True)),
        processes=tuple(processes),
    )


def running(specs: Sequence[str]) -> NodePlan:
    """Return nodes for ComfyUIs that run already.

    Args:
        specs: ``http://HOST:PORT`` or ``NAME=http://HOST:PORT``.

    Raises:
        BadInput: A name or URL can't be used.
    """
    made = []
    for number, spec in enumerate(specs, start=1):
        name, url = spec.split("=", 1) if "=" in spec else (f"node-{number}", spec)
        made.append(Node(name=name, url=url.rstrip("/"), labels={MANAGED: MANAGER}))
    return NodePlan(nodes=tuple(made))


def _node(name: str, port: int, *, simulated: bool = False) -> Node:
    return Node(name=name, url=f"http://127.0.0.1:{port}", simulated=simulated, labels={MANAGED: MANAGER})


def fleet(*args: str) -> tuple[str, ...]:
    """Return the command line of another ``fleet`` command, run by this very Python."""
    return (sys.executable, "-m", "comfy_fleet", *args)


def cuda_visible() -> str | None:
    """Return this process's ``CUDA_VISIBLE_DEVICES``."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
