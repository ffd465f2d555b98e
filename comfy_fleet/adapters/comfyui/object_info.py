"""Reads ``/object_info`` as it arrives: only one class at a time is held as JSON."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

from comfy_fleet.adapters.comfyui.answer_limits import MIB, AnswerLimits, decode_within, shown
from comfy_fleet.adapters.comfyui.json_lenient import HALF_BYTES, decode
from comfy_fleet.domain.errors import NodeError, NodeFault
from comfy_fleet.domain.graphs.inventory import Reader, TooManyClasses
from comfy_fleet.domain.graphs.object_info import ObjectInfo, Packer

_STEP_BYTES = MIB
"""Bytes that are collected before they are read, in a thread."""
_CLASS_SHARE, _DECODED_SHARE, _HELD_SHARE = 1 / 4, 2 / 3, 4 / 3
"""Share of the largest answer for one class's JSON, and for all that is kept; decoding takes as much
again."""
MAX_OBJECTS = 500_000
"""Most lists and objects in one answer; a hundred node packs have less than a tenth of that."""
_BEYOND_64_BITS = re.compile(rb"-\d{19}|\d{21}")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+([\[\]{}])", re.DOTALL)
_NAME = re.compile(rb"(" + _STRING + rb")\s*:\s*\Z", re.DOTALL)
_BLANK = b" \t\r\n\xef\xbb\xbf"  # a byte order mark included
_NONE = "it is not an object"


class ClassReader:
    """Reads one node's answer.

    Args:
        limits: The limits for the whole answer.
    """

    def __init__(self, limits: AnswerLimits) -> None:
        self._limits = limits
        self._of_class = replace(limits, held=_DECODED_SHARE)
        self._class_bytes = int(limits.size * _CLASS_SHARE)
        self._found = Reader(most_bytes=int(limits.size * _HELD_SHARE))
        self._packer = Packer()
        self._text = bytearray()
        self._looked = self._from = 0  # where to go on, and where the unfinished class begins
        self._depth = self._objects = 0
        self._whole = False
        self._why = ""

    async def take(self, chunk: bytes) -> None:
        """Take bytes. Raises NodeFault if they break a limit."""
        self._objects += chunk.count(b"[") + chunk.count(b"{")
        if self._objects > MAX_OBJECTS:
            raise NodeFault(
                f"/object_info is too large: it is made of more than {MAX_OBJECTS} lists and objects",
                details={"limit": "objects", "objects": MAX_OBJECTS},
            )
        self._text += chunk
        if len(self._text) - self._looked >= _STEP_BYTES:
            await asyncio.to_thread(self.look)

    async def end(self) -> Reader:
        """Return the inventory.

        Raises:
            NodeFault: It breaks a limit.
            NodeError: It is not a JSON object; the message says why.
        """
        await asyncio.to_thread(self.look)
        if self._whole and self._text[self._looked :].strip():
            self._why = self._why or _NONE
        if self._why or not self._whole:
            raise NodeError(self._why or "it ends too early")
        return self._found

    def packed(self) -> ObjectInfo | None:
        """Return the whole answer, at its end; None if it is too large to keep."""
        return self._packer.end()

    def look(self) -> None:
        """Read the complete classes."""
        text, done = self._text, 0
        while not self._why and (found := _BRACKET.match(text, self._looked)) is not None:
            self._looked = end = found.end()
            if found[1] in b"{[":
                self._depth += 1
                if self._depth == 1 and (self._whole or text[:end].strip(_BLANK) != b"{"):
                    self._why = _NONE
                if self._depth == 2:
                    self._from = end - 1
                continue
            self._depth -= 1
            if self._depth == 1:
                self._read(bytes(text[done : self._from]), text[self._from : end])
                done = end
            elif self._depth <= 0:
                self._whole = True
        if not self._why:
            del text[:done]
            self._looked -= done
            self._from -= done
        if len(text) > self._class_bytes:
            raise self._fault(
                f"more than {shown(self._class_bytes)} of it are one class, or none", "a quarter"
            )

    def _read(self, before: bytes, text: bytearray) -> None:
        named = _NAME.search(before)
        name = None if named is None else decode(named[1])
        if not isinstance(name, str):
            self._why = _NONE
            return
        body = decode_within(text, self._of_class, what=f"/object_info for class {name[:100]!r}")
        if body is None:
            self._why = f"class {name[:100]!r} can't be read"
            return
        try:
            info = self._found.add(name, body)
        except TooManyClasses as error:
            raise self._fault(str(error), "four thirds") from None
        if info is not None:
            self._packer.add(name, _exact(text, body), info)

    def _fault(self, why: str, share: str) -> NodeFault:
        setting = self._limits.setting
        return NodeFault(
            f"/object_info is too large: {why} ({share} of {setting})",
            details={"limit": setting, "bytes": self._limits.size},
        )


def _exact(text: bytearray, body: Any) -> Any:
    """Return a class with integers of any size as the node wrote them: clients may compare them.

    Args:
        text: The class's JSON.
        body: The same, read: integers beyond 64 bits have become floats.
    """
    if not _BEYOND_64_BITS.search(text) or HALF_BYTES.search(text):
        return body
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return body
