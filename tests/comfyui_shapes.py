"""Custom nodes for a real ComfyUI: results in the shapes of people's nodes, previews without a model."""

from pathlib import Path

PACK = """
import os
import threading
import time

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image


def put(name, data=b"x"):
    with open(os.path.join(folder_paths.get_output_directory(), name), "wb") as file:
        file.write(data)
    return here(name)


def here(name, kind="output"):
    return {"filename": name, "subfolder": "", "type": kind}


def late(name):
    threading.Timer(0.5, put, [name]).start()
    return here(name)


class FleetShapes:
    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), "give", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"what": ("STRING", {}), "size": ("INT", {"default": 1, "max": 2**40})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return time.time()

    def give(self, what, size):
        shapes = {
            "late": lambda: {"images": [late(f"late_{time.time_ns()}.png")]},
            "preview gone": lambda: {"images": [put("good.png")], "previews": [here("gone.png", "temp")]},
            "refused": lambda: {"images": [put("fine.png"), put("a..b.png")]},
            "never": lambda: {"images": [put("fine.png"), here("never.png")]},
            "nested": lambda: {"text": [["one", "two"], ["three"]]},
            "bare": lambda: {"text": "word " * size},
            "number": lambda: {"value": [3.5]},
            "object": lambda: {"facts": [{"a": [1, 2]}]},
            "long": lambda: {"text": ["t" * size]},
            "fingerprint": lambda: {"images": [put("h.png")], "sums": ["00112233445566778899aabbccddeeff"]},
            "many": lambda: {"images": [put(f"many_{n}.png") for n in range(size)]},
            "pair": lambda: {"gifs": [put("v_00001.mp4")], "images": [put("v_00001.png")]},
            "large": lambda: {"files": [put("large.bin", bytes(size))]},
        }
        return {"ui": shapes[what]()}


class FleetSteps:
    # Passes an image on after some steps, each with a preview: as a sampler does, without a model.

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "take", "test"

    @classmethod
    def INPUT_TYPES(cls):
        whole = {"default": 5, "min": 1, "max": 1000}
        seconds = {"default": 1.0, "min": 0.0, "max": 600.0, "step": 0.1}
        return {
            "required": {
                "image": ("IMAGE",),
                "steps": ("INT", whole),
                "seconds": ("FLOAT", seconds),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**50, "control_after_generate": True}),
            }
        }

    def take(self, image, steps, seconds, seed):
        bar = comfy.utils.ProgressBar(steps)
        for step in range(1, steps + 1):
            end = time.monotonic() + seconds / steps
            while (left := end - time.monotonic()) > 0:
                comfy.model_management.throw_exception_if_processing_interrupted()
                time.sleep(min(left, 0.02))
            preview = Image.new("RGB", (64, 64), (40, 250 * step // steps, 120))
            bar.update_absolute(step, steps, ("PNG", preview, None))
        return (image,)


NODE_CLASS_MAPPINGS = {"FleetShapes": FleetShapes, "FleetSteps": FleetSteps}
"""


def write_pack(folder: Path) -> Path:
    """Write the node below a folder; returns what ComfyUI takes as a folder of custom nodes."""
    packs = folder / "packs"
    (packs / "shapes").mkdir(parents=True, exist_ok=True)
    (packs / "shapes" / "__init__.py").write_text(PACK)
    return packs
