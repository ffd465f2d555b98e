"""Where spans of jobs go."""

from typing import Protocol

from comfy_fleet.domain.jobs.job_spans import TraceSpan
from comfy_fleet.domain.jobs.trace_context import JobTrace


class Spans(Protocol):
    """Sends spans later. No call blocks or fails: what can't be sent is dropped and counted."""

    def sampled(self, trace: JobTrace) -> bool:
        """Return whether a trace is recorded: as its caller says, else as the sampler says."""

    def take(self, trace: JobTrace, span: TraceSpan) -> None:
        """Send a span of a trace that is recorded, some time."""

    def lost(self, count: int) -> None:
        """Count spans that are not sent."""
