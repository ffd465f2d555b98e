"""Whole answers to ``/object_info`` as they are sent: made once for each set of uploads, kept compressed."""

import asyncio
import gzip
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from comfy_fleet.domain.errors import Busy
from comfy_fleet.domain.jobs.upload_choices import with_uploads
from comfy_fleet.turns import FairTurns, NoTurn

_MOST_KEPT = 32
_AT_ONCE, _AT_ONCE_EACH = 2, 1
_LINE_EACH = 16
_WAIT_S = 20.0
_LEVEL = 5


@dataclass(frozen=True, kw_only=True)
class FleetClasses:
    """What the nodes have together.

    Attributes:
        digest: Content hash.
        bodies: The classes as JSON, by name; lists of uploads are empty.
        uploads: The classes that list uploads.
    """

    digest: str
    bodies: Mapping[str, bytes]
    uploads: frozenset[str]


class ObjectInfoAnswers:
    """Answers as they are sent, compressed; one for each of those who asked last."""

    def __init__(self) -> None:
        self._tags: OrderedDict[str, str] = OrderedDict()
        self._kept: dict[str, asyncio.Task[bytes]] = {}
        self._turns = FairTurns(_AT_ONCE, each=_AT_ONCE_EACH, line=_LINE_EACH, wait_s=_WAIT_S)

    async def compressed(self, owner: str, tag: str, classes: FleetClasses, files: Sequence[str]) -> bytes:
        """Return the whole answer for somebody.

        Args:
            owner: Who asks.
            tag: As :func:`tag_of` gives it.
            classes: What the nodes have.
            files: The owner's uploads.

        Raises:
            Busy: The owner's uploads change while many answers are being made.
        """
        self._asked_by(owner, tag)
        made = self._kept.get(tag)
        if made is None or (made.done() and (made.cancelled() or made.exception() is not None)):
            made = self._kept[tag] = asyncio.create_task(self._made(owner, classes, files))
        return await asyncio.shield(made)

    def _asked_by(self, owner: str, tag: str) -> None:
        """Note what somebody has asked for; what nobody else asked for last is dropped for it."""
        former = self._tags.get(owner)
        self._tags[owner] = tag
        self._tags.move_to_end(owner)
        if former is None and len(self._tags) > _MOST_KEPT:
            _, former = self._tags.popitem(last=False)
        if former is not None and former not in self._tags.values():
            self._kept.pop(former, None)

    async def _made(self, owner: str, classes: FleetClasses, files: Sequence[str]) -> bytes:
        try:
            async with self._turns.of(owner):
                return await asyncio.to_thread(whole_answer, classes, files)
        except NoTurn:
            raise Busy(
                "many lists of classes are being put together already: try again", retry_after_s=2
            ) from None


def whole_answer(classes: FleetClasses, files: Sequence[str]) -> bytes:
    """Return the whole answer for somebody with these uploads, compressed."""
    parts = (
        b"%b:%b"
        % (json.dumps(name).encode(), with_uploads(name, body, files) if name in classes.uploads else body)
        for name, body in classes.bodies.items()
    )
    return gzip.compress(b"{%b}" % b",".join(parts), _LEVEL, mtime=0)


def tag_of(classes: FleetClasses, files: Sequence[str]) -> str:
    """Return what is equal for equal answers, and for nothing else."""
    whole = blake2b(classes.digest.encode(), digest_size=16)
    for name in sorted(files):
        whole.update(b"\0" + name.encode(errors="replace"))
    return whole.hexdigest()
