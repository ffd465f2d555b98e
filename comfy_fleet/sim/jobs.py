"""The jobs API: another view of queue and history, for the editors of later versions."""

import uuid
from collections.abc import Mapping
from typing import Any

from comfy_fleet.sim.engine import Engine
from comfy_fleet.sim.execution import Item
from comfy_fleet.sim.messages import Request, Response, json_response

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
#: Keys of a node's output whose files an editor shows; files under other keys only with these suffixes.
SHOWN = ("images", "video", "audio", "3d")
SHOWN_SUFFIXES = (".txt", ".md", ".json", ".glb", ".gltf", ".obj", ".fbx", ".usdz")
MAX_TEXT = 1024  # characters of a text that stand in a list


def is_canonical(prompt_id: object) -> bool:
    """Return whether an id is a UUID as text, in lower case and with hyphens."""
    try:
        return isinstance(prompt_id, str) and str(uuid.UUID(prompt_id)) == prompt_id
    except ValueError:
        return False


class BadQuery(ValueError):
    """A parameter has a value that it can't take; the message is what a client is told."""


class Jobs:
    """The routes below ``/api/jobs``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def many(self, request: Request) -> Response:
        """List jobs, the newest first unless asked otherwise."""
        query = request.query
        try:
            states, workflow = _states(query.get("status", "")), query.get("workflow_id")
            by = _choice(query, "sort_by", "created_at", "execution_duration")
            newest_first = _choice(query, "sort_order", "desc", "asc") == "desc"
            limit, offset = _number(query, "limit", least=1), max(0, _number(query, "offset") or 0)
        except BadQuery as error:
            return json_response({"error": str(error)}, 400)
        jobs = [job for job in self._all() if job["status"] in states]
        if workflow:
            jobs = [job for job in jobs if job.get("workflow_id") == workflow]
        jobs.sort(key=_created if by == "created_at" else _duration, reverse=newest_first)
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        more = offset + len(page) < len(jobs)
        pagination = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": more}
        return json_response({"jobs": page, "pagination": pagination})

    def one(self, job_id: str) -> Response:
        """Show one job; of a finished one also its outputs and its graph."""
        for job in self._all():
            if job["id"] == job_id:
                entry = self._engine.history.get(job_id)
                return json_response(job if entry is None else {**job, **_details(entry)})
        return json_response({"error": "Job not found"}, 404)

    def cancel(self, job_id: str) -> Response:
        """Cancel one job; tells whether there was one to cancel, or that is canceled already."""
        return json_response({"cancelled": self._cancel(job_id)})

    def cancel_many(self, request: Request) -> Response:
        """Cancel jobs by their ids."""
        try:
            body = request.json()
        except ValueError:
            return json_response({"error": "Request body must be valid JSON"}, 400)
        ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(ids, list):
            return json_response({"error": "job_ids must be a list"}, 400)
        invalid = [str(job_id) for job_id in ids if not is_canonical(job_id)]
        if invalid:
            return json_response({"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}, 400)
        cancelled = [self._cancel(job_id) for job_id in ids]
        return json_response({"cancelled": any(cancelled)})

    def _cancel(self, job_id: str) -> bool:
        engine = self._engine
        if any(item.prompt_id == job_id for item in engine.pending):
            engine.delete(job_id)
            return True
        if any(item.prompt_id == job_id for item in engine.running):
            engine.interrupt(job_id)
            return True
        return False

    def _all(self) -> list[dict[str, Any]]:
        engine = self._engine
        jobs = [_waiting(item, "pending") for item in engine.pending]
        jobs += [_waiting(item, "in_progress") for item in engine.running]
        known = {job["id"] for job in jobs}
        return jobs + [_finished(entry) for key, entry in engine.history.items() if key not in known]


def _waiting(item: Item, status: str) -> dict[str, Any]:
    return {**_head(item.as_json(), status), **_counts(0, 0, None), **_workflow(item.extra_data)}


def _finished(entry: Mapping[str, Any]) -> dict[str, Any]:
    prompt, messages = entry["prompt"], dict(entry["status"]["messages"])
    if "execution_interrupted" in messages:
        status = "cancelled"
    else:
        status = "completed" if entry["status"]["status_str"] == "success" else "failed"
    stamps = [data["timestamp"] for data in messages.values() if "timestamp" in data]
    times = {"execution_start_time": stamps[0], "execution_end_time": stamps[-1]} if stamps else {}
    failed = {"execution_error": messages["execution_error"]} if "execution_error" in messages else {}
    return {
        **_head(prompt, status),
        **times,
        **failed,
        **_summary(entry["outputs"]),
        **_workflow(prompt[3]),
    }


def _head(prompt: list[Any], status: str) -> dict[str, Any]:
    number, prompt_id, _, extra_data, _ = prompt
    return {
        "id": prompt_id,
        "status": status,
        "priority": number,
        "create_time": extra_data.get("create_time"),
    }


def _workflow(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    workflow = (extra_data.get("extra_pnginfo") or {}).get("workflow") or {}
    return {"workflow_id": workflow["id"]} if workflow.get("id") else {}


def _counts(files: int, shown: int, preview: dict[str, Any] | None) -> dict[str, Any]:
    counts: dict[str, Any] = {"outputs_count": files, "previewable_outputs_count": shown}
    return counts if preview is None else {**counts, "preview_output": preview}


def _summary(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Count the files of all nodes and choose one to show: a saved one before a temporary one or a text."""
    count = 0
    shown: list[dict[str, Any]] = []
    text: dict[str, Any] | None = None
    for node_id, output in _told(outputs).items():
        for media, values in output.items():
            about = {"nodeId": node_id, "mediaType": media}
            if media == "text":
                text = text or {**_shortened(values[0]), **about}
            for value in values if media != "text" else ():
                if isinstance(value, dict) and "filename" in value:
                    count += 1
                    if media in SHOWN or value["filename"].endswith(SHOWN_SUFFIXES):
                        shown.append({**about, **value})
    saved = [file for file in shown if file.get("type") == "output"]
    return _counts(count, len(shown), next(iter(saved or shown), text))


