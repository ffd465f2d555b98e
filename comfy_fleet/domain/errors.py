"""The project's errors: one root, a stable code, and a flag that says if a retry can help.

FleetError
├── BadInput              what the caller sent can't be used (the field is named)
│   ├── InvalidWorkflow   the graph is wrong: per-node details
│   ├── WorkflowFormatUi  the editor's export instead of the API format
│   ├── MissingAsset      an asset reference that the caller can't use
│   ├── InvalidParameter  a stored workflow's parameter is out of its limits
│   ├── InvalidManifest   a stored workflow's manifest does not fit its graph
│   ├── UploadTooLarge    a file is larger than it may be, or than it was announced
│   ├── InvalidOutput     where its outputs are to be put can't be
│   ├── InvalidBatch      some items of a batch can't be taken (all of them are named)
│   └── OutboundRefused   a URL that the fleet does not call
├── NotFound              no such job, asset, node or workflow for this caller
│   └── BlobNotFound      no bytes with this hash that the caller may use
├── Conflict              the request contradicts what is there
│   ├── HashMismatch      the declared hash is not the one of the bytes
│   ├── AssetInUse        something still needs the asset
│   ├── JobLive           the job waits or runs
│   ├── WrongOffset       other bytes of an upload are here than its client takes for granted
│   └── IdempotencyKeyReuse  the key has been used (carries the job's id)
├── Busy                  try again later (carries ``retry_after_s``)
│   ├── QueueFull         the configured depth is reached
│   ├── LimitReached      a limit of a role, key or tenant is used up
│   ├── NoNodes           no node is known at all
│   ├── EditorAway        no node that serves the editor answers
│   ├── UploadUnderWay    an upload with this key has begun and not ended
│   ├── UploadLocked      somebody else goes on with the upload
│   ├── NoRoom            the fleet's own disk is full, or can't be used
│   ├── Outdated          this process is older than the layout in Redis: it takes no new work
│   └── StoreDown         Redis does not answer: the command may have been carried out
│       ├── StoreRefuses  Redis refuses the command: nothing was done
│       └── NotReplicated  it was carried out, and no replica has confirmed it
├── StoredTooMuch         the caller keeps as many bytes as they may
├── NotAllowed            a limit of a role, key or tenant forbids it
├── NotInTime             a node did not reach the expected state in time
├── LeaseLost             another dispatcher owns this run now: touch nothing
├── ConfigError           a setting, file or program of the operator's is wrong
├── BrokerError           HAProxy refused an order or could not be asked
├── OutboundFailed        a URL of a client's did not answer as it should
├── ObjectError           a store (a bucket, a folder) did not do what it was asked
│   └── ObjectTaken       there is another object of this name, which must not be replaced
├── OutputLimit           a run's outputs are more, or larger, than the operator allows
└── NodeError             a ComfyUI node could not be asked
    ├── NodeFault         its answer is one that no healthy ComfyUI sends: counts against the node
    ├── OutputGone        the node does not have this output (not yet, or no longer)
    └── OutputRefused     the node will never hand out this output
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar


class FleetError(Exception):
    """The root. ``str(error)`` is what the user reads.

    Attributes:
        code: Stable, machine-readable, snake_case.
        retryable: Whether the same request can succeed later without change.
        details: JSON-ready facts, safe to show to the caller.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class BadInput(FleetError):
    """What the caller sent can't be used; ``details["field"]`` names the place."""

    code = "invalid_request"


class InvalidWorkflow(BadInput):
    """The graph can't run; ``details["node_errors"]`` holds a list per node id."""

    code = "invalid_workflow"


class WorkflowFormatUi(BadInput):
    """The graph is the editor's export; ComfyUI runs only the API format."""

    code = "workflow_format_ui"


class MissingAsset(BadInput):
    """An asset reference is malformed, unknown or somebody else's."""

    code = "missing_asset"


class InvalidParameter(BadInput):
    """A parameter's value is out of its limits; details: parameter, value, limit."""

    code = "invalid_parameter"


class InvalidManifest(BadInput):
    """A stored workflow's manifest does not fit its graph; ``details["problems"]`` lists why, by key."""

    code = "invalid_manifest"


class UploadTooLarge(BadInput):
    """A file is larger than it may be, or than it was announced."""

    code = "payload_too_large"


class InvalidOutput(BadInput):
    """Where a job's outputs are to be put can't be; ``details["field"]`` begins with ``output``."""

    code = "invalid_output"


class InvalidBatch(BadInput):
    """Some items of a batch can't be taken; details name them."""

    code = "invalid_batch"


class OutboundRefused(BadInput):
    """A URL of a client's that the fleet does not call, for its form or for where it leads."""

    code = "url_refused"


class NotFound(FleetError):
    """Nothing with this id exists for this caller."""

    code = "not_found"


class BlobNotFound(NotFound):
    """No bytes with this hash that the caller may use."""

    code = "blob_not_found"


class Conflict(FleetError):
    """The request contradicts what is there."""

    code = "conflict"


class WorkflowBroken(Conflict):
    """The stored workflow's files can't be used; the message names file and key."""

    code = "workflow_broken"


class HashMismatch(Conflict):
    """The declared hash is not the hash of the bytes that came."""

    code = "hash_mismatch"


