"""Stored workflows for OpenAI's clients: with and without sizes, masks, pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

from comfy_fleet.settings import packaged

_TEXT: dict[str, Any] = {
    "8": {
        "class_type": "PrimitiveStringMultiline",
        "inputs": {"value": ""},
        "_meta": {"title": "Prompt"},
    },
    "9": {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}, "_meta": {"title": "Shown"}},
}
_PROMPT = """[parameters.prompt]
type = "string"
required = true
target = { title = "Prompt", input = "value" }

"""
_PAINT: dict[str, Any] = {
    "2": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x00FF00},
        "_meta": {"title": "Paint"},
    },
}
_IMAGE = """[parameters.image]
type = "image"
accept = ["image/*"]
target = { title = "Picture", input = "image" }

"""
_SEED = """[parameters.seed]
type = "seed"
max = 1000000
target = { title = "Paint", input = "color" }
"""


def _load(title: str) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": title}}


def _saved(source: str) -> dict[str, Any]:
    return {
        "class_type": "SaveImage",
        "inputs": {"images": [source, 0], "filename_prefix": "t"},
        "_meta": {"title": "Save"},
    }


def _painted(mask: list[Any]) -> dict[str, Any]:
    inputs = {
        "destination": ["1", 0],
        "source": ["2", 0],
        "x": 0,
        "y": 0,
        "resize_source": True,
        "mask": mask,
    }
    return {"class_type": "ImageCompositeMasked", "inputs": inputs, "_meta": {"title": "Painted"}}


WORKFLOWS: dict[str, tuple[dict[str, Any], str]] = {
    # Paints green what is transparent in the picture itself.
    "redraw": (
        {**_TEXT, **_PAINT, "1": _load("Picture"), "3": _painted(["1", 1]), "4": _saved("3")},
        _PROMPT + _IMAGE + _SEED,
    ),
    # The same with a mask of its own, and a second picture that it only keeps.
    "redraw_mask": (
        {
            **_TEXT,
            **_PAINT,
            "1": _load("Picture"),
            "5": {
                "class_type": "LoadImageMask",
                "inputs": {"image": "example.png", "channel": "alpha"},
                "_meta": {"title": "Mask"},
            },
            "6": _load("Second"),
            "3": _painted(["5", 0]),
            "4": _saved("3"),
            "7": _saved("6"),
        },
        _PROMPT
        + _IMAGE
        + """[parameters.mask]
type = "image"
target = { title = "Mask", input = "image" }

[parameters.second]
type = "image"
target = { title = "Second", input = "image" }
""",
    ),
    "fixed": ({**_TEXT, **_PAINT, "4": _saved("2")}, _PROMPT),
    "words": (dict(_TEXT), _PROMPT),
    "silent": ({**_PAINT, "4": _saved("2")}, ""),
}


def store(folder: Path) -> None:
    """Keep them in a folder, with the shipped image card under its own name and under one of OpenAI's."""
    shipped = packaged("workflows") / "image_card"
    for name in ("image_card", "dall-e-3", "gpt-image-1"):
        shutil.copytree(shipped, folder / name)
    for name, (graph, manifest) in WORKFLOWS.items():
        (folder / name).mkdir()
        (folder / name / "workflow.json").write_text(json.dumps(graph))
        (folder / name / "workflow.toml").write_text(f'title = "{name}"\n\n{manifest}')
