"""How much work a GPU should get compared with others, if the operator has not set it.

The numbers are shares, 100 for an RTX 4090, roughly in proportion to the speed of image and video models in
half precision. HAProxy takes 1 to 256. They decide who gets more of a short queue; a long one keeps every
node busy anyway.
"""

import re
from collections.abc import Callable, Mapping

DEFAULT = 100

_BY_MODEL: tuple[tuple[str, int], ...] = (
    (r"\b[GH]?B300\b|\b[GH]?B200\b", 256),
    (r"\bG?H200\b", 220),
    (r"\bG?H100\b", 200),
    (r"\bRTX PRO 6000\b", 150),
    (r"\bMI3\d\dX?\b", 180),
    (r"\b(RTX )?5090\b", 140),
    (r"\bA100\b", 110),
    (r"\bL40S?\b|\bRTX 6000 ADA\b", 95),
    (r"\b4090\b", 100),
    (r"\b5080\b", 80),
    (r"\b4080\b|\b5070 TI\b", 65),
    (r"\bA6000\b|\bA40\b|\b3090\b|\bRTX 5000 ADA\b|\b7900 XTX\b", 55),
    (r"\b4070 TI\b|\b5070\b|\b3080\b", 45),
    (r"\bA10G?\b|\bA5000\b|\b4070\b|\bV100\b", 38),
    (r"\bL4\b|\b4060\b|\b3070\b|\b2080 TI\b|\bA4000\b|\b5060\b", 25),
    (r"\b3060\b|\bT4\b|\b2080\b|\b2070\b", 15),
)


def default_weight(gpu: str, device: str = "cuda") -> int:
    """Return the weight of a node by its GPU's name, as the driver or ComfyUI reports it.

    Args:
        gpu: For example ``cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync``.
        device: ComfyUI's device type; a ``cpu`` is the slowest.
    """
    if device == "cpu":
        return 5
    name = gpu.upper()
    return next((weight for pattern, weight in _BY_MODEL if re.search(pattern, name)), DEFAULT)


def drawn(shares: Mapping[str, float], chance: Callable[[], float]) -> list[str]:
    """Return nodes in random order: each place is drawn among the remaining nodes in proportion to their
    shares.

    This is weighted random sampling without replacement (Efraimidis and Spirakis, 2006).

    Args:
        shares: Above 0, by node.
        chance: Returns a random number from 0 to 1.
    """
    return sorted(shares, key=lambda name: chance() ** (1 / shares[name]), reverse=True)
