"""A job in the forms of ComfyUI's own interface: an entry of its queue, its history and its jobs API.

Facts (ComfyUI 0.3.64 and 0.33): times are milliseconds; an interrupted prompt has the status ``error`` in the
history and ``cancelled`` in the jobs API; texts are shown by the jobs API but not counted as outputs; a
picture that was saved goes before one that is only a preview, and both before texts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.job import Job, JobStatus

MOST_PREVIEW = 1024
"""Characters of a text that a list shows."""
_MODEL_FILES = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_TEXT_FILES = (".txt", ".md", ".json")
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d", "text"})


class ListedState(StrEnum):
    """The states of ComfyUI's jobs API."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether a job in it will never change again."""
        return self not in (ListedState.PENDING, ListedState.IN_PROGRESS)


_STATES = {
    JobStatus.QUEUED: ListedState.PENDING,
    JobStatus.RUNNING: ListedState.IN_PROGRESS,
    JobStatus.CANCELING: ListedState.IN_PROGRESS,
    JobStatus.SUCCEEDED: ListedState.COMPLETED,
    JobStatus.FAILED: ListedState.FAILED,
    JobStatus.EXPIRED: ListedState.FAILED,
    JobStatus.CANCELED: ListedState.CANCELLED,
}


def listed_state(job: Job) -> ListedState | None:
    """Return a job's state; None for one that was deleted, or canceled before it ran: ComfyUI forgets it."""
    if job.hidden or (job.status is JobStatus.CANCELED and job.started_at is None):
        return None
    return _STATES[job.status]


def shown_number(number: float) -> int | float:
    """Return a job's number as ComfyUI writes it."""
    return int(number) if number.is_integer() else number


def milliseconds(seconds: float) -> int:
    """Return a time as ComfyUI writes it."""
    return int(seconds * 1000)


def shown_extra_data(
    extra_data: Mapping[str, Any], *, client_id: str | None, created_at: float
) -> dict[str, Any]:
    """Return a prompt's ``extra_data``, which has no secrets, with what ComfyUI adds to it."""
    added = {} if client_id is None else {"client_id": client_id}
    return {**extra_data, **added, "create_time": milliseconds(created_at)}


# -- the history -------------------------------------------------------------------------------------------


