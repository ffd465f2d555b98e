"""Folders that only the fleet's user may read: they contain prompts, pictures and keys.

Some of them may be used by only one process at a time.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from comfy_fleet.domain.errors import ConfigError


def private_folder(path: Path) -> Path:
    """Create a folder and missing parents, for this user only (mode 0700).

    An existing folder keeps its mode: the operator may share it on purpose.

    Raises:
        OSError: It can't be created.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(exist_ok=True)  # raises if it is a file
    return path


def open_to_others(path: Path) -> str:
    """Return a folder's mode, such as ``755``, if other users may look into it; else nothing."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return ""
    return f"{mode:03o}" if mode & 0o007 else ""


def sync_folder(path: Path) -> None:
    """Sync a folder's names to the disk: a file's own sync may not include its new name.

    Raises:
        OSError: The disk has an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that can't sync folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, who: str, instead: str) -> Iterator[None]:
    """Hold a folder's lock, which dies with this process.

    Args:
        path: The lock file; its content names the process that has the folder.
        who: What kind of process works there.
        instead: What the operator can do instead of stopping the other process.

    Raises:
        ConfigError: Another process holds it.
    """
    private_folder(path.parent)
    file = take_lock(path)
    if file is None:
        raise ConfigError(
            f"another {who} (pid {path.read_text().strip() or 'unknown'}) works on {path.parent}; "
            f"stop it, or {instead}",
            details={"path": str(path)},
        )
    with file:
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        yield


def take_lock(path: Path) -> FileIO | None:
    """Lock a file for as long as it is open; None if another process holds the lock.

    Raises:
        OSError: It can't be created.
    """
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process holds a file's lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False
