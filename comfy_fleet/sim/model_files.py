"""A simulated node's model files, as ``/experiment/models`` shows them."""

from typing import Any

from comfy_fleet.sim.options import Models
from comfy_fleet.sim.versions import Version

_HIDDEN = ("configs", "custom_nodes")
_EXTENSIONS = [".bin", ".ckpt", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".sft"]
_MODIFIED = 1_700_000_000.5


def folder_infos(version: Version) -> list[dict[str, Any]]:
    """Return the folders with their paths."""
    more = {"extensions": _EXTENSIONS} if "model_extensions" in version.parts else {}
    return [
        {"name": name, "folders": [f"/simulated/models/{name}"], **more}
        for name in version.folders
        if name not in _HIDDEN
    ]


def file_infos(models: Models, folder: str) -> list[dict[str, Any]]:
    """Return the files of a folder with their sizes."""
    times = {"modified": _MODIFIED, "created": _MODIFIED}
    return [
        {"name": name, "pathIndex": 0, **times, "size": size}
        for name, size in models.get(folder, {}).items()
        if name.lower().endswith(tuple(_EXTENSIONS))  # whatever else node packs load from there
    ]
