"""Whether what people ask for, and what is made for them, may be: somebody outside of the fleet judges."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comfy_fleet.domain.errors import BadInput, Busy
from comfy_fleet.domain.graphs.graph import Graph, is_link, texts_in
from comfy_fleet.domain.text import clean, clip

MAX_REASON = 300
MAX_TEXTS_BYTES = 1024 * 1024
"""Most bytes of texts in one question; a graph with more is refused, so that nothing goes unread."""


class ModerationMode(StrEnum):
    """What becomes of jobs while nobody answers."""

    OFF = "off"
    """Nobody is asked."""
    OPEN = "open"
    """They pass."""
    CLOSED = "closed"
    """New ones are refused for now, and pictures are withheld."""


class ModerationStage(StrEnum):
    """When somebody is asked."""

    PROMPT = "prompt"
    """Before a job is accepted: its texts, and the files that it reads."""
    INPUT = "input"
    """A file that an accepted job has named by URL, before any node gets it."""
    OUTPUT = "output"
    """A file that a job has made, before anybody gets it."""


class ContentRefused(BadInput):
    """Who judges has said no; the message has the reason given."""

    code = "content_refused"


class ModerationDown(Busy):
    """Nobody has answered who judges, and nothing passes without."""

    code = "moderation_unavailable"


@dataclass(frozen=True, kw_only=True)
class JudgedText:
    """A text of a graph."""

    node_id: str
    input: str
    text: str


@dataclass(frozen=True, kw_only=True)
class JudgedFile:
    """A file that a job reads or has made.

    Attributes:
        node_id: The graph's node that reads it or has made it; empty if several may.
        input: The input that names it, or the key of the output.
        data: Its bytes; None if they are more than the operator sends.
    """

    node_id: str
    input: str
    name: str
    content_type: str
    size_bytes: int
    hash: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class ModerationQuestion:
    """What somebody is to judge.

    Attributes:
        job: The job's id, if it has one.
        workflow: The stored workflow of which it was made; empty: none.
        params: The values of its parameters; all other texts of its graph are its author's.
    """

    stage: ModerationStage
    owner: str
    tenant: str = ""
    job: str = ""
    workflow: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[JudgedText] = ()
    files: Sequence[JudgedFile] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An answer.

    Attributes:
        reason: Why not, for the client.
    """

    allowed: bool
    reason: str = ""


def read_judgement(answer: Any) -> Judgement:
    """Read ``{"allowed": bool, "reason": text}``.

    Raises:
        ValueError: It is something else.
    """
    allowed = answer.get("allowed") if isinstance(answer, Mapping) else None
    if allowed is not True and allowed is not False:
        raise ValueError('it must answer {"allowed": true} or {"allowed": false, "reason": "..."}')
    reason = answer.get("reason")
    return Judgement(
        allowed=allowed, reason=clip(clean(reason), MAX_REASON) if isinstance(reason, str) else ""
    )


def judged_texts(graph: Graph) -> list[JudgedText]:
    """Return every text in a graph's inputs, at any depth; choices and files' names as well.

    Raises:
        ContentRefused: There are too many.
    """
    found: list[JudgedText] = []
    size = 0
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value):
                continue
            for _, text in texts_in((name,), value):
                if not text.strip():
                    continue
                size += len(text.encode("utf-8", "replace"))
                if size > MAX_TEXTS_BYTES:
                    raise ContentRefused(
                        f"the texts of the workflow are longer than {MAX_TEXTS_BYTES} bytes: "
                        "nobody could judge them",
                        details={"field": "workflow", "limit": MAX_TEXTS_BYTES},
                    )
                found.append(JudgedText(node_id=node_id, input=name, text=text))
    return found


def dump_mode(mode: ModerationMode, tenant: str) -> str:
    """Return what a job's record keeps of the rules at its submit; empty: nobody is asked."""
    return "" if mode is ModerationMode.OFF else f"{mode} {tenant}".strip()


def load_mode(text: str) -> tuple[ModerationMode, str]:
    """Read :func:`dump_mode` back: the mode and the tenant. What can't be read counts as closed."""
    if not text:
        return ModerationMode.OFF, ""
    word, _, tenant = text.partition(" ")
    mode = ModerationMode.OPEN if word == ModerationMode.OPEN else ModerationMode.CLOSED
    return mode, tenant


def placeholder(content_type: str) -> tuple[bytes, str]:
    """Return what is stored in place of a withheld file, and its MIME type: a grey picture, or nothing."""
    if not content_type.startswith("image/"):
        return b"", content_type
    side = 64

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x80" * side) * side
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    picture = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + picture, "image/png"
