"""Save what a batch has made: its zip is loaded, and unpacked over no other file."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_fleet.cli.downloads import check_folder
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.paths import path_of
from comfy_fleet.client import BrokenDownload, FileConflict
from comfy_fleet.client.saving import unpack

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client


def save_batch(client: "Client", batch_id: str, folder: Path, *, force: bool = False) -> list[Path]:
    """Save a batch's outputs and its manifest; files that are there already, and equal, stay as they are.

    Raises:
        Fail: Other files have these names, or something can't be loaded or written.
    """
    check_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for piece in client.content(path_of("batch", batch_id, "/outputs.zip"), restart=lambda: None):
                file.write(piece)
            return unpack(file, folder, replace=force)
    except FileConflict as error:
        raise Fail(
            error.message, hint="choose another folder, or replace what is there with --force"
        ) from None
    except BrokenDownload as error:
        raise Fail(f"batch {batch_id}: {error.message}", hint="the same command tries again") from None
    except OSError as error:
        raise Fail(f"can't write in {folder}: {error.strerror}") from error
