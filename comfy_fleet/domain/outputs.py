"""Outputs of a run: finding them in what a node returned, and naming their kind.

ComfyUI's nodes return a dict of lists for the user interface. Any list of ``{filename, subfolder, type}``
names files, whatever its key (``images``, ``gifs``, ``audio``, ``3d``, ...), and any list of strings is
text. Flags and numbers (``animated: [true]``) describe other outputs and are none themselves.
"""

import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from comfy_fleet.domain.job import OutputKind

# mimetypes reads the machine's own tables: what matters here must not depend on them.
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
    ".latent": "application/octet-stream",
    ".safetensors": "application/octet-stream",
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

    @property
    def durable(self) -> bool:
        """Whether another process can still read it: a frame's picture is in this one's memory only."""
        return not isinstance(self.source, InlineBytes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; of a frame's picture only its length."""
        match self.source:
            case FileRef():
                source: dict[str, Any] = {
                    "filename": self.source.filename,
                    "subfolder": self.source.subfolder,
                    "type": self.source.type,
                }
            case InlineText():
                source = {"text": self.source.text}
            case InlineBytes():
                source = {"bytes": len(self.source.data)}
        return {
            "node_id": self.node_id,
            "key": self.key,
            "index": self.index,
            "name": self.name,
            "kind": str(self.kind),
            "content_type": self.content_type,
            "temporary": self.temporary,
            "source": source,
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