def _shortened(text: str) -> dict[str, Any]:
    return {"content": text[:MAX_TEXT], **({"truncated": True} if len(text) > MAX_TEXT else {})}


def _told(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return outputs as this API tells them: a 3D file that a bare string names becomes an object."""
    made = {}
    for node_id, output in outputs.items():
        made[node_id] = {
            media: [_as_file(value) for value in values if value is not None] if media == "result" else values
            for media, values in output.items()
            if media != "animated"
        }
    return made


def _as_file(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"filename": value, "type": "output", "subfolder": "", "mediaType": "3d"}


def _details(entry: Mapping[str, Any]) -> dict[str, Any]:
    _, _, graph, extra_data, _ = entry["prompt"]
    return {
        "outputs": {
            node_id: {**output, **_told({node_id: output})[node_id]}
            for node_id, output in entry["outputs"].items()
        },
        "execution_status": entry["status"],
        "workflow": {"prompt": graph, "extra_data": extra_data},
    }


def _created(job: Mapping[str, Any]) -> tuple[float, float]:
    return job["create_time"] or 0, job["priority"]


def _duration(job: Mapping[str, Any]) -> float:
    return float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))


def _states(text: str) -> tuple[str, ...]:
    wanted = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [state for state in wanted if state not in STATES]
    if unknown:
        valid = ", ".join(STATES)
        raise BadQuery(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {valid}")
    return wanted or STATES


def _choice(query: Mapping[str, str], name: str, default: str, other: str) -> str:
    value = query.get(name, default)
    if value not in (default, other):
        first, second = sorted((default, other))
        raise BadQuery(f"{name} must be '{first}' or '{second}'")
    return value


def _number(query: Mapping[str, str], name: str, least: int | None = None) -> int | None:
    if name not in query:
        return None
    try:
        number = int(query[name])
    except ValueError:
        raise BadQuery(f"{name} must be an integer") from None
    if least is not None and number < least:
        raise BadQuery(f"{name} must be a positive integer")
    return number
