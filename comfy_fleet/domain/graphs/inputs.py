"""How a class declares its inputs, and what that means for one node of a graph.

Facts (ComfyUI 0.3.64 and 0.33): an enumeration is ``[["a", "b"], {...}]`` or
``["COMBO", {"options": ["a", "b"]}]``, model files included. Newer classes declare *groups*, whose members a
graph names ``group.member``: a value that brings further inputs along (``COMFY_DYNAMICCOMBO_V3``,
``COMFY_DYNAMICSLOT_V3``) and a growing row of inputs of one kind (``COMFY_AUTOGROW_V3``: ``min`` of them must
be given; inputs beyond its list of names are ignored). Groups may hold groups.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from sys import getsizeof
from types import MappingProxyType
from typing import Any, TypeAlias

from comfy_fleet.domain.graphs import file_access
from comfy_fleet.domain.graphs.file_access import Use, Uses

MAX_NESTING = 16
MAX_GROWTH = 1000
"""Limits on what is read from a node: groups inside groups, and names of one growing row (ComfyUI allows
100)."""
MAX_INPUTS = 10_000
"""Most inputs of one class, including those of its groups and all names of its growing rows."""
MAX_PREFIX = 200
"""Longest prefix, in characters, before the counter in the names of a growing row."""

WRAPPER = "__value__"
"""The key of the object that wraps a list as a value; a bare list would be a link."""

NO_USES: Uses = MappingProxyType({})
_DYNAMIC = "COMFY_"
_INPUTS_BYTES, _SPEC_BYTES = 400, 360
"""Bytes of the objects for a group and for an input, including their entries in mappings."""

Share: TypeAlias = Callable[[tuple[Any, ...]], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Inputs of one kind, of which a graph may give any number.

    Attributes:
        names: Their names in order, without the group's name.
        least: How many of the first ones must be given.
        spec: What each of them accepts.
    """

    names: tuple[str, ...]
    least: int
    spec: "InputSpec"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a class accepts for one input.

    Attributes:
        type: ``INT``, ``FLOAT``, ``STRING``, ``BOOLEAN``, ``COMBO`` or the name of a linked type.
        options: The values of an enumeration; None where it is open (filled by the editor at run time).
        upload: It names a file that is uploaded with the job: never something a node must have.
        remote: Its values come from elsewhere and are not known here.
        multiselect: It takes several of its values at once.
        fillable: Its list is empty and users may fill it.
        branches: For a group: the inputs that each of its values brings along.
        slot: For a group: the inputs that exist once any value is given.
        growth: For a group: inputs of one kind, in any number.
    """

    type: str
    options: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    upload: bool = False
    remote: bool = False
    multiselect: bool = False
    fillable: bool = False
    branches: Mapping[str, "Inputs"] | None = None
    slot: "Inputs | None" = None
    growth: Growth | None = None

    @property
    def closed(self) -> bool:
        """Whether it is an enumeration whose values are all known."""
        return self.options is not None and not self.upload and not self.remote

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of an enumeration, or those that bring inputs along."""
        return self.options or tuple(self.branches or ())

    @property
    def brings(self) -> "tuple[Inputs, ...]":
        """What a group may bring along."""
        return (*(self.branches or {}).values(), *(() if self.slot is None else (self.slot,)))

    def offers(self, value: object) -> bool:
        """Return whether an enumeration has a value, in any spelling."""
        if self.branches is not None:
            return not isinstance(value, str) or value in self.branches
        try:
            self.offered(value)
        except LookupError:
            return False
        return True

    def offered(self, value: object) -> Any:
        """Return the option that a value stands for, as the node spells it.

        Raises:
            LookupError: The enumeration has none. ``/`` and ``\\`` are equal, and so are the two ways in
                which Unicode writes one letter with an accent.
        """
        options = self.options or ()
        if not isinstance(value, str):
            for option in options:
                if value == option and isinstance(value, bool) == isinstance(option, bool):
                    return option
            raise LookupError(value)
        if value in self._texts:
            return value
        return self._alike[alike(value)]

    @cached_property
    def _texts(self) -> frozenset[str]:
        return frozenset(option for option in self.options or () if isinstance(option, str))

    @cached_property
    def _alike(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for option in self.options or ():
            if isinstance(option, str):
                found.setdefault(alike(option), option)
        return found


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a class, or those that a group brings along."""

    required: Mapping[str, InputSpec] = field(default_factory=dict)
    optional: Mapping[str, InputSpec] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, InputSpec]]:
        """Walk all inputs, required ones first."""
        yield from self.required.items()
        yield from self.optional.items()

    def input(self, name: str) -> InputSpec | None:
        """Return the input with exactly this name."""
        return self.required.get(name) or self.optional.get(name)

    def everything(self) -> Iterator[tuple[str, InputSpec]]:
        """Walk all inputs and all that groups may bring along; a name may come more than once."""
        for name, spec in self:
            yield name, spec
            if spec.growth is not None:
                yield from ((f"{name}.{member}", spec.growth.spec) for member in spec.growth.names)
            for inner in spec.brings:
                yield from ((f"{name}.{member}", found) for member, found in inner.everything())

    def possible(self, name: str) -> Iterator[InputSpec]:
        """Walk what an input may be, whatever else the graph gives: more than one inside a group."""
        if (spec := self.input(name)) is not None:
            yield spec
        for group, spec in self:
            if not name.startswith(group + "."):
                continue
            rest = name[len(group) + 1 :]
            if spec.growth is not None and rest in spec.growth.names:
                yield spec.growth.spec
            for inner in spec.brings:
                yield from inner.possible(rest)

    @cached_property
    def flat(self) -> bool:
        """Whether no input is a group."""
        return not any(spec.brings or spec.growth is not None for _, spec in self)

    def laid_out(self, given: Mapping[str, Any]) -> "Inputs":
        """Return the inputs that the class has for what a graph gives, each under its full name.

        A group whose value is a link, or not one of its own values, is returned as it is, since its members
        are not known.
        """
        if self.flat:  # as nearly all are
            return self
        required: dict[str, InputSpec] = {}
        optional: dict[str, InputSpec] = {}
        self.lay_out(given, "", required, optional)
        return Inputs(required=required, optional=optional)

    def lay_out(
        self,
        given: Mapping[str, Any],
        prefix: str,
        required: dict[str, InputSpec],
        optional: dict[str, InputSpec],
    ) -> None:
        """Add the inputs below a prefix to both; see :meth:`laid_out`."""
        for place, specs in ((required, self.required), (optional, self.optional)):
            for short, spec in specs.items():
                name = prefix + short
                if spec.growth is not None:
                    for index, member in enumerate(spec.growth.names):
                        must = required if index < spec.growth.least else optional
                        must[f"{name}.{member}"] = spec.growth.spec
                    continue
                place[name] = spec
                inner = spec.slot if name in given else None
                if spec.branches is not None:
                    value = given.get(name)
                    inner = spec.branches.get(value) if isinstance(value, str) else None
                if inner is not None:
                    inner.lay_out(given, name + ".", required, optional)


def read(group: object, uses: Uses = NO_USES, shared: Share = tuple) -> Inputs:
    """Read ``{"required": {...}, "optional": {...}}``. An input that can't be read accepts anything.

    Args:
        group: The inputs of a class.
        uses: What they name (:func:`comfy_fleet.domain.graphs.file_access.uses`).
        shared: Returns the list to keep in place of an equal one.

    Raises:
        ValueError: There are more inputs, or names of growing rows, than any class has.
    """
    return _Reading(uses, shared).inputs(group)


def held(inputs: Inputs) -> int:
    """Return about how many bytes inputs take in memory, without the lists of their options."""
    total = _INPUTS_BYTES
    for name, spec in inputs:
        total += getsizeof(name) + _held(spec)
    return total


def _held(spec: InputSpec) -> int:
    total = _SPEC_BYTES + getsizeof(spec.type)
    if spec.growth is not None:
        total += _SPEC_BYTES + sum(map(getsizeof, spec.growth.names)) + _held(spec.growth.spec)
    if spec.branches is not None:
        total += sum(_INPUTS_BYTES + getsizeof(key) for key in spec.branches)
    return total + sum(map(held, spec.brings))


def alike(text: str) -> str:
    """Return a file name's normal form: one kind of slash, composed letters."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).replace("\\", "/")


def unwrapped(value: object) -> object:
    """Return a value as ComfyUI reads it: a list is wrapped in ``{"__value__": [...]}``; bare, it would be a
    link."""
    return value[WRAPPER] if isinstance(value, dict) and WRAPPER in value else value


def spelled(value: object, spec: InputSpec) -> Any:
    """Return a value in the node's spelling; unchanged if the node does not offer it."""
    if not spec.closed or isinstance(value, list):
        return value
    bare = unwrapped(value)
    if spec.multiselect and isinstance(bare, list):
        return {WRAPPER: [_offered(item, spec) for item in bare]}
    return _offered(bare, spec) if isinstance(bare, str) else value


def _offered(value: object, spec: InputSpec) -> Any:
    try:
        return spec.offered(value)
    except LookupError:
        return value


def is_group(spec: InputSpec) -> bool:
    """Return whether an input may be given by its members alone (``group.member``)."""
    return spec.type.startswith(_DYNAMIC)


# ----------------------------------------------------------------------------------------------------


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class _Reading:
    """Reads the inputs of one class."""

    def __init__(self, uses: Uses, shared: Share) -> None:
        self._uses = uses
        self._shared = shared
        self._room = MAX_INPUTS

    def inputs(self, group: object, prefix: str = "", depth: int = 0) -> Inputs:
        """Read those of a class or of a group: ``prefix`` stands before their names in ``uses``."""
        required, optional = (
            {
                name: self._spec(prefix + name, declared, depth)
                for name, declared in given.items()
                if isinstance(declared, list) and declared
            }
            for given in (_mapping(_mapping(group).get(part)) for part in ("required", "optional"))
        )
        return Inputs(required=required, optional=optional)

    def _spec(self, name: str, declared: list[Any], depth: int) -> InputSpec:
        self._take(1)
        kind = declared[0]
        extra = _mapping(declared[1]) if len(declared) > 1 else {}
        options: tuple[Any, ...] | None = None
        if isinstance(kind, list):
            options, kind = tuple(kind), "COMBO"
        elif kind == "COMBO" and isinstance(extra.get("options"), list):
            options = tuple(extra["options"])
        fillable = options == () and not isinstance(declared[0], list)
        use = file_access.use_of(self._uses, name)
        if options is not None:
            folders = use is Use.PATH and file_access.names_folder(name)
            options = self._shared(
                tuple(option for option in options if not _is_ours(option, folders=folders))
            )
        spec = InputSpec(
            type=kind if isinstance(kind, str) else "*",
            options=options,
            minimum=_limit(extra.get("min")),
            maximum=_limit(extra.get("max")),
            upload=use is Use.FILE,
            remote=bool(extra.get("remote")),
            multiselect=bool(extra.get("multiselect")),
            fillable=fillable,
        )
        if depth >= MAX_NESTING:
            return spec
        inside = f"{name}."
        match kind:
            case "COMFY_DYNAMICCOMBO_V3":
                return replace(spec, branches=self._branches(extra.get("options"), inside, depth + 1))
            case "COMFY_DYNAMICSLOT_V3" if isinstance(extra.get("inputs"), Mapping):
                return replace(spec, slot=self.inputs(extra["inputs"], inside, depth + 1))
            case "COMFY_AUTOGROW_V3":
                return replace(spec, growth=self._growth(extra.get("template"), inside, depth + 1))
        return spec

    def _branches(self, options: object, prefix: str, depth: int) -> Mapping[str, Inputs] | None:
        found: dict[str, Inputs] = {}
        for option in options if isinstance(options, list) else ():
            if not isinstance(option, Mapping) or not isinstance(option.get("inputs"), Mapping):
                return None
            self._take(1)
            found.setdefault(str(option.get("key")), self.inputs(option["inputs"], prefix, depth))
        return found or None

    def _growth(self, template: object, prefix: str, depth: int) -> Growth | None:
        if not isinstance(template, Mapping):
            return None
        # The counter is not part of the name in `uses`.
        declared = (
            (part, spec)
            for part, given in _mapping(template.get("input")).items()
            for spec in _mapping(given).values()
            if isinstance(spec, list) and spec
        )
        part, first = next(declared, ("", None))
        if first is None:
            return None
        most, names, start = template.get("max"), template.get("names"), template.get("prefix")
        if isinstance(names, list):
            self._take(min(len(names), MAX_GROWTH))
            called = tuple(str(name) for name in names[:MAX_GROWTH])
        elif isinstance(start, str) and len(start) <= MAX_PREFIX and isinstance(most, int):
            self._take(max(0, min(most, MAX_GROWTH)))
            called = tuple(f"{start}{index}" for index in range(min(most, MAX_GROWTH)))
        else:
            return None
        least = template.get("min")
        return Growth(
            names=called,
            # Members of an optional kind may be left out, whatever the minimum is.
            least=least if isinstance(least, int) and part == "required" else 0,
            spec=self._spec(prefix, first, depth),
        )

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise ValueError(f"more than {MAX_INPUTS} inputs")


def _is_ours(option: object, *, folders: bool) -> bool:
    """Return whether an option is a file that jobs have put into the node's folders; that is not a choice."""
    return isinstance(option, str) and (
        file_access.is_staged(option) or (folders and file_access.in_staging(option))
    )


def _limit(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_EXTENSIONS = (
    ".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".pkl", ".engine",
    ".yaml",
)  # fmt: skip


def looks_like_file(value: object) -> bool:
    """Return whether a value names a model file, by the extensions that ComfyUI and its extensions load."""
    return isinstance(value, str) and value.lower().endswith(_EXTENSIONS)
