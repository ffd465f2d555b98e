"""How much somebody may use: by role, by key, by tenant. Each narrows what the others leave."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from comfy_fleet.domain.errors import BadInput, NotAllowed
from comfy_fleet.domain.roles import ROLE_WORDS, Role, parse_role

MOST_WINDOWS = 4
MOST_COUNT = 10_000
"""In a window: the store keeps a time for each."""
LONGEST_WINDOW_S = 7 * 86400.0
MOST_NUMBER = 2**53 - 1
MOST_WORKFLOWS = 100
MOST_OWNERS = 1000
"""Of a tenant, so many users are counted."""

_WINDOW = re.compile(r"([0-9]{1,9})/([0-9]{1,6})?([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,3})?)(|k|M|G|T)B?")
_SIZES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_WORKFLOW = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Window:
    """At most so many in any time of this length."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:g}s"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits as somebody has set them; None and nothing mean that there is none.

    Attributes:
        submits: Requests that make jobs; however many jobs one makes, it counts once.
        requests: Requests of any kind, to each API process.
        queued: Jobs that wait.
        live: Jobs that wait or run.
        running: Jobs that run; more wait.
        stored: Bytes of files that are kept, in uploads and outputs.
        streams: Event streams that may be open at each API process.
        sockets: The same of websockets.
        body: Bytes of a request's body.
        workflows: Names of the stored workflows that may be run.
        raw_graphs: Whether graphs may be run that are no stored workflows; they may, unless it is False.
        priority: The highest priority of a job.
    """

    submits: tuple[Window, ...] = ()
    requests: tuple[Window, ...] = ()
    queued: int | None = None
    live: int | None = None
    running: int | None = None
    stored: int | None = None
    streams: int | None = None
    sockets: int | None = None
    body: int | None = None
    workflows: tuple[str, ...] | None = None
    raw_graphs: bool | None = None
    priority: int | None = None


NO_LIMITS = Limits()
LIMIT_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, kw_only=True)
class ScopedLimits:
    """Limits, and what counts towards them.

    Attributes:
        scope: ``user``, ``key`` or ``tenant``.
        subject: Its name, or the key's id.
        owners: Whose jobs and files count.
    """

    scope: str
    subject: str
    owners: tuple[str, ...]
    limits: Limits


def least(scoped: Iterable[ScopedLimits], name: str) -> tuple[int, str] | None:
    """Return the lowest of some scopes' limits of a name, and whose it is; None if none has one."""
    found = [(value, one.scope) for one in scoped if (value := getattr(one.limits, name)) is not None]
    return min(found, default=None)


def refused_workflow(scoped: Iterable[ScopedLimits], name: str | None) -> tuple[str, str] | None:
    """Return which limit keeps a job from being made, and whose it is.

    Args:
        scoped: The limits.
        name: Of the stored workflow; None for a graph.
    """
    for one in scoped:
        if name is None and one.limits.raw_graphs is False:
            return "raw_graphs", one.scope
        if name is None and one.limits.workflows is not None and one.limits.raw_graphs is None:
            return "workflows", one.scope
        if name is not None and one.limits.workflows is not None and name not in one.limits.workflows:
            return "workflows", one.scope
    return None


def check_workflow_allowed(scoped: Iterable[ScopedLimits], name: str | None) -> None:
    """Refuse a job that may not be made.

    Args:
        scoped: The limits.
        name: Of the stored workflow; None for a graph, and for a draft, which is whatever its owner draws.

    Raises:
        NotAllowed: It may not.
    """
    scoped = tuple(scoped)
    if (found := refused_workflow(scoped, name)) is None:
        return
    limit, scope = found
    lists = [one.limits.workflows for one in scoped if one.limits.workflows is not None]
    allowed = [one for one in lists[0] if all(one in names for names in lists)] if lists else None
    what = "graphs may not be submitted" if name is None else f"workflow {name!r} may not be run"
    may = f"; these may: {', '.join(allowed[:20]) or 'none'}" if allowed is not None else ""
    raise NotAllowed(
        f"{what}, by the {scope}'s limit {limit!r}{may}",
        details={"limit": limit, "scope": scope, "allowed": allowed},
    )


def script_quota(scoped: Iterable[ScopedLimits]) -> Mapping[str, Any] | None:
    """Return what the store checks when a job is written: windows and amounts; None for nothing."""
    windows = [
        {
            "scope": one.scope,
            "subject": one.subject,
            "count": window.count,
            "seconds": window.seconds,
            "shown": str(window),
        }
        for one in scoped
        for window in one.limits.submits
    ]
    amounts = [
        {"scope": one.scope, "name": name, "most": most, "owners": list(one.owners[:MOST_OWNERS])}
        for one in scoped
        for name in ("queued", "live", "stored")
        if (most := getattr(one.limits, name)) is not None
    ]
    if not windows and not amounts:
        return None
    return {"windows": windows, "amounts": amounts}


