"""Texts from nodes and validators as people are shown them, and names in their order."""

import re

_NOT_OBJECTS = frozenset(
    {"dataclass_type", "dict_type", "is_instance_of", "model_attributes_type", "model_type"}
)


def clean(text: str) -> str:
    """Return a text that every encoder accepts: lone surrogates become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def clip(text: str, most: int) -> str:
    """Return at most this many characters of a text, cleaned; an ellipsis shows that it was cut."""
    return clean(text if len(text) <= most else f"{text[: most - 1]}…")


def wrong_value(kind: str, message: str) -> str:
    """Return what pydantic says of a value, without its words for programmers.

    Args:
        kind: The type of its error, such as ``model_type``, whose message names a class.
        message: The error's message.
    """
    return "must be an object" if kind in _NOT_OBJECTS else message.removeprefix("Value error, ")


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names with numbers naturally: ``sim-2`` before ``sim-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
