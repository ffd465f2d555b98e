"""What a node's HTTP answer may cost: bytes, seconds, and the values that its JSON is made of.

Every process that asks a node reads the answer here, whatever client it asks with. A node that breaks one of
these limits is at fault itself (:class:`NodeFault`, which names the limit and its setting).
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
"""Headers of every question: an answer that comes packed could unpack to anything."""
_SMALL = (
    "/system_stats", "/node_replacements", "/object_info/", "/upload", "/interrupt", "/free", "/api/",
)  # fmt: skip
"""Calls that every ComfyUI answers with a few KB."""
_SMALL_BYTES = MIB

# What JSON costs beside its texts, measured with orjson on CPython 3.11 to 3.13: objects, and 16 bytes
# for each value that the decoder needs meanwhile. Signs inside of texts count as well.
_COSTS = ((b",", 80), (b":", 104), (b"[", 96), (b"{", 200))
_DEAREST = 100  # bytes that one byte of JSON can cost at most: {},{},
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_LONG = 64 * 1024
_WIDEST = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_WIDE = re.compile(rb"[\x80-\xff]|\\u(?!00)")


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """How much of a node's answer is taken.

    Attributes:
        size: Bytes (``FLEET_NODE_ANSWER_BYTES``).
        seconds: From its head to its end (``FLEET_NODE_ANSWER_S``).
        setting: What sets ``size``; empty where nothing does.
        held: How much an answer and its JSON may take at once, in largest answers.
    """

    size: int = 24 * MIB
    seconds: float = 60.0
    setting: str = "FLEET_NODE_ANSWER_BYTES"
    held: float = 7 / 3

    def of(self, what: str) -> "AnswerLimits":
        """Return the limits of one call: little is read of those that no ComfyUI answers with much."""
        if not what.startswith(_SMALL) or self.size <= _SMALL_BYTES:
            return self
        return replace(self, size=_SMALL_BYTES, held=8, setting="")

    @property
    def named(self) -> str:
        """The setting, for a message; empty where there is none."""
        return f" ({self.setting})" if self.setting else ""


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
        chunks: Its body as it comes, not unpacked.
        limits: What may come.
        what: The question, for the message.
        take: Gets the body piece by piece; nothing of it is returned then.

    Raises:
        NodeFault: It breaks a limit; the rest is left unread.
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
    """Return an answer's JSON value; None if it is none.

    Args:
        body: The answer.
        limits: What it may take.
        what: The question, for the message.
        brief: Nobody reads long texts in it, such as pictures in a graph: they may come out empty.

    Raises:
        NodeFault: It would take more memory than may be.
    """
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(decode_within, body, limits, what=what, brief=brief)
    return decode_within(body, limits, what=what)


def decode_within(body: bytes | bytearray, limits: AnswerLimits, *, what: str, brief: bool = False) -> Any:
    """Do the same here and now."""
    limits = limits.of(what)
    most = int(limits.size * limits.held)
    size = len(body)
    if size * _DEAREST > most:
        made = sum(body.count(sign) * cost for sign, cost in _COSTS)
        if size + made > most:
            raise _too_much(limits, what, "values", size)
        if brief:
            body = _without_long_texts(body)
        # The decoder makes a copy of its own. An error of its, too, holds all as one text.
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
    """Return the bytes of a character: one beyond Latin makes all of its text as wide as itself."""
    return 4 if _WIDEST.search(body) else 2 if _WIDE.search(body) else 1


def _without_long_texts(body: bytes | bytearray) -> bytes | bytearray:
    """Return JSON with its long texts empty; as it is if there is little in them."""
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