def running_bounds(scoped: Iterable[ScopedLimits]) -> Mapping[str, int]:
    """Return how many jobs may run at once, by who is counted: ``user:NAME`` or ``tenant:NAME``.

    A key's bound counts its user's jobs.
    """
    found: dict[str, int] = {}
    for one in scoped:
        if (most := one.limits.running) is not None:
            who = f"tenant:{one.subject}" if one.scope == "tenant" else f"user:{one.owners[0]}"
            found[who] = min(most, found.get(who, most))
    return found


def stored_quota(scoped: Iterable[ScopedLimits]) -> Mapping[str, Any] | None:
    """Return the part of :func:`script_quota` about bytes, for a file; None for nothing."""
    found = script_quota(scoped)
    amounts = [one for one in found["amounts"] if one["name"] == "stored"] if found else []
    return {"amounts": amounts} if amounts else None


def parse_limits(words: Mapping[str, str]) -> Limits:
    """Return limits from names and values as people write them, such as ``submits`` and ``10/1s,100/1m``.

    Raises:
        BadInput: There is no such limit, or it can't be this.
    """
    found: dict[str, Any] = {}
    for name, text in words.items():
        if name not in LIMIT_NAMES:
            raise _wrong(name, f"is no limit; there are {', '.join(LIMIT_NAMES)}")
        found[name] = _value(name, text.strip())
    return Limits(**found)


def stored_limits(words: Mapping[str, str]) -> Limits:
    """Return limits as another version may have stored them: what is not known here is left out.

    Raises:
        BadInput: One that is known can't be read.
    """
    return parse_limits({name: text for name, text in words.items() if name in LIMIT_NAMES})


def limit_words(text: str) -> Mapping[str, str]:
    """Split ``NAME=VALUE NAME=VALUE`` into names and values.

    Raises:
        BadInput: A part is no such pair, or comes twice.
    """
    found: dict[str, str] = {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if not equals or name in found:
            raise _wrong(name, "must be NAME=VALUE, each name once")
        found[name] = value
    return found


def parse_role_limits(text: str) -> Mapping[Role, Limits]:
    """Return limits by role from ``ROLE: NAME=VALUE ...; ROLE: ...``.

    Raises:
        BadInput: A part of it can't be read.
    """
    found: dict[Role, Limits] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        word, _, rest = part.partition(":")
        try:
            role = parse_role(word.strip())
        except ValueError:
            raise BadInput(f"{word.strip()[:40]!r} is no role; there are {', '.join(ROLE_WORDS)}") from None
        if role in found:
            raise BadInput(f"the role {role} has limits twice")
        found[role] = parse_limits(limit_words(rest))
    return found


def limits_of_roles(table: Mapping[Role, Limits], roles: frozenset[Role]) -> Limits:
    """Return the limits of somebody with these roles: those of the highest one."""
    for role in (Role.OPERATOR, Role.ARTIST, Role.METRICS):
        if role in roles:
            return table.get(role, NO_LIMITS)
    return table.get(Role.SUBMIT, NO_LIMITS)


def _value(name: str, text: str) -> object:
    if name in ("submits", "requests"):
        return _windows(name, text)
    if name == "workflows":
        names = tuple(filter(None, (part.strip() for part in text.split(","))))
        if len(names) > MOST_WORKFLOWS or not all(_WORKFLOW.fullmatch(one) for one in names):
            raise _wrong(name, f"must be at most {MOST_WORKFLOWS} names of stored workflows, with commas")
        return names
    if name == "raw_graphs":
        if text not in ("yes", "no"):
            raise _wrong(name, "must be yes or no")
        return text == "yes"
    if name in ("stored", "body"):
        match = _SIZE.fullmatch(text)
        if match is None or (size := round(float(match[1]) * _SIZES[match[2]])) > MOST_NUMBER:
            raise _wrong(name, "must be a number of bytes, such as 500000, 20MB or 1.5GB")
        return size
    if not re.fullmatch(r"-?[0-9]{1,16}", text) or not -MOST_NUMBER <= (number := int(text)) <= MOST_NUMBER:
        raise _wrong(name, "must be a whole number")
    if number < 1 and name == "running":
        raise _wrong(name, "must not be below 1: jobs would wait for ever")
    if number < 0 and name != "priority":
        raise _wrong(name, "must not be below 0")
    return number


def _windows(name: str, text: str) -> tuple[Window, ...]:
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _WINDOW.fullmatch(part)
        if match is None:
            raise _wrong(name, "must be COUNT/TIME, several with commas, such as 10/1s,100/1m,5000/d")
        window = Window(count=int(match[1]), seconds=int(match[2] or 1) * _UNITS[match[3]])
        if not 1 <= window.count <= MOST_COUNT or not 0 < window.seconds <= LONGEST_WINDOW_S:
            raise _wrong(name, f"may count to {MOST_COUNT}, within a week at most")
        found.append(window)
    if len(found) > MOST_WINDOWS:
        raise _wrong(name, f"may have {MOST_WINDOWS} windows")
    return tuple(found)


def _wrong(name: str, what: str) -> BadInput:
    shown = name[:40]
    return BadInput(f"limit {shown!r} {what}", details={"field": "limits", "limit": shown})
