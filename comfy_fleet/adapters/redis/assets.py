"""Assets: their records in Redis, over bytes in a blob store.

Bytes are written first and the record second, so a process that dies in between leaves bytes without a
record. :meth:`RedisAssets.sweep` deletes bytes some hours after their last record went, and bytes that never
had one.
"""

import logging
import posixpath
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.redis.asset_record import dump_asset, dump_tags, load_asset
from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.quotas import limit_error
from comfy_fleet.adapters.redis.scripts import SCHEMA, Scripts
from comfy_fleet.domain.errors import (
    AssetInUse,
    BlobNotFound,
    FleetError,
    HashMismatch,
    MissingAsset,
    NoRoom,
    NotFound,
    Outdated,
    StoredTooMuch,
    StoreRefuses,
)
from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import HASH, Asset, index_name, listed_name
from comfy_fleet.domain.jobs.resumable_upload import ResumableUpload
from comfy_fleet.domain.limits import ScopedLimits, stored_quota
from comfy_fleet.ports.assets import HOLD_S, Received
from comfy_fleet.ports.blobs import Blob, BlobStore, Corrections

logger = logging.getLogger(__name__)

_ASSET_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_JOB_ID = re.compile(r"[0-9a-fA-F-]{8,64}")
_WRITING_S = 3600.0  # bytes of this age without a record won't get one: their writer has died
_LISTED_AT_ONCE = 500  # names that one call of a script looks at: takes below a millisecond on the server


@dataclass
class _Received:
    """Bytes of an upload. ``recorded``: they may have a record, so only the sweep may delete them."""

    blob: Blob
    recorded: bool = False

    @property
    def hash(self) -> str:
        return self.blob.hash

    @property
    def size_bytes(self) -> int:
        return self.blob.size_bytes


