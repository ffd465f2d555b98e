"""The simple REST routes' words for a task's states.

A client's loop ends at the word that it waits for, and clients of such APIs wait for different words.
Everywhere else jobs have their own statuses.
"""

from dataclasses import dataclass

from comfy_fleet.domain.jobs.job import JobStatus


@dataclass(frozen=True, kw_only=True)
class TaskWords:
    """One vocabulary.

    Attributes:
        queued: It waits for a node.
        running: It has a node, or is being canceled.
        succeeded: Its pictures are ready.
        unsuccessful: It ended without pictures: failed, canceled or expired.
    """

    queued: str
    running: str
    succeeded: str
    unsuccessful: str

    def of(self, status: JobStatus) -> str:
        """Return the word for a job's status."""
        match status:
            case JobStatus.QUEUED:
                return self.queued
            case JobStatus.RUNNING | JobStatus.CANCELING:
                return self.running
            case JobStatus.SUCCEEDED:
                return self.succeeded
            case JobStatus.FAILED | JobStatus.CANCELED | JobStatus.EXPIRED:
                return self.unsuccessful


SUCCESS = TaskWords(queued="queued", running="processing", succeeded="success", unsuccessful="failed")
"""For ``/api/v1/result``."""

COMPLETED = TaskWords(queued="queued", running="processing", succeeded="completed", unsuccessful="failed")
"""For ``/api/v1/status``."""

DONE = TaskWords(queued="pending", running="pending", succeeded="done", unsuccessful="done")
"""For ``/api/status``: it has no word for failure, and a client that waits for ``done`` must not wait for
ever."""
