"""Texts from nodes, shortened for records and lists, and names in their order."""

import re


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


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names with numbers naturally: ``sim-2`` before ``sim-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
