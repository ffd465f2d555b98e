"""Outputs of a run: finding them in what a node returned.

ComfyUI's nodes return a dict of lists for the user interface: files as ``{filename, subfolder, type}``, texts
as strings, under any key (``images``, ``gifs``, ``audio``, ``3d``, ``text``, ...), and also values that only
the editor needs. Nothing that could be a result is dropped because of its shape.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from sys import getsizeof
from typing import Any, TypeAlias

from comfy_fleet.domain.jobs.job import OutputKind
from comfy_fleet.domain.jobs.media import MODELS, content_type_of, extension_of, kind_of
from comfy_fleet.domain.text import clean

MAX_INLINE_BYTES = 64 * 1024
"""Longer texts are stored as files and never in a record."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file on the node, as ``GET /view`` names it.

    Attributes:
        filename: Its name.
        subfolder: Where it is below the folder of its type.
        type: ``output``, ``temp`` or ``input``.
        or_type: The other folder it may be in, if the node does not say.
    """

    filename: str
    subfolder: str = ""
    type: str = "output"
    or_type: str = ""


@dataclass(frozen=True, slots=True)
class InlineText:
    """Text that the node returned itself."""

    text: str

    @property
    def long(self) -> bool:
        """Whether it is too long for a record."""
        return len(self.text) > MAX_INLINE_BYTES or len(self.text.encode()) > MAX_INLINE_BYTES


@dataclass(frozen=True, slots=True)
class InlineBytes:
    """A picture that came as a websocket frame and exists nowhere else."""

    data: bytes | memoryview


Source: TypeAlias = FileRef | InlineText | InlineBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputItem:
    """One output that a run produced and that has not been stored yet.

    Attributes:
        node_id: The node that produced it.
        key: Its key in the node's output.
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
        """What identifies the output within its run."""
        return self.node_id, self.key, self.index

    @property
    def held_bytes(self) -> int:
        """How much memory its content takes; nothing for a file on the node."""
        match self.source:
            case InlineText():
                return getsizeof(self.source.text)
            case InlineBytes():
                return len(self.source.data)
        return 0

    def emptied(self) -> "OutputItem":
        """Return it without its content, which the caller has taken over."""
        match self.source:
            case InlineText():
                return replace(self, source=InlineText(""))
            case InlineBytes():
                return replace(self, source=InlineBytes(b""))
        return self

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; a frame's picture and a long text are given by their length only."""
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
            ValueError: The bytes were only in another process's memory, or this is not such a dict.
        """
        try:
            source = value["source"]
            where: Source
            if "filename" in source:
                where = FileRef(
                    filename=source["filename"],
                    subfolder=source["subfolder"],
                    type=source["type"],
                    or_type=source.get("or_type", ""),
                )
            elif "text" in source:
                where = InlineText(source["text"])
            else:
                raise ValueError(
                    f"output {value['name']!r} was in one process's memory only and is lost with it"
                )
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
            named = {"filename": source.filename, "subfolder": source.subfolder, "type": source.type}
            return {**named, "or_type": source.or_type} if source.or_type else named
        case InlineText() if source.long:
            return {"bytes": len(source.text)}
        case InlineText():
            return {"text": source.text}
        case InlineBytes():
            return {"bytes": len(source.data)}


def find_outputs(
    node_id: str, output: object, *, run: str = "", most: int | None = None
) -> tuple[OutputItem, ...]:
    """Return the results in a node's output dict, in its order.

    - An object with a ``filename`` is a file, under whatever key.
    - A string is a text. A list of nothing but single characters is one text: ComfyUI makes such a list of a
      bare string that a node returned. Nested lists are flattened.
    - A string can also name a 3D file (:func:`_named_model`).
    - Anything else is a document: a number becomes a text, anything larger becomes JSON.
    - Next to files, documents and fingerprints describe these files and are not outputs. Null is not one
      either.

    Args:
        node_id: The node that returned it.
        output: ``executed``'s ``output``, or a value of a history entry's ``outputs``: anything at all,
            ``None`` (a cached node without output) included.
        run: The run's id: files below its own folder may be named by a bare string.
        most: Stop after this many; None: all.
    """
    return tuple(islice(_outputs(node_id, output, run), most))


def _outputs(node_id: str, output: object, run: str) -> Iterator[OutputItem]:
    if not isinstance(output, Mapping):
        return
    by_key = [(str(key), leaves_of(value), value) for key, value in output.items()]
    named = {
        (id_, index): ref
        for id_, (_, leaves, _) in enumerate(by_key)
        for index, leaf in enumerate(leaves)
        if (ref := _file_ref(leaf)) is not None
    }
    known = set(named.values())
    models = False
    for id_, (key, leaves, _) in enumerate(by_key):
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, str) and key != "text" and extension_of(leaf) in MODELS:
                models = models or key == RESULT
                ref = _named_model(leaf, run)
                if ref is not None and ref not in known:
                    named[id_, index] = ref
    beside = bool(named) or models
    node_id = short_key(node_id)
    for id_, (key, leaves, value) in enumerate(by_key):
        name = short_key(key)
        notes = beside and all(isinstance(leaf, str) and _FINGERPRINT.fullmatch(leaf) for leaf in leaves)
        rest: list[tuple[int, Any]] = []
        for index, leaf in enumerate(leaves):
            if (id_, index) in named:
                yield _file(node_id, name, index, named[id_, index])
            elif isinstance(leaf, str):
                if not notes:
                    yield _text(node_id, name, index, leaf)
            elif leaf not in (None, {}) and not (isinstance(leaf, Mapping) and "filename" in leaf):
                rest.append((index, leaf))
        if rest and not beside and key not in NOTES:
            whole = value if len(rest) == len(leaves) else [leaf for _, leaf in rest]
            yield _document(node_id, name, rest[0][0], whole)


FRAME_NAME = "websocket_"
"""How the names of pictures begin that came as websocket frames."""


def frame_output(node_id: str, index: int, content_type: str, data: bytes | memoryview) -> OutputItem:
    """Return a picture that came as a websocket frame, e.g. from ``SaveImageWebsocket``."""
    extension = {"image/jpeg": "jpg", "image/webp": "webp"}.get(content_type, "png")
    return OutputItem(
        node_id=short_key(node_id),
        key="images",
        index=index,
        name=f"{FRAME_NAME}{index + 1:05}.{extension}",
        kind=OutputKind.IMAGE,
        content_type=content_type,
        source=InlineBytes(data),
    )


RESULT = "result"
"""Where ComfyUI's 3D nodes name their file by a bare string, beside a camera and a background."""

