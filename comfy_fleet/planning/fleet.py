"""A made-up fleet: groups of nodes, from TOML or from command-line flags.

[[nodes]]
count = 8
vram = "24GiB"
ram = "64GiB"
load = "2GiB/s/8GiB/s"    # disk to RAM, RAM to card
price = 0.79              # an hour for each node
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.planning import units

MAX_NODES = 100_000
GIB = 2**30
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_MAX_NAME = 63


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes that are alike.

    Attributes:
        count: How many.
        vram: Bytes of each card.
        ram: Bytes of memory in which a node keeps files that it has read.
        disk_rate: Bytes a second from disk to RAM.
        ram_rate: Bytes a second from RAM to the card.
        speed: How fast it computes, relative to what the trace's seconds mean.
        pool: Their pool.
        zone: Where they are.
        price: What a node costs an hour, in any currency.
        name: Nodes are called NAME-1, NAME-2 and so on; empty: after pool and card.
    """

    count: int = 4
    vram: int = 24 * GIB
    ram: int = 64 * GIB
    disk_rate: float = 2.0 * GIB
    ram_rate: float = 8.0 * GIB
    speed: float = 1.0
    pool: str = DEFAULT_POOL
    zone: str = ""
    price: float = 0.0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedNode:
    """A node of a made-up fleet.

    Attributes:
        node: What a policy is told of it.
        pool: Its pool: the one place in which it runs jobs.
        disk_rate: Bytes a second from disk to RAM; those to the card are the node's own.
        ram_rate: Bytes a second from RAM to the card.
        price: What it costs an hour.
    """

    node: ScheduledNode
    pool: str
    disk_rate: float
    ram_rate: float
    price: float

    def load_s(self, size: int, *, from_disk: bool) -> float:
        """Return the seconds that a file takes to get onto the card."""
        return size / self.ram_rate + (size / self.disk_rate if from_disk else 0.0)


def planned(groups: Sequence[NodeGroup]) -> list[PlannedNode]:
    """Return the nodes of these groups.

    Raises:
        BadInput: There is none, or there are too many.
    """
    total = sum(group.count for group in groups)
    if not 0 < total <= MAX_NODES:
        raise BadInput(f"a fleet has 1 to {MAX_NODES} nodes, not {total}", details={"field": "nodes"})
    stems = [group.name or f"{group.pool}-{group.vram / GIB:g}g" for group in groups]
    made: dict[str, PlannedNode] = {}
    counted: dict[str, int] = {}
    for group, stem in zip(groups, stems, strict=True):
        for _ in range(group.count):
            counted[stem] = counted.get(stem, 0) + 1
            name = f"{stem}-{counted[stem]}"
            made[name] = PlannedNode(
                node=ScheduledNode(
                    name=name,
                    places=frozenset({group.pool}),
                    vram_bytes=group.vram,
                    ram_bytes=group.ram,
                    speed=group.speed,
                    zone=group.zone,
                    disk_rate=1 / (1 / group.disk_rate + 1 / group.ram_rate),
                    ram_rate=group.ram_rate,
                ),
                pool=group.pool,
                disk_rate=group.disk_rate,
                ram_rate=group.ram_rate,
                price=group.price,
            )
    return list(made.values())


def from_toml(text: str, name: str) -> list[NodeGroup]:
    """Read groups of nodes from a file's text.

    Args:
        text: TOML.
        name: The file's name, for errors.

    Raises:
        BadInput: It is no TOML, or a field is wrong.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{name} is not TOML: {error}") from None
    if unknown := sorted(set(content) - {"nodes"}):
        raise BadInput(f"{name}: {unknown[0][:80]} is unknown; groups of nodes stand below [[nodes]]")
    groups = content.get("nodes")
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise BadInput(f"{name} needs groups of nodes, each below [[nodes]]", details={"field": "nodes"})
    return [
        _group(group.items(), NodeGroup(), f"{name}, nodes {number}")
        for number, group in enumerate(groups, 1)
    ]


def from_flag(text: str, usual: NodeGroup) -> NodeGroup:
    """Read a group from a flag: ``8x24GiB`` or ``8x24GiB,ram=128GiB,price=0.8``.

    Args:
        text: The flag's value.
        usual: What is not said.

    Raises:
        BadInput: It can't be read.
    """
    first, *rest = text.split(",")
    count, cross, vram = first.strip().partition("x")
    if not (cross and count.strip() and vram.strip()):
        raise units.wrong("--nodes", text, "groups such as 8x24GiB or 8x24GiB,ram=64GiB,price=0.8")
    pairs = [("count", count), ("vram", vram)]
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals:
            raise units.wrong("--nodes", part, "KEY=VALUE, such as ram=64GiB")
        pairs.append((key.strip(), value))
    return _group(pairs, usual, "--nodes")


def rates(text: str, field: str) -> tuple[float, float]:
    """Return the rates from disk to RAM and from RAM to the card, from ``2GiB/s/8GiB/s``.

    Raises:
        BadInput: They can't be read.
    """
    parts = text.lower().replace(" ", "").split("/s/")
    if len(parts) != 2:
        raise units.wrong(field, text, "two rates, disk to RAM and RAM to card, such as 2GiB/s/8GiB/s")
    return units.rate(parts[0], field), units.rate(parts[1], field)


def _group(pairs: Iterable[tuple[str, Any]], usual: NodeGroup, where: str) -> NodeGroup:
    found: dict[str, Any] = {}
    for key, value in pairs:
        field = f"{where}, {key}"
        if key == "load":
            found["disk_rate"], found["ram_rate"] = rates(_text(value), field)
            continue
        read = _READERS.get(key)
        if read is None:
            known = ", ".join([*_READERS, "load"])
            raise BadInput(f"{where}: {key[:80]} is unknown; there are {known}", details={"field": key[:80]})
        found[key] = read(_text(value), field)
    return replace(usual, **found)


def _text(value: object) -> str:
    if isinstance(value, bool | list | dict):
        return repr(value)  # no reader takes it
    return str(value)


def _count(text: str, field: str) -> int:
    if not (text.strip().isascii() and text.strip().isdecimal() and 0 < int(text[:10]) <= MAX_NODES):
        raise units.wrong(field, text, f"a whole number from 1 to {MAX_NODES}")
    return int(text)


def _size(text: str, field: str) -> int:
    try:
        found = units.size(text, field)
    except BadInput:
        found = 0
    if not found:
        raise units.wrong(field, text, "the size of a card, such as 24GiB")
    return found


def _speed(text: str, field: str) -> float:
    return units.number(text, field, least=0.001, most=1000.0)


def _price(text: str, field: str) -> float:
    return units.number(text, field, most=1e6)


def _name(text: str, field: str) -> str:
    if not 0 < len(text) <= _MAX_NAME or not set(text) <= _NAME_CHARACTERS:
        raise units.wrong(
            field, text, f"a name of 1 to {_MAX_NAME} letters, digits, dots, dashes and underscores"
        )
    return text


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "count": _count,
    "vram": _size,
    "ram": units.size,
    "speed": _speed,
    "pool": _name,
    "zone": _name,
    "price": _price,
    "name": _name,
}
