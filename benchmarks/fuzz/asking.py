"""Hooks for schemathesis: requests get ids of real things and bodies that can be taken; answers are counted.

Loaded by name (``SCHEMATHESIS_HOOKS``), in the process that :mod:`.served` starts.
"""

import atexit
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

from benchmarks.fuzz.objects import Objects

_told: dict[str, Any] = json.loads(os.environ["FUZZ_OBJECTS"])
_objects = Objects(**_told["fleet"])
_counts: dict[str, Counter[int]] = {}
_UNGIVEN = ("cursor", "base_version", "operator", "expected_hash")
"""Parameters whose values come from an answer, or need a setting that the fleet does not have."""
_OTHER = {
    # A stream of events ends with its job, which may wait for ever.
    "GET /api/v1/jobs/{job_id}/events": "done",
    "GET /api/v2/jobs/{job_id}/events": "done",
    "DELETE /api/v1/tenants/{tenant}": "empty_tenant",
}
"""Kinds of things that paths take instead of what their names say."""
_ONCE = "Idempotency-Key"
_WAITS = ("1", "2")
_LEAST = 0.25
"""The part of the well-formed requests that carry nothing besides what is needed."""
_DRAWN = 0.1
"""The part of paths whose names stay as they were drawn."""


def _given(drawn: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in drawn.items() if name not in _UNGIVEN}


def _meant(drawn: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name in drawn if (one := _objects.meant(name)) is not None}


def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    label = context.operation.label
    parts = case.meta.components if case.meta else {}
    chance = _objects.chance

    def well(part: ParameterLocation) -> bool:
        return part not in parts or parts[part].mode.is_positive

    if case.path_parameters and well(ParameterLocation.PATH) and chance.random() > _DRAWN:
        for name in case.path_parameters:
            case.path_parameters[name] = _objects.get(_OTHER.get(label, name))
    if case.meta and not case.meta.generation.mode.is_positive:
        return  # what is wrong on purpose stays so
    only = chance.random() < _LEAST
    if well(ParameterLocation.QUERY):
        drawn = {} if only else _given(case.query or {})
        case.query = {**drawn, **_meant(drawn), **_objects.query(label)}
        if "wait" in case.query or "cancel_on_disconnect" in case.query:
            case.query["wait"] = chance.choice(_WAITS)  # some jobs never end, and the one needs the other
    if well(ParameterLocation.HEADER) and case.headers:
        if _ONCE in case.headers:
            case.headers[_ONCE] = f"{chance.randrange(1 << 60)}"
        if "Prefer" in case.headers:
            case.headers["Prefer"] = f"wait={chance.choice(_WAITS)}"
    # Forms stay as they are: schemathesis takes a changed one for one that is wrong.
    if case.media_type == "application/json" and isinstance(case.body, dict):
        needed = _objects.body(label)
        body = {} if only and needed else _given(case.body)
        if "webhook_events" in body:
            body["webhook_url"] = ""
        if "pool" in body:
            body.pop("prefer_pool", None)  # they exclude each other
        if "ttl_s" in body:
            body.pop("deadline_s", None)  # its older name
        body.pop("negative_prompt", None)  # the workflow behind /generate takes none
        case.body = {**body, **_meant(body), **(needed or {})}


def after_call(context: Any, case: Any, response: Any) -> None:
    status = response.status_code
    if case.method == context.operation.method.upper():
        _counts.setdefault(context.operation.label, Counter())[status] += 1
    if status in (404, 409) or (case.method == "DELETE" and status < 300):
        _objects.forget(context.operation.path)


schemathesis.hook(before_call)
schemathesis.hook(after_call)


@atexit.register
def _write() -> None:
    Path(_told["counts"]).write_text(json.dumps({label: dict(one) for label, one in _counts.items()}))
