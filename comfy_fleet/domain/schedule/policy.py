"""A way to choose: what happens is told in, choices are asked for."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import WaitingJob


@dataclass(frozen=True, slots=True)
class JobChoice:
    """A job that starts now; it does not wait any more.

    Attributes:
        job: The job.
        reason: Why this one, as a short constant word for counting.
        load_s: How long loading its models here will probably take, in seconds.
    """

    job: WaitingJob
    reason: str
    load_s: float


@dataclass(frozen=True, slots=True)
class Nothing:
    """No job starts on the node now.

    Attributes:
        look_again_at: When to ask again even if nothing happens; ``None`` = only when something does: a
            submit, an end, another node.
    """

    look_again_at: float | None = None


class SchedulingPolicy(Protocol):
    """A way to choose the next job for a node.

    Calls come in the order of their times; ``now`` never goes back.
    """

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Note a job that waits from now on: a new one, or one that goes back after a run that was lost."""

    def withdrawn(self, job_id: str, now: float) -> None:
        """Note that a waiting job was canceled or has expired; unknown ids are ignored."""

    def node_up(self, node: ScheduledNode, now: float) -> None:
        """Note a node with nothing loaded, or new facts about one that is known."""

    def node_down(self, name: str, now: float) -> None:
        """Note that a node takes no jobs any more; a run on it still ends with :meth:`ended`."""

    def next_for(self, node: str, now: float) -> JobChoice | Nothing:
        """Choose the job that an idle node starts now."""

    def node_for(self, job: WaitingJob, idle: Collection[str], now: float) -> str | Nothing:
        """Choose the idle node that is asked first because a job was submitted.

        The answer is a proposal: what the node takes, :meth:`next_for` says.

        Args:
            job: A job that waits.
            idle: Idle nodes, in an order that does not depend on chance; membership should be quick (a
                dict's keys).
            now: Seconds.

        Returns:
            An idle node that can run it, or when to ask again if nothing happens.
        """

    def ended(self, job_id: str, node: str, *, load_s: float, run_s: float, ok: bool, now: float) -> None:
        """Note that a run is over and its node idle.

        Args:
            job_id: A job that was chosen.
            node: Where it ran.
            load_s: How long models were loaded, in seconds.
            run_s: How long it computed there apart from that, in seconds.
            ok: Whether it succeeded; if not, it is submitted again or it is over.
            now: Seconds.
        """
