"""A stored workflow: a graph, and the parameters that an application may set in it.

Values of this module are resolved: a :class:`ParameterTarget` names a node of exactly this graph.
:mod:`comfy_fleet.domain.graphs.selector` chooses targets by title or class;
:mod:`comfy_fleet.domain.graphs.title_parameters` reads what titles declare.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.merging import MergeRule

MAX_SEED = 2**64 - 1
DRAWN = -1
"""The seed that stands for "draw one"."""


class ParameterType(StrEnum):
    """What kind of value a parameter accepts."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    SEED = "seed"
    IMAGE = "image"
    ASSET = "asset"


FILES = frozenset({ParameterType.IMAGE, ParameterType.ASSET})
NUMBERS = frozenset({ParameterType.INTEGER, ParameterType.NUMBER, ParameterType.SEED})


class TargetForm(StrEnum):
    """What goes into a target: the value itself, or a number made of it."""

    VALUE = "value"
    HASH = "hash"


@dataclass(frozen=True, kw_only=True)
class ParameterTarget:
    """One input of one node.

    Attributes:
        form: ``hash`` puts in the first 32 bits of the SHA-256 of the value's text: for a number, such as a
            seed, that a text decides.
    """

    node_id: str
    input: str
    form: TargetForm = TargetForm.VALUE


