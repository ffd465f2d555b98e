"""A job's record in Redis, and RQ's view of the same job."""

import hashlib
import json
import logging
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.extra_data import editor_workflow_id
from comfy_fleet.domain.jobs.job import (
    Attempt,
    Job,
    JobError,
    JobStatus,
    Metadata,
    NewJob,
    Output,
    Placement,
    Progress,
)
from comfy_fleet.domain.jobs.merge_key import MergeKey
from comfy_fleet.domain.jobs.model_files import set_key, usable_files
from comfy_fleet.domain.jobs.run_times import RunTimes
from comfy_fleet.domain.jobs.stored_outputs import stored_objects
from comfy_fleet.domain.jobs.workload import load_workload
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.domain.schedule.waiting_job import SINGLE
from comfy_fleet.domain.stores.output_plan import OutputPlace, OutputPlan
from comfy_fleet.domain.text import clean
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.telemetry import EndedJob

logger = logging.getLogger(__name__)

HANDLER = "comfy_fleet.run_prompt"
"""The only function that our jobs may name; RQ's own workers can't import it."""
MAX_REASON = 300
"""Characters of an error's message that a job keeps for each attempt."""
UNREADABLE_JOB = JobError(code="internal_error", message="the job's record can't be read")
FOLLOWS = "the result of an equal job, which waits already"
"""What a job waits for that follows another one."""
_MOST_KNOWN = 1000
_LAST = 1e11
"""Times are Unix seconds before the year 5000; later ones can't be written as a date."""


def reference(job_id: str) -> str:
    """Return RQ's payload for a job: (function, instance, args, kwargs) as JSON. Ids only, never a graph."""
    return orjson.dumps([HANDLER, None, [job_id], {}]).decode()


def rq_success(job: Job) -> str:
    """Return a return value in the form of RQ's JSON serializer."""
    return b64encode(orjson.dumps({"job": job.id, "run": job.run, "node": job.node})).decode()


def rq_failure(error: JobError | None) -> str:
    """Return an exception text in RQ's form."""
    if error is None:
        return ""
    text = f"{error.code}: {error.message}\n{error.traceback or ''}".strip()
    return b64encode(zlib.compress(text.encode())).decode()


def record_fields(new: NewJob) -> dict[str, str | bytes]:
    """Return the fields of a record that Python writes, not a script."""
    fields: dict[str, str | bytes] = {
        "profile": new.profile,
        "max_attempts": str(new.max_attempts),
        "metadata": orjson.dumps(dict(new.metadata) if isinstance(new.metadata, Mapping) else new.metadata),
        "params": orjson.dumps(dict(new.params)),
        "uploads": orjson.dumps(dict(new.uploads)),
        **({"results": " ".join(new.results.kept)} if new.results else {}),
    }
    if new.workflow:
        fields |= {"workflow": new.workflow, "version": new.workflow_version or ""}
    if new.traceparent:
        fields["traceparent"] = new.traceparent
    prompt = new.prompt
    if prompt.prompt_id:
        fields |= {"prompt_id": prompt.prompt_id, "prompt_hash": hashed(prompt.prompt_id)}
    if prompt.client_id is not None:
        fields["client_id"] = prompt.client_id
    if prompt.targets:
        fields["targets"] = orjson.dumps(prompt.targets)
    if new.output_nodes:
        fields["output_nodes"] = orjson.dumps(new.output_nodes)
    if (workflow_id := editor_workflow_id(new.extra_data)) is not None:
        fields["workflow_id"] = workflow_id
    if new.editor:
        fields["editor"] = new.editor
    if new.excerpt:
        fields["excerpt"] = clean(new.excerpt)
    if new.retry_of:
        fields["retry_of"] = new.retry_of
    if new.rq_id:
        fields["rq"] = new.rq_id
    if new.editor and new.patience_s:
        fields["patience"] = f"{new.patience_s:g}"
    if new.tier != SINGLE:
        fields["tier"] = str(new.tier)
    if new.finish_by is not None:
        fields["finish_by"] = f"{new.finish_by:.6f}"
    limits = {"timeout_s": new.timeout_s, "silence_s": new.silence_s}
    fields |= {name: f"{value:g}" for name, value in limits.items() if value is not None}
    if new.memory:
        fields["memory"] = str(new.memory)
    if new.workload is not None:
        fields["workload"] = new.workload.dump()
    if files := usable_files(new.models):
        fields["set"] = set_key(files)
    return fields | _merge_fields(new.merge) | _webhook_fields(new) | _tenant_fields(new)


