"""The fleet's own scripts for the editor, in ``comfy_fleet/editor``: a package that is installed nowhere."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import comfy_fleet
from comfy_fleet.domain.nodes.extension_lists import FOLDER, OWN

SCRIPTS = Path(comfy_fleet.__file__).parent / "editor"


@dataclass(frozen=True, kw_only=True)
class OwnScript:
    """One script; ``tag`` changes with its body."""

    body: bytes
    tag: str


class OwnScripts:
    """The scripts by path; read once, and small.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path = SCRIPTS) -> None:
        bodies = {f"{FOLDER}{OWN}/{one.name}": one.read_bytes() for one in sorted(folder.glob("*.js"))}
        self._scripts = {
            path: OwnScript(body=body, tag=hashlib.sha256(body).hexdigest()[:32])
            for path, body in bodies.items()
        }

    @property
    def paths(self) -> list[str]:
        """The paths at which editors load them."""
        return list(self._scripts)

    def read(self, path: str) -> OwnScript | None:
        """Return a script by its path, or None."""
        return self._scripts.get(path)