@dataclass(frozen=True, kw_only=True)
class Bypass:
    """A node to take out; its readers get its own inputs instead.

    Attributes:
        node_id: The node.
        through: For each output slot the input that replaces it; both carry the same type.
    """

    node_id: str
    through: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a choice, or a boolean's on or off, does in addition to setting its targets.

    Attributes:
        set: Values for further inputs.
        wrap: By text parameter: a text in which ``{}`` stands for that parameter's value.
        bypass: Nodes to take out.
    """

    set: tuple[tuple[ParameterTarget, Any], ...] = ()
    wrap: Mapping[str, str] = field(default_factory=dict)
    bypass: tuple[Bypass, ...] = ()


NO_EFFECT = Effect()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a ``choice`` parameter.

    Attributes:
        name: What callers send.
        value: What goes to the parameter's targets.
    """

    name: str
    value: Any
    label: str = ""
    effect: Effect = NO_EFFECT


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A value that a caller may set.

    Attributes:
        default: Used when the caller sends nothing; meaningless with ``required``.
        minimum: Smallest number.
        maximum: Largest number.
        multiple_of: Numbers must be multiples of it.
        min_length: Fewest characters of a text, blanks at its ends not counted.
        max_length: Most characters of a text.
        format: ``xml``: the text must be well-formed XML elements
            (see :mod:`comfy_fleet.domain.graphs.xml_text`).
        choices: For ``choice``.
        on: For ``boolean``: what else true does.
        off: For ``boolean``: what else false does.
        accept: For files: content types, e.g. ``image/png`` or ``image/*``.
        max_bytes: For files: largest size.
        role: The general name for what it does, if its own name differs; see :meth:`Workflow.name_for`.
    """

    name: str
    type: ParameterType
    targets: tuple[ParameterTarget, ...] = ()
    title: str = ""
    description: str = ""
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    format: str | None = None
    choices: tuple[Choice, ...] = ()
    on: Effect = NO_EFFECT
    off: Effect = NO_EFFECT
    accept: tuple[str, ...] = ()
    max_bytes: int | None = None
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file that the workflow loads.

    Attributes:
        folder: ComfyUI's folder below ``models``, e.g. ``diffusion_models``.
        source: Where it comes from, in words: ``Hugging Face: Comfy-Org/z_image_turbo``.
        optional: True if only some of the caller's choices need it.
    """

    file: str
    folder: str
    source: str = ""
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ManifestRequirements:
    """What a node must have.

    Attributes:
        comfyui: Versions, e.g. ``>=0.3.71``; empty means any.
        vram_gb: Video memory in GiB that the workflow needs; None means any.
        pool: The pool that it must run in; None leaves it to ``prefer_pool`` and to the request.
        prefer_pool: The pool that is tried first; any other takes the job if that one has no free node.
        spill_to: With ``pool``: pools that are tried next, in this order, if it has no free node.
        zone: The zone that it must run in; empty means any.
        labels: Labels that a node must carry.
        note: A note for the operator, e.g. that it has never been run here.
    """

    comfyui: str = ""
    models: tuple[ModelFile, ...] = ()
    vram_gb: float | None = None
    pool: str | None = None
    prefer_pool: str | None = None
    spill_to: tuple[str, ...] = ()
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class CacheMode(StrEnum):
    """When a job may get the result of an earlier run, instead of a run of its own."""

    OFF = "off"
    EXACT = "exact"
    """If nothing differs, the seed included: a job whose seed was drawn is always computed."""
    ANY_SEED = "any-seed"
    """Also a job whose seed was drawn, from a run with whatever seed."""


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A stored workflow in one version.

    Attributes:
        version: Hash of graph and manifest; see :func:`version_of`.
        folder: The folder that it is kept in; empty if it was published.
        merge: How its jobs may be merged; None: not at all.
        cache: When its jobs may get earlier results.
        vouched: Whether its author says that equal inputs give equal results, whatever its classes.
        silence_s: After how many seconds without a sign of progress a run is interrupted; None: as elsewhere.
    """

    name: str
    graph: Graph
    version: str
    title: str = ""
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    requires: ManifestRequirements = field(default_factory=ManifestRequirements)
    folder: str = ""
    merge: MergeRule | None = None
    cache: CacheMode = CacheMode.EXACT
    vouched: bool = False
    silence_s: float | None = None

    def parameter(self, name: str) -> Parameter | None:
        """Return a parameter by name."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def name_for(self, role: str) -> str:
        """Return the name of the parameter with a role: one that declares the role, else one of that name.

        Callers that don't know the workflow say ``negative_prompt``, whatever its author calls it.
        """
        return next((parameter.name for parameter in self.parameters if parameter.role == role), role)

    def choices_for(self, role: str) -> tuple[str, ...]:
        """Return the choices of the parameter with a role; empty if there is none."""
        parameter = self.parameter(self.name_for(role))
        return tuple(choice.name for choice in parameter.choices) if parameter else ()


def version_of(graph: Graph, manifest: Mapping[str, Any], marked: Sequence[Any] = ()) -> str:
    """Return ``sha256:<hex>`` of the content; white space and the order of keys don't count.

    Args:
        marked: What the editor's App mode marks; without it, the version is that of a folder's files.
    """
    content = [graph, manifest, marked] if marked else [graph, manifest]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def json_schema(workflow: Workflow) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the workflow's parameters."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": workflow.title or workflow.name,
        "description": workflow.description,
        "type": "object",
        "properties": {parameter.name: _property(parameter) for parameter in workflow.parameters},
        "required": [parameter.name for parameter in workflow.parameters if parameter.required],
        "additionalProperties": False,
    }


_JSON_TYPES = {
    ParameterType.STRING: "string",
    ParameterType.INTEGER: "integer",
    ParameterType.NUMBER: "number",
    ParameterType.BOOLEAN: "boolean",
    ParameterType.CHOICE: "string",
    ParameterType.SEED: "integer",
    ParameterType.IMAGE: "string",
    ParameterType.ASSET: "string",
}


def _property(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _JSON_TYPES[parameter.type]}
    if parameter.title:
        schema["title"] = parameter.title
    if parameter.description:
        schema["description"] = parameter.description
    if not parameter.required and parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.type is ParameterType.SEED:
        schema["minimum"] = DRAWN
        schema["x-fleet-type"] = "seed"
        schema.setdefault("description", "-1 or nothing draws one; the job says which it was.")
    elif parameter.minimum is not None:
        schema["minimum"] = parameter.minimum
    limits = {
        "maximum": parameter.maximum,
        "multipleOf": parameter.multiple_of,
        "minLength": parameter.min_length,
        "maxLength": parameter.max_length,
    }
    schema.update({key: value for key, value in limits.items() if value is not None})
    if parameter.choices:
        # oneOf carries the labels; enum is what simple clients look at.
        schema["enum"] = [choice.name for choice in parameter.choices]
        if any(choice.label for choice in parameter.choices):
            schema["oneOf"] = [
                {"const": choice.name, "title": choice.label or choice.name} for choice in parameter.choices
            ]
    if parameter.format == "xml":
        schema["contentMediaType"] = "application/xml"
    if parameter.type in FILES:
        schema["x-fleet-type"] = parameter.type.value
        schema["x-fleet-accept"] = list(parameter.accept)
        if parameter.max_bytes is not None:
            schema["x-fleet-max-bytes"] = parameter.max_bytes
    return schema
