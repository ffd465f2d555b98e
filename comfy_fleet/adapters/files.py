"""Assets: files on this machine's disk, their records in Redis.

    ROOT/tmp/UUID              being written
    ROOT/blobs/ab/HASH         uploads, one file per content
    ROOT/jobs/JOB/HASH         a job's outputs, in the job's own folder

No path is ever made from what a user sent: names live in the record only. A file appears under its
final name by a rename, whole or not at all, and goes with its last record. ``files.lua`` lists the keys.
"""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from blake3 import blake3
from redis.asyncio import Redis

from comfy_fleet.adapters.asset_record import dump_asset, dump_tags, load_asset
from comfy_fleet.adapters.redis.scripts import store_errors
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.adapters.system.folders import private_folder
from comfy_fleet.domain.errors import AssetInUse, BlobNotFound, HashMismatch, MissingAsset, NoRoom, NotFound
from comfy_fleet.domain.jobs.asset import Asset, listed_name
from comfy_fleet.ports import Received

HASH = re.compile(r"blake3:[0-9a-f]{64}")
_ASSET_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_JOB_ID = re.compile(r"[0-9a-fA-F-]{8,64}")
_BUFFER = 1 << 20  # written and hashed in one hop to a thread
_SMALL = 1 << 18  # hashed and written faster (0.2 ms) than a thread is woken
_PIN_TTL_S = 3600.0  # a pin this old belongs to a process that died
_UNLINK_S = 10.0  # an unlink that takes longer, as on a slow network disk, is announced again
_DOOMED_S = 60  # a file that nothing has needed for so long, and that is still there, was left by who died
_SCRIPT = Path(__file__).with_name("files.lua").read_text()


@dataclass(frozen=True, kw_only=True)
class _Staged:
    """A file that is complete but not yet in its place."""

    temp: Path
    hash: str
    size_bytes: int


