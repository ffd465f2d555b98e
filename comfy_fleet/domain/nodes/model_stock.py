"""Which model files the nodes have, as a table that stays small: nodes with the same files are one group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from comfy_fleet.domain.graphs.inputs import alike, looks_like_file
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.named_models import NamedModel
from comfy_fleet.domain.nodes.model_sizes import ModelSizes, told_folder
from comfy_fleet.domain.text import natural


class StockedFile(NamedTuple):
    """A model file, and who has it.

    Attributes:
        folder: Below ``models``; ``models`` itself where nothing tells it.
        name: With ``/`` between its parts.
        size: Bytes; None if no node has told them.
        groups: Positions in :attr:`ModelStock.groups`.
    """

    folder: str
    name: str
    size: int | None
    groups: tuple[int, ...]


@dataclass(frozen=True)
class ModelStock:
    """The model files of nodes.

    Attributes:
        groups: Names of nodes with the same files.
        files: All files, by folder and name.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    files: tuple[StockedFile, ...] = ()

    @cached_property
    def group_of(self) -> Mapping[str, int]:
        """Each node's group."""
        return {name: number for number, names in enumerate(self.groups) for name in names}

    def having(self, file: StockedFile) -> int:
        """Return how many nodes have a file."""
        return sum(len(self.groups[number]) for number in file.groups)


def files_of(known: Inventory, sizes: ModelSizes) -> dict[tuple[str, str], int | None]:
    """Return the model files that a node's classes offer, by folder and name, with their bytes."""
    found: dict[tuple[str, str], int | None] = {}
    seen: set[tuple[str, int]] = set()
    for info in known.classes.values():
        for name, spec in info.everything():
            choices = spec.choices
            if not spec.closed or not choices:
                continue
            # Many classes offer the same list, and share it in memory.
            if (of := (told_folder(info.name, name), id(choices))) in seen:
                continue
            seen.add(of)
            for option in choices:
                if looks_like_file(option):
                    model = NamedModel(
                        name=alike(option), class_type=info.name, input=name, choices=tuple(choices)
                    )
                    place, size = sizes.file(model)
                    folder, _, file = place.partition("/")
                    found[folder, file] = size
    return found


def model_stock(having: Iterable[tuple[Sequence[str], Mapping[tuple[str, str], int | None]]]) -> ModelStock:
    """Put together who has what.

    Args:
        having: Nodes and their files, by folder and name with bytes. Files may be the same for several.
    """
    together: dict[frozenset[tuple[str, str]], list[str]] = {}
    sizes: dict[tuple[str, str], int | None] = {}
    for nodes, files in having:
        together.setdefault(frozenset(files), []).extend(nodes)
        for place, size in files.items():
            if sizes.get(place) is None:
                sizes[place] = size
    ordered = sorted(
        ((sorted(nodes, key=natural), places) for places, nodes in together.items()),
        key=lambda one: (-len(one[0]), natural(one[0][0])),
    )
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (_, places) in enumerate(ordered):
        for place in places:
            groups.setdefault(place, []).append(number)
    return ModelStock(
        groups=tuple(tuple(nodes) for nodes, _ in ordered),
        files=tuple(
            StockedFile(*place, sizes[place], tuple(numbers)) for place, numbers in sorted(groups.items())
        ),
    )
