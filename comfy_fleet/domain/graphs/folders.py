"""ComfyUI's three folders of files, and the names that point into them.

A client knows a file by folder, subfolder and name. In a graph all three are one text:
``SUB/NAME.png [output]``; without a note in brackets it means the folder ``input``.
"""

import posixpath
from enum import StrEnum

MAX_PATH_BYTES, MAX_PART_BYTES = 1024, 255
"""Longest name with its subfolders, and longest part of it."""


class Folder(StrEnum):
    """Where a file belongs."""

    INPUT = "input"
    """What was uploaded, to be read by graphs."""
    OUTPUT = "output"
    """What jobs have saved."""
    TEMP = "temp"
    """Previews, and what an editor uploads for one job."""


_NOTES = tuple((f"[{folder}]", folder) for folder in (Folder.OUTPUT, Folder.INPUT, Folder.TEMP))


def annotated(text: str) -> tuple[str, Folder | None]:
    """Return the name and the folder that a text names, as ComfyUI reads it.

    ComfyUI cuts off one character before the bracket, whatever it is.
    """
    for note, folder in _NOTES:
        if text.endswith(note):
            return text[: -len(note) - 1], folder
    return text, None


def named(text: str) -> tuple[str, Folder]:
    """Return the name and the folder of a file that a graph names.

    The blank before the note is ComfyUI's; without it, the brackets are a part of the name.
    """
    for note, folder in _NOTES:
        if text.endswith(f" {note}"):
            return text[: -len(note)].rstrip(), folder
    return text, Folder.INPUT


def below(*parts: str) -> str | None:
    """Join parts to a path below a folder; None if it leads out of the folder.

    Returns:
        The path in its shortest form; empty for the folder itself.
    """
    path = posixpath.normpath(posixpath.join("/root", *parts))
    if path == "/root":
        return ""
    return path[len("/root/") :] if path.startswith("/root/") else None


def storable(path: str) -> bool:
    """Return whether a relative path can be the name of a file here."""
    return (
        bool(path)
        and len(path.encode("utf-8", "replace")) <= MAX_PATH_BYTES
        and all(len(part.encode("utf-8", "replace")) <= MAX_PART_BYTES for part in path.split("/"))
        and not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in path)
    )
