"""Counting the files that a graph certainly makes."""

from typing import Any

import pytest

from comfy_fleet.domain.graphs.output_count import certain_files


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


IMAGE = {"1": node("EmptyImage", batch_size=4096)}
TAKEN = {"2": node("ImageFromBatch", image=["1", 0]), "3": node("SaveImage", images=["2", 0])}
SAMPLED = {
    "1": node("EmptyLatentImage", batch_size=64),
    "2": node("KSampler", latent_image=["1", 0]),
    "3": node("VAEDecode", samples=["2", 0]),
    "4": node("SaveImage", images=["3", 0]),
}


@pytest.mark.parametrize(
    ("graph", "count", "blamed"),
    [
        (IMAGE | {str(n): node("SaveImage", images=["1", 0]) for n in range(2, 8)}, 24_576, "1"),
        (IMAGE | {"2": node("PreviewImage", images=["1", 0])}, 4096, "1"),
        (IMAGE | {"2": node("SaveAnimatedWEBP", images=["1", 0])}, 0, None),  # one file, however many frames
        (IMAGE | TAKEN, 1, None),
        (SAMPLED, 64, "1"),
        (SAMPLED | {"1": node("EmptyLatentImage", batch_size=["9", 0])}, 1, None),
        (SAMPLED | {"2": node("KSampler", latent_image=["3", 0])}, 1, None),  # a circle
        (SAMPLED | {"2": node("KSampler")}, 1, None),
        (SAMPLED | {"1": node("EmptyLatentImage", batch_size=True)}, 1, None),
        ({"4": node("SaveImage", images=["9", 0])}, 1, None),
        ({"4": node("SaveImage", images=3), "5": node("SaveImage")}, 2, None),
    ],
)  # fmt: skip
def test_what_a_graphs_own_numbers_tell(graph: dict[str, Any], count: int, blamed: str | None) -> None:
    assert certain_files(graph) == (count, blamed)
