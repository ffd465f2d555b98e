"""Graphs that the tests of the simulated node run."""

import itertools
import uuid
from typing import Any

Graph = dict[str, Any]
_numbers = itertools.count()


def ident(name: object) -> str:
    """Return the prompt id that stands for a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(name)))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return one node."""
    return {"class_type": class_type, "inputs": inputs}


def picture(*, color: int = 255, size: int = 64, prefix: str | None = None) -> Graph:
    """Return ``EmptyImage -> SaveImage`` under a prefix that no other call gets."""
    return {
        "1": node("EmptyImage", width=size, height=size, batch_size=1, color=color),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix or f"t{next(_numbers)}/x"),
    }


def sleeping(seconds: float) -> Graph:
    """Return a graph that sleeps in the middle, reporting every 10 ms."""
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=next(_numbers)),
        "3": node("TestSleep", value=["1", 0], seconds=seconds),
        "2": node("SaveImage", images=["3", 0], filename_prefix=f"t{next(_numbers)}/x"),
    }


def text_to_image(
    *,
    prompt: str = "a fox",
    seed: int = 1,
    steps: int = 4,
    width: int = 256,
    height: int = 256,
    batch: int = 1,
) -> Graph:
    """Return a text-to-image graph of three model files."""
    return {
        "1": node("UNETLoader", unet_name="z_image_turbo_bf16.safetensors", weight_dtype="default"),
        "2": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("CLIPTextEncode", clip=["2", 0], text=prompt),
        "5": node("ConditioningZeroOut", conditioning=["4", 0]),
        "6": node("EmptySD3LatentImage", width=width, height=height, batch_size=batch),
        "7": node(
            "KSampler",
            model=["1", 0],
            positive=["4", 0],
            negative=["5", 0],
            latent_image=["6", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["3", 0]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=f"t{next(_numbers)}/x"),
    }
