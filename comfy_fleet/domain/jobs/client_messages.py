"""Websocket messages in a client's own words: what a ComfyUI would have sent it.

They have ComfyUI's types and fields. Times are Unix milliseconds, as there.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus
from comfy_fleet.domain.jobs.shown_ui import without_run_folders


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """One websocket message.

    Attributes:
        data: The JSON of a text message, or all of a binary one.
        text: Whether it is a text message.
        spare: Whether a slow reader can do without it, since a later one says more; never true of results and
            ends.
        asset: The asset whose bytes follow the data, if any: a picture is read only when its turn comes.
        ends: The job whose end is told with this message, if any.
    """

    data: bytes
    text: bool = True
    spare: bool = False
    asset: str = ""
    ends: str = field(default="", compare=False)


def message(type_: str, data: Mapping[str, Any], *, spare: bool = False) -> ClientMessage:
    """Return a text message."""
    return ClientMessage(json.dumps({"type": type_, "data": data}).encode(), spare=spare)


def status(live: int, *, sid: str | None = None) -> ClientMessage:
    """Return how many prompts of the client's owner wait or run; ``sid`` is for a client's first message."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": live}}}
    return message("status", data if sid is None else {**data, "sid": sid})


def execution_start(prompt_id: str, at: float) -> ClientMessage:
    """Return the start of a prompt; ``at`` is in Unix seconds."""
    return message("execution_start", {"prompt_id": prompt_id, "timestamp": _ms(at)})


def execution_cached(prompt_id: str, nodes: Iterable[str], at: float) -> ClientMessage:
    """Return which nodes of a graph came from the cache; ``at`` is in Unix seconds."""
    return message("execution_cached", {"nodes": list(nodes), "prompt_id": prompt_id, "timestamp": _ms(at)})


def executing(prompt_id: str, node: str | None, display_node: str | None = None) -> ClientMessage:
    """Return which node of a graph computes; with None, that the prompt has left the queue."""
    if node is None:
        return message("executing", {"node": None, "prompt_id": prompt_id})
    return message("executing", {"node": node, "display_node": display_node or node, "prompt_id": prompt_id})


def executed(prompt_id: str, node: str, output: object, *, display_node: str = "") -> ClientMessage:
    """Return what a node has returned for the user interface."""
    shown = display_node or node
    return message(
        "executed", {"node": node, "display_node": shown, "output": output, "prompt_id": prompt_id}
    )


def end_of(job: Job, at: float) -> ClientMessage:
    """Return the message that tells a final job's end; see :func:`end_data`."""
    return message(*end_data(job, at))


def end_data(job: Job, at: float) -> tuple[str, dict[str, Any]]:
    """Return type and data of the message that tells a final job's end; ``at`` is in Unix seconds.

    A job that was canceled before it began was interrupted for its client: ComfyUI itself says nothing about
    a prompt that is deleted from its queue, and a script that waits for it would wait for ever.
    """
    if job.status is JobStatus.SUCCEEDED:
        return ("execution_success", {"prompt_id": job.prompt_id, "timestamp": _ms(at)})
    node = job.progress.current_node if job.progress else None
    if job.status is JobStatus.CANCELED:
        node_type = job.progress.current_node_class if job.progress else None
        about = {"prompt_id": job.prompt_id, "node_id": node, "node_type": node_type}
        return ("execution_interrupted", {**about, "executed": [], "timestamp": _ms(at)})
    error = job.error or JobError(code="internal_error", message="the job has failed")
    return (
        "execution_error",
        {
            "prompt_id": job.prompt_id,
            "node_id": error.node_id,
            "node_type": error.class_type,
            "executed": [],
            "exception_message": without_run_folders(error.message),
            "exception_type": _exception_type(error),
            "traceback": without_run_folders(error.traceback or "").splitlines(keepends=True),
            "current_inputs": {},
            "current_outputs": [],
            "timestamp": _ms(at),
        },
    )


def _exception_type(error: JobError) -> str:
    told = error.details.get("exception_type")
    return told if isinstance(told, str) and told else error.code


def _ms(at: float) -> int:
    return int(at * 1000)


def left(prompt_id: str) -> ClientMessage:
    """Return ComfyUI's last message about a prompt."""
    return executing(prompt_id, None)
