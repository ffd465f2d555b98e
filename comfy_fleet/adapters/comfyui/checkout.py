"""A ComfyUI checkout, and the command lines that start servers from it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfy_fleet.domain.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start one server.

    Attributes:
        argv: Program and arguments.
        env: Variables in addition to our own.
        cwd: Folder to run in.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A ComfyUI to start servers from. All of them share the checkout's models and custom nodes.

    Attributes:
        home: Its folder, with ``main.py``.
        python: The Python with its requirements.
        args: More arguments for every server.
        custom_nodes: Whether its custom nodes are loaded.
    """

    home: Path
    python: str
    args: tuple[str, ...] = ()
    custom_nodes: bool = True

    @classmethod
    def find(
        cls, home: Path, *, python: str | None, args: Sequence[str] = (), custom_nodes: bool = True
    ) -> "Checkout":
        """Find the ComfyUI in a folder.

        Args:
            home: The checkout.
            python: Its Python; by default that of a ``venv`` inside, else the first on PATH.
            args: More arguments for every server.
            custom_nodes: Whether its custom nodes are loaded.

        Raises:
            BadInput: There is no ComfyUI, or no such Python.
        """
        home = home.expanduser().resolve()
        if not (home / "main.py").is_file() or not (home / "comfy").is_dir():
            raise BadInput(
                f"{home} holds no ComfyUI (main.py and comfy/): name the folder of a ComfyUI checkout",
                details={"field": "comfyui"},
            )
        candidates = [python] if python else [str(home / name / "bin/python") for name in ("venv", ".venv")]
        found = next((path for name in candidates if (path := shutil.which(name))), None)
        found = found or (None if python else shutil.which("python3"))
        if found is None:
            raise BadInput(
                f"no Python {python or 'python3'} for ComfyUI: name the one that has ComfyUI's requirements",
                details={"field": "python"},
            )
        return cls(home=home, python=found, args=tuple(args), custom_nodes=custom_nodes)

    def launch(
        self,
        *,
        port: int,
        folder: Path,
        gpu: str | None,
        address: str = "127.0.0.1",
        args: Sequence[str] = (),
    ) -> Launch:
        """Return how to start one server; creates its folders.

        Args:
            port: The port to listen on.
            folder: The parent of its own output, input, temp and user folders.
            gpu: Value for ``CUDA_VISIBLE_DEVICES``; None runs on the CPU.
            address: The address to listen on. ComfyUI has no login: only HAProxy may reach it.
            args: More arguments for this one.
        """
        known = (self.home / "comfy" / "cli_args.py").read_text(encoding="utf-8", errors="replace")
        argv = [self.python, "main.py", "--listen", address, "--port", str(port)]
        # ComfyUI creates `temp` inside the folder that it is given for it.
        for flag, part in (("output", "output"), ("input", "input"), ("user", "user"), ("temp", "")):
            path = folder / part
            path.mkdir(parents=True, exist_ok=True)
            argv += [f"--{flag}-directory", str(path)]
        if '"--database-url"' in known:  # newer versions only; two processes can't share one file
            argv += ["--database-url", f"sqlite:///{folder / 'user' / 'comfyui.db'}"]
        if not self.custom_nodes:
            argv.append("--disable-all-custom-nodes")
        if gpu is None:
            argv.append("--cpu")
        # In bus order, like NVML; CUDA's own order begins with the fastest.
        env = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return Launch(argv=(*argv, *self.args, *args), env=env, cwd=self.home)
