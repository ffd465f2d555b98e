"""Save a job's outputs in a folder: complete or not at all, and over no other file.

A file that is on its way is called ``NAME.part``. Whatever breaks off leaves it there, and the next try goes
on where it ends. Only bytes with the hash that the fleet has told get the file's name.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.client import FileConflict, saving
from comfy_fleet.client.saving import PartFile, is_output

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

TRIES = 5
"""How often a transfer is begun before the command gives up."""
_ELSEWHERE = "choose another folder, or replace what is there with --force"

Show = Callable[[int], None]
"""Is called with the number of bytes that have come."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved output.

    Attributes:
        name: As the fleet calls it.
        path: The file.
        size_bytes: Its length.
        new: False if the same file was there already.
    """

    name: str
    path: Path
    size_bytes: int
    new: bool

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {"name": self.name, "path": str(self.path), "size_bytes": self.size_bytes, "new": self.new}


def check_folder(folder: Path) -> None:
    """Make a folder, and check that files can be written there.

    Raises:
        Fail: They can't.
    """
    try:
        saving.check_folder(folder)
    except OSError as error:
        raise Fail(f"can't write in {folder}: {error.strerror}", code=Exit.USAGE) from error


def save_outputs(
    client: "Client",
    job: Mapping[str, Any],
    folder: Path,
    *,
    job_in_name: bool = True,
    force: bool = False,
    show: Callable[[str, int], None] | None = None,
) -> list[Saved]:
    """Download a job's outputs; files that are there already are left as they are.

    Args:
        client: The fleet.
        job: The job's record.
        folder: Where to; it is made if it is missing.
        job_in_name: See :func:`comfy_fleet.client.saving.target_paths`.
        force: Whether other files with these names are replaced.
        show: Is called with a file's name and the number of its bytes that have come.

    Raises:
        Fail: Another file has one of the names, or one can't be fetched or written. Complete ones stay.
    """
    check_folder(folder)
    outputs = job.get("outputs") or []
    paths = saving.target_paths(job, folder, job_in_name=job_in_name)
    there = {path: _same(path, output) for path, output in zip(paths, outputs, strict=True)}
    if others := [path for path, same in there.items() if same is False and not force]:
        raise Fail(saving.other_files(folder, others).message, hint=_ELSEWHERE)
    saved: list[Saved] = []
    for path, output in zip(paths, outputs, strict=True):
        name = str(output.get("name", "output"))
        told: Show = partial(show, path.name) if show else _silent
        if not there[path]:
            fetch(client, output, path, force=force, show=told)
        saved.append(Saved(name=name, path=path, size_bytes=path.stat().st_size, new=not there[path]))
        told(saved[-1].size_bytes)
    return saved


def _silent(count: int) -> None:
    """Show nothing."""


def fetch(client: "Client", output: Mapping[str, Any], target: Path, *, force: bool, show: Show) -> None:
    """Download one output; see :func:`save_outputs`.

    Raises:
        Fail: It can't be fetched or written, or another command downloads it now.
    """
    with _writing(target) as part:
        load(client, output, part.file, name=target.name, show=show)
        try:
            part.place(replace=force)
        except FileConflict as error:
            raise Fail(error.message, hint=_ELSEWHERE) from None


def load(client: "Client", output: Mapping[str, Any], file: BinaryIO, *, name: str, show: Show) -> None:
    """Download an output's bytes to the end of a file that may have the first of them.

    Raises:
        Fail: They can't be fetched; it tells the name. What has come stays.
    """
    for turn in range(1, TRIES + 1):
        try:
            _go_on(client, output, file, show)
        except Fail as error:
            if not error.passing or turn == TRIES:
                raise Fail(
                    f"{name}: {error.message}",
                    hint="what has come is kept: the same command goes on from there"
                    if file.seek(0, os.SEEK_END)
                    else error.hint,
                    code=error.exit,
                ) from None
            continue
        if is_output(file, output):
            break
        # Another file's beginning was there, or the transfer was disturbed: once more, from the start.
        file.truncate(0)
        if turn == TRIES:
            raise Fail(f"{name}: what came is not what the fleet has stored")
    file.flush()


def _go_on(client: "Client", output: Mapping[str, Any], file: BinaryIO, show: Show) -> None:
    start = file.seek(0, os.SEEK_END)
    whole = output.get("size_bytes")
    if isinstance(whole, int) and start >= whole > 0:
        return  # the hash decides
    for piece in client.content(str(output["url"]), start=start, restart=lambda: file.truncate(0)):
        file.write(piece)  # always at its end
        show(file.tell())


def _same(path: Path, output: Mapping[str, Any]) -> bool | None:
    """Return whether a file is this output; None if there is nothing of this name, not even a link."""
    try:
        return saving.same_output(path, output)
    except FileConflict as error:
        raise Fail(error.message, hint="move it away, or choose another folder: --out DIR") from None
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}", hint=_ELSEWHERE) from error


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[PartFile]:
    """Open the file that a transfer goes to."""
    try:
        with contextlib.closing(PartFile(target)) as part:
            yield part
    except FileConflict as error:
        raise Fail(error.message, code=Exit.REFUSED) from None
    except OSError as error:
        raise Fail(
            f"can't write {target}: {error.strerror}", hint="what has come is kept: the same command goes on"
        ) from error


def listed(saved: Sequence[Saved]) -> list[str]:
    """Return a line for each file: its path and size."""
    from comfy_fleet.cli.console import size

    return [
        f"{one.path}  ({size(one.size_bytes)}{'' if one.new else ', was there already'})" for one in saved
    ]
