"""Weights by GPU model, and the draw by weight."""

from collections import Counter
from itertools import permutations
from random import Random

import pytest

from comfy_fleet.domain.nodes.weights import DEFAULT, default_weight, drawn


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


def test_every_order_is_as_likely_as_drawing_by_what_is_left() -> None:
    shares = {"a": 100.0, "b": 50.0, "c": 12.5}
    chance, draws = Random(1), 20_000
    seen = Counter(tuple(drawn(shares, chance.random)) for _ in range(draws))
    for order in permutations(shares):
        left, likely = sum(shares.values()), 1.0
        for name in order:
            likely *= shares[name] / left
            left -= shares[name]
        deviation = (likely * (1 - likely) / draws) ** 0.5
        assert abs(seen[order] / draws - likely) < 4 * deviation, order


@pytest.mark.parametrize("lot", [0.0, 0.5])
def test_equal_lots_leave_nobody_out(lot: float) -> None:
    assert sorted(drawn({"a": 256.0, "b": 0.1}, lambda: lot)) == ["a", "b"]
    assert drawn({}, lambda: lot) == []
