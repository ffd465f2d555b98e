"""Shapes of JSON values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Each:
    """An object whose keys are names, and whose values all have one shape; at least one."""

    shape: Any


@dataclass(frozen=True)
class With:
    """An object that has at least these fields."""

    fields: dict[str, Any]


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a value has a shape: types stand for their values, everything else for itself."""
    if isinstance(shape, type | tuple):
        return isinstance(value, shape)
    if isinstance(shape, Each):
        return (
            isinstance(value, dict)
            and value != {}
            and all(has_shape(one, shape.shape) for one in value.values())
        )
    if isinstance(shape, With):
        return isinstance(value, dict) and all(
            key in value and has_shape(value[key], one) for key, one in shape.fields.items()
        )
    if isinstance(shape, dict):
        return (
            isinstance(value, dict)
            and value.keys() == shape.keys()
            and all(has_shape(value[key], one) for key, one in shape.items())
        )
    if isinstance(shape, list) and len(shape) == 1:
        return isinstance(value, list) and value != [] and all(has_shape(one, shape[0]) for one in value)
    return bool(value == shape)
