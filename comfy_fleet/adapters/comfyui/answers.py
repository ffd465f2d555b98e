"""What a node's HTTP answer may cost: bytes, seconds, and the values that its JSON is made of.

Every process that asks a node reads the answer here, whatever client it asks with. A node that breaks one of
these limits is at fault itself (:class:`NodeFault`, which names the limit and its setting).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from comfy_fleet.adapters.comfyui.lenient import decode_slowly
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.timeouts import Timeout

MIB = 1024 * 1024
MAX_VALUES = 500_000
"""Values in one JSON answer: ``[],[],`` takes twenty times its own size in memory, so bytes say little."""
MAX_CLASS_VALUES = 4_000_000
"""The same of ``/object_info``: a thousand classes, each with the names of all model files."""
OFF_LOOP_BYTES = 256 * 1024
"""Larger answers are decoded in a thread."""
_WIDEST = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_WIDE = re.compile(rb"[\xc4-\xef]|\\u(?!00)")
_SLOW_COPIES = 2
_SHORT = 64 * 1024  # characters in a row without a quotation mark, about
_CLASSES = "/object_info"
PLAIN = {"Accept-Encoding": "identity"}
"""Headers of every question: an answer that comes packed could unpack to anything."""


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """How much of a node's answer is taken.

    Attributes:
        size: Bytes (``FLEET_NODE_ANSWER_BYTES``).
        seconds: From its head to its end (``FLEET_NODE_ANSWER_S``).
        values: JSON values, counted by their separators.
        class_values: The same of ``/object_info``.
        setting: What sets ``size``.
        held: How much an answer and the texts in it may take, in largest answers.
    """

    size: int = 24 * MIB
    seconds: float = 60.0
    values: int = MAX_VALUES
    class_values: int = MAX_CLASS_VALUES
    setting: str = "FLEET_NODE_ANSWER_BYTES"
    held: float = 2


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size} bytes"


def check_head(headers: Mapping[str, str], limits: AnswerLimits, *, what: str) -> None:
    """Look at an answer's headers before its body is read.

    Args:
        headers: Case-insensitive.
        limits: What may come.
        what: The question, for the message, e.g. ``/queue``.

    Raises:
        NodeFault: It is packed, or says that it is too long.
    """
    coding = headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise NodeFault(f"{what} answered with Content-Encoding {coding[:40]!r}, which was not asked for")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:20]) > limits.size:
        raise _too_long(limits, what)


async def read_body(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: AnswerLimits, *, what: str
) -> bytearray:
    """Read an answer to its end.

    Args:
        headers: Its headers, case-insensitive.
        chunks: Its body as it comes, not unpacked.
        limits: What may come.
        what: The question, for the message.

    Raises:
        NodeFault: It breaks a limit; the rest is left unread.
    """
    check_head(headers, limits, what=what)
    body = bytearray()
    timer = Timeout(limits.seconds)
    try:
        async with timer:
            async for chunk in chunks:
                if len(body) + len(chunk) > limits.size:
                    raise _too_long(limits, what)
                body += chunk
    except TimeoutError:
        if not timer.expired():
            raise
        raise NodeFault(
            f"{what} took more than {limits.seconds:g} s to answer (FLEET_NODE_ANSWER_S)",
            details={"limit": "FLEET_NODE_ANSWER_S"},
        ) from None
    return body


async def decoded(body: bytes | bytearray, limits: AnswerLimits, *, what: str) -> Any:
    """Return an answer's JSON value; None if it is none.

    Raises:
        NodeFault: It is made of more values, or takes more memory, than may be.
    """
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(_decode, body, limits, what)
    return _decode(body, limits, what)


def _decode(body: bytes | bytearray, limits: AnswerLimits, what: str) -> Any:
    _check_values(body, limits.class_values if what == _CLASSES else limits.values, what)
    _check_texts(body, limits, what, copies=1)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        _check_texts(body, limits, what, copies=_SLOW_COPIES)
        return decode_slowly(body)


def _check_texts(body: bytes | bytearray, limits: AnswerLimits, what: str, *, copies: int) -> None:
    """Refuse what would take too much memory as text.

    One character beyond Latin makes each character of its text two bytes wide, one beyond the usual planes
    four. Names of classes and files are short, so the others are not made wider by it.
    """
    if len(body) * (1 + 4 * copies) <= limits.size * limits.held:
        return
    width = 4 if _WIDEST.search(body) else 2 if _WIDE.search(body) else 1
    if what == _CLASSES and not _has_long_text(body):
        return
    if len(body) * (1 + width * copies) > limits.size * limits.held:
        raise NodeFault(
            f"{what} came with {shown(len(body))} of text that take several times as much to hold "
            f"({limits.setting})",
            details={"limit": limits.setting, "bytes": limits.size},
        )


def _has_long_text(body: bytes | bytearray) -> bool:
    starts = range(0, len(body) - _SHORT, _SHORT)
    return any(body.find(b'"', start, start + _SHORT) < 0 for start in starts)


def _check_values(body: bytes | bytearray, most: int, what: str) -> None:
    """Count what JSON would be made of, before it is. Raises NodeFault."""
    if len(body) <= most:
        return
    count = sum(map(body.count, (b",", b"[", b"{", b":")))
    if count > most:
        raise NodeFault(
            f"{what} came as JSON of more than {most} values", details={"limit": "values", "values": most}
        )


def _too_long(limits: AnswerLimits, what: str) -> NodeFault:
    return NodeFault(
        f"{what} answered with more than {shown(limits.size)} (FLEET_NODE_ANSWER_BYTES)",
        details={"limit": "FLEET_NODE_ANSWER_BYTES", "bytes": limits.size},
    )
