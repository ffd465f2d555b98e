"""Limits on a node's HTTP answer: bytes, seconds, and the number of values in its JSON.

Every process reads nodes' answers here, with whatever HTTP client. Breaking a limit is the node's fault
(:class:`NodeFault`, which names the limit and its setting).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from comfy_fleet.adapters.comfyui.json_lenient import HALF_BYTES, decode_slowly
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.timeouts import Timeout

MIB = 1024 * 1024
OFF_LOOP_BYTES = 256 * 1024
"""Larger answers are decoded in a thread."""
PLAIN = {"Accept-Encoding": "identity"}
"""Headers of every request: a compressed answer could unpack to any size."""
_SMALL = (
    "/system_stats", "/node_replacements", "/object_info/", "/upload", "/interrupt", "/free", "/api/",
)  # fmt: skip
"""Calls that every ComfyUI answers with a few kB."""
_SMALL_BYTES = MIB

# Memory that JSON takes in addition to its texts, measured with orjson on CPython 3.11 to 3.13: objects, and
# 16 bytes per value for the decoder. Punctuation inside texts is counted, too.
_COSTS = ((b",", 80), (b":", 104), (b"[", 96), (b"{", 200))
_DEAREST = 100  # most bytes that one byte of JSON can cost: {},{},
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_LONG = 64 * 1024
_WIDEST = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_WIDE = re.compile(rb"[\x80-\xff]|\\u(?!00)")


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """How much of a node's answer is read.

    Attributes:
        size: Most bytes (``FLEET_NODE_ANSWER_BYTES``).
        seconds: Longest time from its head to its end (``FLEET_NODE_ANSWER_S``).
        setting: The setting for ``size``; empty if there is none.
        held: Most memory of an answer and its JSON, as a multiple of ``size``.
    """

    size: int = 24 * MIB
    seconds: float = 60.0
    setting: str = "FLEET_NODE_ANSWER_BYTES"
    held: float = 7 / 3

    def of(self, what: str) -> "AnswerLimits":
        """Return the limits for one call; small ones for calls that have short answers."""
        if not what.startswith(_SMALL) or self.size <= _SMALL_BYTES:
            return self
        return replace(self, size=_SMALL_BYTES, held=8, setting="")

    def at_most(self, size: int | None) -> "AnswerLimits":
        """Return the limits with fewer bytes, of which no setting says how many; None changes nothing."""
        if size is None or self.size <= size:
            return self
        return replace(self, size=size, setting="")

    @property
    def named(self) -> str:
        """The setting, for a message; empty if there is none."""
        return f" ({self.setting})" if self.setting else ""


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size} bytes"


def check_head(headers: Mapping[str, str], limits: AnswerLimits, *, what: str) -> None:
    """Check an answer's headers before its body is read.

    Args:
        headers: Case-insensitive.
        limits: The limits.
        what: The request, for the message, e.g. ``/queue``.

    Raises:
        NodeFault: It is compressed, or announces too many bytes.
    """
    coding = headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise NodeFault(f"{what} answered with Content-Encoding {coding[:40]!r}, which was not asked for")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:20]) > limits.size:
        raise _too_long(limits, what)


async def read_body(
    headers: Mapping[str, str],
    chunks: AsyncIterator[bytes],
    limits: AnswerLimits,
    *,
    what: str,
    take: Callable[[bytes], Awaitable[None]] | None = None,
) -> bytearray:
    """Read an answer to its end.

    Args:
        headers: Its headers, case-insensitive.
        chunks: Its body as it arrives, not decompressed.
        limits: What may come.
        what: The question, for the message.
        take: Gets the body piece by piece; then nothing is returned.

    Raises:
        NodeFault: It breaks a limit; the rest is not read.
    """
    limits = limits.of(what)
    check_head(headers, limits, what=what)
    body = bytearray()
    size = 0
    timer = Timeout(limits.seconds)
    try:
        async with timer:
            async for chunk in chunks:
                size += len(chunk)
                if size > limits.size:
                    raise _too_long(limits, what)
                if take is None:
                    body += chunk
                else:
                    await take(chunk)
    except TimeoutError:
        if not timer.expired():
            raise
        raise NodeFault(
            f"{what} took more than {limits.seconds:g} s to answer (FLEET_NODE_ANSWER_S)",
            details={"limit": "FLEET_NODE_ANSWER_S"},
        ) from None
    return body


async def decoded(body: bytes | bytearray, limits: AnswerLimits, *, what: str, brief: bool = False) -> Any:
    """Return an answer's JSON value; None if it is not JSON.

    Args:
        body: The answer.
        limits: The limits.
        what: The question, for the message.
        brief: Long texts in it, such as pictures in a graph, are not needed and may come out empty.

    Raises:
        NodeFault: It would take more memory than is allowed.
    """
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(decode_within, body, limits, what=what, brief=brief)
    return decode_within(body, limits, what=what)


def decode_within(body: bytes | bytearray, limits: AnswerLimits, *, what: str, brief: bool = False) -> Any:
    """Do the same without a thread."""
    limits = limits.of(what)
    most = int(limits.size * limits.held)
    size = len(body)
    if size * _DEAREST > most:
        made = sum(body.count(sign) * cost for sign, cost in _COSTS)
        if size + made > most:
            raise _too_much(limits, what, "values", size)
        if brief:
            body = _without_long_texts(body)
        # The decoder makes its own copy. Its error also contains the whole text.
        width = _width(body)
        copies = 1 + width + (len(body) < size)
        if size + copies * len(body) + made > most:
            raise _too_much(limits, what, "values" if made > size else "text", size)
        if HALF_BYTES.search(body) and size + 5 * width * len(body) + made > most:
            raise _too_much(limits, what, "text", size)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    if size * _DEAREST > most and size + 2 * _width(body) * len(body) > most:
        raise _too_much(limits, what, "text", size)
    return decode_slowly(body)


def _width(body: bytes | bytearray) -> int:
    """Return the bytes per character: one character beyond Latin widens the whole text."""
    return 4 if _WIDEST.search(body) else 2 if _WIDE.search(body) else 1


def _without_long_texts(body: bytes | bytearray) -> bytes | bytearray:
    """Return JSON with its long texts emptied; unchanged if they are a small part of it."""
    long = [found.span() for found in _STRING.finditer(body) if found.end() - found.start() > _LONG]
    if 2 * sum(end - start for start, end in long) < len(body):
        return body
    short = bytearray()
    at = 0
    for start, end in long:
        short += body[at : start + 1]
        at = end - 1
    return short + body[at:]


def _too_much(limits: AnswerLimits, what: str, kind: str, size: int) -> NodeFault:
    return NodeFault(
        f"{what} came with {shown(size)} of {kind} that take several times as much to hold{limits.named}",
        details={"limit": limits.setting or "size", "bytes": limits.size},
    )


def _too_long(limits: AnswerLimits, what: str) -> NodeFault:
    return NodeFault(
        f"{what} answered with more than {shown(limits.size)}{limits.named}",
        details={"limit": limits.setting or "size", "bytes": limits.size},
    )
