"""Which job was the test run of a person's draft."""

from typing import Protocol

KEPT_S = 86_400.0
"""How long a test run counts."""


class PublishTests(Protocol):
    """The newest test run of each draft, for :data:`KEPT_S`."""

    async def job(self, owner: str, name: str, version: str) -> str | None:
        """Return the job that tested this version of the owner's draft; None if another one was tested."""

    async def note(self, owner: str, name: str, version: str, job_id: str) -> None:
        """Remember a test run in place of an earlier one."""
