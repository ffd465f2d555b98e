"""Which nodes ``fleet up`` serves: simulated ones, ComfyUIs that it starts, or ComfyUIs that run already."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfy_fleet.cli.exits import Exit, Fail
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


@dataclass(frozen=True, kw_only=True)
class ComfyUI:
    """A ComfyUI checkout to start processes from.

    Attributes:
        home: Its folder, with ``main.py``.
        python: The Python that has its requirements.
        args: More arguments for every process.
        custom_nodes: Whether its custom nodes are loaded.
    """

    home: Path
    python: str
    args: tuple[str, ...] = ()
    custom_nodes: bool = True

    @classmethod
    def find(
        cls, home: Path, *, python: str | None, args: Sequence[str] = (), custom_nodes: bool = True
    ) -> "ComfyUI":
        """Look at a folder.

        Args:
            home: The checkout.
            python: Its Python; by default that of a ``venv`` inside, else the first on PATH.
            args: More arguments for every process.
            custom_nodes: Whether its custom nodes are loaded.

        Raises:
            Fail: No ComfyUI is there, or no such Python.
        """
        home = home.expanduser().resolve()
        if not (home / "main.py").is_file() or not (home / "comfy").is_dir():
            raise Fail(
                f"{home} holds no ComfyUI (main.py and comfy/)",
                hint="name the folder of a ComfyUI checkout",
                code=Exit.USAGE,
            )
        candidates = [python] if python else [str(home / name / "bin/python") for name in ("venv", ".venv")]
        found = next((path for name in candidates if (path := shutil.which(name))), None)
        found = found or (None if python else shutil.which("python3"))
        if found is None:
            raise Fail(
                f"no Python {python or 'python3'} for ComfyUI",
                hint="name the one that has ComfyUI's requirements: --comfyui-python",
                code=Exit.USAGE,
            )
        return cls(home=home, python=found, args=tuple(args), custom_nodes=custom_nodes)

    def process(self, name: str, *, port: int, folder: Path, gpu: str | None) -> Process:
        """Return one process of it; makes its folders.

        Args:
            name: The node's name.
            port: Where it listens on loopback.
            folder: Where its own output, input, temp and user folders go.
            gpu: Entry for ``CUDA_VISIBLE_DEVICES``; None runs on the CPU.
        """
        known = (self.home / "comfy" / "cli_args.py").read_text(encoding="utf-8", errors="replace")
        argv = [self.python, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        # ComfyUI makes `temp` inside the folder that it is given for it.
        for flag, part in (("output", "output"), ("input", "input"), ("user", "user"), ("temp", "")):
            path = folder / part
            path.mkdir(parents=True, exist_ok=True)
            argv += [f"--{flag}-directory", str(path)]
        if '"--database-url"' in known:  # younger versions only; two processes can't share one file
            argv += ["--database-url", f"sqlite:///{folder / 'user' / 'comfyui.db'}"]
        if not self.custom_nodes:
            argv.append("--disable-all-custom-nodes")
        if gpu is None:
            argv.append("--cpu")
        return Process(
            name=name,
            argv=(*argv, *self.args),
            env={} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu},
            cwd=self.home,
        )


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


def comfyuis(home: ComfyUI, ports: Sequence[int], *, data: Path, gpus: Sequence[str]) -> NodePlan:
    """Return one ComfyUI process per port, dealt over the GPUs; on the CPU where there is none."""
    names = [f"gpu-{index}" if gpus else f"cpu-{index}" for index in range(len(ports))]
    return NodePlan(
        nodes=tuple(_node(name, port) for name, port in zip(names, ports, strict=True)),
        processes=tuple(
            home.process(
                name,
                port=port,
                folder=data / "comfyui" / name,
                gpu=gpus[index % len(gpus)] if gpus else None,
            )
            for index, (name, port) in enumerate(zip(names, ports, strict=True))
        ),
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
