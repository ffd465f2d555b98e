"""Save what a batch has made: its zip is loaded, and unpacked over no other file."""

import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from comfy_fleet.cli.downloads import check_folder
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.paths import path_of
from comfy_fleet.domain.jobs.safe_names import safe_name

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

MANIFEST = "manifest.csv"
_PIECE = 1024 * 1024


def save_batch(client: "Client", batch_id: str, folder: Path, *, force: bool = False) -> list[Path]:
    """Save a batch's outputs and its manifest; files that are there already, and equal, stay as they are.

    Raises:
        Fail: Other files have these names, or something can't be loaded or written.
    """
    check_folder(folder)
    saved = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for piece in client.content(path_of("batch", batch_id, "/outputs.zip"), restart=lambda: None):
                file.write(piece)
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                targets = [folder / safe_name(info.filename) for info in infos]
                others = [
                    path
                    for path, info in zip(targets, infos, strict=True)
                    if os.path.lexists(path) and not _same(path, info) and path.name != MANIFEST
                ]
                if others and not force:
                    names = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
                    raise Fail(
                        f"other files with these names are in {folder}: {names}",
                        hint="choose another folder, or replace what is there with --force",
                    )
                for path, info in zip(targets, infos, strict=True):
                    if not _same(path, info):
                        with archive.open(info) as source:
                            _write(path, source)
                    saved.append(path)
    except zipfile.BadZipFile as error:
        raise Fail(
            f"what came of batch {batch_id} is incomplete: {error}", hint="the same command tries again"
        ) from None
    except OSError as error:
        raise Fail(f"can't write in {folder}: {error.strerror}") from error
    return saved


def _same(path: Path, info: zipfile.ZipInfo) -> bool:
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