class AssetInUse(Conflict):
    """Something still needs the asset."""

    code = "asset_in_use"


class JobLive(Conflict):
    """The job waits or runs, so it can't be removed."""

    code = "job_live"


class WrongOffset(Conflict):
    """Other bytes of an upload are here than its client takes for granted."""

    code = "wrong_offset"


class EntryEnded(Conflict):
    """What one of RQ's clients has enqueued became no job: its end was told while it was checked."""


class IdempotencyKeyReuse(Conflict):
    """The key was used already; ``details["job_id"]`` is the job that it made."""

    code = "idempotency_key_reuse"


def key_reused(job_id: str) -> IdempotencyKeyReuse:
    """Return the error for a key that has made a job."""
    return IdempotencyKeyReuse(
        f"this Idempotency-Key has made job {job_id} already: read that job, or use a new key",
        details={"job_id": job_id},
    )


class Busy(FleetError):
    """Try again after ``retry_after_s`` seconds."""

    code = "busy"
    retryable = True

    def __init__(
        self, message: str, *, retry_after_s: int = 1, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """The queue holds as many jobs as the operator allows."""

    code = "queue_full"


class LimitReached(Busy):
    """A limit of somebody's is used up: of their role, their key or their tenant.

    Attributes:
        estimated: Whether ``retry_after_s`` says when there is room again; else nothing is known yet.
    """

    code = "limit_reached"

    def __init__(
        self,
        name: str,
        scope: str,
        *,
        most: int,
        used: int,
        per: str = "",
        wait_s: float | None = None,
        way_out: str = "try again later",
    ) -> None:
        what = per or str(most)
        super().__init__(
            f"the {scope}'s limit {name!r} is {what}, and {used} are used: {way_out}",
            retry_after_s=max(1, math.ceil(wait_s or 0)),
            details={"limit": name, "scope": scope, "most": most, "used": used}
            | ({"window": per} if per else {}),
        )
        self.estimated = wait_s is not None


class StoredTooMuch(FleetError):
    """As many bytes are kept as a limit of somebody's allows."""

    code = "storage_limit"


class NotAllowed(FleetError):
    """A limit of somebody's keeps it from being done at all."""

    code = "not_allowed"


class NoNodes(Busy):
    """No node is known at all: nothing could ever run."""

    code = "no_nodes"


class EditorAway(Busy):
    """No node that serves ComfyUI's editor answers now."""

    code = "editor_away"


class UploadUnderWay(Busy):
    """An upload with the same key has begun and not ended: it is at work, or its process is gone."""

    code = "upload_under_way"


class UploadLocked(Busy):
    """Somebody else goes on with the upload."""

    code = "upload_locked"


class StoreDown(Busy):
    """Redis does not answer; the command may or may not have been carried out."""

    code = "store_unavailable"


class StoreRefuses(StoreDown):
    """Redis refuses commands now (full, a replica, loading, busy), or was not asked; nothing was done."""


class NotReplicated(StoreDown):
    """What was asked is done and written; a failover now could lose it, as too few replicas have it yet."""

    code = "not_replicated"


class NoRoom(Busy):
    """The fleet's own disk is full or can't be used; nothing was stored."""

    code = "insufficient_storage"

    def __init__(self, message: str, *, retry_after_s: int = 10) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Outdated(Busy):
    """A newer version has raised the layout in Redis; this process only finishes its runs."""

    code = "outdated"


class NotInTime(FleetError):
    """A node did not reach the expected state in time; the message names its present state."""

    code = "timeout"
    retryable = True


class LeaseLost(FleetError):
    """Another dispatcher owns this run now; the caller must touch nothing more."""

    code = "lease_lost"


class ConfigError(FleetError):
    """A setting, a file or a program of the operator's is wrong."""

    code = "config_error"


class BrokerError(FleetError):
    """HAProxy refused an order on its control socket, or could not be asked."""

    code = "broker_error"
    retryable = True


class NodeError(FleetError):
    """A ComfyUI node could not be reached, or its answer makes no sense."""

    code = "node_error"
    retryable = True


class NodeFault(NodeError):
    """A node's answer breaks a limit, which is the node's fault. ``details["limit"]`` names the limit."""

    code = "node_fault"


class OutputGone(NodeError):
    """The node does not have this output: not yet, or it is gone and only another run can make it again."""

    code = "output_lost"


class OutputRefused(NodeError):
    """The node will never hand out this output, because of its name or folder."""

    code = "output_lost"
    retryable = False


class OutboundFailed(FleetError):
    """A URL of a client's could not be called: no connection, too slow, too large, an answer that is none."""

    code = "url_failed"
    retryable = True


class OutputLimit(FleetError):
    """A run's outputs exceed one of the operator's limits; ``details["limit"]`` is the setting's name."""

    code = "output_limit"


class ObjectError(FleetError):
    """A store did not do what it was asked.

    Attributes:
        refused: Whether it has answered, and refuses whoever asks: its credentials, or its bucket.
        alone: Whether it is about this one object's name or content, so that others may be taken.
    """

    code = "store_failed"
    retryable = True

    def __init__(self, message: str, *, refused: bool = False, alone: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.alone = alone


class ObjectTaken(ObjectError):
    """There is another object of this name in the store, which must not be replaced."""

    code = "object_exists"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message, alone=True)
