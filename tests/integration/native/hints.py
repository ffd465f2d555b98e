"""Refusals without what a fleet adds to ComfyUI's own words: who lacks a part, and where it can be got."""

from typing import Any


def without_hints(value: Any) -> Any:
    """Return an answer as a ComfyUI gives it: no ``missing`` in any ``extra_info``, no lines about it."""
    if isinstance(value, list):
        return [without_hints(one) for one in value]
    if not isinstance(value, dict):
        return value
    value = {name: without_hints(one) for name, one in value.items()}
    about = value.get("extra_info")
    if isinstance(about, dict) and "missing" in about:
        value["extra_info"] = {name: one for name, one in about.items() if name != "missing"}
        value["details"] = value["details"].partition("\n")[0]
    return value
