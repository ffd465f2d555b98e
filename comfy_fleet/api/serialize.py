"""Domain values in Comfy API v2's form. Times are RFC 3339 in UTC."""

from collections.abc import Mapping
from datetime import UTC, datetime

from comfy_fleet.api.answers import (
    AssetAnswer,
    AttemptAnswer,
    BatchPartAnswer,
    EstimateAnswer,
    JobAnswer,
    JobErrorAnswer,
    JobFields,
    ListedJobAnswer,
    OutputAnswer,
    OutputAskAnswer,
    ProgressAnswer,
    StoredAnswer,
)
from comfy_fleet.api.links import Links
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.job import Attempt, Job, JobError, Output, Progress
from comfy_fleet.domain.jobs.media import is_picture
from comfy_fleet.domain.schedule.calibration import EndEstimate
from comfy_fleet.domain.schedule.waiting_job import SINGLE, TIER_NAMES
from comfy_fleet.domain.stores.object_key import DEFAULT_KEY
from comfy_fleet.domain.stores.output_plan import OutputPlan, StoredObject

_URL_S = 86400.0  # the promised life of URLs of assets without an end


def time(seconds: float) -> str:
    """Return Unix seconds as text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else time(seconds)


def job(
    value: Job,
    links: Links,
    *,
    queue_position: int | None,
    simulated: bool,
    end: EndEstimate | None = None,
) -> JobAnswer:
    """Return a job: the contract's fields, and the fleet's additions."""
    return {
        **_fields(value, links, queue_position=queue_position, simulated=simulated),
        "estimate": estimate(end),
        "attempts": [attempt(one) for one in value.attempts],
    }


def estimate(end: EndEstimate | None) -> EstimateAnswer | None:
    """Return when a job will have ended, to the millisecond."""
    return None if end is None else {"p50_s": round(end.p50_s, 3), "p90_s": round(end.p90_s, 3)}


def list_item(value: Job, links: Links, *, queue_position: int | None, simulated: bool) -> ListedJobAnswer:
    """Return a job in a list, without its attempts; it has the outputs that were read for it.

    The SDK reads ``create_time``, ``update_time`` and ``deployment_id`` in lists.
    """
    return {
        **_fields(value, links, queue_position=queue_position, simulated=simulated),
        "excerpt": value.excerpt,
        "create_time": time(value.created_at),
        "update_time": time(value.completed_at or value.started_at or value.created_at),
        "deployment_id": None,
    }


def _fields(value: Job, links: Links, *, queue_position: int | None, simulated: bool) -> JobFields:
    started, completed = value.started_at, value.completed_at
    url = links.job(value.id)
    fields: JobFields = {
        "id": value.id,
        "status": value.status,
        "user": value.owner,
        "created_at": time(value.created_at),
        "started_at": _time(started),
        "completed_at": _time(completed),
        "expires_at": time(value.expires_at),
        "queue_position": queue_position,
        "progress": progress(value.progress) if value.progress else None,
        "outputs": outputs(value, links),
        "output_count": value.output_count,
        "error": error(value.error) if value.error else None,
        "metrics": {
            "queue_ms": _ms(value.created_at, started),
            "execution_ms": _ms(started, completed),
        },
        "urls": {"self": url, "events": links.events(value.id), "cancel": f"{url}/cancel"},
        "metadata": dict(value.metadata) if isinstance(value.metadata, Mapping) else value.metadata,
        "priority": value.priority,
        "tier": TIER_NAMES[value.tier] if 0 <= value.tier < len(TIER_NAMES) else TIER_NAMES[SINGLE],
        "start_by": _time(value.deadline_at),
        "timeout_s": value.timeout_s,
        "finish_by": _time(value.finish_by),
        "memory_bytes": value.memory or None,
        "card_above_bytes": value.placement.above or None,
        "workflow": value.workflow,
        "node": value.node,
        "simulated": simulated,
        "attempt": value.attempt,
        "waiting_for": value.waiting_for,
        "kept": value.kept,
        "retry_of": value.retry_of,
        "cached": value.cached,
        "output": output_ask(value.output) if value.output else None,
        "storing": value.storing,
    }
    if value.batch is not None:
        fields["batch"] = batch(value.batch)
    if value.batch_id:
        fields["batch_id"] = value.batch_id
        fields["custom_id"] = value.custom_id
    if value.traceparent:
        fields["traceparent"] = value.traceparent
    return fields


def batch(value: BatchPart) -> BatchPartAnswer:
    """Return which pictures of a batch are a job's."""
    return {
        "seed": value.seed,
        "batch_index": value.first,
        "count": value.count,
        "batch_size": value.size,
    }


