"""The file of ``fleet autoscale``.

[pools.default]
minimum = 1
maximum = 4
provider = { kind = "local", simulated = true }
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.domain.scaling.rules import GROW, MOST_NODES, GrowRule, GrowSignal, ScalingRules, ShrinkRule

MOST_POOLS = 100
_MOST_S = 86400.0
_PLACES = re.compile(r"\{[^{}]*\}|[{}]")
_KNOWN_PLACES = ("{name}", "{pool}")
_MOST_PREFIX = 40


class ProviderKind(StrEnum):
    """Where nodes come from."""

    LOCAL = "local"
    COMMAND = "command"
    SWARM = "swarm"


@dataclass(frozen=True, kw_only=True)
class ProviderSpec:
    """Where a pool's nodes come from.

    Attributes:
        kind: The kind.
        simulated: ``local``: whether they are simulated nodes.
        sim_args: ``local``: more arguments for ``fleet sim``.
        comfyui: ``local``: the checkout of ComfyUI to start.
        python: ``local``: ComfyUI's Python; empty: that of a ``venv`` inside, else the first on PATH.
        comfyui_args: ``local``: more arguments for ComfyUI.
        gpus: ``local``: a GPU for each node, by index or UUID, or ``cpu``; as many nodes as this has.
        join: ``local``: the API's address for the nodes' agents; empty: that of the settings.
        add: ``command``: program and arguments that add a node.
        remove: ``command``: those that remove it.
        docker: ``swarm``: the program.
        services: ``swarm``: one service for each node, each with no or one replica.
        limit_s: How long a command may take, in seconds.
    """

    kind: ProviderKind
    simulated: bool = False
    sim_args: tuple[str, ...] = ()
    comfyui: str = ""
    python: str = ""
    comfyui_args: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    join: str = ""
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    docker: str = "docker"
    services: tuple[str, ...] = ()
    limit_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class ScaledPoolSpec:
    """A pool that grows and shrinks.

    Attributes:
        rules: By which rules.
        provider: Where its nodes come from.
        prefix: With which the names of its nodes begin.
        boot_s: After how many seconds a node that can't take jobs counts as failed.
    """

    rules: ScalingRules
    provider: ProviderSpec
    prefix: str
    boot_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class ScalingFile:
    """All of it.

    Attributes:
        every_s: Seconds between two looks.
        pools: By name.
    """

    every_s: float = 5.0
    pools: Mapping[str, ScaledPoolSpec] = field(default_factory=dict)


def read_scaling_file(text: str, name: str) -> ScalingFile:
    """Read the file.

    Args:
        text: TOML.
        name: The file's name, for errors.

    Raises:
        BadInput: It is no TOML, or a field is unknown, missing or out of its bounds; the message names the
            field and what it may be.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{name} is not TOML: {error}") from None
    top = _Table(content, name, "")
    every_s = top.number("every_s", 5.0, least=0.2, most=60.0)
    raw = top.table("pools")
    top.done()
    if raw is None or not raw.values or len(raw.values) > MOST_POOLS:
        raise BadInput(
            f"{name}: pools: needs 1 to {MOST_POOLS} pools, each as [pools.NAME]", details={"field": "pools"}
        )
    found = {}
    for pool in raw.values:
        one = raw.table(pool)
        if one is None:
            raise raw.wrong(pool, "must be a table: [pools.NAME]")
        try:
            check_name("pool", pool)
        except BadInput as error:
            raise BadInput(f"{name}: {error.message}", details={"field": "pools"}) from None
        found[pool] = _pool(one, pool)
    prefixes: dict[str, str] = {}
    for pool, spec in found.items():
        if (other := prefixes.setdefault(spec.prefix, pool)) != pool:
            raise BadInput(
                f"{name}: pools.{pool}.prefix: {spec.prefix!r} is that of pool {other}, too; name another",
                details={"field": f"pools.{pool}.prefix"},
            )
    services = [service for spec in found.values() for service in spec.provider.services]
    for service in services:
        if services.count(service) > 1:
            raise BadInput(
                f"{name}: service {service} is named twice; each node needs a service of its own",
                details={"field": "services"},
            )
    return ScalingFile(every_s=every_s, pools=found)


