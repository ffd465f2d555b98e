"""Outputs of a run: finding them in what a node returned, and naming their kind.

ComfyUI's nodes return a dict of lists for the user interface. Any list of ``{filename, subfolder, type}``
names files, whatever its key (``images``, ``gifs``, ``audio``, ``3d``, ...), and any list of strings is
text. Flags and numbers (``animated: [true]``) describe other outputs and are none themselves.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from comfy_fleet.domain.job import OutputKind

UNKNOWN_TYPE = "application/octet-stream"

# The standard library's mimetypes reads the machine's own tables; a job's outputs must not depend on them.
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".exr": "image/x-exr",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".txt": "text/plain",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".srt": "text/plain",
    ".json": "application/json",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".latent": UNKNOWN_TYPE,
    ".safetensors": UNKNOWN_TYPE,
}
_KINDS = {
    "image": OutputKind.IMAGE,
    "video": OutputKind.VIDEO,
    "audio": OutputKind.AUDIO,
    "text": OutputKind.TEXT,
}
_LATENT = frozenset({".latent", ".safetensors"})


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file on the node, as ``GET /view`` wants it; ``type`` is ``output``, ``temp`` or ``input``."""

    filename: str
    subfolder: str = ""
    type: str = "output"


@dataclass(frozen=True, slots=True)
class InlineText:
    """Text that the node returned itself."""

    text: str


@dataclass(frozen=True, slots=True)
class InlineBytes:
    """A picture that came as a websocket frame and exists nowhere else."""

    data: bytes


Source: TypeAlias = FileRef | InlineText | InlineBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItem:
    """One output that a run produced and that is still to be stored.

    Attributes:
        node_id: The node that produced it.
        key: The key it stood under.
        index: Its place in that list; (node_id, key, index) is unique in a run.
        name: File name for people.
        content_type: MIME type by the name.
        temporary: True for previews (ComfyUI's type ``temp``).
        source: Where the bytes are.
    """

    node_id: str
    key: str
    index: int
    name: str
    kind: OutputKind
    content_type: str
    source: Source
    temporary: bool = False

    @property
    def id(self) -> tuple[str, str, int]:
        """What makes it the same output."""
        return self.node_id, self.key, self.index

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; of a frame's picture only its length."""
        return {
            "node_id": self.node_id,
            "key": self.key,
            "index": self.index,
            "name": self.name,
            "kind": str(self.kind),
            "content_type": self.content_type,
            "temporary": self.temporary,
            "source": _source_json(self.source),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "OutputItem":
        """Read :meth:`to_json` back.

        Raises:
            ValueError: The bytes were in another process's memory only, or this is no such dict.
        """
        try:
            source = value["source"]
            where: Source
            if "filename" in source:
                where = FileRef(
                    filename=source["filename"], subfolder=source["subfolder"], type=source["type"]
                )
            elif "text" in source:
                where = InlineText(source["text"])
            else:
                raise ValueError(f"output {value['name']!r} came as a frame and can't be read again")
            return cls(
                node_id=value["node_id"],
                key=value["key"],
                index=value["index"],
                name=value["name"],
                kind=OutputKind(value["kind"]),
                content_type=value["content_type"],
                temporary=value["temporary"],
                source=where,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an output: {error!r} is missing or wrong") from error


def _source_json(source: Source) -> dict[str, Any]:
    match source:
        case FileRef():
            return {"filename": source.filename, "subfolder": source.subfolder, "type": source.type}
        case InlineText():
            return {"text": source.text}
        case InlineBytes():
            return {"bytes": len(source.data)}


def content_type_of(name: str) -> str:
    """Return the MIME type that a file name stands for; ``application/octet-stream`` if unknown."""
    return _TYPES.get(_extension(name), UNKNOWN_TYPE)


def kind_of(name: str, content_type: str) -> OutputKind:
    """Return the normalised kind: by MIME type, latents by extension, else ``file`` (3D models are files)."""
    if _extension(name) in _LATENT:
        return OutputKind.LATENT
    return _KINDS.get(content_type.partition("/")[0], OutputKind.FILE)


def find_outputs(node_id: str, output: object) -> tuple[OutputItem, ...]:
    """Return what a node's output dict names, in its own order; nothing for shapes that name nothing.

    Args:
        node_id: The node that returned it.
        output: ``executed``'s ``output``, or a value of a history entry's ``outputs``: anything at all,
            ``None`` (a cached node without output) included.
    """
    if not isinstance(output, Mapping):
        return ()
    found: list[OutputItem] = []
    for key, value in output.items():
        entries = value if isinstance(value, list | tuple) else [value]
        texts = bool(entries) and all(isinstance(entry, str) for entry in entries)
        for index, entry in enumerate(entries):
            if isinstance(entry, Mapping):
                item = _file(node_id, str(key), index, entry)
            elif isinstance(entry, str) and (texts or key == "text"):
                item = _text(node_id, str(key), index, entry)
            else:
                item = None
            if item is not None:
                found.append(item)
    return tuple(found)


def frame_output(node_id: str, index: int, content_type: str, data: bytes) -> OutputItem:
    """Return a picture that came as a websocket frame, e.g. from ``SaveImageWebsocket``."""
    extension = {"image/jpeg": "jpg", "image/webp": "webp"}.get(content_type, "png")
    return OutputItem(
        node_id=node_id,
        key="images",
        index=index,
        name=f"websocket_{index + 1:05}.{extension}",
        kind=OutputKind.IMAGE,
        content_type=content_type,
        source=InlineBytes(data),
    )


def _file(node_id: str, key: str, index: int, entry: Mapping[Any, Any]) -> OutputItem | None:
    filename = entry.get("filename")
    if not isinstance(filename, str) or not filename:
        return None
    subfolder, type_ = entry.get("subfolder"), entry.get("type")
    # ``/view`` drops folders from a file's name: they belong to the subfolder.
    folders, _, base = filename.rpartition("/")
    inside = [part for part in (subfolder if isinstance(subfolder, str) else "", folders) if part]
    ref = FileRef(
        filename=base or filename,
        subfolder="/".join(inside),
        type=type_ if isinstance(type_, str) and type_ else "output",
    )
    # A node on Windows separates folders with a backslash.
    name = re.split(r"[/\\]", filename)[-1] or filename
    content_type = content_type_of(name)
    return OutputItem(
        node_id=node_id,
        key=key,
        index=index,
        name=name,
        kind=kind_of(name, content_type),
        content_type=content_type,
        temporary=ref.type == "temp",
        source=ref,
    )


def _text(node_id: str, key: str, index: int, text: str) -> OutputItem:
    return OutputItem(
        node_id=node_id,
        key=key,
        index=index,
        name=f"{re.sub(r'[^A-Za-z0-9_-]+', '_', key)[:80] or 'text'}_{index + 1:05}.txt",
        kind=OutputKind.TEXT,
        content_type="text/plain",
        source=InlineText(text),
    )


def _extension(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""
