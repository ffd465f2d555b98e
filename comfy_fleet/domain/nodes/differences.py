"""What differs between nodes: versions, classes and model files, as a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_fleet.domain.graphs.inputs import looks_like_file
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import file_place
from comfy_fleet.domain.nodes.host import HOST_LABEL
from comfy_fleet.domain.nodes.node import Node, NodeState

HAS, LACKS = "yes", ""


def _labels(node: Node) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(node.labels.items()) if name != HOST_LABEL)


_SETTINGS: Mapping[str, Callable[[Node], str]] = {
    "pool": lambda node: node.pool,
    "zone": lambda node: node.zone,
    "weight": lambda node: str(node.weight),
    "labels": _labels,
    "editor": lambda node: {True: "before others", False: "never", None: ""}[node.editor],
    "cordoned": lambda node: "yes" if node.cordoned else "",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which nodes differ.

    Attributes:
        kind: ``version``, ``gpu``, ``setting``, ``pack``, ``class`` or ``file``.
        what: Its name: ``ComfyUI``, a node pack, a class, or ``FOLDER/FILE``.
        nodes: By node: the version or the setting, ``yes``, or an empty text.
        classes: Of a pack, those of its classes in which the nodes differ.
    """

    kind: str
    what: str
    nodes: Mapping[str, str]
    classes: tuple[str, ...] = ()


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
        *(
            _row("setting", what, {name: told(state.node) for name, state in states.items()})
            for what, told in _SETTINGS.items()
        ),
    ]
    classes = {name: frozenset(known.classes) for name, known in inventories.items()}
    files = {name: _files(known) for name, known in inventories.items()}
    for kind, have in (("class", classes), ("file", files)):
        found += [
            _row(kind, what, {name: HAS if what in has else LACKS for name, has in have.items()})
            for what in sorted(frozenset().union(*have.values()))
        ]
    return [row for row in found if len(set(row.nodes.values())) > 1]


def by_pack(rows: Sequence[Difference], packs: Mapping[str, str]) -> list[Difference]:
    """Return the same with the classes of a node pack as one row, where the same nodes have all of them.

    Args:
        rows: What differs.
        packs: The pack of classes that come from one.
    """
    made: dict[tuple[str, frozenset[tuple[str, str]]], list[Difference]] = {}
    for row in rows:
        if row.kind == "class" and (pack := packs.get(row.what)):
            made.setdefault((pack, frozenset(row.nodes.items())), []).append(row)
    together = [
        Difference(kind="pack", what=pack, nodes=some[0].nodes, classes=tuple(row.what for row in some))
        for (pack, _), some in sorted(made.items(), key=lambda one: one[0][0])
    ]
    rest = [row for row in rows if row.kind != "class" or row.what not in packs]
    at = next((number for number, row in enumerate(rest) if row.kind in ("class", "file")), len(rest))
    return [*rest[:at], *together, *rest[at:]]


def alike(names: Iterable[str], rows: Sequence[Difference]) -> list[list[str]]:
    """Return nodes in groups, each of those that have the same in all rows, in the nodes' order."""
    found: dict[tuple[str | None, ...], list[str]] = {}
    for name in names:
        found.setdefault(tuple(row.nodes.get(name) for row in rows), []).append(name)
    return list(found.values())


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
