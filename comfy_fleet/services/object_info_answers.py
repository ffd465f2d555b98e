"""Whole answers to ``/object_info`` as they are sent: made once for each set of uploads, kept compressed."""

import asyncio
import gzip
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from comfy_fleet.domain.jobs.upload_choices import with_uploads

_MOST_KEPT = 32
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
    """Answers as they are sent, compressed; those that were asked for last are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, asyncio.Task[bytes]] = OrderedDict()

    async def compressed(self, tag: str, classes: FleetClasses, files: Sequence[str]) -> bytes:
        """Return the whole answer for somebody with these files.

        Args:
            tag: As :func:`tag_of` gives it.
            classes: What the nodes have.
            files: The caller's uploads.
        """
        made = self._kept.get(tag)
        if made is None or (made.done() and (made.cancelled() or made.exception() is not None)):
            made = asyncio.create_task(asyncio.to_thread(_compressed, classes, files))
            self._kept[tag] = made
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(tag)
        return await asyncio.shield(made)


def _compressed(classes: FleetClasses, files: Sequence[str]) -> bytes:
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
