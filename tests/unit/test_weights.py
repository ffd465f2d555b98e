"""Weights by GPU model."""

import pytest

from comfy_fleet.domain.weights import DEFAULT, default_weight


@pytest.mark.parametrize(
    ("gpu", "weight"),
    [
        ("cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", 100),
        ("cuda:0 NVIDIA H100 80GB HBM3 : native", 200),
        ("NVIDIA H200", 220),
        ("NVIDIA GH200 480GB", 220),
        ("NVIDIA A100-SXM4-80GB", 110),
        ("NVIDIA GeForce RTX 3060", 15),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 45),
        ("NVIDIA L4", 25),
        ("NVIDIA L40S", 95),
        ("cuda:0 SIMULATED GPU (g1) : native", DEFAULT),
        ("", DEFAULT),
    ],
)
def test_known_cards(gpu: str, weight: int) -> None:
    assert default_weight(gpu) == weight


def test_a_cpu_is_the_slowest() -> None:
    assert default_weight("cpu", "cpu") == 5
