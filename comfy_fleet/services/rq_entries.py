"""What RQ's clients enqueue for the fleet: read with limits, and nothing of it is unpickled or imported."""

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.rq_entry import RqEntry

FUNCTION = "comfy_fleet.run"
"""The one name that may be enqueued; it is no function."""
_CALLBACKS = {
    "success_callback": "on_success",
    "failure_callback": "on_failure",
    "stopped_callback": "on_stopped",
}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RqRequest:
    """What an entry asks for.

    Attributes:
        workflow: A workflow reference.
        options: The other arguments, as a request over HTTP has them.
    """

    workflow: str
    options: Mapping[str, Any]


def read_entry(
    entry: RqEntry, *, most_bytes: int, too_many: Callable[[bytes], bool], callbacks: str
) -> RqRequest:
    """Read an entry.

    Args:
        entry: The entry.
        most_bytes: Of its data, unpacked.
        too_many: Returns whether JSON has more values than are read.
        callbacks: RQ's queue for callbacks; empty: there is none.

    Raises:
        BadInput: It can't be run; the message says why, and what would be.
    """
    if entry.too_long:
        raise _bad(entry.too_long, f"{entry.too_long} is longer than the fleet reads")
    if entry.fields["repeats_left"]:
        raise _bad("repeat", "repeat is not supported: enqueue it again, for example with RQ's cron")
    if entry.fields["webhooks"]:
        raise _bad(
            "webhooks", "RQ's webhooks are not supported: give webhook_url in kwargs, which the fleet signs"
        )
    for kind, option in _CALLBACKS.items():
        if not (name := entry.callback(kind)):
            continue
        if not callbacks:
            raise _bad(
                option,
                f"{option} is not supported here: a callback runs on your own workers, on the queue that the "
                "operator names in FLEET_RQ_CALLBACKS, which is not set",
            )
        if not _NAME.fullmatch(name):
            raise _bad(option, f"{option} must be the name of a function in a module, MODULE.FUNCTION")
    data = _unpacked(entry.fields["data"], most_bytes)
    if too_many(data):
        raise _bad("data", "data has more values than the fleet reads (FLEET_MAX_PARAMS_VALUES)")
    call = _read(data)
    if not isinstance(call, list) or len(call) != 4:
        raise _bad("data", "data must be RQ's list of function, instance, args and kwargs")
    function, instance, args, kwargs = call
    if function != FUNCTION or instance is not None:
        shown = function[:80] if isinstance(function, str) else type(function).__name__
        raise _bad(
            "func",
            f"this queue takes {FUNCTION!r} alone, not {shown!r}: your own functions run on your own workers",
        )
    if args or not isinstance(kwargs, dict):
        raise _bad(
            "args",
            f"{FUNCTION} takes no positional arguments: give kwargs={{'workflow': NAME, 'params': {{...}}}}",
        )
    workflow = kwargs.pop("workflow", None)
    if not isinstance(workflow, str):
        raise _bad("workflow", "kwargs must have `workflow`, the name of a stored workflow")
    return RqRequest(workflow=workflow, options=_with_times(kwargs, entry))


def _with_times(options: dict[str, Any], entry: RqEntry) -> dict[str, Any]:
    """Add RQ's own times to the options, unless these say otherwise."""
    timeout, ttl = entry.seconds("timeout", -1), entry.seconds("ttl", -1)
    if timeout > 0 and options.get("timeout_s") is None:
        options["timeout_s"] = timeout
    if ttl > 0 and options.get("ttl_s") is None and options.get("deadline_s") is None:
        options["ttl_s"] = ttl
    return options


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    """Return what RQ's client has written, if it may be JSON."""
    if not data:
        raise _bad("data", "RQ's record has no data")
    if data[:1] == b"x":  # zlib; RQ takes what is not packed, too
        unpack = zlib.decompressobj()
        try:
            data = unpack.decompress(data, most_bytes + 1)
        except zlib.error as error:
            raise _bad("data", f"data can't be unpacked: {error}") from None
    if len(data) > most_bytes:
        raise _bad("data", f"data is longer than {most_bytes} bytes (FLEET_MAX_PARAMS_BYTES)")
    if data[:1] == b"\x80":
        raise _bad(
            "data",
            "data is pickled, which the fleet never reads: use Queue(..., serializer=JSONSerializer) of "
            "rq.serializers",
        )
    return data


def _read(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _bad(
            "data",
            f"data is not JSON ({str(error)[:120]}): use Queue(..., serializer=JSONSerializer) of "
            "rq.serializers",
        ) from None


def with_progress(meta: bytes, progress: Mapping[str, Any]) -> bytes | None:
    """Return a client's meta with a job's progress in it; None if it is not the client's to be changed.

    What is not a JSON object stays as it is.
    """
    try:
        noted = orjson.loads(meta) if meta else {}
    except orjson.JSONDecodeError:
        return None
    return orjson.dumps({**noted, "progress": dict(progress)}) if isinstance(noted, dict) else None


def _bad(field: str, message: str) -> BadInput:
    return BadInput(message, details={"field": field})
