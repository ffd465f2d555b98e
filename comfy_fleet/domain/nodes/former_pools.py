"""Settings in their former form, which named single pools (``FLEET_FREE_IDLE_S=600,big=120``): they still
count."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.node import check_name
from comfy_fleet.domain.nodes.pool import Pool


@dataclass(frozen=True, kw_only=True)
class _Former:
    """How a former setting maps to a pool's field.

    Attributes:
        field: The field of :class:`Pool`.
        option: The option of ``fleet pool set``.
        value: Makes the field's value from a number.
        word: Makes the option's value from a number.
    """

    field: str
    option: str
    value: Callable[[float], Any]
    word: Callable[[float], str]


def _yes(figure: float) -> bool:
    if figure not in (0, 1):
        raise BadInput(f"{figure:g} must be 1 or 0")
    return bool(figure)


SETTINGS: Mapping[str, _Former] = {
    "free_idle_s": _Former(field="free_idle_s", option="--free-idle-s", value=float, word="{:g}".format),
    "free_oom": _Former(
        field="free_on_oom", option="--free-on-oom", value=_yes, word=lambda figure: "yes" if figure else "no"
    ),
}


def taken(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Pool]]:
    """Return settings without their parts about single pools, and those parts.

    Raises:
        BadInput: A setting can't be read; says what to type.
    """
    left, pools = dict(values), dict[str, Pool]()
    for name, former in SETTINGS.items():
        text = left.get(name)
        if not isinstance(text, str) or "," not in text:
            continue
        try:
            left[name] = text.partition(",")[0].strip()
            for pool, figure in _figures(text):
                had = pools.get(pool, Pool(name=pool))
                if getattr(had, former.field) is not None:
                    raise BadInput(f"pool {pool} is named twice")  # noqa: TRY301 - one place for the hint
                facts: dict[str, Any] = {former.field: former.value(figure)}
                pools[pool] = replace(had, **facts)
        except BadInput as error:
            raise BadInput(
                f"FLEET_{name.upper()}: {error}; set it to one number, and pools by "
                f"`fleet pool set POOL {former.option}`"
            ) from error
    return left, pools


def orders(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the readable variables in their former form, each with the command that replaces it."""
    found = {}
    for name, former in SETTINGS.items():
        variable = f"FLEET_{name.upper()}"
        text = environ.get(variable, "")
        if "," in text:
            try:
                typed = [
                    f"fleet pool set {pool} {former.option} {former.word(figure)}"
                    for pool, figure in _figures(text)
                ]
            except BadInput:
                continue  # the settings say so
            found[variable] = "; ".join([*typed, f"then set {variable}={text.partition(',')[0].strip()}"])
    return found


def _figures(text: str) -> Iterator[tuple[str, float]]:
    """Yield the pools of ``NUMBER,POOL=NUMBER,...``. Raises BadInput."""
    for part in text.split(",")[1:]:
        pool, equals, word = (one.strip() for one in part.partition("="))
        try:
            figure = float(word) if equals else math.nan
        except ValueError:
            figure = math.nan
        if not 0 <= figure < math.inf:
            raise BadInput(f"{part.strip()!r} must be POOL=NUMBER, with a number of 0 or more")
        yield check_name("pool", pool), figure
