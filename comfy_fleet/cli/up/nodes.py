"""Which nodes ``fleet up`` serves: simulated ones, ComfyUIs that run already, or an agent's ComfyUIs."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.gpu_places import CPU, slots_of
from comfy_fleet.cli.up.supervisor import ChildSpec
from comfy_fleet.domain.nodes.gpu import Gpus
from comfy_fleet.domain.nodes.node import Node, split_credentials

MANAGED = "managed-by"
MANAGER = "fleet-up"


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """The nodes, and the processes that serve them.

    Attributes:
        nodes: Nodes to register.
        joining: Names of nodes that an agent among the processes registers.
        idle: Names of registered nodes that stay so, although nothing serves them now.
        processes: What to run, at the stage and with the variables that the fleet gives them; nothing for
            ComfyUIs that run already.
    """

    nodes: tuple[Node, ...] = ()
    joining: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    processes: tuple[ChildSpec, ...] = ()

    def __add__(self, other: "NodePlan") -> "NodePlan":
        return NodePlan(
            nodes=self.nodes + other.nodes,
            joining=self.joining + other.joining,
            idle=self.idle + other.idle,
            processes=self.processes + other.processes,
        )


def visible_gpus(gpus: Gpus, visible: str | None) -> list[str]:
    """Return one ``CUDA_VISIBLE_DEVICES`` entry per GPU that this process may use.

    Args:
        gpus: GPUs that the driver sees.
        visible: This process's own ``CUDA_VISIBLE_DEVICES``, if it is set.
    """
    if not gpus.gpus:
        return []
    if visible is None:
        return [gpu.uuid or str(gpu.index) for gpu in gpus.usable() if not gpu.lost]
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
        processes=(ChildSpec(name="sim", argv=argv, ready="sim-1 http"),),
    )


def comfyuis(
    home: Checkout, count: int, *, host: str, gpus: Gpus, devices: Sequence[str], metrics_port: int
) -> NodePlan:
    """Return an agent that runs ComfyUIs, dealt over the GPUs; on the CPU where there is none.

    Args:
        home: What to run.
        count: How many.
        host: This machine's name: the nodes' names begin with it.
        gpus: What NVML saw.
        devices: Entries for ``CUDA_VISIBLE_DEVICES``.
        metrics_port: Where the agent serves its metrics.

    Raises:
        ConfigError: A device is not there.
    """
    dealt = ",".join(devices[number % len(devices)] if devices else CPU for number in range(count))
    argv = fleet(
        *("agent", "--host", host, "--port", "0", "--label", f"{MANAGED}={MANAGER}"),
        *("--metrics-port", str(metrics_port)),
        *("--comfyui", str(home.home), "--python", home.python, "--gpus", dealt),
        *(f"--comfyui-args={shlex.join(home.args)}",),
        *(() if home.custom_nodes else ("--no-custom-nodes",)),
    )
    # Stopped after the dispatcher, which has let its runs finish: nobody is left to collect what still runs.
    agent = ChildSpec(
        name="host-agent",
        argv=argv,
        env={"FLEET_STOP_WAIT_S": "0"},
        ours=True,
        stop_timeout_s=20.0,
        ready="agent listens",
    )
    return NodePlan(joining=tuple(slots_of(host, dealt, gpus)), processes=(agent,))


def running(specs: Sequence[str], *, seal: Callable[[str], str]) -> NodePlan:
    """Return nodes for ComfyUIs that run already.

    Args:
        specs: ``http://HOST:PORT`` or ``NAME=http://HOST:PORT``.
        seal: Encrypts the ``USER:PASSWORD`` of a URL.

    Raises:
        BadInput: A name or URL can't be used.
    """
    made = []
    for number, spec in enumerate(specs, start=1):
        named = re.fullmatch(r"([^=:/@]*)=(.*)", spec, re.DOTALL)  # a password may hold a = as well
        name, given = named.groups() if named else (f"node-{number}", spec)
        url, credentials = split_credentials(given.rstrip("/"))
        sealed = seal(credentials) if credentials else ""
        made.append(Node(name=name, url=url, sealed=sealed, labels={MANAGED: MANAGER}))
    return NodePlan(nodes=tuple(made))


def _node(name: str, port: int, *, simulated: bool = False) -> Node:
    return Node(name=name, url=f"http://127.0.0.1:{port}", simulated=simulated, labels={MANAGED: MANAGER})


def fleet(*args: str) -> tuple[str, ...]:
    """Return the command line of another ``fleet`` command, run by this very Python."""
    return (sys.executable, "-m", "comfy_fleet", *args)


def cuda_visible() -> str | None:
    """Return this process's ``CUDA_VISIBLE_DEVICES``."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