def _pool(table: "_Table", pool: str) -> ScaledPoolSpec:
    maximum = table.whole("maximum", None, least=1, most=MOST_NODES)
    minimum = table.whole("minimum", 0, least=0, most=maximum)
    more = table.tables("more")
    fewer = table.table("fewer")
    shrink: ShrinkRule | None = ShrinkRule()
    if fewer is not None:
        wanted = fewer.switch("enabled", usual=True)
        usual = ShrinkRule()
        shrink = ShrinkRule(
            busy_below=fewer.number("busy_below", usual.busy_below, least=0.0, most=1.0),
            for_s=fewer.number("for_s", usual.for_s, least=1.0, most=_MOST_S),
        )
        fewer.done()
        shrink = shrink if wanted else None
    rules = ScalingRules(
        minimum=minimum,
        maximum=maximum,
        cool_down_s=table.number("cool_down_s", 120.0, least=0.0, most=_MOST_S),
        grow=GROW if more is None else tuple(_grow(rule, maximum) for rule in more),
        shrink=shrink,
        least_busy=table.number("least_busy", 0.5, least=0.0, most=1.0),
    )
    prefix = table.text("prefix", f"auto-{pool}"[:_MOST_PREFIX])
    try:
        check_name("prefix", prefix)
    except BadInput as error:
        raise table.wrong("prefix", error.message) from None
    if len(prefix) > _MOST_PREFIX:
        raise table.wrong("prefix", f"may have {_MOST_PREFIX} characters")
    provider = table.table("provider")
    if provider is None:
        raise table.wrong("provider", 'is missing: for example { kind = "local", simulated = true }')
    spec = ScaledPoolSpec(
        rules=rules,
        provider=_provider(provider, maximum),
        prefix=prefix,
        boot_s=table.number("boot_s", 600.0, least=1.0, most=_MOST_S),
    )
    table.done()
    return spec


def _grow(table: "_Table", maximum: int) -> GrowRule:
    signal = table.text("when", "")
    if signal not in {one.value for one in GrowSignal}:
        raise table.wrong("when", 'must be "wait" (seconds) or "backlog" (jobs)')
    rule = GrowRule(
        signal=GrowSignal(signal),
        above=table.number("above", None, least=0.0, most=1e9),
        for_s=table.number("for_s", None, least=0.0, most=_MOST_S),
        add=table.whole("add", 1, least=1, most=maximum),
    )
    table.done()
    return rule


def _provider(table: "_Table", maximum: int) -> ProviderSpec:
    kind = table.text("kind", "")
    if kind not in set(ProviderKind):
        raise table.wrong("kind", f"must be one of {', '.join(ProviderKind)}")
    spec = _PROVIDERS[ProviderKind(kind)](table, maximum)
    table.done()
    return spec


def _local(table: "_Table", maximum: int) -> ProviderSpec:
    simulated, comfyui = table.switch("simulated", usual=False), table.text("comfyui", "")
    if simulated == bool(comfyui):
        raise table.wrong("comfyui", "name either a ComfyUI's folder, or simulated = true")
    gpus = table.texts("gpus")
    if comfyui and len(gpus) < maximum:
        raise table.wrong("gpus", f'needs one for each of {maximum} nodes, such as ["0", "1"] or ["cpu"]')
    for gpu in gpus:
        if "," in gpu or gpu == "all":
            raise table.wrong("gpus", f"{gpu[:80]!r} is not one GPU: name each by itself")
    return ProviderSpec(
        kind=ProviderKind.LOCAL,
        simulated=simulated,
        sim_args=table.texts("sim_args"),
        comfyui=comfyui,
        python=table.text("python", ""),
        comfyui_args=table.texts("comfyui_args"),
        gpus=gpus,
        join=table.text("join", ""),
    )


