"""An owner's jobs as ComfyUI's own clients list them: the queue, the history, and the jobs API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import ListedState


@dataclass(frozen=True, kw_only=True)
class QueuedPrompt:
    """A job that waits or runs.

    Attributes:
        id: The job's id; ``prompt_id`` is what its client calls it.
        running: Whether it runs.
        created_at: Unix seconds.
    """

    id: str
    prompt_id: str
    running: bool
    number: float
    client_id: str | None
    created_at: float
    output_nodes: tuple[str, ...]
    graph_hash: str


@dataclass(frozen=True, kw_only=True)
class PromptFilter:
    """Which jobs a page wants.

    Attributes:
        owner: Whose.
        states: In which of ComfyUI's states.
        workflow_id: Only those of this workflow of the editor's.
        by_duration: Sorted by how long they ran; else by when they were made.
        oldest_first: The lowest first.
    """

    owner: str
    states: frozenset[ListedState]
    workflow_id: str | None = None
    by_duration: bool = False
    oldest_first: bool = False
    offset: int = 0
    limit: int = 1000


@dataclass(frozen=True, kw_only=True)
class PromptPage:
    """A page: job ids with their states, and how many there are on all pages."""

    rows: tuple[tuple[str, ListedState], ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class PromptContent:
    """The large parts of a job; empty if it was forgotten meanwhile.

    Attributes:
        graph: As submitted, as JSON.
        extra_data: Without its secrets.
        ui: What its nodes returned for the user interface, as on their node.
        size: About how many bytes these take as JSON.
    """

    graph: bytes
    extra_data: Mapping[str, Any]
    ui: Mapping[str, Any]
    size: int


class PromptLists(Protocol):
    """The lists. A job that is deleted from ComfyUI's history, or was canceled before it ran, is in none."""

    async def queue(self, owner: str) -> Sequence[QueuedPrompt]:
        """Return all jobs that run or wait, each by their numbers, those that run first."""

    async def queued_ids(self, owner: str) -> Sequence[str]:
        """Return the ids of the jobs that wait."""

    async def page(self, wanted: PromptFilter) -> PromptPage:
        """Return a page.

        Pages over several states, or with a filter by workflow or duration, end after 10,000 jobs.
        """

    async def ended(self, owner: str) -> int:
        """Return how many jobs are in the history."""

    async def history(self, owner: str, first: int, last: int) -> Sequence[str]:
        """Return the ids of the jobs at these places of the history, in the order in which they ended."""

    async def load(self, job_ids: Sequence[str]) -> Sequence[Job]:
        """Return those jobs that are still there, with their outputs."""

    async def ended_prompt(
        self, owner: str, prompt_id: str, *, or_job_id: bool
    ) -> tuple[Job, PromptContent] | None:
        """Return an owner's newest job that its client calls so, if it is over; whether or not it is listed.

        Args:
            owner: Whose.
            prompt_id: The name.
            or_job_id: Whether it may also be a job's own id.
        """

    async def contents(self, jobs: Sequence[Job | QueuedPrompt], most_bytes: int) -> Sequence[PromptContent]:
        """Return the large parts of the first jobs: of as many as fit, and at least one."""
