"""Uploads that come in parts: their records, and the files in which their bytes gather."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.resumable_upload import ResumableUpload
from comfy_fleet.domain.limits import ScopedLimits


@dataclass(frozen=True, kw_only=True)
class OpenUploadLimits:
    """What uploads that have not ended may take.

    Attributes:
        each: Uploads of one owner.
        all: Uploads of all owners.
        each_bytes: Bytes that the uploads of one owner have announced together.
        all_bytes: The same of all owners.
    """

    each: int
    all: int
    each_bytes: int
    all_bytes: int


class UploadRecords(Protocol):
    """The records. The bytes of an upload that has not ended count towards its owner's limit ``stored``."""

    async def begin(
        self,
        upload: ResumableUpload,
        *,
        most: OpenUploadLimits,
        quotas: tuple[ScopedLimits, ...],
    ) -> None:
        """Write a new upload.

        Raises:
            LimitReached: There are too many, or they are too large together.
            StoredTooMuch: Its owner may not keep so many bytes.
        """

    async def get(self, upload_id: str) -> ResumableUpload | None:
        """Return an upload; the caller checks the owner."""

    async def advance(self, upload_id: str, *, offset: int, expires_at: float) -> bool:
        """Note how many bytes are on the disk; False if there is no such upload, or it has ended."""

    async def become(self, upload_id: str, *, asset_id: str, expires_at: float) -> bool:
        """Note the asset that an upload became; False if there is no such upload."""

    async def forget(self, upload_id: str, *, ended_by: float | None = None) -> bool:
        """Remove an upload's record, but not its asset.

        Args:
            upload_id: The upload.
            ended_by: Only if its time was over by then.

        Returns:
            Whether there is none any more.
        """

    async def claim(self, upload_id: str, token: str) -> None:
        """Tell whoever writes this upload that somebody else wants to go on with it."""

    async def claimed_by(self, upload_id: str) -> str:
        """Return the token of who wants to write this upload; empty if nobody does, or it is gone."""

    async def ended(self, now: float) -> Sequence[str]:
        """Return some uploads whose time is over."""

    async def whole(self) -> Sequence[str]:
        """Return uploads of which all bytes are here, and which have not become an asset."""


class GrowingFile(Protocol):
    """The bytes of one upload so far, which nobody else writes while this is open. Its calls may block."""

    size: int
    """How many bytes were written."""

    def cut(self, size: int) -> None:
        """Forget what was written beyond so many bytes. Raises NoRoom."""

    def write(self, parts: Sequence[bytes]) -> None:
        """Add bytes at the end. Raises NoRoom."""

    def sync(self) -> None:
        """Return once all bytes survive a power cut. Raises NoRoom."""


class GrowingFiles(Protocol):
    """Files in which uploads gather, in a folder that all API processes share."""

    async def create(self, upload_id: str) -> None:
        """Make an empty file. Raises NoRoom."""

    def open(self, upload_id: str) -> AbstractAsyncContextManager[GrowingFile | None]:
        """Open a file to write it alone, in the whole fleet; None while somebody else does.

        The lock ends with the process that has it, in whatever way.

        Raises:
            FileNotFoundError: There is none.
            NoRoom: The disk can't be read or written to.
        """

    async def remove(self, upload_id: str) -> None:
        """Remove a file; it is no error if there is none. Raises NoRoom."""

    async def tidy(self, *, age_s: float) -> int:
        """Remove files that nobody has written for so many seconds; return how many."""


class GrownAssets(Protocol):
    """Assets made of growing files."""

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.check_room`."""

    async def keep_grown(self, upload: ResumableUpload) -> Asset:
        """Make an asset of an upload whose bytes are all here; its id is the upload's. Safe to repeat.

        Raises:
            FileNotFoundError: There is no such file.
            NoRoom: The disk can't be read or written to.
        """
