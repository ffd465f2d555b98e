"""A trace: jobs in the order in which they come, as JSON lines below a header.

    {"trace": "comfy-fleet", "version": 1, "units": {"time": "s", "size": "bytes"}}
    {"submitted": 0.5, "owner": "ada", "run_s": 6.2, "models": {"checkpoints/a.safetensors": 6938078334}}

``submitted`` and ``run_s`` must be there. Files are read line by line: millions of jobs take no memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import orjson

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL, MAX_PRIORITY, MIN_PRIORITY
from comfy_fleet.domain.schedule.model_set import NO_MODELS, ModelSet
from comfy_fleet.planning.units import MOST_BYTES, MOST_SECONDS

VERSION = 1
HEADER = {"trace": "comfy-fleet", "version": VERSION, "units": {"time": "s", "size": "bytes"}}
MAX_LINE = 65_536
MAX_FILES = 64
"""Most model files of a job."""
MAX_NAME = 200
"""Longest name of an owner, a pool or a job, in characters."""
MAX_FILE_NAME = 1000
MAX_RUN_S = 1e7
DEFAULT_OWNER = "everybody"


class Tier(IntEnum):
    """Which of one owner's jobs go first, beginning with the lowest."""

    EDITOR = 0
    SINGLE = 1
    BATCH = 2


