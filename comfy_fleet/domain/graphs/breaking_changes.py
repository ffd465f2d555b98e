"""What of a stored workflow's next version breaks programs that use the present one.

A change breaks if a request that the present version takes could be refused by the next one. Other values
inside the graph change what comes out, and break nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs.binding import MAX_TEXT, check_value
from comfy_fleet.domain.graphs.workflow import FILES, Parameter, ParameterType, Workflow

_WIDER = {
    (ParameterType.INTEGER, ParameterType.NUMBER),
    (ParameterType.IMAGE, ParameterType.ASSET),
    (ParameterType.ASSET, ParameterType.IMAGE),  # what it accepts says the rest
}
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class BreakingChange:
    """One change that can break a caller.

    Attributes:
        parameter: Which parameter.
        message: What changes, as a sentence.
    """

    parameter: str
    message: str


def breaking_changes(before: Workflow, after: Workflow) -> tuple[BreakingChange, ...]:
    """Return what breaks callers of ``before`` if ``after`` takes its place, in the parameters' order."""
    found: list[BreakingChange] = []
    for old in before.parameters:
        new = after.parameter(old.name)
        reasons = ["disappears"] if new is None else list(_narrowed(old, new))
        found += [_change(old.name, reason) for reason in reasons]
        if old.role and new is not None and after.name_for(old.role) != old.name:
            found.append(_change(old.name, f"is no longer the workflow's {old.role!r}"))
    for new in after.parameters:
        if new.required and before.parameter(new.name) is None:
            found.append(_change(new.name, "is new and required"))
    return tuple(found)


def _change(parameter: str, reason: str) -> BreakingChange:
    return BreakingChange(parameter=parameter, message=f"parameter {parameter!r} {reason}")


def _narrowed(old: Parameter, new: Parameter) -> Iterator[str]:
    """Yield in which ways a parameter takes less than before."""
    if new.required and not old.required and new.type is not ParameterType.SEED:
        yield "becomes required"
    if old.type is ParameterType.CHOICE and new.type in (ParameterType.CHOICE, ParameterType.STRING):
        yield from _lost_choices(old, new)
        return
    if old.type is not new.type and (old.type, new.type) not in _WIDER:
        yield f"takes {_kind(new)} instead of {_kind(old)}"
        return
    if new.type in FILES:
        yield from _files(old, new)
    elif new.type is ParameterType.STRING:
        yield from _texts(old, new)
    elif new.type is not ParameterType.BOOLEAN:
        yield from _numbers(old, new)


def _lost_choices(old: Parameter, new: Parameter) -> Iterator[str]:
    lost = [one.name for one in old.choices if not _takes(new, one.name)]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        yield f"no longer takes {', '.join(map(repr, lost[:_SHOWN]))}{more}"


def _takes(parameter: Parameter, value: Any) -> bool:
    try:
        check_value(parameter, value)
    except InvalidParameter:
        return False
    return True


def _files(old: Parameter, new: Parameter) -> Iterator[str]:
    if new.accept:
        taken = [pattern.lower() for pattern in new.accept]
        lost = [one for one in old.accept if not any(_covers(pattern, one.lower()) for pattern in taken)]
        if lost or (not old.accept and "*/*" not in taken):
            yield f"takes only {' or '.join(new.accept)} instead of {' or '.join(old.accept) or 'any file'}"
    yield from _lower("bytes", old.max_bytes, new.max_bytes, float("inf"))


def _covers(pattern: str, other: str) -> bool:
    return pattern in ("*/*", other) or (pattern.endswith("/*") and other.startswith(pattern[:-1]))


def _texts(old: Parameter, new: Parameter) -> Iterator[str]:
    before, after = old.min_length or 0, new.min_length or 0
    if after > before:
        yield f"needs at least {after} characters instead of {before}"
    yield from _lower("characters", old.max_length or MAX_TEXT, new.max_length or MAX_TEXT, MAX_TEXT)
    if new.format is not None and old.format is None:
        yield f"must be {new.format.upper()} now"


def _numbers(old: Parameter, new: Parameter) -> Iterator[str]:
    if new.minimum is not None and (old.minimum is None or new.minimum > old.minimum):
        before = "any number" if old.minimum is None else f"{old.minimum:g}"
        yield f"has the minimum {new.minimum:g} instead of {before}"
    if new.maximum is not None and (old.maximum is None or new.maximum < old.maximum):
        before = "any number" if old.maximum is None else f"{old.maximum:g}"
        yield f"has the maximum {new.maximum:g} instead of {before}"
    if new.multiple_of is not None and not _multiple(old.multiple_of, new.multiple_of, old.type):
        before = "any number" if old.multiple_of is None else f"multiples of {old.multiple_of:g}"
        yield f"takes multiples of {new.multiple_of:g} instead of {before}"


def _multiple(before: float | None, after: float, kind: ParameterType) -> bool:
    """Return whether all that was taken before is a multiple of the new step, too."""
    if before is None:  # whole numbers are multiples of one
        return kind is not ParameterType.NUMBER and after == 1
    return before == after or (before >= after and float(before / after).is_integer())


def _lower(unit: str, before: float | None, after: float | None, most: float) -> Iterator[str]:
    old, new = most if before is None else before, most if after is None else after
    if new < old:
        yield f"takes at most {new:g} {unit} instead of {'any number' if old == most else f'{old:g}'}"


def _kind(parameter: Parameter) -> str:
    words: dict[ParameterType, str] = {
        ParameterType.STRING: "text",
        ParameterType.INTEGER: "a whole number",
        ParameterType.NUMBER: "a number",
        ParameterType.BOOLEAN: "true or false",
        ParameterType.CHOICE: "one of a list",
        ParameterType.SEED: "a seed",
        ParameterType.IMAGE: "a picture",
        ParameterType.ASSET: "a file",
    }
    return words[parameter.type]
