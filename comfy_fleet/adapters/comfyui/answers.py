"""What a node's HTTP answer may cost: bytes, seconds, and the values that its JSON is made of.

Every process that asks a node reads the answer here, whatever client it asks with. A node that breaks one of
these limits is at fault itself (:class:`NodeFault`, which names the limit and its setting).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_fleet.adapters.comfyui.lenient import decode
from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.timeouts import Timeout

MIB = 1024 * 1024
MAX_VALUES = 500_000
"""Values in one JSON answer: ``[],[],`` takes twenty times its own size in memory, so bytes say little."""
MAX_CLASS_VALUES = 4_000_000
"""The same of ``/object_info``: a thousand classes, each with the names of all model files."""
OFF_LOOP_BYTES = 256 * 1024
"""Larger answers are decoded in a thread."""
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
    """

    size: int = 32 * MIB
    seconds: float = 60.0
    values: int = MAX_VALUES
    class_values: int = MAX_CLASS_VALUES


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
) -> bytes:
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
    return bytes(body)


async def decoded(body: bytes, limits: AnswerLimits, *, what: str) -> Any:
    """Return an answer's JSON value; None if it is none.

    Raises:
        NodeFault: It is made of more values than may be.
    """
    check_values(body, limits.class_values if what == "/object_info" else limits.values, what=what)
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(decode, body)
    return decode(body)


def check_values(body: bytes | str, most: int, *, what: str) -> None:
    """Count what JSON would be made of, before it is.

    Raises:
        NodeFault: It is more than may be.
    """
    if len(body) <= most:
        return
    if isinstance(body, str):
        count = sum(map(body.count, ",[{:"))
    else:
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
