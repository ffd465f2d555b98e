"""Run results: what ComfyUI's answers, error frames and history entries mean for a job.

An attempt counts towards ``max_attempts`` only if the node took the prompt and then died, lost it or raised
an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from comfy_fleet.domain.graphs.file_access import without_staged
from comfy_fleet.domain.jobs.job import JobError
from comfy_fleet.domain.jobs.outputs import OutputItem, find_outputs
from comfy_fleet.domain.jobs.run_messages import PostAnswered, RunResult
from comfy_fleet.domain.text import clean, clip

MAX_MESSAGE, MAX_TRACE = 4096, 32_768
"""Characters of an error that a job keeps, because every list of jobs has them. A traceback's end says
most."""
MAX_NAME, MAX_DEFECT = 128, 512
"""Characters of a name (a node's id, a class, a field) and of what is wrong with one input."""
MAX_DEFECTS = 32
"""How many faults of a graph a job keeps; the number of the others is given."""

NODE_BUSY = "node_busy"

# Frames with this exception are notes about one blocked node; the prompt goes on.
BLOCKED = "ExecutionBlocked"

_OUT_OF_MEMORY = re.compile(r"(CUDA|HIP|MPS|XPU)\b.{0,40}out of memory|Allocation on device", re.IGNORECASE)
# After one of these the process's CUDA context is usually broken: every later job on the node fails, too.
_GPU_FAULT = re.compile(
    r"(CUDA|HIP|cuDNN|CUBLAS|cuBLAS|CUFFT|NCCL)(_STATUS_\w+| error\b| driver error|DNN_STATUS)"
    r"|CUDNN_STATUS|illegal memory access|unspecified launch failure|uncorrectable ECC|GPU is lost"
    r"|fallen off the bus|no CUDA-capable device|No CUDA GPUs are available|misaligned address",
)
_GPU_FAULT_TYPES = frozenset({"AcceleratorError", "CudaError", "DeferredCudaCallError"})
# The graph's own fault, on any GPU; the context is broken nevertheless.
_ASSERT = re.compile(r"device-side assert")
_REASONS = {"required_input_missing": "missing_input", "bad_linked_input": "bad_link"}


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a history entry says.

    Attributes:
        success: Whether it succeeded: by its messages, else by its status; None if neither says.
        told: Whether the messages say how it ended.
        error: The ``execution_error`` message's data, if there is one.
        interrupted: Whether it was interrupted.
        items: Its outputs, by node and key.
    """

    success: bool | None
    told: bool = False
    error: Mapping[str, Any] | None = None
    interrupted: bool = False
    items: tuple[OutputItem, ...] = field(default=())


def read_history(entry: Mapping[str, Any], run: str = "", most: int | None = None) -> Past:
    """Read this run's value of ``GET /history/ID``, with at most a given number of outputs.

    Its ``status_str`` is not reliable: a dependency cycle that appears while the prompt runs ends it with an
    ``execution_error``, and ComfyUI still writes "success".
    """
    outputs = entry.get("outputs")
    found = (
        item
        for node_id, output in (outputs.items() if isinstance(outputs, Mapping) else ())
        for item in find_outputs(str(node_id), output, run=run, most=most)
    )
    items = tuple(islice(found, most))
    status = entry.get("status")
    if not isinstance(status, Mapping):
        return Past(success=None, items=items)
    error: Mapping[str, Any] | None = None
    interrupted, ends = False, set[bool]()
    for message in _list(status.get("messages")):
        if not isinstance(message, Sequence) or isinstance(message, str) or len(message) != 2:
            continue
        name, data = message
        match name:
            case "execution_error" if isinstance(data, Mapping) and data.get("exception_type") != BLOCKED:
                error = data
                ends.add(False)
            case "execution_interrupted":
                interrupted = True
                ends.add(False)
            case "execution_success":
                ends.add(True)
    if ends:
        return Past(success=ends == {True}, told=True, error=error, interrupted=interrupted, items=items)
    success = {"success": True, "error": False}.get(str(status.get("status_str")))
    if success is None and isinstance(status.get("completed"), bool):
        success = bool(status["completed"])
    return Past(success=success, items=items)


def rejected(answer: PostAnswered) -> RunResult:
    """Return the run's result after an answer to ``POST /prompt`` that is not a clean 200."""
    body = answer.body or {}
    error = body.get("error")
    errors = node_errors(body)
    left_out = _count(body) - sum(map(len, errors.values()))
    more = {"node_errors_left_out": left_out} if left_out > 0 else {}
    invalid = answer.status in (200, 400)
    if isinstance(error, Mapping) and error.get("message"):
        message = ". ".join(
            str(part).rstrip(".") for part in (error["message"], error.get("details")) if part
        )
    elif isinstance(error, str) and error:
        message = error
    elif errors:
        message = "part of the workflow is invalid on this node"
    else:
        message = f"the node answered POST /prompt with {answer.status}: {answer.text[:500] or 'no text'}"
    first = next(iter(errors), None)
    if first is not None and (told := errors[first][0]["message"]) not in message:
        # "Prompt outputs failed validation" alone does not tell the user what is wrong.
        message = f"{message}. Node {first}: {told}"
    return RunResult(
        kind="rejected",
        error=JobError(
            code="invalid_workflow" if invalid else "internal_error",
            message=clip(message, MAX_MESSAGE),
            node_id=first,
            class_type=_class_of(body, first),
            details={"node_errors": errors, **more} if invalid else {"status": answer.status},
        ),
        counts=False,
        exclude_node=True,
        retryable=True,
        details={"status": answer.status, "type": error.get("type") if isinstance(error, Mapping) else None},
    )


def node_errors(body: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Translate the first of ComfyUI's validation errors to ``{node_id: [{field, reason, message}]}``."""
    found: dict[str, list[dict[str, str]]] = {}
    by_node = body.get("node_errors")
    for node_id, entry in by_node.items() if isinstance(by_node, Mapping) else ():
        for error in _list(entry.get("errors") if isinstance(entry, Mapping) else None):
            if isinstance(error, Mapping) and sum(map(len, found.values())) < MAX_DEFECTS:
                found.setdefault(clip(str(node_id), MAX_NAME), []).append(_defect(error))
    top = body.get("error")
    if not found and isinstance(top, Mapping):
        # ComfyUI reports a missing class for the whole prompt: "Node ID '#12'".
        extra = top.get("extra_info")
        node_id = extra.get("node_id") if isinstance(extra, Mapping) else None
        match = re.fullmatch(r"Node ID '#(.+)'", str(top.get("details")))
        if node_id is None and match:
            node_id = match[1]
        if node_id is not None:
            reason = clip(str(top.get("type") or "invalid_prompt"), MAX_NAME)
            message = clip(str(top.get("message") or reason), MAX_DEFECT)
            found[clip(str(node_id), MAX_NAME)] = [
                {"field": "class_type", "reason": reason, "message": message}
            ]
    return found


def _count(body: Mapping[str, Any]) -> int:
    by_node = body.get("node_errors")
    entries = by_node.values() if isinstance(by_node, Mapping) else ()
    return sum(len(_list(entry.get("errors"))) for entry in entries if isinstance(entry, Mapping))


def failed(data: Mapping[str, Any]) -> RunResult:
    """Return the run's result after an ``execution_error``."""
    type_ = str(data.get("exception_type") or "")
    message = str(data.get("exception_message") or "").strip()
    out_of_memory = type_.rpartition(".")[2] == "OutOfMemoryError" or bool(_OUT_OF_MEMORY.search(message))
    fault = not out_of_memory and (
        type_.rpartition(".")[2] in _GPU_FAULT_TYPES or bool(_GPU_FAULT.search(message))
    )
    blamed = bool(_ASSERT.search(message))
    code = "out_of_memory" if out_of_memory else "gpu_fault" if fault else "node_execution_error"
    lines = data.get("traceback")
    trace = "".join(str(line) for line in _list(lines)) or (lines if isinstance(lines, str) else "")
    return RunResult(
        kind="failed",
        error=JobError(
            code=code,
            message=clip(message or type_, MAX_MESSAGE) or "the node reported an error without a message",
            node_id=_text(data.get("node_id")),
            class_type=_text(data.get("node_type")),
            traceback=clean(trace[-MAX_TRACE:]) or None,
            details={"exception_type": clip(type_, MAX_NAME)} if type_ else {},
        ),
        counts=True,
        exclude_node=fault and not blamed,
        # The same graph would raise the same error again; but another node may have free memory, or a sound
        # GPU.
        retryable=out_of_memory or (fault and not blamed),
    )


def lost(message: str, *, counts: bool, code: str = "node_lost") -> RunResult:
    """Return the run's result when its prompt's fate can no longer be found out."""
    return RunResult(kind="lost", error=JobError(code=code, message=message), counts=counts, retryable=True)


def withdrawn(waited_s: float) -> RunResult:
    """Return the run's result when its prompt was taken back before it had begun."""
    message = f"it waited {waited_s:.0f} s on its node behind a prompt that is not the fleet's"
    return lost(message, counts=False, code=NODE_BUSY)


def timed_out(message: str) -> RunResult:
    """Return the run's result when its prompt was interrupted because it took too long."""
    return RunResult(
        kind="timeout", error=JobError(code="run_timeout", message=message), counts=True, retryable=False
    )


def over_limit(message: str) -> RunResult:
    """Return the run's result when its prompt was interrupted because its node sent too large a frame."""
    return RunResult(
        kind="failed", error=JobError(code="frame_too_large", message=message), counts=True, retryable=True
    )


def _defect(error: Mapping[str, Any]) -> dict[str, str]:
    extra = error.get("extra_info")
    name = extra.get("input_name") if isinstance(extra, Mapping) else None
    reason = str(error.get("type") or "invalid")
    message = ": ".join(str(part) for part in (error.get("message"), error.get("details")) if part)
    if reason == "value_not_in_list":
        message = without_staged(message)
    return {
        "field": clip(str(name or ""), MAX_NAME),
        "reason": clip(_REASONS.get(reason, reason), MAX_NAME),
        "message": clip(message or reason, MAX_DEFECT),
    }


def _class_of(body: Mapping[str, Any], node_id: str | None) -> str | None:
    by_node = body.get("node_errors")
    entry = by_node.get(node_id) if isinstance(by_node, Mapping) else None
    return _text(entry.get("class_type")) if isinstance(entry, Mapping) else None


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str | None:
    return clip(value, MAX_NAME) if isinstance(value, str) and value else None
