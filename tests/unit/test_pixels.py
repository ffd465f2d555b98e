"""How many pixels a graph samples at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.pixels import MOST_PIXELS, sampled_pixels

MP = 1024 * 1024
WORKFLOWS = Path(__file__).parents[2] / "workflows"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(latent: str, **inputs: Any) -> dict[str, Any]:
    return node("KSampler", model=["model", 0], latent_image=[latent, 0], steps=20, **inputs)


def graph(**nodes: dict[str, Any]) -> Graph:
    return {"model": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"), **nodes}


def latent(**inputs: Any) -> Graph:
    return graph(
        empty=node("EmptyLatentImage", **{"width": 1024, "height": 1024, "batch_size": 1, **inputs}),
        sample=sampler("empty"),
    )


@pytest.mark.parametrize(
    ("inputs", "megapixels"),
    [
        ({}, 1),
        ({"batch_size": 4}, 4),
        ({"width": 2048, "batch_size": "2"}, 4),
        ({"length": 81}, 81),
        ({"length": 81, "batch_size": 2}, 162),
    ],
)
def test_an_empty_latent_names_its_size(inputs: dict[str, Any], megapixels: float) -> None:
    assert sampled_pixels(latent(**inputs)) == megapixels * MP


@pytest.mark.parametrize(
    "value",
    [
        10**30,
        10**400,
        -512,
        float("nan"),
        float("inf"),
        "1e400",
        "wide",
        "9" * 500,
        None,
        True,
        [],
        [1024],
        {"a": 1},
        ["gone", 0],
        ["sample", 0],
        {"__value__": [1024]},
    ],
)
@pytest.mark.parametrize("name", ["width", "height", "batch_size", "length"])
def test_a_size_that_is_none_says_nothing(name: str, value: object) -> None:
    assert sampled_pixels(latent(**{name: value})) == 0


def test_more_than_any_card_holds_says_nothing() -> None:
    most = latent(width=65536, height=65536, batch_size=65536)
    assert sampled_pixels(most) == 0
    assert 0 < sampled_pixels(latent(width=65536, height=65536)) < MOST_PIXELS


def test_the_largest_pass_counts() -> None:
    twice = latent(batch_size=2)
    twice["up"] = node("LatentUpscaleBy", samples=["sample", 0], scale_by=1.5)
    twice["again"] = sampler("up")
    assert sampled_pixels(twice) == 2 * 2.25 * MP


@pytest.mark.parametrize(
    ("between", "megapixels"),
    [
        (node("LatentUpscale", samples=["sample", 0], width=2048, height=1024), 2),
        (node("LatentUpscale", samples=["sample", 0], width=2048, height=0), 4),
        (node("LatentUpscale", samples=["sample", 0], width=0, height=2048), 4),
        (node("LatentUpscale", samples=["sample", 0], width=0, height=0), 1),
        (node("RepeatLatentBatch", samples=["sample", 0], amount=5), 5),
        (node("ImageScaleToTotalPixels", image=["sample", 0], megapixels=3.0), 3),
        (node("ImageUpscaleWithModel", image=["sample", 0], upscale_model=["esrgan", 0]), 16),
        (node("SomeFilter", image=["sample", 0]), 1),
    ],
)
def test_sizes_are_followed(between: dict[str, Any], megapixels: float) -> None:
    found = latent()
    found["esrgan"] = node("UpscaleModelLoader", model_name="RealESRGAN_x4plus.pth")
    found["between"] = between
    found["encode"] = node("VAEEncode", pixels=["between", 0], vae=["model", 2])
    found["again"] = sampler("encode")
    assert sampled_pixels(found) == pytest.approx(megapixels * MP)


def test_a_number_may_come_from_another_node() -> None:
    found = latent(width=["number", 0], batch_size=["reroute", 0])
    found["number"] = node("PrimitiveInt", value=2048, control_after_generate="fixed")
    found["reroute"] = node("Reroute", anything=["number4", 0])
    found["number4"] = node("INTConstant", value=4)
    assert sampled_pixels(found) == 8 * MP
    found["number"] = node("Sum", a=1024, b=1024)
    assert sampled_pixels(found) == 0


def test_numbers_in_a_circle_say_nothing() -> None:
    found = latent(width=["a", 0])
    found["a"], found["b"] = node("Reroute", value=["b", 0]), node("Reroute", value=["a", 0])
    assert sampled_pixels(found) == 0


def test_a_circle_of_pictures_says_nothing() -> None:
    found = graph(a=node("Blur", image=["b", 0]), b=node("Blur", image=["a", 0]), sample=sampler("a"))
    assert sampled_pixels(found) == 0


def test_a_picture_of_unknown_size_says_nothing() -> None:
    found = graph(
        load=node("LoadImage", image="a.png"),
        encode=node("VAEEncode", pixels=["load", 0], vae=["model", 2]),
        sample=sampler("encode"),
    )
    assert sampled_pixels(found) == 0
    found["scaled"] = node("ImageScale", image=["load", 0], width=512, height=512, crop="center")
    found["encode"]["inputs"]["pixels"] = ["scaled", 0]
    assert sampled_pixels(found) == 512 * 512


def test_one_sampler_of_unknown_size_says_nothing() -> None:
    found = latent()
    found["load"] = node("LoadImage", image="a.png")
    found["encode"] = node("VAEEncode", pixels=["load", 0], vae=["model", 2])
    found["other"] = sampler("encode")
    assert sampled_pixels(found) == 0


def test_what_only_describes_a_size_is_no_sampler() -> None:
    found = latent()
    found["text"] = node("CLIPTextEncodeSDXL", clip=["model", 1], width=4096, height=4096)
    found["shift"] = node("ModelSamplingFlux", model=["model", 0], width=4096, height=4096)
    found["adapter"] = node("IPAdapter", model=["shift", 0], image=["load", 0])
    found["load"] = node("LoadImage", image="a.png")
    found["sample"]["inputs"] |= {"model": ["adapter", 0], "positive": ["text", 0]}
    assert sampled_pixels(found) == MP


def test_a_sampler_in_parts_counts() -> None:
    found = graph(
        latent=node("EmptySD3LatentImage", width=1024, height=1024, batch_size=3),
        guider=node("CFGGuider", model=["model", 0]),
        sigmas=node("BasicScheduler", model=["model", 0], steps=20),
        sample=node(
            "SamplerCustomAdvanced", guider=["guider", 0], sigmas=["sigmas", 0], latent_image=["latent", 0]
        ),
    )
    assert sampled_pixels(found) == 3 * MP


def test_a_node_that_does_everything_counts() -> None:
    found = graph(all=node("SomePack", model=["model", 0], steps=4, width=512, height=512, num_frames=49))
    assert sampled_pixels(found) == 49 * 512 * 512


def test_sampling_in_tiles_counts_a_tile() -> None:
    found = latent()
    found["ultimate"] = node(
        "UltimateSDUpscale",
        model=["model", 0],
        image=["sample", 0],
        upscale_by=4.0,
        steps=20,
        tile_width=1536,
        tile_height=1024,
    )
    assert sampled_pixels(found) == 1.5 * MP


def test_a_graph_without_a_sampler_says_nothing() -> None:
    assert sampled_pixels({}) == 0
    assert sampled_pixels(graph(load=node("LoadImage", image="a.png"))) == 0


def test_a_long_chain_is_followed() -> None:
    found = latent()
    for number in range(5000):
        before = "sample" if not number else f"n{number - 1}"
        found[f"n{number}"] = node("Blur", image=[before, 0])
    found["again"] = sampler("n4999")
    assert sampled_pixels(found) == MP


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*/workflow.json")), ids=lambda file: file.parent.name)
def test_our_own_workflows_say_it_or_nothing(file: Path) -> None:
    assert 0 <= sampled_pixels(json.loads(file.read_text())) < 200 * MP
