"""An asset: a record over immutable bytes, identified by a UUID."""

import re
from dataclasses import dataclass

from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.graphs.inputs import alike

HASH = re.compile(r"blake3:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A user's file, uploaded or produced by a job.

    Attributes:
        hash: ``blake3:<hex>`` of the content, always computed here.
        file_path: The name the user gave it, or the output's file name.
        path: What the blob store calls the bytes; never derived from user input.
        folder: Of an upload: the folder in which its client knows it.
        job_id: The job that produced it; None for uploads.
        expires_at: Unix seconds, or None if it stays.
        renews: Whether the fleet chose its end. Then it stays at least as long as each job that uses it.
    """

    id: str
    owner: str
    hash: str
    size_bytes: int
    content_type: str
    file_path: str
    path: str
    created_at: float
    expires_at: float | None = None
    job_id: str | None = None
    tags: tuple[str, ...] = ()
    renews: bool = False
    folder: Folder = Folder.INPUT


def listed_name(file_path: str) -> str:
    """Return the normal form of an upload's name.

    macOS sends letters with accents in two parts, and the editor on Windows writes ``pasted\\image.png``.
    """
    return "/".join(part for part in alike(file_path).split("/") if part not in ("", ".")) or file_path


def index_name(file_path: str, folder: Folder = Folder.INPUT) -> str:
    """Return the name under which an upload is found: no two folders share one.

    The normal form of a name never begins with a slash.
    """
    listed = listed_name(file_path)
    return listed if folder is Folder.INPUT else f"/{folder}/{listed}"