class RedisAssets:
    """:class:`comfy_fleet.ports.assets.AssetStore`: records in Redis.

    Args:
        redis: Where the records are.
        blobs: Where the bytes are.
        clock: Unix seconds, the same for all processes.
        new_id: Draws a UUID.
        retention_s: How long an upload stays if its client set no time; 0: until it is deleted.
        grace_s: How long bytes stay after their last record was removed.
        schema: The layout that this process knows.
    """

    def __init__(
        self,
        redis: FleetRedis,
        blobs: BlobStore,
        *,
        clock: Callable[[], Awaitable[float]],
        new_id: Callable[[], str],
        retention_s: float = 0.0,
        grace_s: float = 6 * 3600.0,
        schema: int = SCHEMA,
    ) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._blobs = blobs
        self._scripts = Scripts(redis, schema=schema)
        self._clock = clock
        self._new_id = new_id
        self._retention_s = retention_s
        self._grace_s = grace_s

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.check_room`."""
        self._blobs.check_room(size_bytes, output=output)

    @asynccontextmanager
    async def receive(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[_Received]:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.receive`."""
        self.check_room()
        received = _Received(await self._blobs.put(chunks, durable=True))
        try:
            yield received
        finally:
            if not received.recorded:
                await self._blobs.delete(received.blob.key)

    async def keep_grown(self, upload: ResumableUpload) -> Asset:
        """See :meth:`comfy_fleet.ports.uploads.GrownAssets.keep_grown`."""
        blob = await self._blobs.adopt(upload.id)
        ends, renews = self._end(now := await self._recordable(blob), None)
        asset = Asset(
            id=upload.id,
            owner=upload.owner,
            hash=blob.hash,
            size_bytes=blob.size_bytes,
            content_type=upload.content_type,
            file_path=upload.file_path,
            path=blob.key,
            created_at=now,
            expires_at=ends,
            renews=renews,
        )
        kept, _ = await self._add(asset)
        return kept

    async def open_received(self, received: Received) -> AsyncGenerator[bytes, None]:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.open_received`."""
        if not isinstance(received, _Received):
            raise TypeError("open_received() takes what receive() of the same store gave")
        return await self._blobs.open(received.blob.key, 0, received.size_bytes)

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
        """See :meth:`comfy_fleet.ports.assets.AssetStore.keep`."""
        if not isinstance(received, _Received):
            raise TypeError("keep() takes what receive() of the same store gave")
        if expected_hash is not None and expected_hash.lower() != received.hash:
            raise HashMismatch(
                f"expected_hash {expected_hash} is not the hash of the bytes that came ({received.hash})",
                details={"expected": expected_hash, "actual": received.hash},
            )
        now = await self._clock()
        ends, renews = self._end(now, expires_in_s)
        asset = Asset(
            id=self._new_id(),
            owner=owner,
            hash=received.hash,
            size_bytes=received.size_bytes,
            content_type=content_type,
            file_path=listed_name(file_path) if numbered else file_path,
            path=received.blob.key,
            created_at=now,
            expires_at=ends,
            tags=tags,
            renews=renews,
            folder=folder,
        )
        received.recorded = True
        try:
            return await self._add(asset, numbered=numbered, quota=stored_quota(quotas))
        except (StoreRefuses, Outdated, StoredTooMuch):
            received.recorded = False
            raise

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
        """See :meth:`comfy_fleet.ports.assets.AssetStore.upload`."""
        async with self.receive(chunks) as received:
            return await self.keep(
                received,
                owner=owner,
                content_type=content_type,
                file_path=file_path,
                expected_hash=expected_hash,
                tags=tags,
                expires_in_s=expires_in_s,
            )

    async def from_hash(
        self,
        *,
        owner: str,
        hash_: str,
        file_path: str | None,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
    ) -> tuple[Asset, bool]:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.from_hash`."""
        missing = BlobNotFound("no bytes with this hash", details={"hash": hash_})
        if not HASH.fullmatch(hash_):
            raise missing
        full: NoRoom | None = None
        try:
            self.check_room()
        except NoRoom as error:
            full = error
        now = await self._clock()
        record = {"id": self._new_id(), "created_at": repr(now)}
        if tags:
            record["tags"] = dump_tags(tags)
        ends, renews = self._end(now, expires_in_s)
        if ends is not None:
            record["expires_at"] = repr(ends)
        if renews:
            record["renews"] = "1"
        outcome, *rest = await self._begin(
            "copy_asset",
            owner=owner,
            hash=hash_,
            name=file_path or None,
            record=record,
            full=full is not None,
        )
        if outcome == "none":
            raise missing
        if outcome == "full" and full is not None:
            raise full
        found = await self.get(rest[0])
        if found is None:
            raise missing
        if outcome != "copy":
            return found, outcome == "new"
        try:
            content = await self.open(found)
        except FileNotFoundError:
            raise missing from None
        async with aclosing(content):
            asset, _ = await self.upload(
                owner=owner,
                chunks=content,
                content_type=found.content_type,
                file_path=file_path or found.file_path,
                tags=tags,
                expires_in_s=expires_in_s,
            )
        return asset, True

    async def has_hash(self, *, owner: str, hash_: str) -> bool:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.has_hash`."""
        return bool(await self._redis.exists(self._keys.blob_owner(owner, hash_)))

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
        """See :meth:`comfy_fleet.ports.assets.AssetStore.put_output`.

        Not synced to the disk: like the record's own write, it survives any crash of a process, and
        a power cut can take the last moment of both.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise NotFound(f"no job {job_id}")
        blob = await self._blobs.put(chunks, durable=False, corrections=corrections)
        return Asset(
            id=self._new_id(),
            owner=owner,
            hash=blob.hash,
            size_bytes=blob.size_bytes,
            content_type=content_type,
            file_path=name,
            path=blob.key,
            created_at=await self._recordable(blob),
            expires_at=expires_at,
            job_id=job_id,
        )

    async def discard_output(self, asset: Asset) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.discard_output`."""
        await self._blobs.delete(asset.path)

    async def replace_output(self, path: str, *, by: Asset) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.replace_output`; this repairs broken bytes."""
        await self._blobs.replace(path, by=by.path)

    async def get(self, asset_id: str) -> Asset | None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.get`."""
        if not _ASSET_ID.fullmatch(asset_id):  # ids also come from graphs; other keys have this prefix
            return None
        raw: dict[Any, Any] = await self._redis.hgetall(self._keys.asset(asset_id))
        return load_asset({_text(k): _text(v) for k, v in raw.items()}) if raw else None

    async def by_path(self, *, owner: str, file_path: str, folder: Folder = Folder.INPUT) -> Asset | None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.by_path`; only uploads have names of their own."""
        names = {index_name(file_path, folder)}
        if folder is Folder.INPUT and not file_path.startswith("/"):
            names.add(file_path)  # records of earlier versions are listed under the name that was sent
        found: list[tuple[float, str]] = []
        for name in names:
            key = self._keys.asset_names(owner, name)
            newest: list[Any] = await self._redis.zrevrange(key, 0, 0, withscores=True)
            found += [(float(at), _text(asset_id)) for asset_id, at in newest]
        return await self.get(max(found)[1]) if found else None

    async def by_hash(self, *, owner: str, hash_: str) -> Asset | None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.by_hash`."""
        if not HASH.fullmatch(hash_):
            return None
        found = await self._redis.srandmember(self._keys.blob_owner(owner, hash_))
        return await self.get(_text(found)) if found else None

    async def uploads(self, *, owner: str, folder: Folder, limit: int) -> Sequence[tuple[str, float]]:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.uploads`."""
        prefix = "" if folder is Folder.INPUT else f"/{folder}/"
        found: list[tuple[str, float]] = []
        more = 1
        while more and len(found) < limit:
            more, *rows = await self._scripts.call(
                "list_uploads",
                owner=owner,
                folder=folder,
                first=len(found),
                count=min(_LISTED_AT_ONCE, limit - len(found)),
            )
            pairs = zip(rows[::2], rows[1::2], strict=True)
            found += [(_text(name).removeprefix(prefix), float(at)) for name, at in pairs]
        return found

    async def hold(self, *, owner: str, asset_ids: Sequence[str], job_id: str, seconds: int = HOLD_S) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.hold`."""
        place = int(
            await self._scripts.call("hold_assets", job=job_id, owner=owner, ids=asset_ids, seconds=seconds)
        )
        if place:
            asset_id = asset_ids[place - 1]
            raise MissingAsset(f"asset {asset_id} does not exist", details={"id": asset_id})

    async def release(self, *, asset_ids: Sequence[str], job_id: str) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.release`."""
        await self._scripts.call("release_assets", job=job_id, ids=asset_ids)

    async def delete(self, *, owner: str, asset_id: str) -> None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.delete`."""
        outcome = await self._drop(asset_id, owner)
        if outcome == "none":
            raise NotFound(f"no asset {asset_id}")
        if outcome == "held":
            raise AssetInUse("the asset is in use by a job that is not final")

    async def open(
        self, asset: Asset, start: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.open`."""
        return await self._blobs.open(
            asset.path, start, asset.size_bytes - start if length is None else length
        )

    async def file(self, asset: Asset) -> Path | None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.file`."""
        return await self._blobs.file(asset.path)

    async def url(self, asset: Asset) -> str | None:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.url`."""
        return await self._blobs.url(asset.path)

    async def forget_job(self, job_id: str) -> bool:
        """See :meth:`comfy_fleet.ports.assets.AssetStore.forget_job`."""
        ids = [_text(i) for i in await self._redis.hvals(self._keys.asset_outputs(job_id))]
        outcomes = [await self._drop(asset_id) for asset_id in ids]
        return "held" not in outcomes

    async def bytes_elsewhere(self, place: str) -> tuple[str, str] | None:
        """Return id and place of the blob store that has the bytes of these records, if it is another one.

        The first blob store for which this is called is theirs.

        Args:
            place: Where this one is, in words.

        Raises:
            NoRoom: The blob store can't be read or written to.
            StoreDown: No answer.
        """
        own = await self._blobs.store_id()
        await self._redis.set(self._keys.files, f"{own} {place}", nx=True)
        known, _, where = _text(await self._redis.get(self._keys.files) or own).partition(" ")
        return None if known == own else (known, where)

    async def stored_sizes(self) -> AsyncGenerator[tuple[Asset, int | None], None]:
        """Walk all records; yield each with how many of its bytes the blob store has, None if it has none.

        What the sweep deletes meanwhile may seem to be missing; so may what is added.

        Raises:
            StoreDown: No answer.
        """
        ids: set[str] = set()
        prefix = self._keys.asset("")
        async for key in self._redis.scan_iter(match=self._keys.asset("*"), count=_LISTED_AT_ONCE):
            found = _text(key).removeprefix(prefix)
            if _ASSET_ID.fullmatch(found):
                ids.add(found)
            if len(ids) >= _LISTED_AT_ONCE:
                for one in await self._with_sizes(ids):
                    yield one
                ids.clear()
        for one in await self._with_sizes(ids):
            yield one

    @staticmethod
    async def recorded(redis: FleetRedis) -> bool:
        """Return whether there are records, without the blob store. Raises StoreDown: no answer."""
        keys = redis.keyspace
        async for key in redis.scan_iter(match=keys.asset("*"), count=_LISTED_AT_ONCE):
            if _ASSET_ID.fullmatch(_text(key).removeprefix(keys.asset(""))):
                return True
        return False

    async def _with_sizes(self, ids: Collection[str]) -> list[tuple[Asset, int | None]]:
        found = [asset for asset in [await self.get(one) for one in ids] if asset is not None]
        sizes = await self._blobs.sizes([asset.path for asset in found])
        return list(zip(found, sizes, strict=True))

    async def sweep(self, limit: int = 1000) -> int:
        """Remove expired uploads, and delete bytes that nothing has needed for long; safe at any time.

        While the disk is below its floor, bytes whose last record went don't wait: deleting makes room.

        Returns:
            How many uploads were removed.

        Raises:
            Outdated: A newer version works on this Redis.
            StoreDown: No answer.
        """
        now = await self._clock()
        ends = await self._redis.zrangebyscore(self._keys.asset_expiry, "-inf", now, start=0, num=limit)
        ended = sum([await self._drop(_text(i), ended=True) == "gone" for i in ends])
        await self._list_earlier_uploads()
        await self._note_strays(now)
        while await self._delete_unused(now, limit) == limit:
            pass
        # By the disk's clock: it may have been set by an hour while somebody writes.
        await self._blobs.tidy(age_s=2 * _WRITING_S)
        return ended

    async def _list_earlier_uploads(self) -> None:
        """Put the uploads of versions that kept no lists of names into them, once."""
        if await self._redis.exists(self._keys.uploads_listed):
            return
        async for key in self._redis.scan_iter(match=self._keys.asset_names("*", "*"), count=1000):
            newest = await self._redis.zrevrange(key, 0, 0, withscores=True)
            for asset_id, at in newest:
                if (asset := await self.get(_text(asset_id))) is not None:
                    name = _text(key).removeprefix(self._keys.asset_names(asset.owner, ""))
                    listing = self._keys.asset_uploads(asset.owner, asset.folder)
                    await self._redis.zadd(listing, {name: at}, gt=True)
        await self._redis.set(self._keys.uploads_listed, "1")

    async def _note_strays(self, now: float) -> None:
        """Look for bytes without a record, once an hour in the whole fleet.

        Not among those of another store of records, such as another fleet's, or this one's before its Redis
        was emptied: it may have records over them.
        """
        if not await self._redis.set(self._keys.blob_walked, "1", nx=True, ex=int(_WRITING_S)):
            return
        records = await self._scripts.call("store_id", candidate=self._new_id())
        if not await self._blobs.belongs_to(_text(records)):
            logger.warning(
                "no search for bytes without a record",
                extra={"reason": "files/records names another Redis, or the fleet's before it was emptied"},
            )
            return
        async for keys in self._blobs.keys(age_s=_WRITING_S):
            await self._begin("note_strays", now=now, paths=keys)

    async def _delete_unused(self, now: float, limit: int) -> int:
        """Delete some of the bytes that are due; return how many."""
        unused_before = now if self._blobs.is_full() else now - self._grace_s
        # A file's age is by the file system's clock; its writer may still live, so a stray waits by Redis'
        # clock.
        strays_before = now - max(self._grace_s, _WRITING_S)
        _, *keys = await self._begin(
            "condemn_blobs", now=now, unused_before=unused_before, strays_before=strays_before, limit=limit
        )
        deleted = []
        for key in keys:
            try:
                await self._blobs.delete(key)
            except FleetError as error:  # it stays condemned; others must not wait for it
                logger.warning("bytes not deleted", extra={"key": key, "error": str(error)})
            else:
                deleted.append(key)
        if deleted:
            await self._redis.zrem(self._keys.blob_condemned, *deleted)
            logger.info("bytes deleted", extra={"count": len(deleted)})
        return len(deleted)

    # -- records -----------------------------------------------------------

    async def _begin(self, script: str, /, **args: Any) -> list[str]:
        return [_text(part) for part in await self._scripts.begin(script, **args)]

    async def _add(
        self, asset: Asset, *, numbered: bool = False, quota: Mapping[str, Any] | None = None
    ) -> tuple[Asset, bool]:
        """Add a record; return the present one, and True if the bytes are new to the owner.

        If the same bytes are stored already, these replace them, which repairs broken ones.

        Numbered: see :meth:`keep`.
        """
        stem, suffix = posixpath.splitext(asset.file_path) if numbered else (None, None)
        outcome, *rest = await self._begin(
            "add_asset", record=dump_asset(asset), stem=stem, suffix=suffix, quota=quota
        )
        if outcome == "limit":
            raise limit_error(rest)
        fresh, there, path = rest
        if path != asset.path:
            await self._blobs.replace(path, by=asset.path)
            asset = replace(asset, path=path)
        if there != asset.id or numbered:
            asset = await self.get(there) or asset
        return asset, fresh == "1" and there == asset.id

    async def _recordable(self, blob: Blob) -> float:
        """Return the time; without it there will be no record, so the bytes are deleted."""
        try:
            return await self._clock()
        except BaseException:
            await self._blobs.delete(blob.key)
            raise

    def _end(self, now: float, expires_in_s: float | None) -> tuple[float | None, bool]:
        """Return when an upload ends, and True if that was our choice."""
        if expires_in_s is not None:
            return now + expires_in_s, False
        return (now + self._retention_s, True) if self._retention_s else (None, False)

    async def _drop(self, asset_id: str, owner: str | None = None, *, ended: bool = False) -> str:
        """Forget a record: ``gone``, ``held`` or ``none``."""
        (outcome,) = await self._begin(
            "drop_asset", id=asset_id, owner=owner, now=await self._clock(), ended=ended or None
        )
        return outcome


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