def history_entry(
    job: Job, *, graph: Any, extra_data: Mapping[str, Any], outputs: Sequence[str], ui: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a final job's entry of ``/history``.

    Args:
        job: The job.
        graph: As submitted.
        extra_data: As :func:`shown_extra_data` returns it.
        outputs: The output nodes that it was to run.
        ui: What its nodes returned for the user interface, with its client's names.
    """
    number = job.number if job.history_number is None else job.history_number
    return {
        "prompt": [shown_number(number), job.prompt_id, graph, extra_data, list(outputs)],
        "outputs": ui,
        "status": execution_status(job),
        "meta": {
            node_id: {
                "node_id": node_id,
                "display_node": node_id,
                "parent_node": None,
                "real_node_id": node_id,
            }
            for node_id in ui
        },
    }


def execution_status(job: Job) -> dict[str, Any]:
    """Return how a final job ended, with the messages that its client was sent."""
    done = job.status is JobStatus.SUCCEEDED
    return {
        "status_str": "success" if done else "error",
        "completed": done,
        "messages": [list(message) for message in _messages(job)],
    }


def _messages(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    started = job.started_at or job.created_at
    told = {"prompt_id": job.prompt_id, "timestamp": milliseconds(started)}
    yield "execution_start", told
    yield "execution_cached", {"nodes": list(job.output_nodes) if job.cached else [], **told}
    yield _end(job)


def _end(job: Job) -> tuple[str, dict[str, Any]]:
    """Return the last message; clients that check a schema want texts where a node is named."""
    type_, data = client_messages.end_data(job, job.completed_at or job.started_at or job.created_at)
    named: dict[str, Any] = {name: data[name] or "" for name in ("node_id", "node_type") if name in data}
    return type_, {**data, **named}


# -- the jobs API ------------------------------------------------------------------------------------------


def live_item(
    *,
    prompt_id: str,
    state: ListedState,
    number: float,
    created_at: float,
    workflow_id: str | None,
) -> dict[str, Any]:
    """Return a job that waits or runs, as ``/api/jobs`` lists it."""
    return {
        "id": prompt_id,
        "status": state.value,
        "priority": shown_number(number),
        "create_time": milliseconds(created_at),
        "outputs_count": 0,
        "previewable_outputs_count": 0,
        **({"workflow_id": workflow_id} if workflow_id is not None else {}),
    }


def final_item(job: Job, state: ListedState, ui: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job that is over, as ``/api/jobs`` lists it."""
    found = list(_outputs(ui))
    preview = _preview(ui)
    ran = job.started_at is not None or state is ListedState.FAILED
    item = {
        "id": job.prompt_id,
        "status": state.value,
        "priority": shown_number(job.number),
        "create_time": milliseconds(job.created_at),
        "execution_start_time": milliseconds(job.started_at or job.created_at) if ran else None,
        "execution_end_time": milliseconds(job.completed_at or job.created_at) if ran else None,
        "execution_error": _end(job)[1] if state is ListedState.FAILED else None,
        "outputs_count": len(found),
        "previewable_outputs_count": sum(_previewable(key, file) for _, key, file in found),
        "preview_output": preview,
        "workflow_id": job.workflow_id,
    }
    return {name: value for name, value in item.items() if value is not None}


def job_details(
    job: Job, *, graph: Any, extra_data: Mapping[str, Any], ui: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``/api/jobs/ID`` adds for a job that is over."""
    return {
        "outputs": {node_id: _normalized(output) for node_id, output in ui.items()},
        "execution_status": execution_status(job),
        "workflow": {"prompt": graph, "extra_data": extra_data},
    }


def _lists(ui: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Walk the lists that nodes returned, as node, key and list."""
    for node_id, output in ui.items():
        for key, items in output.items() if isinstance(output, Mapping) else ():
            if key != "animated" and isinstance(items, list):
                yield node_id, key, items


def _outputs(ui: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Walk the outputs that count, as node, key and file."""
    for node_id, key, items in _lists(ui):
        for item in items:
            if (file := _file(item)) is not None:
                yield node_id, key, file


def _file(item: object) -> Mapping[str, Any] | None:
    """Return an output as a file; a bare name can only be that of a 3D model."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str) and item.lower().endswith(_MODEL_FILES):
        return {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
    return None


def _normalized(output: Any) -> Any:
    if not isinstance(output, Mapping):
        return output
    return {
        key: [_file(item) or item for item in items if item is not None]
        if key != "animated" and isinstance(items, list)
        else items
        for key, items in output.items()
    }


def _previewable(key: str, file: Mapping[str, Any]) -> bool:
    kind = file.get("format")
    if key in _PREVIEWABLE or (isinstance(kind, str) and kind.startswith(("video/", "audio/"))):
        return True
    return _named(file, (*_MODEL_FILES, *_TEXT_FILES))


def _named(file: Mapping[str, Any], endings: tuple[str, ...]) -> bool:
    name = file.get("filename")
    return isinstance(name, str) and name.lower().endswith(endings)


def _preview(ui: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the output that stands for all: a saved one, else any other, else a text file, else a text."""
    found = [
        {**file, "nodeId": node_id, "mediaType": file.get("mediaType", key)}
        for node_id, key, file in _outputs(ui)
        if _previewable(key, file)
    ]
    seen = [one for one in found if one["mediaType"] != "text" and not _named(one, _TEXT_FILES)]
    saved = (one for one in seen if one.get("type") == "output")
    return next(saved, None) or _first(seen) or _first(found) or _first(_texts(ui))


def _first(found: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next(iter(found), None)


def _texts(ui: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for node_id, key, items in _lists(ui):
        for item in items if key == "text" else ():
            if isinstance(item, Mapping) or _file(item) is not None:
                continue
            text = str(item)
            cut = {"truncated": True} if len(text) > MOST_PREVIEW else {}
            yield {"content": text[:MOST_PREVIEW], **cut, "nodeId": node_id, "mediaType": key}
