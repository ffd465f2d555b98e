"""Bytes under their content hash, wherever they lie."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes in a :class:`BlobStore`, as they were put.

    Attributes:
        key: What the store calls them.
        hash: ``blake3:<hex>`` of them.
    """

    key: str
    hash: str
    size_bytes: int


class BlobStore(Protocol):
    """Immutable bytes. It knows of no owners and no records; keys are its own words."""

    async def put(self, chunks: AsyncIterator[bytes], *, durable: bool) -> Blob:
        """Store a stream, hashed on the way, under a key that was never used before and holds the hash.

        The key shows nothing until all bytes are there.

        Args:
            chunks: The bytes.
            durable: They survive a power cut from the moment this returns.

        Raises:
            NoRoom: There is no room, or the store can't be written; nothing is kept.
            Exception: What ``chunks`` raises; nothing is kept.
        """

    async def open(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Return a range of the bytes, to the end if no length is given. Close it unless it is read up.

        Raises:
            FileNotFoundError: Nothing has this key.
            NoRoom: The store can't be read, or has fewer bytes. The iterator may raise it, too.
        """

    async def replace(self, key: str, *, by: str) -> None:
        """Move the bytes under the key ``by`` to ``key``, where the same bytes are or should be."""

    async def delete(self, key: str) -> None:
        """Delete bytes; those that are gone are no error. Raises NoRoom if the store can't be written."""

    async def url(self, key: str) -> str | None:
        """Return where a client may fetch the bytes itself for some minutes, if the store serves them."""

    def keys(self, *, age_s: float) -> AsyncGenerator[list[str], None]:
        """Walk the keys of all bytes that were put at least so many seconds ago, in batches."""

    async def tidy(self, *, age_s: float) -> int:
        """Remove what writers that died left half-written so many seconds ago; returns how many."""

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`AssetStore.check_room`."""
