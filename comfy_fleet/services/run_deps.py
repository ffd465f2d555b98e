"""What the runs of a dispatcher share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.jobs.run import RunLimits
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import RunNodes
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.collector import OutputLimits, Sharing
from comfy_fleet.services.failure_policy import FailurePolicy
from comfy_fleet.services.frame_publisher import FramePublisher
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.run_metrics import Measure
from comfy_fleet.services.staging_ahead import StagingAhead


@dataclass(frozen=True, kw_only=True)
class RunDeps:
    """What all runs of a dispatcher share.

    Attributes:
        frames: Publishes the frames of all runs.
        open_secret: Decrypts ``extra_data``.
        now: Monotonic seconds.
        elsewhere: Returns True if another node could run a claimed job now.
        telemetry: Is told what happens to runs.
        failure_policy: Decides where a job goes after a failure.
        measure: Learns from runs that succeed.
        memory: Learns how much memory they need.
        ahead: Stages the files of the jobs that will probably follow.
        output_limits: The operator's limits for one job's outputs.
        sharing: Shared by all runs for collecting outputs.
        files: Which files graphs may name.
        safe: Returns True if this run's lease certainly still holds (its last confirmed beat is recent
            enough).
        moderation: Judges files of jobs that say so, before they are given out.
    """

    runs: RunStore
    frames: FramePublisher
    nodes: RunNodes
    assets: AssetStore
    limits: RunLimits
    output_limits: OutputLimits
    sharing: Sharing
    open_secret: Callable[[bytes], Mapping[str, Any]]
    telemetry: Telemetry
    failure_policy: FailurePolicy
    measure: Measure
    memory: MemoryPrediction
    ahead: StagingAhead
    files: FilePolicy
    now: Callable[[], float]
    elsewhere: Callable[[Claim], Awaitable[bool]]
    safe: Callable[[str], bool]
    moderation: Moderation | None = None
