"""What a busy node will probably run next, and files that are put there for that job before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.ports.runs import StagedInput


@dataclass(frozen=True, kw_only=True)
class NextJob:
    """A waiting job that a node would be given now.

    Attributes:
        id: The job.
        asset_ids: The files that it reads.
        editor: Whether it is an editor's.
    """

    id: str
    asset_ids: Sequence[str]
    editor: bool = False


@dataclass(frozen=True, kw_only=True)
class Peek:
    """What a peek has found.

    Attributes:
        next: The job; None: the node would get none.
        ahead: The id of the job for which files were staged ahead on the node; empty: none.
    """

    next: NextJob | None
    ahead: str = ""


class AheadStore(Protocol):
    """Peeks at choices, and keeps records of files that are staged ahead."""

    async def peek(
        self,
        *,
        node: str,
        placements: Sequence[Placement],
        pool: str,
        peers: int,
        speed: float,
        ram: int,
        patience_s: float,
        able: Mapping[Placement, Sequence[str]],
        unable: Mapping[Placement, Sequence[str]],
    ) -> Peek:
        """Return which job a claim would choose if the node's run ended now; nothing is written.

        Jobs whose files are staged ahead on another node are left out. The arguments are those of
        :meth:`comfy_fleet.ports.runs.RunStore.claim`.
        """

    async def stage_ahead(
        self, node: str, job: NextJob | None, *, keep_s: float, most_bytes: int
    ) -> Mapping[str, StagedInput]:
        """Return where a job's files belong on a node that will probably take it; by asset.

        What was staged there ahead for any other job is given up, and the node's agent deletes it. Each file
        that is returned as new may be sent now; :meth:`staged_ahead` has to follow. It is deleted, whatever
        becomes of the caller, if no run needs it within ``keep_s`` seconds of the last call. Nothing is
        returned if the job waits no more, or if the node takes no jobs or has no agent that deletes files.

        Args:
            node: The node.
            job: The job; None: none.
            keep_s: How long its files stay at least.
            most_bytes: How much may be there ahead; a file that is more is left out.

        Raises:
            Outdated: A newer version works on this store.
        """

    async def staged_ahead(self, node: str, staged: StagedInput, *, keep_s: float) -> bool:
        """Note that a file was sent; return False if it is not needed any more, and will be deleted."""