def _webhook_fields(new: NewJob) -> dict[str, str | bytes]:
    return {"webhook": orjson.dumps(new.webhook.record(new.owner))} if new.webhook else {}


def _tenant_fields(new: NewJob) -> dict[str, str | bytes]:
    return {
        **({"tenant": new.tenant} if new.tenant else {}),
        **({"bounds": " ".join(f"{who}={most}" for who, most in new.bounds.items())} if new.bounds else {}),
        **({"moderation": new.moderation} if new.moderation else {}),
        **({"in_batch": new.in_batch} if new.in_batch else {}),
        **({"output": orjson.dumps(new.output)} if new.output else {}),
    }


def _merge_fields(merge: MergeKey | None) -> dict[str, str | bytes]:
    if merge is None:
        return {}
    fields: dict[str, str | bytes] = {"merge": merge.text, "merge_most": str(merge.most)}
    if merge.mode is MergeMode.BATCH:
        fields["merge_batch"] = f"{merge.seed} {merge.count}"
    return fields


def merging(new: NewJob) -> dict[str, str | float] | None:
    """Return how a job may be merged, for submit.lua; None if it is not."""
    return {"key": new.merge.text, "window_s": new.merge.window_s} if new.merge else None


def wanted_result(new: NewJob) -> dict[str, Any] | None:
    """Return for submit.lua whose result a job may get; None: it needs its own."""
    results = new.results
    if results is None or not results.wanted:
        return None
    wanted = {"key": results.wanted, "versions": results.versions, "any_seed": results.any_seed}
    return wanted if results.max_age_s is None else {**wanted, "max_age_s": results.max_age_s}


def model_set(new: NewJob) -> dict[str, str] | None:
    """Return a job's model files for submit.lua, under the key in its record; None without any."""
    files = usable_files(new.models)
    return {"key": set_key(files), "files": orjson.dumps(files).decode()} if files else None


def hashed(text: str) -> str:
    """Return a client's text as a part of a key in Redis: it may have any length and any characters."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def dump_extra_data(extra_data: Mapping[str, Any]) -> bytes:
    """Return ``extra_data`` in its stored form; no bytes for nothing."""
    return zlib.compress(orjson.dumps(dict(extra_data)), 1) if extra_data else b""


def load_extra_data(data: bytes) -> dict[str, Any]:
    """Read :func:`dump_extra_data` back.

    Raises:
        Exception: One of :data:`UNREADABLE`: it is something else.
    """
    if not data:
        return {}
    try:
        found = orjson.loads(zlib.decompress(data))
    except zlib.error as error:
        raise ValueError(f"extra data can't be read: {error}") from error
    if not isinstance(found, dict):
        raise TypeError("extra data must be an object")
    return found


def load_ui(data: object) -> dict[str, Any]:
    """Return what a job's nodes returned for the user interface; nothing if that can't be read."""
    try:
        # Not the quicker parser: nodes send NaN, which is no JSON.
        found = json.loads(data) if isinstance(data, bytes) and data else {}
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def to_dict(raw: Mapping[bytes, bytes] | Iterable[bytes]) -> dict[str, bytes]:
    """Return a hash with text keys, from the client's form or from Lua's."""
    if isinstance(raw, Mapping):
        return {key.decode(): value for key, value in raw.items()}
    parts = list(raw)
    return {key.decode(): value for key, value in zip(parts[::2], parts[1::2], strict=True)}


def dump_output(output: Output) -> bytes:
    """Return an output as JSON."""
    return orjson.dumps(output)


def load_output(data: bytes | Mapping[str, Any]) -> Output:
    """Return an output from JSON."""
    return from_fields(Output, orjson.loads(data) if isinstance(data, bytes) else data)


STORED_FIELD = "stored:"
"""How the fields of a job's record begin that say what has become of an output's way into a store."""


def output_field(node_id: str, key: str, index: int) -> str:
    """Return an output's place in a job; equal places are one output."""
    return f"{node_id}\n{key}\n{index:06d}"


def dump_error(error: JobError | None) -> str:
    """Return an error as JSON, or an empty string."""
    return orjson.dumps({**asdict(error), "details": dict(error.details)}).decode() if error else ""


