"""Folders that only the fleet's user may look into: prompts, pictures and keys lie there."""

from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make a folder, and whatever is missing above it, for this user alone (mode 0700).

    A folder that is there already stays as it is: the operator may share it on purpose.

    Raises:
        OSError: It can't be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(exist_ok=True)  # says so if it is a file
    return path