TIERS = {tier.name.lower(): tier for tier in Tier}
_TIER_NAMES = {tier: name for name, tier in TIERS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceJob:
    """A job as it really is: what no scheduler knows beforehand.

    Attributes:
        id: Its name in the trace.
        submitted: Seconds, on the trace's own clock; so are all other times.
        run_s: Seconds of computing, without loading models, on a node of speed 1.
        models: The model files that it loads.
        memory: Peak bytes on the card; 0: fits anywhere.
        tenant: The owner's tenant; empty: the default one.
        ttl_s: Seconds after ``submitted`` within which it must start.
        finish_by: When it should be done; a wish.
        canceled_at: When its owner cancels it, if it is not done by then.
    """

    id: str
    submitted: float
    run_s: float
    owner: str = DEFAULT_OWNER
    tenant: str = ""
    pool: str = DEFAULT_POOL
    priority: int = 0
    tier: Tier = Tier.SINGLE
    models: ModelSet = NO_MODELS
    memory: int = 0
    ttl_s: float | None = None
    finish_by: float | None = None
    canceled_at: float | None = None


class ModelSets:
    """Model sets, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, int], ...], ModelSet] = {}

    def of(self, files: Iterable[tuple[str, int]]) -> ModelSet:
        """Return the set of these files, in this order: the order in which they are loaded."""
        key = tuple(files)
        if not key:
            return NO_MODELS
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = ModelSet(
                key=" ".join(f"{file}:{size}" for file, size in key), files=key
            )
        return found


def read(lines: Iterable[bytes], name: str) -> Iterator[TraceJob]:
    """Yield a trace's jobs.

    Args:
        lines: With or without line ends; the first one is the header.
        name: The file's name, for errors.

    Raises:
        BadInput: A line or a field is wrong; the message names both.
    """
    sets = ModelSets()
    number, before = 0, -math.inf
    for number, line in enumerate(lines, 1):
        if number == 1:
            _header(line, name)
            continue
        text = line.strip()
        if not text:
            continue
        job = _job(text, number, name, sets)
        if job.submitted < before:
            raise _wrong(name, number, "submitted", f"{job.submitted:g} is before the line above: sort by it")
        before = job.submitted
        yield job
    if number == 0:
        raise BadInput(f"{name} is empty: its first line must be {orjson.dumps(HEADER).decode()}")


def header() -> bytes:
    """Return the first line of a trace."""
    return orjson.dumps(HEADER) + b"\n"


def line_of(job: TraceJob) -> bytes:
    """Return a job as a line of a trace, without what is as usual."""
    fields: dict[str, Any] = {
        "id": job.id,
        "submitted": job.submitted,
        "owner": job.owner if job.owner != DEFAULT_OWNER else None,
        "tenant": job.tenant or None,
        "pool": job.pool if job.pool != DEFAULT_POOL else None,
        "priority": job.priority or None,
        "tier": _TIER_NAMES[job.tier] if job.tier is not Tier.SINGLE else None,
        "models": dict(job.models.files) or None,
        "run_s": job.run_s,
        "memory": job.memory or None,
        "ttl_s": job.ttl_s,
        "finish_by": job.finish_by,
        "canceled_at": job.canceled_at,
    }
    return orjson.dumps({key: value for key, value in fields.items() if value is not None}) + b"\n"


def _header(line: bytes, name: str) -> None:
    example = orjson.dumps(HEADER).decode()
    try:
        found = orjson.loads(line) if len(line) <= MAX_LINE else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("trace") != HEADER["trace"]:
        raise BadInput(f"{name}, line 1 is not the header of a trace: {example}")
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise _wrong(name, 1, "version", f"{_shown(version)} is no version: {VERSION}")
    if version > VERSION:
        raise _wrong(name, 1, "version", f"{version} is newer than this program, which knows {VERSION}")
    if found.get("units", HEADER["units"]) != HEADER["units"]:
        raise _wrong(name, 1, "units", f"must be {orjson.dumps(HEADER['units']).decode()}")


def _job(text: bytes, number: int, name: str, sets: ModelSets) -> TraceJob:
    if len(text) > MAX_LINE:
        raise BadInput(f"{name}, line {number} has more than {MAX_LINE} bytes")
    try:
        found = orjson.loads(text)
    except ValueError as error:
        raise BadInput(f"{name}, line {number} is not JSON: {error}") from None
    if type(found) is not dict:
        raise BadInput(f"{name}, line {number} is not a JSON object")
    values: dict[str, Any] = {"id": str(number - 1)}
    for key, value in found.items():
        check = _FIELDS.get(key)
        if check is None:
            raise _wrong(name, number, key, f"is unknown; there are {', '.join(_FIELDS)}")
        if value is None:
            continue
        try:
            values[key] = check(value)
        except ValueError as error:
            raise _wrong(name, number, key, f"{_shown(value)} is not {error}") from None
    for key in ("submitted", "run_s"):
        if key not in values:
            raise _wrong(name, number, key, "is missing")
    if "models" in values:
        values["models"] = sets.of(values["models"])
    job = TraceJob(**values)
    for key, at in (("finish_by", job.finish_by), ("canceled_at", job.canceled_at)):
        if at is not None and at < job.submitted:
            raise _wrong(name, number, key, f"{at:g} is before submitted, {job.submitted:g}")
    return job


def _wrong(name: str, number: int, field: str, what: str) -> BadInput:
    field = field[:80]
    return BadInput(f"{name}, line {number}, {field}: {what}", details={"line": number, "field": field})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _time(value: Any) -> float:
    if type(value) not in (float, int) or not 0 <= value <= MOST_SECONDS:
        raise ValueError(f"a time in seconds from 0 to {MOST_SECONDS:g}")
    return float(value)


def _duration(value: Any) -> float:
    if type(value) not in (float, int) or not 0 < value <= MAX_RUN_S:
        raise ValueError(f"a number of seconds above 0, at most {MAX_RUN_S:g}")
    return float(value)


def _name(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise ValueError(f"a text of 1 to {MAX_NAME} printable characters")
    return value


def _priority(value: Any) -> int:
    if type(value) is not int or not MIN_PRIORITY <= value <= MAX_PRIORITY:
        raise ValueError(f"a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}")
    return value


def _tier(value: Any) -> Tier:
    found = TIERS.get(value) if type(value) is str else None
    if found is None:
        raise ValueError(f"one of {', '.join(TIERS)}")
    return found


def _bytes(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_BYTES:
        raise ValueError("a whole number of bytes from 0")
    return value


def _models(value: Any) -> tuple[tuple[str, int], ...]:
    if type(value) is not dict or len(value) > MAX_FILES:
        raise ValueError(f"an object with bytes by file, at most {MAX_FILES} files")
    for file, size in value.items():
        if not 0 < len(file) <= MAX_FILE_NAME or not file.isprintable():
            raise ValueError(f"an object whose files have names of 1 to {MAX_FILE_NAME} printable characters")
        if type(size) is not int or not 0 <= size <= MOST_BYTES:
            raise ValueError("an object whose files have whole numbers of bytes from 0")
    return tuple(value.items())


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "id": _name,
    "submitted": _time,
    "owner": _name,
    "tenant": _name,
    "pool": _name,
    "priority": _priority,
    "tier": _tier,
    "models": _models,
    "run_s": _duration,
    "memory": _bytes,
    "ttl_s": _duration,
    "finish_by": _time,
    "canceled_at": _time,
}
