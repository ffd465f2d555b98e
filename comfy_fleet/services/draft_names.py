"""Which stored workflow a saved graph's file belongs to, also after it was moved."""

from collections.abc import Mapping, Sequence

from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME, NAME, slug
from comfy_fleet.domain.user_data import WORKFLOWS, graph_file
from comfy_fleet.ports.editor import FileMove, Renames, SavedGraph

_ENDINGS = (".app.json", ".json")


def editor_name(file: str) -> str:
    """Return what the editor calls the graph in a file; empty if it is no graph's file."""
    for ending in _ENDINGS:
        if file.lower().endswith(ending):
            return file[: -len(ending)]
    return ""


def workflow_of(file: str) -> str:
    """Return the stored workflow that a file is a draft of; empty if it is of none."""
    name = editor_name(file)
    workflow = slug(name)
    fits = name and len(file) <= MAX_EDITOR_NAME and file.isprintable() and NAME.fullmatch(workflow)
    return workflow if fits else ""


def renames(move: FileMove, saves: Sequence[SavedGraph], drafts: Mapping[str, str]) -> Renames:
    """Return what becomes of what is known of an owner's graphs by a move.

    It goes through what is known, which is little, and not through what was moved, which may be much.

    Args:
        move: The move.
        saves: What is known of saves.
        drafts: What drafts are called in the editor, by stored workflow.
    """
    moved_saves = {
        one.file: _now(to) for one in saves if (to := _path_after(move, f"{WORKFLOWS}{one.file}")) is not None
    }
    moved_drafts = {}
    for workflow, name in drafts.items():
        if (to := _draft_after(move, name)) is not None:
            file, now = _now(to)
            moved_drafts[workflow] = (name, now, editor_name(file))
    new = {}
    for path in move.new:
        file, workflow = _now(path)
        if workflow:
            new[file] = (workflow, editor_name(file))
    return Renames(saves=moved_saves, drafts=moved_drafts, new=new)


def _now(path: str) -> tuple[str, str]:
    """Return the graph's file at a path and its stored workflow; both empty if it is none that has one."""
    file = graph_file(path) or ""
    workflow = workflow_of(file)
    return (file, workflow) if workflow else ("", "")


def _path_after(move: FileMove, path: str) -> str | None:
    """Return where a file is after a move; None if it did not move."""
    if move.folder:
        inside = path.removeprefix(f"{move.source}/")
        return None if inside == path else f"{move.dest}/{inside}"
    return move.dest if path == move.source else None


def _draft_after(move: FileMove, name: str) -> str | None:
    """Return the same for the file of a draft, whose ending is not known."""
    if move.folder:
        return _path_after(move, f"{WORKFLOWS}{name}.json")
    return move.dest if editor_name(move.source) == f"{WORKFLOWS}{name}" else None