def dump_progress(progress: Progress | None) -> str:
    """Return a progress snapshot as JSON, or an empty string."""
    return orjson.dumps(progress).decode() if progress else ""


def ended_job(
    row: Sequence[bytes], status: JobStatus, error: JobError | None = None, *, followed: bool = False
) -> EndedJob:
    """Read a script's answer about a job that it has ended."""
    job_id, workflow, seconds, *more = (raw.decode(errors="replace") for raw in row)
    return EndedJob(
        job_id=job_id,
        status=status,
        workflow=workflow or None,
        total_s=float(seconds),
        tenant=more[0] if more else "",  # an earlier version's scripts don't tell
        error=error,
        followed=followed,
    )


def short_reason(error: JobError | None) -> dict[str, str] | None:
    """Return code and message of an attempt's error, if there is one."""
    if error is None:
        return None
    message = error.message
    if len(message) > MAX_REASON:
        message = f"{message[: MAX_REASON - 1]}…"
    return {"code": error.code, "message": message}


def _load_progress(record: Mapping[str, bytes], status: JobStatus) -> Progress | None:
    """Return a job's progress. It is complete if the job has succeeded, even if its record has less."""
    found = from_fields(Progress, orjson.loads(record["progress"])) if record.get("progress") else None
    if status is JobStatus.SUCCEEDED and (found is None or found.value < 1):
        return Progress.complete(found.nodes_total if found else 0)
    return found


def _load_attempts(data: bytes) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            run=one["run"],
            node=one["node"],
            started_at=one["started"],
            ended_at=one["ended"],
            counted=one["counted"],
            error=from_fields(JobError, one["error"]) if "error" in one else None,
            times=_load_times(one.get("times")),
        )
        for one in orjson.loads(data)
    )


def _load_times(text: object) -> RunTimes | None:
    """Return where a run's time went; None: its version did not note that, or it can't be read."""
    try:
        return RunTimes.load(text) if isinstance(text, str) else None
    except UNREADABLE:
        return None


def _metadata(record: Mapping[str, bytes]) -> Metadata:
    found = orjson.loads(record.get("metadata", b"null"))
    if found is not None and not isinstance(found, str | dict):
        raise TypeError("metadata must be labels or a text")
    return found


def _object(record: Mapping[str, bytes], field: str) -> dict[str, Any]:
    found = orjson.loads(record.get(field, b"{}"))
    if not isinstance(found, dict):
        raise TypeError(f"{field} must be an object")
    return found


def _time(record: Mapping[str, bytes], field: str) -> float | None:
    if not record.get(field):
        return None
    found = float(record[field])
    if not 0 <= found < _LAST:
        raise ValueError(f"{field} {found} is no time")
    return found


class Complaints:
    """Logs each unreadable record once, however often it is read."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def about(self, what: str, name: str, error: Exception) -> None:
        """Log why a record can't be read."""
        if (key := f"{what} {name}") in self._known:
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known.add(key)
        logger.error("record can't be read", exc_info=error, extra={"record": what, "name_of_record": name})


def shown_job(
    job_id: str,
    record: Mapping[str, bytes],
    outputs: Mapping[bytes, bytes] | None = None,
    *,
    output_count: int | None = None,
    complaints: Complaints,
) -> Job | None:
    """Return a job for reading; if parts of its record are unreadable, the rest, with an error about it.

    Returns:
        None if even the owner is unreadable.
    """
    try:
        return load_job(job_id, record, outputs, output_count=output_count)
    except UNREADABLE as error:
        complaints.about("job", job_id, error)
    try:
        status = JobStatus(record["status"].decode())
    except UNREADABLE:
        status = JobStatus.FAILED
    try:
        created = _time(record, "created") or 0.0
    except UNREADABLE:
        created = 0.0
    try:
        owner = record["owner"].decode()
    except UNREADABLE:
        return None
    return Job(
        id=job_id,
        owner=owner,
        status=status,
        created_at=created,
        expires_at=created,
        graph_hash="",
        error=UNREADABLE_JOB,
    )


