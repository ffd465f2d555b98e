"""Conditions on ComfyUI's version."""

import re

from comfy_fleet.domain.errors import ConfigError

_VERSION = re.compile(r"\s*(>=|<=|==|>|<)\s*v?(\d+(?:\.\d+)*)\s*")
_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


def version_allows(version: str, wanted: str) -> bool | None:
    """Return whether ``version`` fulfils a condition such as ``>=0.3.71`` or ``>=0.3.71,<2``.

    Returns:
        None if the version can't be read.

    Raises:
        ConfigError: The condition can't be read.
    """
    conditions = []
    for part in wanted.split(",") if wanted.strip() else ():
        match = _VERSION.fullmatch(part)
        if not match:
            raise ConfigError(f"comfyui = {wanted!r} must look like '>=0.3.71' or '>=0.3.71,<2'")
        conditions.append((match[1], _numbers(match[2])))
    match = _NUMBERS.match(version)
    if not match:
        return None
    have = _numbers(match[1])
    for operator, limit in conditions:
        holds = {
            ">=": have >= limit,
            "<=": have <= limit,
            "==": have == limit,
            ">": have > limit,
            "<": have < limit,
        }
        if not holds[operator]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(".")]
    while numbers and numbers[-1] == 0:  # 0.4 and 0.4.0 are the same version
        numbers.pop()
    return tuple(numbers)
