"""Metrics as text for Prometheus.

prometheus_client's own writer takes much longer: it sorts each sample's labels and checks each name again.
A fleet of a thousand nodes has twenty thousand samples. Most differ from the last time in their number only:
what stands before it is kept.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from prometheus_client import CollectorRegistry

Samples = Iterable[tuple[tuple[str, ...], float]]
"""The values of the labels, and the number."""

_SPARE = 2000
"""How many kept beginnings of lines may be more than twice what was written last."""


class RegistryText:
    """Writes all metrics of a registry, which has no infos, state sets or times of creation.

    Args:
        registry: The metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._begins: dict[tuple[str, ...], str] = {}

    def __call__(self) -> bytes:
        """Return them as they are now."""
        begins, parts = self._begins, []
        for family in self._registry.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            parts.append(_head(name, family.documentation, family.type))
            for sample in family.samples:
                key = (sample.name, *sample.labels.values())
                begin = begins.get(key)
                if begin is None:
                    begin = begins[key] = _begin(sample.name, tuple(sample.labels), key[1:])
                parts.append(f"{begin}{sample.value}\n")
        _bound(begins, len(parts))
        return "".join(parts).encode()


class FamilyText:
    """Writes one metric.

    Args:
        name: Its name.
        text: What it says, one line.
        kind: ``gauge`` or ``counter``.
        labels: The names of its labels.
    """

    def __init__(self, name: str, text: str, kind: str, labels: Sequence[str]) -> None:
        self._name = name
        self._labels = tuple(labels)
        self._head = _head(name, text, kind)
        self._begins: dict[tuple[str, ...], str] = {}

    def __call__(self, samples: Samples) -> str:
        """Return it with these samples; nothing if there are none."""
        begins, parts = self._begins, [self._head]
        for values, number in samples:
            begin = begins.get(values)
            if begin is None:
                begin = begins[values] = _begin(self._name, self._labels, values)
            parts.append(f"{begin}{number}\n")
        _bound(begins, len(parts))
        return "".join(parts) if len(parts) > 1 else ""


def _bound(begins: dict[tuple[str, ...], str], written: int) -> None:
    """Forget all once most are of what is no more, such as nodes that have left."""
    if len(begins) > 2 * written + _SPARE:
        begins.clear()


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _begin(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    return _template(name, labels) % tuple(map(_escaped, values))


@lru_cache(4096)
def _template(name: str, labels: tuple[str, ...]) -> str:
    pairs = ",".join(f'{label}="%s"' for label in labels)
    return f"{name}{{{pairs}}} " if labels else f"{name} "


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value