NOTES = frozenset({"animated", "dims", "histogram", "input_bboxes"})
"""Keys that ComfyUI's own nodes use for the editor only."""

_FINGERPRINT = re.compile(r"(?:[a-z0-9]+:)?[0-9a-f]{16,128}", re.IGNORECASE)
_PREVIEW = re.compile(r"(preview[a-z0-9]*(?:_[a-z0-9]+)*)_[0-9a-f]{32}\.[a-z0-9]{1,8}")
_MAX_KEY = 100  # characters of node ids and keys, which are in records and lists
_MAX_NAME = 200
_MAX_PATH = 1024


def leaves_of(value: object) -> list[Any]:
    """Return a key's values as one flat list; a text that ComfyUI split into characters is joined again."""
    leaves: list[Any] = []
    stack = [iter(value if isinstance(value, list | tuple) else [value])]
    while stack:
        for entry in stack[-1]:
            if isinstance(entry, list | tuple):
                stack.append(iter(entry))
                break
            leaves.append(entry)
        else:
            stack.pop()
    if len(leaves) > 1 and all(isinstance(leaf, str) and len(leaf) == 1 for leaf in leaves):
        return ["".join(leaves)]
    return leaves


def _file_ref(entry: object) -> FileRef | None:
    """Read ``{filename, subfolder, type}``; None for anything else."""
    if not isinstance(entry, Mapping):
        return None
    filename = entry.get("filename")
    if not isinstance(filename, str) or not filename:
        return None
    subfolder, type_ = entry.get("subfolder"), entry.get("type")
    # ``/view`` drops folders from a file's name, so they go into the subfolder.
    folders, _, base = filename.rpartition("/")
    inside = [part for part in (subfolder if isinstance(subfolder, str) else "", folders) if part]
    return FileRef(
        filename=clean(base or filename)[:_MAX_PATH],
        subfolder=clean("/".join(inside))[:_MAX_PATH],
        type=clean(type_)[:_MAX_KEY] if isinstance(type_, str) and type_ else "output",
    )


def _named_model(text: str, run: str) -> FileRef | None:
    """Return the 3D file that a bare string names, if this run may have made it; else None.

    The string can come from the user (``Preview3D`` passes on the path that it was given). So it counts only
    if it can't name somebody else's file: below the run's folder, or with a random name that such a node
    draws. The node does not say which of ComfyUI's folders the latter is in; only ``Preview3D`` uses
    ``output``.
    """
    path = text.replace("\\", "/")
    parts = path.split("/")
    if len(path) > _MAX_PATH or any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        return None
    if len(parts) > 3 and parts[0] == "fleet" and run and parts[2] == run:
        return FileRef(filename=parts[-1], subfolder="/".join(parts[:-1]))
    made = _PREVIEW.fullmatch(path)
    if made is None:
        return None
    first, second = ("output", "temp") if made[1] == "preview3d" else ("temp", "output")
    return FileRef(filename=path, type=first, or_type=second)


def _file(node_id: str, key: str, index: int, ref: FileRef) -> OutputItem:
    # A node on Windows separates folders with a backslash.
    name = _short_name(re.split(r"[/\\]", ref.filename)[-1] or ref.filename)
    content_type = content_type_of(name)
    return OutputItem(
        node_id=node_id,
        key=key,
        index=index,
        name=name,
        kind=kind_of(name, content_type),
        content_type=content_type,
        temporary=ref.type == "temp" or bool(ref.or_type),
        source=ref,
    )


def _text(
    node_id: str, key: str, index: int, text: str, extension: str = "txt", content_type: str = "text/plain"
) -> OutputItem:
    name = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', key)[:80] or 'text'}_{index + 1:05}.{extension}"
    return OutputItem(
        node_id=node_id,
        key=key,
        index=index,
        name=name,
        kind=kind_of(name, content_type),
        content_type=content_type,
        source=InlineText(clean(text)),
    )


def _document(node_id: str, key: str, index: int, value: Any) -> OutputItem:
    """Return a number as a text, and anything else as JSON."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    try:
        if isinstance(value, bool | int | float):
            return _text(node_id, key, index, json.dumps(value))
        written = json.dumps(value, ensure_ascii=False, indent=2)
    except (RecursionError, TypeError, ValueError) as error:
        return _text(node_id, key, index, f"a result that can't be written down: {type(error).__name__}")
    return _text(node_id, key, index, written, "json", "application/json")


def short_key(key: str) -> str:
    """Return a node's id or a key, shortened for records; different ones stay different."""
    key = clean(key)
    if len(key) <= _MAX_KEY:
        return key
    return f"{key[: _MAX_KEY - 17]}~{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _short_name(name: str) -> str:
    """Return a file name of at most this many characters, with its extension."""
    if len(name) <= _MAX_NAME:
        return name
    extension = extension_of(name)[:16]
    return name[: _MAX_NAME - len(extension)] + extension
