"""Graphs without a model, whose picture says which job made it."""

import io
from typing import Any

from PIL import Image

SIZE = 64
Graph = dict[str, Any]


def saving(color: int, prefix: str = "ComfyUI") -> Graph:
    """Return a graph that saves one picture of a color (0xRRGGBB)."""
    return {
        "1": _picture(color),
        "9": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix},
            "_meta": {"title": "Save Image"},
        },
    }


def on_websocket(color: int) -> Graph:
    """Return a graph whose picture is on the websocket only; ComfyUI's own example looks for this id."""
    return {
        "1": _picture(color),
        "save_image_websocket_node": {
            "class_type": "SaveImageWebsocket",
            "inputs": {"images": ["1", 0]},
            "_meta": {"title": "Send Image"},
        },
    }


def loading(name: str) -> Graph:
    """Return a graph that loads a picture and saves it again."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": {"title": "Load Image"}},
        "9": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "edited"},
            "_meta": {"title": "Save Image"},
        },
    }


def editor_format(color: int) -> dict[str, Any]:
    """Return ``saving`` as the editor stores it."""
    image = {"name": "IMAGE", "type": "IMAGE", "links": [1]}
    empty = {
        "id": 1,
        "type": "EmptyImage",
        "pos": [0, 0],
        "size": [210, 130],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [image],
        "properties": {"Node name for S&R": "EmptyImage"},
        "widgets_values": [SIZE, SIZE, 1, color],
    }
    save = {
        "id": 9,
        "type": "SaveImage",
        "pos": [300, 0],
        "size": [210, 270],
        "flags": {},
        "order": 1,
        "mode": 0,
        "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
        "outputs": [],
        "properties": {"Node name for S&R": "SaveImage"},
        "widgets_values": ["ComfyUI"],
    }
    return {
        "id": "5f3c6a0e-3d0f-4d4b-9f0a-0c6f3a1b2c3d",
        "revision": 0,
        "last_node_id": 9,
        "last_link_id": 1,
        "nodes": [empty, save],
        "links": [[1, 1, 0, 9, 0, "IMAGE"]],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def color_of(picture: bytes) -> int:
    """Return the color of a picture that has only one."""
    with Image.open(io.BytesIO(picture)) as image:
        colors = image.convert("RGB").getcolors(2)
    if colors is None or len(colors) != 1:
        raise ValueError("the picture is not of one color")
    red, green, blue = colors[0][1]  # type: ignore[misc]
    return int(red) << 16 | int(green) << 8 | int(blue)


def _picture(color: int) -> dict[str, Any]:
    inputs = {"width": SIZE, "height": SIZE, "batch_size": 1, "color": color}
    return {"class_type": "EmptyImage", "inputs": inputs, "_meta": {"title": "Empty Image"}}