def _command(table: "_Table", maximum: int) -> ProviderSpec:
    del maximum
    found = {}
    for what in ("add", "remove"):
        words = table.texts(what)
        if not words:
            raise table.wrong(what, 'is missing: program and arguments, as ["/opt/gpu", "add", "{name}"]')
        for word in words:
            for place in _PLACES.findall(word):
                if place not in _KNOWN_PLACES:
                    known = " and ".join(_KNOWN_PLACES)
                    raise table.wrong(what, f"only {known} can be filled in, not {place!r}")
        if _PLACES.search(words[0]):
            raise table.wrong(what, "the program itself can't depend on the node")
        if not any("{name}" in word for word in words):
            raise table.wrong(what, "must have {name} among its arguments: it says which node")
        found[what] = words
    limit_s = table.number("limit_s", 120.0, least=1.0, most=3600.0)
    return ProviderSpec(kind=ProviderKind.COMMAND, add=found["add"], remove=found["remove"], limit_s=limit_s)


def _swarm(table: "_Table", maximum: int) -> ProviderSpec:
    services = table.texts("services")
    if len(services) < maximum:
        raise table.wrong("services", f'needs one for each of {maximum} nodes, such as ["gpu-1", "gpu-2"]')
    for service in services:
        try:
            check_name("services", service)
        except BadInput as error:
            raise table.wrong("services", error.message) from None
    return ProviderSpec(
        kind=ProviderKind.SWARM,
        services=services,
        docker=table.text("docker", "docker"),
        limit_s=table.number("limit_s", 120.0, least=1.0, most=3600.0),
    )


_PROVIDERS: Mapping[ProviderKind, Callable[["_Table", int], ProviderSpec]] = {
    ProviderKind.LOCAL: _local,
    ProviderKind.COMMAND: _command,
    ProviderKind.SWARM: _swarm,
}


class _Table:
    """A table of the file, read field by field; what was not read is unknown."""

    def __init__(self, values: Mapping[str, Any], name: str, path: str) -> None:
        self.values = values
        self._name = name
        self._path = path
        self._read: set[str] = set()

    def wrong(self, key: str, why: str) -> BadInput:
        """Return the error about a field."""
        path = f"{self._path}.{key}".lstrip(".")[:200]
        return BadInput(f"{self._name}: {path}: {why}", details={"field": path})

    def done(self) -> None:
        """Raise BadInput if there is a field that nobody has read."""
        for key in self.values:
            if key not in self._read:
                raise self.wrong(key, f"is unknown here; there are {', '.join(sorted(self._read))}")

    def table(self, key: str) -> "_Table | None":
        """Return a table; None if there is none."""
        value = self._value(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "must be a table")
        return _Table(value, self._name, f"{self._path}.{key}".lstrip("."))

    def tables(self, key: str) -> "list[_Table] | None":
        """Return a list of tables; None if there is none."""
        value = self._value(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value) or len(value) > 20:
            raise self.wrong(key, "must be at most 20 tables, each as [[pools.NAME.more]]")
        path = f"{self._path}.{key}".lstrip(".")
        return [_Table(one, self._name, f"{path}[{number}]") for number, one in enumerate(value)]

    def number(self, key: str, usual: float | None, *, least: float, most: float) -> float:
        """Return a number."""
        value = self._value(key)
        value = usual if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)
        raise self.wrong(key, f"must be a number from {least:g} to {most:g}")

    def whole(self, key: str, usual: int | None, *, least: int, most: int) -> int:
        """Return a whole number."""
        value = self._value(key)
        value = usual if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def switch(self, key: str, *, usual: bool) -> bool:
        """Return true or false."""
        value = self._value(key)
        value = usual if value is None else value
        if type(value) is not bool:
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, key: str, usual: str) -> str:
        """Return a text."""
        value = self._value(key)
        value = usual if value is None else value
        if type(value) is not str or len(value) > 4096 or not value.isprintable():
            raise self.wrong(key, "must be a text of printable characters")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; without it, an empty one."""
        value = self._value(key)
        if value is None:
            return ()
        fine = isinstance(value, list) and len(value) <= MOST_NODES
        if not fine or not all(type(one) is str and one and len(one) <= 4096 for one in value):
            raise self.wrong(key, "must be a list of texts")
        if any("\0" in one for one in value):
            raise self.wrong(key, "must be a list of texts without NUL")
        return tuple(value)

    def _value(self, key: str) -> Any:
        self._read.add(key)
        return self.values.get(key)
