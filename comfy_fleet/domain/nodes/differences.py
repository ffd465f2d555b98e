"""What differs between nodes: versions, classes and model files, as a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_fleet.domain.graphs.inputs import looks_like_file
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import file_place
from comfy_fleet.domain.nodes.node import NodeState

HAS, LACKS = "yes", ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which nodes differ.

    Attributes:
        kind: ``version``, ``gpu``, ``class`` or ``file``.
        what: Its name: ``ComfyUI``, a class, or ``FOLDER/FILE``.
        nodes: By node: the version, ``yes``, or an empty text.
    """

    kind: str
    what: str
    nodes: Mapping[str, str]


def differences(states: Mapping[str, NodeState], inventories: Mapping[str, Inventory]) -> list[Difference]:
    """Return what differs between nodes.

    Args:
        states: The nodes by name.
        inventories: Their inventories by name; a node without one is left out of classes and files.
    """
    readings = {name: state.reading for name, state in states.items()}
    found = [
        _row("version", "ComfyUI", {name: reading.comfyui for name, reading in readings.items()}),
        _row("version", "PyTorch", {name: reading.pytorch for name, reading in readings.items()}),
        _row("version", "Python", {name: reading.python for name, reading in readings.items()}),
        _row("gpu", "GPU", {name: bare_gpu(reading.gpu) for name, reading in readings.items()}),
    ]
    classes = {name: frozenset(known.classes) for name, known in inventories.items()}
    files = {name: _files(known) for name, known in inventories.items()}
    for kind, have in (("class", classes), ("file", files)):
        found += [
            _row(kind, what, {name: HAS if what in has else LACKS for name, has in have.items()})
            for what in sorted(frozenset().union(*have.values()))
        ]
    return [row for row in found if len(set(row.nodes.values())) > 1]


def _row(kind: str, what: str, nodes: Mapping[str, str]) -> Difference:
    return Difference(kind=kind, what=what, nodes=dict(sorted(nodes.items())))


def bare_gpu(gpu: str) -> str:
    """Return ``NVIDIA L40S`` of ``cuda:0 NVIDIA L40S : cudaMallocAsync``."""
    name = gpu.partition(" : ")[0]
    first, _, rest = name.partition(" ")
    return rest if ":" in first else name


def _files(known: Inventory) -> frozenset[str]:
    return frozenset(
        file_place(info.name, name, option)
        for info in known.classes.values()
        for name, spec in info.everything()
        if spec.closed
        for option in spec.choices
        if looks_like_file(option)
    )
