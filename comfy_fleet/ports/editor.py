"""What a person's editor saves and runs, told to who makes drafts of stored workflows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

KEPT_S = 86_400.0
"""How long a save waits for its run, and a run for its save."""
MOST_SEEN = 100
"""Saves, and runs, of one owner that are remembered; the oldest is forgotten for the next."""

MOST_MOVES = 100
"""Moves of one owner's files that wait to be followed; the oldest is forgotten for the next."""

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


@dataclass(frozen=True, kw_only=True)
class FileMove:
    """A file or a folder of a person's has another path, and their drafts have not followed yet.

    Attributes:
        source: The path that it had, e.g. ``workflows/cats``.
        dest: The path that it has now.
        folder: Whether it is a folder.
        at: When it was moved, in Unix seconds.
        new: Paths of files that may be graphs which nobody was told of; at most :data:`MOST_MOVES`.
        word: What the store knows it by.
    """

    source: str
    dest: str
    folder: bool
    at: float
    new: Sequence[str]
    word: bytes


@dataclass(frozen=True, kw_only=True)
class Renames:
    """What becomes of an owner's saves and drafts by a move.

    Attributes:
        saves: For each file that is known, its path now and its stored workflow; both empty: it is no graph
            of the editor's any more.
        drafts: For each stored workflow with a draft of a file that was moved: the file's name in the editor
            before, the stored workflow that it is a draft of now, and its name now; these two may be empty,
            as above. Those saved last come first.
        new: Graphs that may be known to nobody, with their stored workflows and names.
    """

    saves: Mapping[str, tuple[str, str]]
    drafts: Mapping[str, tuple[str, str, str]]
    new: Mapping[str, tuple[str, str]]


class EditorSaves(Protocol):
    """Who is told of files that the editor saves below ``workflows/``."""

    async def saved(self, owner: str, name: str) -> None:
        """Take note of a save; never raises. What the file holds is looked at soon, after the answer.

        Args:
            owner: Whose editor it is.
            name: The file's path below ``workflows/``: ``My Workflow.json``.
        """

    async def moved(self, owner: str) -> None:
        """Let drafts follow files that were moved; never raises.

        A move is no save: what is known of a file keeps its time. What was moved is left as a word beside the
        files until it is done: who dies before leaves it to the next one.

        Args:
            owner: Whose editor it is.
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

    async def moves(self, owner: str) -> Sequence[FileMove]:
        """Return the owner's moves that nobody has followed yet, in their order."""

    async def draft_names(self, owner: str) -> Mapping[str, str]:
        """Return what the owner's drafts are called in the editor, by stored workflow; saved last first."""

    async def follow(self, owner: str, move: FileMove, renames: Renames) -> bool:
        """Rename saves and drafts in one step with the end of the move's word.

        A save or draft whose file is there again stays as it is, and so does one that was saved at the new
        path after the move. A draft that becomes one of another workflow is based on that one's version in
        production, or on what the draft was based on whose place it takes. A draft of another file that is
        there keeps its place. New graphs are remembered as :data:`UNREAD`; those of a folder only while
        there is room.

        Returns:
            Whether it was still to be done.
        """
