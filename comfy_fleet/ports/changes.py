"""Each change of everybody's jobs, for who watches the whole fleet."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.jobs.job import JobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """A job was submitted, or has another status."""

    job_id: str
    status: JobStatus
    owner: str


class StatusChanges(Protocol):
    """Tells them. They are quick and may be lost; the record is the truth."""

    def statuses(self) -> AbstractAsyncContextManager[AsyncIterator[StatusChange]]:
        """Yield them from now on."""
