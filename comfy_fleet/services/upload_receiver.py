"""Uploads that come in parts: begun, gone on with after any break, and at last an asset.

What an upload's record says was written is on the disk for good. More may be in its file, and is cut off
when somebody goes on: a process that dies loses the last bytes, which it had not noted. Whoever writes holds
the file's lock.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, Self

from comfy_fleet.domain.errors import (
    BadInput,
    FleetError,
    NoRoom,
    NotFound,
    UploadLocked,
    UploadTooLarge,
    WrongOffset,
)
from comfy_fleet.domain.jobs.resumable_upload import ResumableUpload
from comfy_fleet.domain.limits import ScopedLimits, least
from comfy_fleet.ports.uploads import (
    GrowingFile,
    GrowingFiles,
    GrownAssets,
    OpenUploadLimits,
    UploadRecords,
)
from comfy_fleet.tasks import undisturbed

logger = logging.getLogger(__name__)

SWEEP_S = 60.0
_BUFFER = 1 << 20
"""Bytes that are written at once."""
_NOTED = 1 << 24
"""Bytes after which what was written is made durable and noted."""
_LOOK_S = 1.0
"""How often a writer looks whether somebody else wants to go on."""
_TAKE_OVER_S = 5.0
_AGAIN_S = 0.05
_LEFT_S = 3600.0
"""For so long after their upload's time files stay whose record is gone."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Limits of uploads that come in parts.

    Attributes:
        most_bytes: Of one.
        keep_s: How long one stays after its last part came, or after its end.
    """

    most_bytes: int
    keep_s: float
    open: OpenUploadLimits


class UploadReceiver:
    """Takes parts of uploads.

    Args:
        records: What is known of each.
        files: Their bytes.
        assets: What they become.
        limits: What is allowed.
        clock: The store's time, in Unix seconds.
        new_id: Draws a UUID.
    """

    def __init__(
        self,
        records: UploadRecords,
        files: GrowingFiles,
        assets: GrownAssets,
        *,
        limits: UploadLimits,
        clock: Callable[[], Awaitable[float]],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._files = files
        self._assets = assets
        self.limits = limits
        self._clock = clock
        self._new_id = new_id

    async def begin(
        self,
        owner: str,
        *,
        length: int,
        metadata: str,
        file_path: str,
        content_type: str,
        quotas: tuple[ScopedLimits, ...],
    ) -> ResumableUpload:
        """Begin an upload; see :class:`ResumableUpload` for the arguments.

        Args:
            quotas: The limits of who uploads.

        Raises:
            UploadTooLarge: It may not be so long.
            LimitReached: Too many have begun and not ended.
            StoredTooMuch: They may not keep so many bytes.
            NoRoom: There is no room.
        """
        self._check_length(length, quotas)
        self._assets.check_room(length)
        now = await self._clock()
        id_ = self._new_id()
        upload = ResumableUpload(
            id=id_,
            owner=owner,
            length=length,
            offset=0,
            metadata=metadata,
            file_path=file_path or id_,
            content_type=content_type,
            created_at=now,
            expires_at=now + self.limits.keep_s,
        )
        await self._files.create(id_)
        try:
            await self._records.begin(upload, most=self.limits.open, quotas=quotas)
        except FleetError:
            # The store may have written it all the same: it is forgotten when its time is over.
            await self._files.remove(id_)
            raise
        return upload if length else await self.look(owner, id_)

    async def look(self, owner: str, upload_id: str) -> ResumableUpload:
        """Return an upload of an owner's; one whose bytes are all here is an asset afterwards.

        Raises:
            NotFound: They have none of this id, or its time is over.
            UploadLocked: All bytes are here, and somebody else makes an asset of them.
        """
        found = await self._of(owner, upload_id)
        if found.asset_id or not found.whole:
            return found
        async with self._alone(found) as (upload, file, _):
            # Its file may be shorter than what was noted: it was put back from a backup.
            return await self._become(upload) if file is not None and upload.whole else upload

    async def append(
        self, owner: str, upload_id: str, *, offset: int, chunks: AsyncGenerator[bytes, None]
    ) -> ResumableUpload:
        """Add bytes at the end of an upload; what came before an error is kept.

        Args:
            owner: Whose upload.
            upload_id: Its id.
            offset: How many bytes the caller takes to be here.
            chunks: The next ones. What they raise is passed on.

        Raises:
            NotFound: There is none, or it was removed meanwhile.
            WrongOffset: Other bytes are here.
            UploadTooLarge: More bytes come than were announced; those beyond are not kept.
            UploadLocked: Somebody else goes on with it.
            NoRoom: There is no room now.
        """
        found = await self._of(owner, upload_id)
        if found.asset_id:
            _check_offset(found, offset)
            await _check_nothing_comes(found, chunks)
            return found
        async with self._alone(found) as (upload, file, token):
            _check_offset(upload, offset)
            if file is None:
                await _check_nothing_comes(upload, chunks)
                return upload
            more = await self._write(upload, file, token, chunks)
            return await self._become(more) if more.whole else more

    async def remove(self, owner: str, upload_id: str) -> None:
        """Forget an upload; an asset that it became stays.

        Raises:
            NotFound: There is none.
        """
        await self._of(owner, upload_id)
        await self._records.forget(upload_id)
        await self._files.remove(upload_id)

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
            except FleetError as error:
                logger.warning("uploads not swept", extra={"error": str(error)})
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Forget uploads whose time is over, and make assets of those whose process died before it could."""
        for upload_id in await self._records.whole():
            if (found := await self._records.get(upload_id)) is not None:
                try:
                    await self.look(found.owner, upload_id)
                except (NotFound, UploadLocked):
                    continue
                except (NoRoom, BadInput, OSError) as error:  # this one waits, and holds no other up
                    logger.warning(
                        "upload not made an asset", extra={"upload_id": upload_id, "error": str(error)}
                    )
        now = await self._clock()
        for upload_id in await self._records.ended(now):
            if await self._records.forget(upload_id, ended_by=now):
                await self._files.remove(upload_id)
        await self._files.tidy(age_s=self.limits.keep_s + _LEFT_S)

    def _check_length(self, length: int, quotas: tuple[ScopedLimits, ...]) -> None:
        most, whose = self.limits.most_bytes, "FLEET_MAX_UPLOAD_BYTES"
        own = least(quotas, "body")
        if own is not None and own[0] < most:
            most, whose = own[0], f"the {own[1]}'s limit 'body'"
        if length > most:
            raise UploadTooLarge(
                f"the upload is larger than {most} bytes ({whose})",
                details={"field": "Upload-Length", "most": most},
            )

    async def _of(self, owner: str, upload_id: str) -> ResumableUpload:
        found = await self._records.get(upload_id)
        if found is None or found.owner != owner:
            _none(upload_id)
        return found

    @asynccontextmanager
    async def _alone(
        self, known: ResumableUpload
    ) -> AsyncGenerator[tuple[ResumableUpload, GrowingFile | None, str], None]:
        """Hold an upload's file, and know what holds of it from then on. Who has it is asked to stop.

        Yields:
            The upload, its file unless it is an asset by now, and by what the holder knows that it was asked.
        """
        token = self._new_id()
        await self._records.claim(known.id, token)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _TAKE_OVER_S
        while True:
            try:
                async with self._files.open(known.id) as file:
                    if file is not None:
                        upload = await self._of(known.owner, known.id)
                        if upload.asset_id:
                            yield upload, None, token
                            return
                        await undisturbed(partial(file.cut, upload.offset))
                        yield replace(upload, offset=file.size), file, token
                        return
            except FileNotFoundError:
                upload = await self._of(known.owner, known.id)
                if not upload.asset_id:
                    await self._records.forget(known.id)
                    _none(known.id)
                yield upload, None, token
                return
            if loop.time() > give_up:
                raise UploadLocked("somebody else goes on with this upload: look again in a moment")
            await asyncio.sleep(_AGAIN_S)

    async def _write(
        self, upload: ResumableUpload, file: GrowingFile, token: str, chunks: AsyncGenerator[bytes, None]
    ) -> ResumableUpload:
        """Write what comes, and return what is known of the upload then."""
        written = _Written(file, lambda: self._note(upload, file))
        claimed = asyncio.create_task(self._claimed(upload.id, token))
        reading: asyncio.Future[bytes | None] | None = None
        try:
            async with written:
                while True:
                    reading = asyncio.ensure_future(_next(chunks))
                    await asyncio.wait({reading, claimed}, return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done():
                        claimed.result()
                        raise UploadLocked("somebody else goes on with this upload")
                    if (chunk := reading.result()) is None:
                        break
                    if file.size + written.buffered + len(chunk) > upload.length:
                        raise _too_many(upload)
                    await written.add(chunk)
        finally:
            tasks = {task for task in (reading, claimed) if task is not None}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return replace(upload, offset=file.size, expires_at=written.expires_at)

    async def _claimed(self, upload_id: str, token: str) -> None:
        """Return once somebody else wants to write an upload, or it is gone."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if await self._records.claimed_by(upload_id) != token:
                return

    async def _note(self, upload: ResumableUpload, file: GrowingFile) -> float:
        """Make durable what was written, and note it; return when the upload ends."""
        await undisturbed(file.sync)
        expires_at = await self._clock() + self.limits.keep_s
        if not await self._records.advance(upload.id, offset=file.size, expires_at=expires_at):
            _none(upload.id)
        return expires_at

    async def _become(self, upload: ResumableUpload) -> ResumableUpload:
        """Make an asset of a whole upload; its bytes stay where they are until that is noted."""
        asset = await self._assets.keep_grown(upload)
        expires_at = await self._clock() + self.limits.keep_s
        noted = await self._records.become(upload.id, asset_id=asset.id, expires_at=expires_at)
        await self._files.remove(upload.id)
        if not noted:
            _none(upload.id)
        return replace(upload, asset_id=asset.id, expires_at=expires_at)


class _Written:
    """Bytes on their way to a file: on leaving, all that came are there and noted, whatever has happened."""

    def __init__(self, file: GrowingFile, note: Callable[[], Awaitable[float]]) -> None:
        self._file = file
        self._note = note
        self._parts: list[bytes] = []
        self._noted = file.size
        self.buffered = 0
        self.expires_at = 0.0

    async def add(self, chunk: bytes) -> None:
        """Take more bytes. Raises NoRoom."""
        self._parts.append(chunk)
        self.buffered += len(chunk)
        if self.buffered >= _BUFFER:
            await self._flush()
        if self._file.size - self._noted >= _NOTED:
            self.expires_at = await self._note()
            self._noted = self._file.size

    async def _flush(self) -> None:
        parts, self._parts, self.buffered = self._parts, [], 0
        await undisturbed(lambda: self._file.write(parts))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._parts:
                await self._flush()
        finally:
            self.expires_at = await self._note()


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(chunks, None)


def _too_many(upload: ResumableUpload) -> UploadTooLarge:
    return UploadTooLarge(
        f"more bytes came than the {upload.length} that were announced",
        details={"field": "Upload-Length", "most": upload.length},
    )


async def _check_nothing_comes(upload: ResumableUpload, chunks: AsyncGenerator[bytes, None]) -> None:
    """Refuse bytes for an upload that is whole."""
    async for chunk in chunks:
        if chunk:
            raise _too_many(upload)


def _check_offset(upload: ResumableUpload, offset: int) -> None:
    if upload.offset != offset:
        raise WrongOffset(
            f"{upload.offset} bytes of this upload are here: go on from there",
            details={"field": "Upload-Offset", "offset": upload.offset},
        )


def _none(upload_id: str) -> NoReturn:
    raise NotFound(f"no upload {upload_id[:80]}")
