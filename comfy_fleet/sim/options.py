"""What a simulated node is: its size, its speed and the model files it has."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_fleet.sim.versions import DEFAULT, Version, find

GB = 10**9
GIB = 2**30
DEFAULT_MODEL_GB = 1.0

#: Model files by folder (``checkpoints``, ``loras``, ...), each with its size in bytes.
Models = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class SimTiming:
    """How long things take on the simulated GPU.

    Attributes:
        load_gb_per_s: Speed of reading a model file into VRAM, GB (10⁹ bytes) per second.
        step_s: One sampler step on one megapixel, in seconds.
        vae_s: Decoding or encoding one megapixel, in seconds.
        upscale_s: Upscaling to one megapixel with a model, in seconds.
        batch_share: What each further picture of a batch takes, compared with the first: 1 is as long.
        node_s: What every executed node costs on top, in seconds.
        scale: Every modelled time is multiplied with it; 0 makes all of them nothing.
        job_s: When set, every prompt takes exactly this long from start to end, whatever it contains;
            a prompt answered wholly from the cache takes nothing.
    """

    load_gb_per_s: float = 4.0
    step_s: float = 0.12
    vae_s: float = 0.15
    upscale_s: float = 0.1
    batch_share: float = 1.0
    node_s: float = 0.0
    scale: float = 1.0
    job_s: float | None = None

    def __post_init__(self) -> None:
        if self.load_gb_per_s <= 0:
            raise ValueError(f"load_gb_per_s is {self.load_gb_per_s}; it must be above 0")
        for name in ("step_s", "vae_s", "upscale_s", "batch_share", "node_s", "scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.job_s is not None and self.job_s < 0:
            raise ValueError(f"job_s is {self.job_s}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """One simulated node.

    Attributes:
        name: Shown in pictures and in ``/system_stats``.
        comfyui: The version of ComfyUI that it is, see :func:`comfy_fleet.sim.versions.find`.
        vram_bytes: Memory of the simulated GPU.
        foreign_bytes: Part of it that another process holds.
        models: Its model files; the built-in set when None.
        models_folder: A folder ``models`` with more of them, which come and go.
        timing: Its speed.
        folder: Where outputs, uploads and temporary files go; a temporary folder when None.
        object_info: An ``/object_info`` answer of a real server whose node classes it has too.
        previews: Whether samplers send preview pictures, as ``--preview-method`` does.
        stamp: Whether saved pictures of at least 128 x 128 pixels carry the word SIMULATED.
        history_limit: Prompts that its history keeps; ComfyUI keeps 10,000.
    """

    name: str = "sim"
    comfyui: str = DEFAULT
    vram_bytes: int = 24 * GIB
    foreign_bytes: int = 0
    models: Models | None = None
    models_folder: Path | None = None
    timing: SimTiming = field(default_factory=SimTiming)
    folder: Path | None = None
    object_info: Path | None = None
    previews: bool = False
    stamp: bool = True
    history_limit: int = 10_000

    @property
    def version(self) -> Version:
        """What is known of its version.

        Raises:
            ValueError: There is no such version.
        """
        return find(self.comfyui)


@dataclass(frozen=True, kw_only=True)
class SimOptions:
    """A process that hosts simulated nodes (``fleet sim``).

    Attributes:
        nodes: How many.
        host: Address they listen on.
        port: Port of the first, the others follow; 0 lets the kernel choose each.
        name_prefix: They are called ``PREFIX-1``, ``PREFIX-2``, ...
        comfyui: See :class:`NodeOptions`.
        vram_gib: Memory of each simulated GPU, in GiB.
        foreign_gib: Part of it that another process holds, in GiB.
        timing: Their speed.
        models: JSON file of model files (see :func:`read_models`); the built-in set when None.
        object_info: See :class:`NodeOptions`.
        data: Folder that gets one folder a node; a temporary one when None.
        previews: See :class:`NodeOptions`.
        faults: Faults from the start, as ``POST /sim/faults`` takes them.
    """

    nodes: int = 1
    host: str = "127.0.0.1"
    port: int = 8301
    name_prefix: str = "sim"
    comfyui: str = DEFAULT
    vram_gib: float = 24.0
    foreign_gib: float = 0.0
    timing: SimTiming = field(default_factory=SimTiming)
    models: Path | None = None
    object_info: Path | None = None
    data: Path | None = None
    previews: bool = False
    faults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.port and self.port + self.nodes - 1 > 65535:
            raise ValueError(f"{self.nodes} ports from {self.port} on end above 65535: begin lower")

    def node(self, index: int) -> NodeOptions:
        """Return the options of the node with this index, counted from 1."""
        name = f"{self.name_prefix}-{index}"
        return NodeOptions(
            name=name,
            comfyui=self.comfyui,
            vram_bytes=int(self.vram_gib * GIB),
            foreign_bytes=int(self.foreign_gib * GIB),
            models=None if self.models is None else read_models(self.models, name),
            timing=self.timing,
            folder=None if self.data is None else self.data / name,
            object_info=self.object_info,
            previews=self.previews,
        )


def builtin_models() -> Models:
    """Return the model files that a node has by default: those of common workflows."""
    return read_models(Path(__file__).with_name("models.json"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It can't be read.
        ValueError: It is no JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def read_models(path: Path, node: str = "") -> Models:
    """Read model files from JSON.

    The file maps a folder to ``{"FILE": SIZE_IN_GB}`` or to a list of files. Under the key ``nodes``
    it may hold ``{"NODE NAME": {...}}``: folders that this node has instead of the common ones.

    Args:
        path: The JSON file.
        node: The node's name.

    Raises:
        ValueError: The file's content has another form; the message names the place.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object of folders")  # noqa: TRY004 - the caller reads one kind
    own = content.pop("nodes", {}).get(node, {})
    return {folder: _sizes(files, f"{path}: {folder}") for folder, files in {**content, **own}.items()}


def _sizes(files: Any, place: str) -> dict[str, int]:
    if isinstance(files, list):
        files = dict.fromkeys(files, DEFAULT_MODEL_GB)
    if not isinstance(files, dict):
        raise ValueError(f"{place}: expected a list of files or an object of file: size in GB")  # noqa: TRY004 - as above
    return {name: int(float(size) * GB) for name, size in files.items()}
