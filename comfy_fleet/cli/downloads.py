"""Save a job's outputs in a folder: complete or not at all, and over no other file.

A file that is on its way is called ``NAME.part``. Whatever breaks off leaves it there, and the next try goes
on where it ends. Only bytes with the hash that the fleet has told get the file's name.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blake3 import blake3

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.jobs.safe_names import safe_name

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

TRIES = 5
"""How often a transfer is begun before the command gives up."""
_PIECE = 1024 * 1024
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


def targets(job: Mapping[str, Any], folder: Path, *, job_in_name: bool) -> list[Path]:
    """Return the file for each output of a job, each once, and always the same.

    Args:
        job: The job's record.
        folder: Where they are to be.
        job_in_name: Whether a file is called ``JOB-NAME``, with the first eight characters of the job's id
            and without ComfyUI's counter, so that files of different jobs never meet.
    """
    made: list[Path] = []
    taken: set[str] = set()
    for output in job.get("outputs") or []:
        name = safe_name(str(output.get("name", "output")))
        if job_in_name:
            name = f"{str(job['id'])[:8]}-{re.sub(r'_[0-9]{5}_(?=[.])', '', name)}"
        stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
        number, wanted = 1, name
        while wanted.casefold() in taken:  # macOS and Windows take both spellings for one file
            number += 1
            wanted = f"{stem}_{number}{dot}{suffix}"
        taken.add(wanted.casefold())
        made.append(folder / wanted)
    return made


def check_folder(folder: Path) -> None:
    """Make a folder, and check that files can be written there.

    Raises:
        Fail: They can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
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
        job_in_name: See :func:`targets`.
        force: Whether other files with these names are replaced.
        show: Is called with a file's name and the number of its bytes that have come.

    Raises:
        Fail: Another file has one of the names, or one can't be fetched or written. Complete ones stay.
    """
    check_folder(folder)
    outputs = job.get("outputs") or []
    paths = targets(job, folder, job_in_name=job_in_name)
    there = {path: _same(path, output) for path, output in zip(paths, outputs, strict=True)}
    if others := [path for path, same in there.items() if same is False and not force]:
        names = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
        raise Fail(
            f"other files with these names are in {folder}: {names}",
            hint=_ELSEWHERE,
        )
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
    with _writing(target) as (part, file):
        load(client, output, file, name=target.name, show=show)
        if force:
            part.replace(target)
        else:
            _place(part, target)


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


def is_output(file: BinaryIO, output: Mapping[str, Any]) -> bool:
    """Return whether a file has the bytes that the fleet has told of; also if it has told nothing."""
    told = output.get("hash")
    if not isinstance(told, str):
        size = output.get("size_bytes")
        return size is None or file.seek(0, os.SEEK_END) == size
    file.flush()
    file.seek(0)
    found = blake3()
    while piece := file.read(_PIECE):
        found.update(piece)
    return told == f"blake3:{found.hexdigest()}"


def _same(path: Path, output: Mapping[str, Any]) -> bool | None:
    """Return whether a file is this output; None if there is nothing of this name, not even a link."""
    try:
        if not path.is_file():
            if path.exists():
                what = "a folder" if path.is_dir() else "no file"
                raise Fail(f"{path} is {what}", hint="move it away, or choose another folder: --out DIR")
            return False if path.is_symlink() else None
        with path.open("rb") as file:
            return isinstance(output.get("hash"), str) and is_output(file, output)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}", hint=_ELSEWHERE) from error


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the file that a transfer goes to; an empty one does not stay."""
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Fail(f"another command writes {part}", code=Exit.REFUSED) from None
            try:
                yield part, file
            finally:
                with contextlib.suppress(OSError):
                    if part.stat().st_size == 0:
                        part.unlink()
    except OSError as error:
        raise Fail(
            f"can't write {target}: {error.strerror}", hint="what has come is kept: the same command goes on"
        ) from error


def _place(part: Path, target: Path) -> None:
    """Give a complete file its name, if no other file has got it meanwhile."""
    try:
        os.link(part, target)
    except OSError as error:
        if isinstance(error, FileExistsError) or os.path.lexists(target):
            raise Fail(
                f"another file {target.name} is in {target.parent} now; what has come is {part.name}",
                hint=_ELSEWHERE,
            ) from None
        part.replace(target)  # a file system without hard links
    else:
        part.unlink()


def listed(saved: Sequence[Saved]) -> list[str]:
    """Return a line for each file: its path and size."""
    from comfy_fleet.cli.console import size

    return [
        f"{one.path}  ({size(one.size_bytes)}{'' if one.new else ', was there already'})" for one in saved
    ]
