"""What is known of the request that is being answered."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

in_request: ContextVar[Mapping[str, str]] = ContextVar("in_request", default={})  # noqa: B039 - never changed
"""Fields of every line that is logged meanwhile: ``client``, and ``request_id`` if the edge has named one."""


@dataclass
class Submitting:
    """A request that may submit jobs.

    Attributes:
        began_at: When it came, in Unix seconds.
        traceparent: What its answer names: the span of its submit. Empty: it has made no job, or jobs of
            several traces.
    """

    began_at: float
    traceparent: str = ""
    _trace_id: str = ""

    def made(self, trace_id: str, traceparent: str) -> None:
        """Note a job of a trace."""
        if not self._trace_id:
            self._trace_id, self.traceparent = trace_id, traceparent
        elif trace_id != self._trace_id:
            self.traceparent = ""


submitting: ContextVar[Submitting | None] = ContextVar("submitting", default=None)
