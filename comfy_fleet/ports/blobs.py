"""Bytes by content hash, wherever they are stored."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comfy_fleet.domain.graphs.pictures.parsing import Edit


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Stored bytes of a :class:`BlobStore`.

    Attributes:
        key: The store's name for them.
        hash: ``blake3:<hex>`` of the bytes.
    """

    key: str
    hash: str
    size_bytes: int


class Corrections(Protocol):
    """What must change in a file before it is stored, found out while it passes."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; called in their order, in any thread."""

    @property
    def quick(self) -> bool:
        """Whether :meth:`edits` takes less than about a millisecond."""

    def edits(self) -> Sequence[Edit]:
        """Return the changes, once all bytes were fed."""


class BlobStore(Protocol):
    """Immutable bytes. It knows nothing of owners and records, and makes its own keys."""

    async def put(
        self, chunks: AsyncIterator[bytes], *, durable: bool, corrections: Corrections | None = None
    ) -> Blob:
        """Store and hash a stream under a new key, which contains the hash.

        Nothing is visible under the key until all bytes are there.

        Args:
            chunks: The bytes.
            durable: Whether the bytes survive a power cut once this has returned.
            corrections: Changes the bytes before they are hashed; is fed all of them.

        Raises:
            NoRoom: There is no room, or the store can't be written to; nothing is kept.
            Exception: What ``chunks`` raises; nothing is kept.
        """

    async def adopt(self, name: str) -> Blob:
        """Hash a :class:`comfy_fleet.ports.uploads.GrowingFile` and give its bytes a key, too.

        The file stays. Its bytes must be durable, and don't change any more.

        Raises:
            FileNotFoundError: There is none.
            NoRoom: The store can't be read or written to.
        """

    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Return a range of the bytes, to the end if no length is given. Close it if it is not read to its
        end.

        Raises:
            FileNotFoundError: There is nothing under this key.
            NoRoom: The store can't be read, or has fewer bytes. The iterator may raise it, too.
        """

    async def replace(self, key: str, *, by: str) -> None:
        """Move the bytes from the key ``by`` to ``key``, where the same bytes are or should be."""

    async def delete(self, key: str) -> None:
        """Delete bytes; it is no error if they are gone. Raises NoRoom if the store can't be written to."""

    async def url(self, key: str) -> str | None:
        """Return a URL, valid for some minutes, from which a client may fetch the bytes; None without one."""

    async def file(self, key: str) -> Path | None:
        """Return the file that has a blob's bytes; None if it is gone, or is no file of this machine's."""

    async def store_id(self) -> str:
        """Return what identifies this store; drawn at the first call, and kept with the bytes.

        Raises:
            NoRoom: The store can't be read or written to.
        """

    async def belongs_to(self, records: str) -> bool:
        """Return whether these bytes belong to this store of records; the first store that asks gets them.

        Args:
            records: Identifies the store of records; an emptied store counts as another.

        Raises:
            NoRoom: The store can't be read or written to.
        """

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return how many bytes are under each key; None where nothing is, or can be read."""

    def keys(self, *, age_s: float) -> AsyncGenerator[list[str], None]:
        """Walk, in batches, the keys of all bytes that are at least this many seconds old."""

    async def tidy(self, *, age_s: float) -> int:
        """Remove unfinished writes of dead writers that are this many seconds old; return how many."""

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`AssetStore.check_room`."""

    def is_full(self) -> bool:
        """Return whether there is too little room for anything new; False if that can't be found out."""
