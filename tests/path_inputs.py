"""Which inputs of ComfyUI's own classes take a path, and what somebody has decided about each.

The decisions are in ``tests/data/path_inputs.json``: by class and input which :class:`Use` the fleet makes of
it, or why it names no file of a node's although it looks so.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfy_fleet.domain.graphs.file_access import Use, declared_inputs, uses

DECISIONS: dict[str, str] = json.loads((Path(__file__).parent / "data" / "path_inputs.json").read_text())
HARMLESS = {name for name, decision in DECISIONS.items() if decision not in list(Use)}
"""Inputs that look like a path, and are none."""
MARKERS = re.compile(r"(?:3d/(?:sub/)?)?marker\.\w+|markdir(?:/deep)?|3d/sub|fleet")
"""What lay in the server's input, output and temp folders when its classes were recorded."""
LIKE_A_PATH = re.compile(
    r"path|file|folder|dir(?!ection)|prefix|asset|url|uri|media|source|image|audio|video|mask|latent|output",
    re.IGNORECASE,
)
WIDGETS = {
    "*", "BOOLEAN", "BOUNDING_BOXES", "COLOR", "COLORS", "COMBO", "COMFY_AUTOGROW_V3",
    "COMFY_DYNAMICCOMBO_V3", "COMFY_MATCHTYPE_V3", "COMPOSITOR", "CURVE", "FLOAT", "FLOATS",
    "IMAGECOMPARE", "INT", "STRING",
}  # fmt: skip
"""Types of values that a graph holds and that name no files; texts in them are looked at all the same."""


def like_a_path(name: str, declared: list[Any], linked: set[str]) -> bool:
    """Tell whether an input may name a file, by looks that the rules don't go by alone."""
    kind = declared[0]
    extra = declared[1] if len(declared) > 1 else {}
    options = kind if isinstance(kind, list) else extra.get("options") or ()
    if any(isinstance(option, str) and MARKERS.fullmatch(option) for option in options):
        return True
    if any(re.search("upload|folder|file", key) and value for key, value in extra.items()):
        return True
    if isinstance(kind, list) or kind == "COMBO":
        return False
    if "STRING" in kind.split(",") and not extra.get("multiline"):
        default = extra.get("default")
        shows = isinstance(default, str) and re.search(r"\w/\w|\.\w{2,4}$", default)
        return bool(shows or LIKE_A_PATH.search(name))
    # No class gives it: it can only be a value of the editor's.
    return not set(kind.split(",")) <= linked | WIDGETS


def uncovered(classes: dict[str, Any]) -> Iterator[str]:
    linked = {
        kind for body in classes.values() for kind in body.get("output", []) if isinstance(kind, str)
    } | {f"FILE_3D_{kind}" for kind in ("GLTF", "KSPLAT", "PLY", "SPLAT", "SPZ", "STL", "USDZ")}
    for class_type, body in classes.items():
        known = uses(class_type, body)
        for name, declared in declared_inputs(body["input"]):
            if name not in known and like_a_path(name, declared, linked):
                yield f"{class_type}.{name}"


def found_in(classes: dict[str, Any]) -> dict[str, str]:
    """Return every input that the fleet takes for a path, with its use; and those that only look so."""
    found = {
        f"{class_type}.{name}": str(use)
        for class_type, body in classes.items()
        for name, use in uses(class_type, body).items()
        if use is not Use.TEXT
    }
    return found | dict.fromkeys(uncovered(classes), "looks like a path")


def undecided(classes: dict[str, Any]) -> dict[str, str]:
    """Return what nobody has decided about, or otherwise than the fleet does."""
    return {
        name: use
        for name, use in found_in(classes).items()
        if name not in HARMLESS and DECISIONS.get(name) != use
    }
