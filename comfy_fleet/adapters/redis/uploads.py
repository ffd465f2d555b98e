"""Records of uploads that come in parts (port :class:`comfy_fleet.ports.uploads.UploadRecords`)."""

import re
from collections.abc import Sequence
from typing import Any

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.quotas import limit_error
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import LimitReached
from comfy_fleet.domain.jobs.resumable_upload import ResumableUpload
from comfy_fleet.domain.limits import ScopedLimits, stored_quota
from comfy_fleet.ports.uploads import OpenUploadLimits

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_ONCE = 100


class RedisUploads:
    """The records in Redis.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)

    async def begin(
        self, upload: ResumableUpload, *, most: OpenUploadLimits, quotas: tuple[ScopedLimits, ...]
    ) -> None:
        """See the port."""
        answer = await self._scripts.begin(
            "begin_upload",
            record={name: str(value) for name, value in vars(upload).items()},
            expires_at=upload.expires_at,
            each=most.each,
            all=most.all,
            each_bytes=most.each_bytes,
            all_bytes=most.all_bytes,
            quota=stored_quota(quotas),
        )
        if answer[0] == b"limit":
            raise limit_error(answer[1:])
        if answer[0] == b"full":
            _, scope, limit, used, bytes_ = answer
            name = "upload_bytes" if bytes_ else "uploads"
            raise LimitReached(
                name,
                "user" if scope == b"user" else "fleet",
                most=int(limit),
                used=int(used),
                way_out="send the rest of one, or give it up with DELETE",
            )

    async def get(self, upload_id: str) -> ResumableUpload | None:
        """See the port."""
        if not _ID.fullmatch(upload_id):  # other keys have this prefix
            return None
        raw = await self._redis.hgetall(self._keys.upload(upload_id))
        if not raw:
            return None
        found = {name.decode(): value.decode() for name, value in raw.items()}
        return ResumableUpload(
            id=upload_id,
            owner=found["owner"],
            length=int(found["length"]),
            offset=int(found["offset"]),
            metadata=found["metadata"],
            file_path=found["file_path"],
            content_type=found["content_type"],
            created_at=float(found["created_at"]),
            expires_at=float(found["expires_at"]),
            asset_id=found["asset_id"],
        )

    async def advance(self, upload_id: str, *, offset: int, expires_at: float) -> bool:
        """See the port."""
        return bool(
            await self._scripts.call(
                "advance_upload", id=upload_id, offset=str(offset), expires_at=expires_at
            )
        )

    async def become(self, upload_id: str, *, asset_id: str, expires_at: float) -> bool:
        """See the port."""
        return bool(
            await self._scripts.call("end_upload", id=upload_id, asset_id=asset_id, expires_at=expires_at)
        )

    async def forget(self, upload_id: str, *, ended_by: float | None = None) -> bool:
        """See the port."""
        return bool(await self._scripts.call("end_upload", id=upload_id, ended_by=ended_by))

    async def claim(self, upload_id: str, token: str) -> None:
        """See the port."""
        await self._scripts.call("claim_upload", id=upload_id, token=token)

    async def claimed_by(self, upload_id: str) -> str:
        """See the port."""
        found = await self._redis.hget(self._keys.upload(upload_id), "claim")
        return found.decode() if found else ""

    async def ended(self, now: float) -> Sequence[str]:
        """See the port."""
        found = await self._redis.zrangebyscore(self._keys.uploads, "-inf", now, start=0, num=_AT_ONCE)
        return [one.decode() for one in found]

    async def whole(self) -> Sequence[str]:
        """See the port."""
        return [one.decode() for one in await self._redis.smembers(self._keys.uploads_whole)]
