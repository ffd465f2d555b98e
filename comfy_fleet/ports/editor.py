"""What a person's editor saves and runs, told to who makes drafts of stored workflows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

KEPT_S = 86_400.0
"""How long a save waits for its run, and a run for its save."""
MOST_SEEN = 100
"""Saves, and runs, of one owner that are remembered; the oldest is forgotten for the next."""

UNREAD = "?"
"""The signature of what was not looked at yet."""


@dataclass(frozen=True, kw_only=True)
class SavedGraph:
    """A graph that was saved in the editor.

    Attributes:
        file: Its path below ``workflows/``, as the editor shows it: ``My Workflow.json``.
        workflow: The stored workflow that it is a draft of: the slug of ``file``.
        signature: What it does (:func:`comfy_fleet.domain.graphs.editor_graph.signature`); empty if what was
            saved is no graph of the editor's, and :data:`UNREAD` until it was looked at.
        saved_at: Unix seconds.
    """

    file: str
    workflow: str
    signature: str
    saved_at: float


class EditorSaves(Protocol):
    """Who is told of files that the editor saves below ``workflows/``."""

    async def saved(self, owner: str, name: str) -> None:
        """Take note of a save; never raises. What the file holds is looked at soon, after the answer.

        Args:
            owner: Whose editor it is.
            name: The file's path below ``workflows/``: ``My Workflow.json``.
        """

    async def moved(self, owner: str, name: str, to: str) -> None:
        """Take note of a file that was renamed, before it counts as saved; never raises.

        Args:
            owner: Whose editor it is.
            name: The path that it had below ``workflows/``.
            to: The path that it has now.
        """

    async def folder_moved(self, owner: str, files: Mapping[str, str]) -> None:
        """Take note of files that moved with their folder; never raises. Those with a draft count as saved.

        Args:
            owner: Whose editor it is.
            files: The path that each has now below ``workflows/``, by the one that it had; empty: elsewhere.
        """

    async def deleted(self, owner: str, name: str) -> None:
        """Take note of a file that is no more; never raises.

        Args:
            owner: Whose editor it is.
            name: The path that it had below ``workflows/``.
        """


class EditorRuns(Protocol):
    """Who is told of graphs that the editor runs."""

    def ran(self, owner: str, job_id: str, extra_data: Mapping[str, Any]) -> None:
        """Take note of a run; returns at once, and never raises.

        Args:
            owner: Whose editor it is.
            job_id: The job that was made of it.
            extra_data: What came with it; the editor's graph is its ``extra_pnginfo.workflow``.
        """


class SeenGraphs(Protocol):
    """The newest graphs that each person's editor saved and ran, for :data:`KEPT_S`.

    Who remembers one and looks for the other does it in this order, so that of two at once at least one sees
    the other.
    """

    async def save(self, owner: str, saved: SavedGraph) -> str | None:
        """Remember a save in place of the file's earlier one; return the newest job that ran the same."""

    async def run(self, owner: str, signature: str, job_id: str, at: float) -> Sequence[SavedGraph]:
        """Remember a run; return the files that hold the same, by name.

        Args:
            owner: Whose run it is.
            signature: What ran.
            job_id: The job.
            at: Unix seconds.
        """

    async def forget_save(self, owner: str, file: str) -> None:
        """Forget what is remembered of a file."""

    async def saves(self, owner: str) -> Sequence[SavedGraph]:
        """Return what is remembered of the owner's files, the newest save first."""
