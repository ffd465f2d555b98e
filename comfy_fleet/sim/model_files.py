"""A simulated node's model files, as ``/experiment/models`` shows them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
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


class FolderModels(Mapping[str, Mapping[str, int]]):
    """Model files of which those in a folder ``models`` come and go with it, as on a real node.

    Args:
        others: Those that are always there.
        folder: That folder; what is in it is looked up each time.
    """

    def __init__(self, others: Models, folder: Path) -> None:
        self._others = others
        self._folder = folder

    def __getitem__(self, name: str) -> Mapping[str, int]:
        below = self._folder / name
        found = {
            str(path.relative_to(below)): path.stat().st_size
            for path in sorted(below.rglob("*"))
            if path.suffix.lower() in _EXTENSIONS and path.is_file()
        }
        if not found and name not in self._others:
            raise KeyError(name)
        return {**self._others.get(name, {}), **found}

    def __iter__(self) -> Iterator[str]:
        folders = [path.name for path in self._folder.iterdir() if path.is_dir()]
        return iter(dict.fromkeys([*self._others, *folders]))

    def __len__(self) -> int:
        return len(list(iter(self)))
