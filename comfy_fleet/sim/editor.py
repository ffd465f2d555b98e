"""What a simulated node says about its editor, which it does not have: scripts and blueprints.

``editor.json`` has what the versions of ComfyUI listed.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from comfy_fleet.sim.versions import Version


def scripts(version: Version) -> list[str]:
    """Return the answer to ``/extensions``."""
    found: list[str] = _listed()[version.name]["scripts"]
    return found


def blueprints(version: Version) -> dict[str, Any]:
    """Return the answer to ``/global_subgraphs``."""
    return {
        id_: {"source": "templates", "name": name, "info": {"node_pack": "comfyui"}}
        for id_, name in _listed()[version.name]["blueprints"].items()
    }


def blueprint(version: Version, id_: str) -> dict[str, Any] | None:
    """Return the answer to ``/global_subgraphs/ID``; its graph is empty."""
    found: dict[str, Any] | None = blueprints(version).get(id_)
    return None if found is None else {**found, "data": '{"nodes": [], "links": []}'}


@cache
def _listed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("editor.json").read_text())
    return found
