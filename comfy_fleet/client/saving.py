"""Files that are saved: complete or not at all, and over no other file.

A file that is on its way is called ``NAME.part``. Whatever breaks off leaves it there, and the next try
goes on where it ends. Only bytes with the hash that the fleet has told get the file's name.
"""

import contextlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from comfy_fleet.client.errors import BrokenDownload, FileConflict
from comfy_fleet.domain.jobs.safe_names import DistinctNames, safe_name

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two programs from writing one file
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.csv"
_PIECE = 1024 * 1024


def target_paths(job: Mapping[str, Any], folder: Path, *, job_in_name: bool) -> list[Path]:
    """Return the file for each output of a job, each once, and always the same.

    Args:
        job: The job.
        folder: Where they are to be.
        job_in_name: Whether a file is called ``JOB-NAME``, with the first eight characters of the job's id
            and without ComfyUI's counter, so that files of different jobs never meet.
    """
    names = DistinctNames()
    made: list[Path] = []
    for output in job.get("outputs") or []:
        name = safe_name(str(output.get("name", "output")))
        if job_in_name:
            name = f"{str(job['id'])[:8]}-{re.sub(r'_[0-9]{5}_(?=[.])', '', name)}"
        stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
        made.append(folder / names.one(stem, f"{dot}{suffix}"))
    return made


def check_folder(folder: Path) -> None:
    """Make a folder, and check that files can be written there.

    Raises:
        OSError: They can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def is_output(file: BinaryIO, output: Mapping[str, Any]) -> bool:
    """Return whether a file has the bytes that the fleet has told of; also if it has told nothing."""
    told = output.get("hash")
    if not isinstance(told, str):
        size = output.get("size_bytes")
        return size is None or file.seek(0, os.SEEK_END) == size
    from blake3 import blake3

    file.flush()
    file.seek(0)
    found = blake3()
    while piece := file.read(_PIECE):
        found.update(piece)
    return told == f"blake3:{found.hexdigest()}"


def same_output(path: Path, output: Mapping[str, Any]) -> bool | None:
    """Return whether a file is this output; None if there is nothing of this name, not even a link.

    Raises:
        FileConflict: It is no file.
        OSError: It can't be read.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise FileConflict(f"{path} is {'a folder' if path.is_dir() else 'no file'}", [path])
            return False if path.is_symlink() else None
        with path.open("rb") as file:
            return isinstance(output.get("hash"), str) and is_output(file, output)
    except FileNotFoundError:
        return None


class PartFile:
    """The file that a transfer goes to. Close it: an empty one does not stay.

    Raises:
        FileConflict: Another program writes it.
        OSError: It can't be written.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._file = self.path.open("a+b")
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise FileConflict(f"another command writes {self.path}", [self.path]) from None

    @property
    def file(self) -> BinaryIO:
        """The open file."""
        return self._file

    @property
    def size(self) -> int:
        """How many bytes have come."""
        return self._file.seek(0, os.SEEK_END)

    def write(self, piece: bytes) -> int:
        """Add bytes at the end, and return how many there are."""
        self._file.write(piece)
        return self._file.tell()

    def restart(self) -> None:
        """Drop what has come."""
        self._file.truncate(0)

    def holds(self, output: Mapping[str, Any]) -> bool:
        """Return whether it has the bytes that the fleet has told of."""
        return is_output(self._file, output)

    def place(self, *, replace: bool) -> None:
        """Give the complete file its name.

        Raises:
            FileConflict: Another file has got it meanwhile, and is not to be replaced.
        """
        self._file.flush()
        if replace:
            self.path.replace(self.target)
            return
        try:
            os.link(self.path, self.target)
        except OSError as error:
            if isinstance(error, FileExistsError) or os.path.lexists(self.target):
                raise FileConflict(
                    f"another file {self.target.name} is in {self.target.parent} now; "
                    f"what has come is {self.path.name}",
                    [self.target],
                ) from None
            self.path.replace(self.target)  # a file system without hard links
        else:
            self.path.unlink()

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()
        self._file.close()


def other_files(folder: Path, others: Sequence[Path]) -> FileConflict:
    """Return the error for files that have the names of what is to be saved."""
    names = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
    return FileConflict(f"other files with these names are in {folder}: {names}", others)


def unpack(archive_file: IO[bytes], folder: Path, *, replace: bool) -> list[Path]:
    """Unpack a batch's zip; files that are there already, and equal, stay as they are.

    Raises:
        FileConflict: Other files have these names, and are not to be replaced.
        BrokenDownload: It is incomplete.
        OSError: A file can't be written.
    """
    try:
        with zipfile.ZipFile(archive_file) as archive:
            infos = archive.infolist()
            targets = [folder / safe_name(info.filename) for info in infos]
            pairs = list(zip(targets, infos, strict=True))
            others = [
                path
                for path, info in pairs
                if os.path.lexists(path) and not _same_member(path, info) and path.name != MANIFEST
            ]
            if others and not replace:
                raise other_files(folder, others)
            for path, info in pairs:
                if not _same_member(path, info):
                    with archive.open(info) as source:
                        _write(path, source)
            return targets
    except zipfile.BadZipFile as error:
        raise BrokenDownload(f"the zip that came is incomplete: {error}") from None


def _same_member(path: Path, info: zipfile.ZipInfo) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != info.file_size:
        return False
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found == info.CRC


def _write(path: Path, source: IO[bytes]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        shutil.copyfileobj(source, file, _PIECE)
    part.replace(path)


OnBytes = Callable[[int], Any]
"""Is called with the number of bytes that have come."""
