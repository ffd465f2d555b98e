"""ComfyUI's websocket frames, decoded.

Text frames are ``{"type", "data"}``. Binary frames start with a 4-byte big-endian number:

====  =======================================================================================
1     picture: 4-byte image type (1 JPEG, 2 PNG), then the image
3     text: 4-byte length, node id, then UTF-8 text
4     picture: 4-byte length, JSON metadata (``node_id``, ``prompt_id``, ``image_type``), image
====  =======================================================================================

Type 4 comes instead of 1 to clients that announced ``supports_preview_metadata``. Newer servers may send
other types and longer metadata: what can't be read is None, never an error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from comfy_fleet.domain.jobs.run_messages import Binary, Frame

MAX_METADATA_BYTES, MAX_LINE_BYTES = 64 * 1024, 64 * 1024
"""Most bytes of a picture's metadata or of a line of text. A frame may be far larger, and decoding takes
several times as much memory."""
NOT_THE_CLIENTS = frozenset({"status", "feature_flags", "logs", "execution_success"})
"""What a node tells about itself, and an end, which is a fact only once it is in the job's record."""
_SMALL = 1024 * 1024
_ONE, _FOUR = (1).to_bytes(4, "big"), (4).to_bytes(4, "big")
_JPEG, _PNG, _WEBP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A preview, or a picture that exists as a frame only.

    Attributes:
        data: The encoded image; a large one is a view into the frame, which is not copied.
        content_type: By the image's first bytes, else as announced.
        node_id: Who sent it, if the frame says so.
        prompt_id: For which prompt, if the frame says so.
    """

    data: bytes | memoryview
    content_type: str
    node_id: str | None = None
    prompt_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressText:
    """A line that a node shows while it works."""

    node_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFrame:
    """A frame as its node sent it, for clients that follow a job.

    Attributes:
        run: The run whose websocket it came on.
        data: The JSON of a text frame, or all of a binary one.
        text: Whether it is a text frame.
        place: For a picture that is an output: its node, and its place among those that the node sends.
        only: Whom it is for: ``job``, who follows the one job; ``clients``, who follows all jobs of a client;
            empty: both.
    """

    run: str
    data: bytes | bytearray
    text: bool
    place: tuple[str, int] | None = None
    only: Literal["", "job", "clients"] = field(default="", compare=False)


def frame_of(message: object, *, raw: bytes | bytearray = b"") -> Frame | None:
    """Return a decoded JSON text frame, or None if it has not ComfyUI's shape; ``raw`` is the JSON itself."""
    if not isinstance(message, Mapping):
        return None
    type_, data = message.get("type"), message.get("data")
    if not isinstance(type_, str):
        return None
    return Frame(type_, data if isinstance(data, Mapping) else {}, raw)


def prompt_of(frame: Frame | Binary) -> str | None:
    """Return the prompt that a frame is about; None for frames about the server or of old servers."""
    if isinstance(frame, Binary):
        picture = parse_binary(frame.data)
        return picture.prompt_id if isinstance(picture, Picture) else None
    prompt_id = frame.data.get("prompt_id")
    return prompt_id if isinstance(prompt_id, str) else None


def parse_binary(data: bytes | bytearray) -> Picture | ProgressText | None:
    """Decode a binary frame; None if it is of an unknown type or cut short."""
    match _number(data, 0):
        case 1 if len(data) > 8:
            announced = {1: "image/jpeg", 2: "image/png"}.get(_number(data, 4) or 0, "")
            image = _rest(data, 8)
            return Picture(data=image, content_type=_image_type(image, announced))
        case 3:
            head = _number(data, 4)
            if head is None or head > MAX_METADATA_BYTES or len(data) < 8 + head:
                return None
            return ProgressText(
                node_id=data[8 : 8 + head].decode(errors="replace"),
                text=data[8 + head : 8 + head + MAX_LINE_BYTES].decode(errors="replace"),
            )
        case 4:
            head = _number(data, 4)
            if head is None or head > MAX_METADATA_BYTES or len(data) <= 8 + head:
                return None
            metadata = _object(data[8 : 8 + head])
            image = _rest(data, 8 + head)
            return Picture(
                data=image,
                content_type=_image_type(image, _string(metadata, "image_type") or ""),
                node_id=_string(metadata, "node_id"),
                prompt_id=_string(metadata, "prompt_id"),
            )
        case _:
            return None


def with_metadata(data: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return a picture of type 1 as one of type 4; any other frame as it is."""
    if _number(data, 0) != 1 or len(data) <= 8:
        return data
    image = data[8:]
    announced = "image/png" if _number(data, 4) == 2 else "image/jpeg"
    head = json.dumps({**metadata, "image_type": announced}).encode()
    return b"".join((_FOUR, len(head).to_bytes(4, "big"), head, image))


def without_metadata(data: bytes) -> bytes:
    """Return a picture of type 4 as one of type 1; any other frame as it is."""
    head = _head(data)
    if head is None:
        return data
    code = 2 if _string(_object(head), "image_type") == "image/png" else 1
    return b"".join((_ONE, code.to_bytes(4, "big"), data[8 + len(head) :]))


def with_prompt(data: bytes, run: bytes, prompt: bytes) -> bytes:
    """Return a binary frame with another prompt's id in its metadata.

    Args:
        data: The frame.
        run: The id to replace.
        prompt: The id to put in its place, escaped for JSON.
    """
    head = _head(data)
    if head is None or run not in head:
        return data
    named = head.replace(run, prompt)
    return b"".join((_FOUR, len(named).to_bytes(4, "big"), named, data[8 + len(head) :]))


def with_node(data: bytes | bytearray, node: str, *, run: str) -> bytes | bytearray:
    """Return a picture of type 4, or a text, as another run's about another node; any other frame as it is.

    Args:
        data: The frame.
        node: The node's id.
        run: The run's.
    """
    kind, head = _number(data, 0), _number(data, 4)
    if head is None or head > MAX_METADATA_BYTES or len(data) < 8 + head or kind not in (3, 4):
        return data
    if kind == 3:
        named = node.encode()
    else:
        metadata = dict(_object(data[8 : 8 + head]))
        for key in ("node_id", "display_node_id", "real_node_id"):
            if key in metadata:
                metadata[key] = node
        named = json.dumps({**metadata, "prompt_id": run}).encode()
    return b"".join((data[:4], len(named).to_bytes(4, "big"), named, data[8 + head :]))


def _head(data: bytes) -> bytes | None:
    """Return the metadata of a picture of type 4, or None."""
    size = _number(data, 4) if _number(data, 0) == 4 else None
    return None if size is None or size > MAX_METADATA_BYTES or len(data) <= 8 + size else data[8 : 8 + size]


def _number(data: bytes | bytearray, offset: int) -> int | None:
    return int.from_bytes(data[offset : offset + 4], "big") if len(data) >= offset + 4 else None


def _rest(data: bytes | bytearray, start: int) -> bytes | memoryview:
    rest = memoryview(data)[start:]
    return rest if len(rest) > _SMALL else bytes(rest)


def _object(data: bytes | bytearray) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _string(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _image_type(image: bytes | memoryview, announced: str) -> str:
    # The header has codes for two formats; nodes send others under the same codes.
    head = bytes(image[:12])
    if head.startswith(_PNG):
        return "image/png"
    if head.startswith(_JPEG):
        return "image/jpeg"
    if head.startswith(_WEBP) and head[8:] == b"WEBP":
        return "image/webp"
    return announced if announced.startswith("image/") else "image/png"