def load_job(
    job_id: str,
    record: Mapping[str, bytes],
    outputs: Mapping[bytes, bytes] | None = None,
    *,
    output_count: int | None = None,
) -> Job:
    """Return a job from its record and its outputs' hash.

    Args:
        job_id: Its id.
        record: Its record.
        outputs: Its outputs, if requested.
        output_count: How many it has, if they are not requested.

    Raises:
        Exception: One of :data:`UNREADABLE`.
    """

    def text(field: str) -> str | None:
        return record[field].decode() if record.get(field) else None

    status = JobStatus(record["status"].decode())
    batch_id, _, item = record.get("in_batch", b"").decode(errors="replace").partition(" ")
    return Job(
        id=job_id,
        owner=record["owner"].decode(),
        status=status,
        created_at=_time(record, "created") or 0.0,
        expires_at=_time(record, "expires") or 0.0,
        graph_hash=record["graph"].decode(),
        priority=int(record["priority"]),
        metadata=_metadata(record),
        workflow=text("workflow"),
        workflow_version=text("version"),
        params=_object(record, "params"),
        profile=text("profile") or "graph",
        placement=Placement.parse(record["placement"].decode()),
        uploads=_object(record, "uploads"),
        started_at=_time(record, "started"),
        claimed_at=_time(record, "claimed"),
        completed_at=_time(record, "completed"),
        deadline_at=_time(record, "deadline"),
        attempt=int(record.get("attempt", 0)),
        attempts=_load_attempts(record.get("attempts", b"[]")),
        max_attempts=int(record.get("max_attempts", 3)),
        run=text("run"),
        node=text("node"),
        cancel_requested=record.get("cancel") == b"1",
        progress=_load_progress(record, status),
        outputs=tuple(load_output(data) for _, data in sorted((outputs or {}).items())),
        output_count=len(outputs or {}) if output_count is None else output_count,
        error=from_fields(JobError, orjson.loads(record["error"])) if record.get("error") else None,
        seq=int(record.get("seq", 0)),
        waiting_for=text("waits")
        or (FOLLOWS if record.get("follows") and status is JobStatus.QUEUED else None),
        follows=bool(record.get("follows")),
        has_secret=record.get("has_secret") == b"1",
        has_extra_data=record.get("has_extra") == b"1",
        rerun_nodes=frozenset((text("bust") or "").split("\n")) - {""},
        traceparent=text("traceparent"),
        prompt_id=text("prompt_id") or job_id,
        client_id=record["client_id"].decode() if "client_id" in record else None,
        number=float(record.get("number", 0)),
        history_number=float(record["history_number"]) if "history_number" in record else None,
        targets=tuple(map(str, orjson.loads(record.get("targets", b"[]")))),
        output_nodes=tuple(map(str, orjson.loads(record.get("output_nodes", b"[]")))),
        hidden=record.get("hidden") == b"1",
        workflow_id=text("workflow_id"),
        editor=text("editor") or "",
        excerpt=text("excerpt") or "",
        retry_of=text("retry_of"),
        kept=bool(record.get("kept")),
        removed=bool(record.get("removed")),
        tier=int(record.get("tier", SINGLE)),
        finish_by=_time(record, "finish_by"),
        timeout_s=float(record["timeout_s"]) if record.get("timeout_s") else None,
        silence_s=float(record["silence_s"]) if record.get("silence_s") else None,
        memory=int(record.get("memory", 0)),
        workload=load_workload(record["workload"]) if "workload" in record else None,
        batch=BatchPart.parse(record["batch"].decode()) if record.get("batch") else None,
        cached=bool(record.get("cached")),
        moderation=text("moderation") or "",
        tenant=text("tenant") or "",
        webhook=Webhook.from_record(_object(record, "webhook")) if record.get("webhook") else None,
        batch_id=batch_id,
        custom_id=item.partition(" ")[2],
        **(_stored(record, status, outputs or {}) if record.get("output") else {}),
    )


def _stored(record: Mapping[str, bytes], status: JobStatus, outputs: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the fields of a job that say where its outputs are put besides."""
    plan = from_fields(OutputPlan, orjson.loads(record["output"]))
    if status is not JobStatus.SUCCEEDED:
        return {"output": plan}
    notes: dict[OutputPlace, Mapping[str, Any]] = {}
    for name, data in record.items():
        if name.startswith(STORED_FIELD):
            node_id, key, index = name.removeprefix(STORED_FIELD).rsplit("\n", 2)
            notes[node_id, key, int(index)] = orjson.loads(data)
    found = [load_output(data) for _, data in sorted(outputs.items())]
    error = record.get("store_error", b"").decode(errors="replace")
    return {
        "output": plan,
        "stored": stored_objects(plan, found, notes, error=error),
        "storing": "storing" in record,
        "stored_at": _time(record, "stored_at"),
    }
