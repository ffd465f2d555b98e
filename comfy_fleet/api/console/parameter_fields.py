"""The fields of the form that a stored workflow's parameters make."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.workflow import DRAWN, FILES, NUMBERS, Parameter, ParameterType

MOST_STEPS = 2000
"""A number with more values than that has no slider."""
_SHORT_TEXT = 120
_LONG_NAMES = ("prompt", "text", "caption", "description", "lyrics", "story")


@dataclass(frozen=True, kw_only=True)
class ParameterField:
    """One field.

    Attributes:
        name: The parameter's.
        label: What stands above it.
        help: What stands below it; empty if there is nothing to say.
        widget: ``line``, ``text``, ``number``, ``switch``, ``choice``, ``seed`` or ``file``.
        kind: How its text becomes JSON: ``string``, ``integer``, ``number``, ``boolean``.
        value: What is in it at first; for a switch, whether it is on; for a file, the name of the default.
        required: Whether it must be filled in.
        minimum: Smallest number; None: no limit.
        maximum: Largest number.
        step: What an arrow key adds; ``any`` if every number will do.
        slider: Whether there is a slider, too.
        max_length: Most characters; None: no limit.
        choices: Values and their labels.
        accept: Content types, for a browser's file dialog.
        max_bytes: Largest file.
        picture: Whether the file is a picture.
    """

    name: str
    label: str
    help: str = ""
    widget: str
    kind: str = "string"
    value: Any = ""
    required: bool = False
    minimum: str | None = None
    maximum: str | None = None
    step: str = "any"
    slider: bool = False
    max_length: int | None = None
    choices: Sequence[tuple[str, str]] = ()
    accept: str = ""
    max_bytes: int | None = None
    picture: bool = False


def fields_of(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> list[ParameterField]:
    """Return the fields, in the parameters' order.

    Args:
        parameters: A stored workflow's.
        values: What to fill in, in place of the defaults, by parameter; a name that no parameter has is left.
    """
    return [_field(one, values.get(one.name, None if one.required else one.default)) for one in parameters]


def _field(one: Parameter, value: object) -> ParameterField:
    known: dict[str, Any] = {
        "name": one.name,
        "label": one.title or one.name,
        "help": one.description,
        "required": one.required,
    }
    if one.type in FILES:
        return ParameterField(
            **known,
            widget="file",
            value=value if isinstance(value, str) else "",
            accept=",".join(one.accept),
            max_bytes=one.max_bytes,
            picture=one.type is ParameterType.IMAGE,
        )
    if one.type is ParameterType.BOOLEAN:
        return ParameterField(**known, widget="switch", kind="boolean", value=bool(value))
    if one.type is ParameterType.CHOICE:
        choices = [(choice.name, choice.label or choice.name) for choice in one.choices]
        return ParameterField(**known, widget="choice", value=_text(value), choices=choices)
    if one.type is ParameterType.SEED:
        fixed = "" if value is None or value == DRAWN else _text(value)
        return ParameterField(**known, widget="seed", kind="integer", value=fixed, maximum=_text(one.maximum))
    if one.type in NUMBERS:
        return _number(one, value, known)
    widget = "text" if _is_long(one, value) else "line"
    return ParameterField(**known, widget=widget, value=_text(value), max_length=one.max_length)


def _number(one: Parameter, value: object, known: Mapping[str, Any]) -> ParameterField:
    whole = one.type is ParameterType.INTEGER
    step = one.multiple_of or (1 if whole else None)
    # A browser counts steps from the minimum on.
    fits = step is not None and (one.minimum is None or abs(one.minimum % step) < 1e-9)
    slider = False
    if one.minimum is not None and one.maximum is not None and one.maximum > one.minimum:
        slider = (one.maximum - one.minimum) / (step or (one.maximum - one.minimum) / 100) <= MOST_STEPS
    return ParameterField(
        **known,
        widget="number",
        kind="integer" if whole else "number",
        value=_text(value),
        minimum=_text(one.minimum) or None,
        maximum=_text(one.maximum) or None,
        step=_text(step) if fits else "1" if whole and not one.multiple_of else "any",
        slider=slider,
    )


def _is_long(one: Parameter, value: object) -> bool:
    if one.max_length is not None:
        return one.max_length > _SHORT_TEXT
    words = f"{one.name} {one.role}".lower()
    text = value if isinstance(value, str) else ""
    return "\n" in text or len(text) > 60 or any(word in words for word in _LONG_NAMES)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, default=str)
