"""Dataclasses from data that was stored or sent, perhaps by another version of the fleet."""

import types
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""What reading a broken record raises; a reader of several records goes on with the others."""


def from_fields(cls: type[T], raw: Mapping[str, Any]) -> T:
    """Make a dataclass from the fields that it knows; fields that a newer version added are ignored.

    Raises:
        TypeError: ``raw`` is not a mapping, a field is missing, or one has a type that differs from its
            annotation (plain types, enums and tuples of them are checked).
        ValueError: An enum has no such member.
    """
    if not isinstance(raw, Mapping):
        raise TypeError(f"{cls.__name__} must be an object, not {type(raw).__name__}")
    made: dict[str, Any] = {}
    for name, (kind, plain) in _kinds(cast(Any, cls)).items():
        if name in raw:
            value = raw[name]
            made[name] = value if type(value) in plain else _as(kind, value, f"{cls.__name__}.{name}")
    return cls(**made)


@cache
def _kinds(cls: Any) -> dict[str, tuple[Any, frozenset[type]]]:
    """Return each field's annotation, and the types whose values need no conversion."""
    hints = get_type_hints(cls)
    return {field.name: (hints[field.name], _plain(hints[field.name])) for field in fields(cls)}


def _plain(kind: Any) -> frozenset[type]:
    if get_origin(kind) in (Union, types.UnionType):
        return frozenset().union(*(_plain(one) for one in get_args(kind)))
    if kind is float:
        return frozenset({float, int})
    return frozenset({kind}) if kind in (str, int, bool, types.NoneType) else frozenset()


def _as(kind: Any, value: Any, name: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None or any(get_origin(one) is not None for one in get_args(kind)):
            return value
        (kind, *others) = (one for one in get_args(kind) if one is not types.NoneType)
        if others:
            return value
        return _as(kind, value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list, not {type(value).__name__}")
        return tuple(_as(get_args(kind)[0], one, name) for one in value)
    if origin is not None:
        if not isinstance(value, origin):
            raise TypeError(f"{name} must be {origin.__name__}, not {type(value).__name__}")
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, int, float, bool) and type(value) is not kind:
        raise TypeError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value
