"""Uploads and outputs: their records and their bytes."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.ports.blobs import Corrections

HOLD_S = 60
"""For so long assets are kept for a job that is about to be submitted."""


class Received(Protocol):
    """Bytes that are stored but have no record yet."""

    @property
    def hash(self) -> str:
        """``blake3:<hex>`` of the bytes."""

    @property
    def size_bytes(self) -> int:
        """Their number."""


class AssetStore(Protocol):
    """Files and their records."""

    def receive(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Received]:
        """Store and hash bytes; they are deleted after the block unless :meth:`keep` took them.

        For callers that learn name and type only after the bytes, as in a form.
        """

    async def open_received(self, received: Received) -> AsyncGenerator[bytes, None]:
        """Return received bytes again, while they have no record."""

    async def keep(
        self,
        received: Received,
        *,
        owner: str,
        content_type: str,
        file_path: str,
        expected_hash: str | None = None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
        folder: Folder = Folder.INPUT,
        numbered: bool = False,
        quotas: tuple[ScopedLimits, ...] = (),
    ) -> tuple[Asset, bool]:
        """Make an asset of received bytes; see :meth:`upload`.

        Args:
            received: What :meth:`receive` gave.
            owner: Whose it is.
            content_type: Its MIME type.
            file_path: Its name.
            expected_hash: What its hash has to be.
            tags: Its tags.
            expires_in_s: How long it stays; None: as the operator says.
            folder: The folder in which its owner will look for it.
            numbered: A name that other bytes have in that folder gets a number, as ComfyUI counts:
                ``a (1).png``. Bytes that are there already under such a name are that asset again. Otherwise
                the name means the newest asset so named.
            quotas: The limits of who uploads.

        Raises:
            StoredTooMuch: They keep as many bytes as they may; nothing was recorded.
        """

    async def upload(
        self,
        *,
        owner: str,
        chunks: AsyncIterator[bytes],
        content_type: str,
        file_path: str,
        expected_hash: str | None = None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """Store and hash bytes; return the asset, and True if the bytes are new to the owner.

        Raises:
            HashMismatch: The bytes do not have ``expected_hash``; nothing is kept.
        """

    async def from_hash(
        self,
        *,
        owner: str,
        hash_: str,
        file_path: str | None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """Make an asset over bytes that the owner has already; True if the record is new.

        Raises:
            BlobNotFound: The owner has no such bytes.
        """

    async def has_hash(self, *, owner: str, hash_: str) -> bool:
        """Return whether :meth:`from_hash` would work."""

    async def put_output(
        self,
        *,
        owner: str,
        job_id: str,
        chunks: AsyncIterator[bytes],
        name: str,
        content_type: str,
        expires_at: float,
        corrections: Corrections | None = None,
    ) -> Asset:
        """Store the bytes of an output of a job, corrected; return their record.

        It is written when the output is committed, see :meth:`comfy_fleet.ports.runs.RunStore.commit`. Bytes
        without a record are deleted some hours later.
        """

    async def discard_output(self, asset: Asset) -> None:
        """Delete the bytes of an output that was put and has no record."""

    async def replace_output(self, path: str, *, by: Asset) -> None:
        """Let bytes of an output take the place of the same bytes that are stored already.

        Args:
            path: Where those are.
            by: What :meth:`put_output` has returned; its own path is no more.
        """

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """Check that this many more bytes may be stored; outputs of running jobs may use more of the disk.

        Raises:
            NoRoom: The disk is too full. Methods that store bytes raise it, too, and then keep nothing.
        """

    async def get(self, asset_id: str) -> Asset | None:
        """Return a record; the caller checks the owner."""

    async def by_path(self, *, owner: str, file_path: str, folder: Folder = Folder.INPUT) -> Asset | None:
        """Return the owner's newest upload with this name in a folder, in any spelling of it."""

    async def by_hash(self, *, owner: str, hash_: str) -> Asset | None:
        """Return one of the owner's assets over these bytes, uploaded or saved by a job."""

    async def uploads(self, *, owner: str, folder: Folder, limit: int) -> Sequence[tuple[str, float]]:
        """Return names of the owner's uploads in a folder, the latest first, and when they were uploaded."""

    async def delete(self, *, owner: str, asset_id: str) -> None:
        """Forget a record; the bytes go some hours after their last record.

        Raises:
            NotFound: No such asset of this owner.
            AssetInUse: A job that is not final needs it.
        """

    async def hold(self, *, owner: str, asset_ids: Sequence[str], job_id: str, seconds: int = HOLD_S) -> None:
        """Keep assets for a job that is to be submitted within so many seconds, until it is final.

        Raises:
            MissingAsset: One of them does not exist, no longer exists or is somebody else's; then none is
                held.
        """

    async def release(self, *, asset_ids: Sequence[str], job_id: str) -> None:
        """Release the assets that were held for a job that was not submitted after all."""

    async def forget_job(self, job_id: str) -> bool:
        """Forget the outputs of a job that is gone, was removed or is past its retention. Safe to repeat.

        Returns:
            False if a live or kept job still needs one of them, or the job is still its owner's.
        """

    async def open(
        self, asset: Asset, start: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the bytes, or a range of them; see :meth:`BlobStore.open`."""

    async def file(self, asset: Asset) -> Path | None:
        """Return the file that has an asset's bytes; None if it is gone, or there is none here."""

    async def url(self, asset: Asset) -> str | None:
        """Return a URL from which a client may fetch the bytes itself; see :meth:`BlobStore.url`."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A file on its way from a node.

    Attributes:
        chunks: Its bytes as they come.
        length: Their number, if the node has announced it.
    """

    chunks: AsyncIterator[bytes]
    length: int | None = None
