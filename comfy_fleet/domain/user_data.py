"""A person's own files in the editor: workflows, subgraphs, templates, key bindings, settings.

They are named by paths below a folder that only this person sees. Such a path is a name in a table, never
one of a file system.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from comfy_fleet.domain.errors import BadInput, Conflict, FleetError
from comfy_fleet.domain.graphs.folders import below, storable

MOST_FILES = 10_000
"""Files and folders of one person."""
MOST_FILE_BYTES = 20 * 1024 * 1024
"""Largest file in bytes."""
SETTINGS_FILE = "comfy.settings.json"
"""Where ComfyUI keeps a person's settings, among their files."""
WORKFLOWS = "workflows/"
"""Where the editor saves graphs."""


class UserFileExists(Conflict):
    """There is a file or a folder of this name, and it is not to be replaced."""

    code = "file_exists"


class UserFileChanged(Conflict):
    """The file is not the one that was expected: somebody has written it meanwhile."""

    code = "file_changed"


class UserDataFull(FleetError):
    """The file does not fit; the message says which limit it is, and what to do."""

    code = "user_data_full"


class BadUserPath(BadInput):
    """No file can have this path."""


@dataclass(frozen=True, kw_only=True)
class UserFile:
    """The record of one file.

    Attributes:
        path: Below the person's folder, e.g. ``workflows/cat.json``.
        size_bytes: Its size.
        created: When a file of this path was first written, in Unix seconds.
        modified: When it was written last.
        version: Another one for every write.
    """

    path: str
    size_bytes: int
    created: float
    modified: float
    version: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What has another path now.

    Attributes:
        path: Where it is: what is moved onto a folder comes into it.
        file: Its new record; None for a folder.
    """

    path: str
    file: UserFile | None


@dataclass(frozen=True, kw_only=True)
class UserTree:
    """All files and folders of a person.

    Attributes:
        files: By path.
        folders: Paths of folders, without the person's own. Like ComfyUI's, they stay when they are emptied.
    """

    files: Mapping[str, UserFile] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()

    def below(self, folder: str) -> dict[str, UserFile]:
        """Return the files in a folder and its subfolders, by their paths from there; in order of path."""
        prefix = f"{folder}/" if folder else ""
        return {
            path[len(prefix) :]: file for path, file in sorted(self.files.items()) if path.startswith(prefix)
        }


def user_path(name: str) -> str | None:
    """Return the path that a name means, as ComfyUI reads it; None if it leads out of the person's folder.

    Args:
        name: As it was sent, decoded once. If it still holds a ``%``, ComfyUI decodes it again.

    Returns:
        The path in its shortest form; empty for the person's own folder.
    """
    return below(unquote(name) if "%" in name else name)


def check_user_path(path: str) -> None:
    """Check that a path can be that of a new file.

    Raises:
        BadUserPath: It is empty, too long, or has characters that no name may have.
    """
    if not storable(path):
        raise BadUserPath(
            "the file's name is empty or too long, or has control characters", details={"field": "file"}
        )


def folders_of(path: str) -> list[str]:
    """Return the folders that a path goes through, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def graph_file(path: str) -> str | None:
    """Return what the editor calls the graph at a path: ``cat.json`` for ``workflows/cat.json``.

    Returns:
        None if there is none: it is elsewhere, of another kind, or hidden, as the editor's own lists are.
    """
    name = path.removeprefix(WORKFLOWS)
    if name == path or not name.endswith(".json") or any(part.startswith(".") for part in name.split("/")):
        return None
    return name
