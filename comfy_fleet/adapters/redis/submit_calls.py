"""What submit.lua gets for a new job."""

from typing import Any

from comfy_fleet.adapters.redis import job_records
from comfy_fleet.adapters.redis.fetches import fetch_id
from comfy_fleet.domain.jobs.job import NewJob

ABLE = 8  # most nodes whose clocks tell where an owner's share begins


def submit_call(new: NewJob, *, ageing_s: float, mirror: str) -> tuple[list[bytes], dict[str, Any]]:
    """Return the script's blobs, and its named arguments about the job itself, without those that are None.

    Args:
        new: The job.
        ageing_s: Waiting this long is worth one point of priority.
        mirror: Whether RQ's tools see the fleet's own jobs, see ``FLEET_RQ_MIRROR``.
    """
    fields = job_records.record_fields(new)
    what = f"workflow {new.workflow}" if new.workflow else "graph"
    args: dict[str, Any] = {
        "fields": list(fields),
        "id": new.id,
        "owner": new.owner,
        "graph_hash": new.graph_hash,
        "ageing_s": ageing_s,
        "priority": new.priority,
        "placement": new.placement.key,
        "expires_in_s": new.expires_in_s,
        "deadline_s": new.deadline_s,
        "assets": " ".join(sorted(new.assets)),
        "prompt_hash": fields.get("prompt_hash"),
        "number": new.prompt.number,
        "front": new.prompt.front or None,
        "model_set": job_records.model_set(new),
        "able": list(new.able[:ABLE]) or None,
        "weight": new.weight,
        "tenant": new.tenant,
        "tenant_weight": new.tenant_weight,
        "merge": job_records.merging(new),
        "wanted": job_records.wanted_result(new),
        "kept": list(new.results.kept) if new.results else None,
        "timeout_s": new.timeout_s,
        "silence_s": new.silence_s,
        "fetches": _awaited(new) or None,
        "webhook": new.webhook is not None or None,
        "stores": new.output is not None or None,
        "rq": {
            "mirror": mirror,
            **({"id": new.rq_id} if new.rq_id else {}),
            "data": job_records.reference(new.id),
            "description": f"{what} for {new.owner}",
        },
    }
    texts = [new.graph, new.secret or b"", job_records.dump_extra_data(new.extra_data), *fields.values()]
    blobs = [one.encode() if isinstance(one, str) else one for one in texts]
    return blobs, {name: value for name, value in args.items() if value is not None}


def _awaited(new: NewJob) -> list[dict[str, Any]]:
    return [
        {
            "id": fetch_id(new.owner, one.url),
            "url": one.url,
            "shown": one.shown,
            "inputs": [
                {"place": to.place, "accept": to.accept, "most_bytes": to.most_bytes}
                if to.most_bytes is not None
                else {"place": to.place, "accept": to.accept}
                for to in one.inputs
            ],
        }
        for one in new.fetches
    ]