class FileAssetStore:
    """:class:`comfy_fleet.ports.AssetStore` on a folder that all processes of the fleet share.

    Args:
        redis: Where the records are; ``decode_responses`` may be on or off.
        root: The folder; made when it is missing.
        clock: Unix seconds, the same for all processes.
        new_id: Draws a UUID.
        retention_s: How long an upload stays whose client named no time; 0: until it is deleted.
        disk: Knows how much room there is; the root's own with the usual floor if None.
    """

    def __init__(
        self,
        redis: "Redis",
        root: Path,
        *,
        clock: Callable[[], Awaitable[float]],
        new_id: Callable[[], str],
        retention_s: float = 0.0,
        disk: Disk | None = None,
    ) -> None:
        self._redis = redis
        self._root = root
        self._clock = clock
        self._new_id = new_id
        self._retention_s = retention_s
        self._script = redis.register_script(_SCRIPT)
        for folder in ("tmp", "blobs", "jobs"):
            private_folder(root / folder)
        self._disk = disk or Disk(root)

    def check_room(self, size_bytes: int = 0, *, output: bool = False) -> None:
        """See :meth:`comfy_fleet.ports.AssetStore.check_room`."""
        self._disk.check(size_bytes, output=output)

    @asynccontextmanager
    async def receive(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[_Staged]:
        """See :meth:`comfy_fleet.ports.AssetStore.receive`. The bytes are synced to the disk."""
        self.check_room()
        async with self._staged(chunks, sync=True) as staged:
            yield staged

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
    ) -> tuple[Asset, bool]:
        """See :meth:`comfy_fleet.ports.AssetStore.keep`."""
        if not isinstance(received, _Staged):
            raise TypeError("keep() takes what receive() of the same store gave")
        if expected_hash is not None and expected_hash.lower() != received.hash:
            raise HashMismatch(
                f"expected_hash {expected_hash} is not the hash of the bytes that came ({received.hash})",
                details={"expected": expected_hash, "actual": received.hash},
            )
        asset = await self._new(
            owner=owner,
            hash_=received.hash,
            size=received.size_bytes,
            content_type=content_type,
            file_path=file_path,
            tags=tags,
            expires_in_s=expires_in_s,
        )
        return asset, await self._place(asset, received.temp.replace)

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
        """See :meth:`comfy_fleet.ports.AssetStore.upload`."""
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
        """See :meth:`comfy_fleet.ports.AssetStore.from_hash`."""
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
        outcome, *rest = await self._call(
            "copy", owner, hash_, file_path or "", orjson.dumps(record), "full" if full else ""
        )
        if outcome == "none":
            raise missing
        if outcome == "full" and full is not None:
            raise full
        found = await self.get(rest[0])
        if found is None:
            raise missing
        if outcome != "link":
            return found, outcome == "new"
        # The bytes are in a job's folder, which goes with the job: give them a place of their own.
        asset = await self._new(
            owner=owner,
            hash_=hash_,
            size=found.size_bytes,
            content_type=found.content_type,
            file_path=file_path or found.file_path,
            tags=tags,
            expires_in_s=expires_in_s,
        )
        if not self.file(found).is_file():
            raise missing
        await self._place(asset, lambda final: self._link(self.file(found), final))
        return asset, True

    async def has_hash(self, *, owner: str, hash_: str) -> bool:
        """See :meth:`comfy_fleet.ports.AssetStore.has_hash`."""
        with store_errors():
            return bool(await self._redis.exists(f"fleet:blob:owner:{owner}:{hash_}"))

    async def add_output(
        self,
        *,
        owner: str,
        job_id: str,
        chunks: AsyncIterator[bytes],
        name: str,
        content_type: str,
        expires_at: float,
    ) -> Asset:
        """See :meth:`comfy_fleet.ports.AssetStore.add_output`.

        Not synced to the disk: like the record's own write, it survives any crash of a process, and
        a power cut can take the last moment of both. Adding the same bytes under the same name to the
        same job again returns the record that is there, so a retried collection makes no copies.
        """
        async with self._staged(chunks, sync=False) as staged:
            asset = Asset(
                id=self._new_id(),
                owner=owner,
                hash=staged.hash,
                size_bytes=staged.size_bytes,
                content_type=content_type,
                file_path=name,
                path=f"{self._job_folder(job_id)}/{staged.hash.removeprefix('blake3:')}",
                created_at=await self._clock(),
                expires_at=expires_at,
                job_id=job_id,
            )
            with self._disk.writing():
                _move(staged.temp, self.file(asset))
            _, there = await self._call("add", orjson.dumps(dump_asset(asset)))
        if there != asset.id:
            return await self.get(there) or asset
        return asset

    async def get(self, asset_id: str) -> Asset | None:
        """See :meth:`comfy_fleet.ports.AssetStore.get`."""
        if not _ASSET_ID.fullmatch(asset_id):  # ids come from graphs too; other keys have this prefix
            return None
        with store_errors():
            raw: dict[Any, Any] = await self._redis.hgetall(f"fleet:asset:{asset_id}")
        return load_asset({_text(k): _text(v) for k, v in raw.items()}) if raw else None

    async def by_path(self, *, owner: str, file_path: str) -> Asset | None:
        """See :meth:`comfy_fleet.ports.AssetStore.by_path`; only uploads have names of their own."""
        found: list[tuple[float, str]] = []
        with store_errors():
            # Records of earlier versions are listed under the name as it was sent.
            for name in {listed_name(file_path), file_path}:
                key = f"fleet:asset:names:{owner}:{name}"
                newest: list[Any] = await self._redis.zrevrange(key, 0, 0, withscores=True)
                found += [(float(at), _text(asset_id)) for asset_id, at in newest]
        return await self.get(max(found)[1]) if found else None

    async def hold(self, *, owner: str, asset_ids: Sequence[str], job_id: str) -> None:
        """See :meth:`comfy_fleet.ports.AssetStore.hold`."""
        place = await self._call("hold", job_id, owner, *asset_ids)
        if place:
            asset_id = asset_ids[int(place) - 1]
            raise MissingAsset(f"asset {asset_id} does not exist", details={"id": asset_id})

    async def release(self, *, asset_ids: Sequence[str], job_id: str) -> None:
        """See :meth:`comfy_fleet.ports.AssetStore.release`."""
        await self._call("release", job_id, *asset_ids)

    async def delete(self, *, owner: str, asset_id: str) -> None:
        """See :meth:`comfy_fleet.ports.AssetStore.delete`."""
        outcome = await self._drop(asset_id, owner)
        if outcome == "none":
            raise NotFound(f"no asset {asset_id}")
        if outcome == "held":
            raise AssetInUse("the asset is in use by a job that is not final")

    def file(self, asset: Asset) -> Path:
        """See :meth:`comfy_fleet.ports.AssetStore.file`."""
        return self._root / asset.path

    async def forget_job(self, job_id: str) -> bool:
        """Remove a job's outputs, records and bytes.

        Returns:
            False if another live job still needs one of the outputs: ask again later.
        """
        with store_errors():
            ids = [_text(i) for i in await self._redis.hvals(f"fleet:asset:job:{job_id}")]
        outcomes = [await self._drop(asset_id, "") for asset_id in ids]
        if "held" in outcomes:
            return False
        await asyncio.to_thread(shutil.rmtree, self._root / self._job_folder(job_id), ignore_errors=True)
        return True

    async def sweep(self, limit: int = 1000) -> int:
        """Remove uploads past their end, and what processes that died left behind; returns how many."""
        now = await self._clock()
        with store_errors():
            ends = await self._redis.zrangebyscore("fleet:asset:expiry", "-inf", now, start=0, num=limit)
            pins = await self._redis.zrangebyscore(
                "fleet:blob:pins", "-inf", now - _PIN_TTL_S, start=0, num=limit
            )
        removed = sum([await self._drop(_text(i), "") == "gone" for i in ends])
        for member in pins:
            path, _, pin = _text(member).partition("\0")
            if await self._call("unpin", path, pin):
                await self._unlink(path)
        for path in await self._call("doomed", str(_DOOMED_S), str(limit)):
            await self._unlink(path)
            removed += 1
        return removed + await asyncio.to_thread(_sweep_temp, self._root / "tmp", now - _PIN_TTL_S)

    # -- records -----------------------------------------------------------

    async def _call(self, *args: str | bytes) -> Any:
        with store_errors():
            return _plain(await self._script(keys=[], args=list(args)))

    async def _new(
        self,
        *,
        owner: str,
        hash_: str,
        size: int,
        content_type: str,
        file_path: str,
        tags: tuple[str, ...],
        expires_in_s: float | None,
    ) -> Asset:
        now, digest = await self._clock(), hash_.removeprefix("blake3:")
        ends, renews = self._end(now, expires_in_s)
        return Asset(
            id=self._new_id(),
            owner=owner,
            hash=hash_,
            size_bytes=size,
            content_type=content_type,
            file_path=file_path,
            path=f"blobs/{digest[:2]}/{digest}",
            created_at=now,
            expires_at=ends,
            tags=tags,
            renews=renews,
        )

    def _end(self, now: float, expires_in_s: float | None) -> tuple[float | None, bool]:
        """Return when an upload ends, and whether that was our choice."""
        if expires_in_s is not None:
            return now + expires_in_s, False
        return (now + self._retention_s, True) if self._retention_s else (None, False)

    async def _place(self, asset: Asset, put: Callable[[Path], object]) -> bool:
        """Put a shared file into its place and add its record; True if the bytes are new to the owner.

        The pin keeps a concurrent delete of the same content from unlinking the file between both.
        """
        pin, final = f"pin:{asset.id}", self.file(asset)
        while not await self._call("pin", asset.path, pin, repr(await self._clock())):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)  # another process unlinks the file right now
        try:
            await asyncio.to_thread(self._put, put, final)
            fresh, _ = await self._call("add", orjson.dumps(dump_asset(asset)), pin)
        except BaseException:
            if await self._call("unpin", asset.path, pin):
                await self._unlink(asset.path)
            raise
        return bool(fresh)

    async def _drop(self, asset_id: str, owner: str) -> str:
        """Forget a record: ``gone``, ``held`` or ``none``."""
        outcome, *rest = await self._call("drop", asset_id, owner)
        if outcome == "gone" and int(rest[1]):
            await self._unlink(rest[0])
        return str(outcome)

    # -- files -------------------------------------------------------------

    async def _unlink(self, path: str) -> None:
        unlinking = asyncio.ensure_future(asyncio.to_thread((self._root / path).unlink, missing_ok=True))
        while not (await asyncio.wait({unlinking}, timeout=_UNLINK_S))[0]:
            await self._call("unlinking", path)
        await unlinking
        await self._call("unlinked", path)

    @asynccontextmanager
    async def _staged(self, chunks: AsyncIterator[bytes], *, sync: bool) -> AsyncIterator[_Staged]:
        """Stream chunks into a temporary file; it is gone afterwards unless it was moved."""
        temp = self._root / "tmp" / self._new_id()
        hasher = blake3()
        size = 0
        buffer: list[bytes] = []
        buffered = 0
        file: BinaryIO | None = None

        def flush(last: bool) -> None:
            nonlocal file
            self._disk.check(buffered, output=not sync)
            with self._disk.writing():
                file = file or temp.open("xb")
                for part in buffer:
                    hasher.update(part)
                    file.write(part)
                buffer.clear()
                if last:
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                    file.close()

        try:
            async for chunk in chunks:
                buffer.append(chunk)
                buffered += len(chunk)
                size += len(chunk)
                if buffered >= _BUFFER:
                    await asyncio.to_thread(flush, False)
                    buffered = 0
            if sync or buffered > _SMALL:
                await asyncio.to_thread(flush, True)
            else:
                flush(True)
            yield _Staged(temp=temp, hash=f"blake3:{hasher.hexdigest()}", size_bytes=size)
        finally:
            if file is not None:
                with contextlib.suppress(OSError):  # what it could not write it raises again
                    file.close()
            temp.unlink(missing_ok=True)

    def _job_folder(self, job_id: str) -> str:
        if not _JOB_ID.fullmatch(job_id):
            raise NotFound(f"no job {job_id}")
        return f"jobs/{job_id}"

    def _put(self, put: Callable[[Path], object], final: Path) -> None:
        with self._disk.writing():
            final.parent.mkdir(parents=True, exist_ok=True)
            put(final)

    def _link(self, source: Path, final: Path) -> None:
        """Give the same bytes a second name, by a hard link where the file system has them."""
        temp = self._root / "tmp" / self._new_id()
        try:
            try:
                temp.hardlink_to(source)
            except OSError:
                shutil.copyfile(source, temp)
            temp.replace(final)
        finally:
            temp.unlink(missing_ok=True)  # replacing a link by its twin leaves both


def _move(temp: Path, final: Path) -> None:
    final.parent.mkdir(exist_ok=True)
    temp.replace(final)


def _sweep_temp(folder: Path, before: float) -> int:
    """Remove what writers that died left in the folder of temporary files."""
    count = 0
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < before:
                path.unlink()
                count += 1
        except FileNotFoundError:
            continue
    return count


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Turn a script's answer into text and numbers, however the client decodes."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value
