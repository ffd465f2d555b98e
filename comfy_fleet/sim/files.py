"""A node's files: what it saves, what was uploaded to it and what it shows for a moment."""

import hashlib
import mimetypes
import re
import shutil
import tempfile
import time
from pathlib import Path

TYPES = ("output", "input", "temp")
NUMBERED = re.compile(r"(\d+)[_.]")


class OutsideFolder(ValueError):
    """A name leads out of the folder it belongs to."""


class SimFiles:
    """The three folders of a node.

    Args:
        folder: Their parent; a temporary folder, removed by :meth:`close`, when None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._own = folder is None
        self.root = Path(tempfile.mkdtemp(prefix="comfy-sim-")) if folder is None else folder.resolve()
        for kind in TYPES:
            (self.root / kind).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Remove the folders if they are temporary, else only what is of ComfyUI's type temp."""
        shutil.rmtree(self.root if self._own else self.root / "temp", ignore_errors=True)

    def folder(self, kind: str) -> Path | None:
        """Return the folder of a type; None for an unknown type."""
        return self.root / kind if kind in TYPES else None

    def inside(self, kind: str, subfolder: str, name: str) -> Path:
        """Return the path of a file.

        Raises:
            OutsideFolder: It would lie outside the type's folder.
        """
        base = self.root / kind
        path = Path(_normal(f"{base}/{subfolder}/{name}" if subfolder else f"{base}/{name}"))
        if not path.is_relative_to(base):
            raise OutsideFolder(f"{subfolder}/{name} is outside of {kind}")
        return path

    def uploaded(self, name: str) -> Path:
        """Return the path that a file input names: ``NAME``, ``SUB/NAME`` or ``NAME [output]``."""
        name, kind = annotated(name)
        return self.inside(kind or "input", "", name)

    def exists(self, name: str) -> bool:
        """Return whether a file input names a file that is there."""
        try:
            return self.uploaded(name).is_file()
        except OutsideFolder:
            return False

    def digest(self, name: str) -> str:
        """Return the SHA-256 of an uploaded file: its content belongs to the cache key."""
        try:
            return hashlib.sha256(self.uploaded(name).read_bytes()).hexdigest()
        except (OSError, OutsideFolder):
            return ""

    def list_uploaded(self, which: str) -> list[str]:
        """Return the uploaded files of a kind.

        Args:
            which: A media type (``image/``), a suffix (``.latent``) or ``*``, all at the top, or ``3d/``:
                those in the folder of this name, and ``none``.
        """
        if which == "3d/":
            found = sorted(path for path in (self.root / "input" / "3d").rglob("*") if path.is_file())
            return ["none", *(str(path.relative_to(self.root / "input")) for path in found)]

        def wanted(name: str) -> bool:
            if which.endswith("/"):
                return (mimetypes.guess_type(name)[0] or "").startswith(which)
            return which == "*" or name.endswith(which)

        return sorted(
            path.name for path in (self.root / "input").iterdir() if path.is_file() and wanted(path.name)
        )

    def next_name(
        self, kind: str, prefix: str, width: int = 0, height: int = 0
    ) -> tuple[Path, str, str, int]:
        """Find the next free number for a prefix, as ``NAME_00001_.png`` has it.

        Returns:
            The folder (made if it was missing), the subfolder, the file's first part and the number.

        Raises:
            OutsideFolder: The prefix leads out of the type's folder.
        """
        prefix = _variables(prefix, width, height)
        normal = _normal(prefix)
        if normal.startswith("/"):
            raise OutsideFolder(f"{prefix} is outside of {kind}")
        subfolder, _, first = normal.rpartition("/")
        folder = self.inside(kind, subfolder, "x").parent
        folder.mkdir(parents=True, exist_ok=True)
        start = f"{first}_".lower()
        numbers = [
            int(match[1])
            for path in folder.iterdir()
            if path.name.lower().startswith(start) and (match := NUMBERED.match(path.name[len(start) :]))
        ]
        return folder, subfolder, first, max(numbers, default=0) + 1


def annotated(name: str) -> tuple[str, str | None]:
    """Split ``NAME [output]`` into the name and the type; None when it names no type.

    A blank before the bracket belongs to neither.
    """
    for kind in TYPES:
        if name.endswith(f"[{kind}]"):
            return name[: -len(kind) - 2].rstrip(), kind
    return name, None


def _normal(path: str) -> str:
    """Resolve ``.`` and ``..`` by text alone, so that nothing on disk can change the meaning."""
    absolute = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif (part == ".." and not absolute) or part not in ("", ".", ".."):
            parts.append(part)
    return ("/" if absolute else "") + "/".join(parts)


def _variables(prefix: str, width: int, height: int) -> str:
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
    values |= {"month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}"}
    values |= {"minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix
