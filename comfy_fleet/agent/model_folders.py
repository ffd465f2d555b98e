"""A ComfyUI's folders of models, as its agent sees them: opened without following links, and watched.

The folder ``models`` and those directly in it are the operator's and may be links. Nothing below them is
followed, so that nothing a custom node has put there leads out of them.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from comfy_fleet.domain.nodes.model_lists import CODE_FOLDERS

PART, SWEPT = ".fleet-", ".part"
"""How temporary files are called: no model's name begins or ends so."""
MOST_WATCHED = 20_000

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def opened(root: Path, folder: str, below: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """Open a folder of models; yield its descriptor.

    Args:
        root: The folder ``models``.
        folder: Below it.
        below: Folders below that one.
        make: Whether these are made where they are not there.

    Raises:
        OSError: It is not there, or a link is on the way.
    """
    with contextlib.ExitStack() as stack:
        here = os.open(root, _FOLDER)
        stack.callback(os.close, here)
        here = os.open(folder, _FOLDER, dir_fd=here)
        stack.callback(os.close, here)
        for name in below:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=here)
            here = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            stack.callback(os.close, here)
        yield here


def stamp(root: Path) -> int:
    """Return a number that changes when a file comes into a folder of models, or leaves one.

    Whoever makes, renames or deletes a file changes its folder's time; ComfyUI looks at nothing else either.
    """
    seen: list[tuple[str, int]] = []
    for path, at in _folders(root):
        seen.append((path, at))
        if len(seen) >= MOST_WATCHED:
            break
    return hash(tuple(sorted(seen)))


def _folders(root: Path) -> Iterator[tuple[str, int]]:
    """Yield all folders below ``models`` with their times; links directly below it are followed."""
    todo = [(str(root), 0)]
    while todo:
        path, depth = todo.pop()
        try:
            yield path, Path(path).stat().st_mtime_ns
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name in CODE_FOLDERS or entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=depth == 0):
                        todo.append((entry.path, depth + 1))
        except OSError:  # it has gone, or may not be read
            continue


def leftovers(root: Path) -> Iterator[Path]:
    """Yield temporary files that a fetch which was killed may have left."""
    for count, (path, _) in enumerate(_folders(root)):
        if count >= MOST_WATCHED:
            return
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(PART) and entry.name.endswith(SWEPT):
                    yield Path(entry.path)
