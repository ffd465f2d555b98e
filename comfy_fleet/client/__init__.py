"""The fleet from Python: :class:`FleetClient`, and :class:`AsyncFleetClient` for programs with an event loop.

    with FleetClient() as fleet:
        job = fleet.run("image_card", {"prompt": "a red fox in the snow"})
        fleet.download(job, "pictures")

It needs httpx, and of this package nothing that belongs to the servers.
"""

from comfy_fleet.client.clients import AsyncFleetClient, FleetClient
from comfy_fleet.client.data import (
    FINAL,
    AssetData,
    BatchData,
    BatchDetailData,
    BatchItemData,
    EstimateData,
    JobData,
    JobErrorData,
    ListedJobData,
    MadeBatchData,
    OutputData,
    ProgressData,
    StreamEvent,
    WorkflowData,
    WorkflowSummaryData,
)
from comfy_fleet.client.errors import (
    AccessRefused,
    BrokenDownload,
    ClientError,
    FieldProblem,
    FileConflict,
    FleetUnavailable,
    JobNotSucceeded,
    NothingFound,
    RateLimited,
    RequestRefused,
    StateConflict,
    StorageFull,
    WaitExpired,
)
from comfy_fleet.client.job_calls import SubmitOptions

__all__ = [
    "FINAL",
    "AccessRefused",
    "AssetData",
    "AsyncFleetClient",
    "BatchData",
    "BatchDetailData",
    "BatchItemData",
    "BrokenDownload",
    "ClientError",
    "EstimateData",
    "FieldProblem",
    "FileConflict",
    "FleetClient",
    "FleetUnavailable",
    "JobData",
    "JobErrorData",
    "JobNotSucceeded",
    "ListedJobData",
    "MadeBatchData",
    "NothingFound",
    "OutputData",
    "ProgressData",
    "RateLimited",
    "RequestRefused",
    "StateConflict",
    "StorageFull",
    "StreamEvent",
    "SubmitOptions",
    "WaitExpired",
    "WorkflowData",
    "WorkflowSummaryData",
]