def progress(value: Progress) -> ProgressAnswer:
    """Return a progress snapshot."""
    return {
        "value": value.value,
        "nodes_done": value.nodes_done,
        "nodes_total": value.nodes_total,
        "current_node": value.current_node,
        "current_node_class": value.current_node_class,
        "step": value.step,
        "steps": value.steps,
        "message": value.message,
    }


def attempt(value: Attempt) -> AttemptAnswer:
    """Return a run of a job that is over."""
    error = value.error
    return {
        "run": value.run,
        "node": value.node,
        "started_at": time(value.started_at),
        "ended_at": time(value.ended_at),
        "counted": value.counted,
        "error": {"code": error.code, "message": error.message} if error else None,
    }


def output_ask(value: OutputPlan) -> OutputAskAnswer:
    """Return where a job's outputs are put besides."""
    return {
        "store": value.store,
        "key": value.template or DEFAULT_KEY,
        "format": value.format or None,
        "on_conflict": value.on_conflict,
    }


def stored(value: StoredObject) -> StoredAnswer:
    """Return what has become of an output's way into a store."""
    return {
        "store": value.store,
        "key": value.key,
        "state": value.state,
        "url": value.url,
        "signed_url": value.signed_url,
        "error": value.error,
    }


def outputs(value: Job, links: Links) -> list[OutputAnswer]:
    """Return a job's outputs."""
    return [
        output(one, value.id, value.expires_at, links, stored_as=value.stored_of(one))
        for one in value.outputs
    ]


def output(
    value: Output,
    job_id: str,
    expires_at: float,
    links: Links,
    *,
    stored_as: StoredObject | None = None,
) -> OutputAnswer:
    """Return an output."""
    return {
        "node_id": value.node_id,
        "name": value.name,
        "type": value.kind,
        "content_type": value.content_type,
        "size_bytes": value.size_bytes,
        "id": value.asset_id,
        "hash": value.hash,
        "url": links.output(job_id, value.asset_id),
        "url_expires_at": time(min(expires_at, links.signing.expires_at) if links.signing else expires_at),
        "thumbnail_url": links.thumbnail(job_id, value.asset_id) if is_picture(value.content_type) else None,
        "job_id": job_id,
        "temporary": value.temporary,
        "withheld": value.withheld,
        "stored": stored(stored_as) if stored_as else None,
    }


def error(value: JobError) -> JobErrorAnswer:
    """Return why a job did not succeed."""
    return {
        "code": value.code,
        "message": value.message,
        "node_id": value.node_id,
        "class_type": value.class_type,
        "traceback": value.traceback,
        "details": dict(value.details) or None,
    }


def asset(value: Asset, links: Links, *, now: float, created_new: bool | None = None) -> AssetAnswer:
    """Return an asset; ``created_new`` only on create responses."""
    found: AssetAnswer = {
        "id": value.id,
        "hash": value.hash,
        "size_bytes": value.size_bytes,
        "content_type": value.content_type,
        "file_path": value.file_path,
        "tags": list(value.tags),
        "created_at": time(value.created_at),
        "url": links.asset(value.id),
        "url_expires_at": time(value.expires_at or now + _URL_S),
        "expires_at": _time(value.expires_at),
    }
    if value.job_id is not None:
        found["job_id"] = value.job_id
    if created_new is not None:
        found["created_new"] = created_new
    return found


def _ms(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else max(0, round((end - start) * 1000))
