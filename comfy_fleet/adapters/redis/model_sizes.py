"""The sizes of nodes' model files in Redis (port ``SizeStore``)."""

import asyncio
import zlib
from collections.abc import Mapping
from typing import Any

import orjson
from blake3 import blake3

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.domain.nodes.model_sizes import Folders
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.ports.nodes import StoredSizes

MOST_UNPACKED = 32 * 2**20
"""Most bytes of what is stored, unpacked: as many files as are remembered, with the longest names."""


class RedisModelSizes:
    """:class:`comfy_fleet.ports.nodes.SizeStore`."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._complaints = Complaints()

    async def claim(self, *, ttl_s: int) -> bool:
        """See :meth:`comfy_fleet.ports.nodes.SizeStore.claim`."""
        return bool(await self._redis.set(self._keys.model_sizes_asked, "1", nx=True, ex=ttl_s))

    async def load(self, known: str) -> StoredSizes | None:
        """See :meth:`comfy_fleet.ports.nodes.SizeStore.load`."""
        digest, of, at = await self._redis.hmget(self._keys.model_sizes, "digest", "of", "at")
        if digest is None:
            return None
        try:
            folders, changed = None, dict[str, float]()
            if digest.decode() != known:
                packed, times = await self._redis.hmget(self._keys.model_sizes, "content", "changed")
                folders = await asyncio.to_thread(_unpacked, packed)
                if times is not None:
                    changed = await asyncio.to_thread(_times, times)
            return StoredSizes(
                folders=folders, changed=changed, digest=digest.decode(), of=of.decode(), at=float(at)
            )
        except (*UNREADABLE, zlib.error) as error:
            self._complaints.about("sizes of model files", digest.decode(errors="replace"), error)
            return None

    async def save(
        self, folders: Folders, *, of: str, at: float, changed: Mapping[str, float] | None = None
    ) -> str:
        """See :meth:`comfy_fleet.ports.nodes.SizeStore.save`."""
        digest, packed, times = await asyncio.to_thread(_packed, folders, changed or {})
        fields = {"content": packed, "changed": times, "digest": digest, "of": of, "at": repr(at)}
        await self._redis.hset(self._keys.model_sizes, mapping=fields)
        return digest


def _packed(folders: Folders, changed: Mapping[str, float]) -> tuple[str, bytes, bytes]:
    sizes = orjson.dumps({name: dict(files) for name, files in folders.items()}, option=orjson.OPT_SORT_KEYS)
    times = orjson.dumps(dict(changed), option=orjson.OPT_SORT_KEYS)
    digest = blake3(sizes + times if changed else sizes).hexdigest()[:32]
    return digest, zlib.compress(sizes, 1), zlib.compress(times, 1)


def _unpacked(packed: bytes) -> Folders:
    return {
        str(folder): {str(name): int(size) for name, size in files.items()}
        for folder, files in orjson.loads(_text(packed)).items()
    }


def _times(packed: bytes) -> dict[str, float]:
    return {str(place): float(at) for place, at in orjson.loads(_text(packed)).items()}


def _text(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(packed, MOST_UNPACKED)
    if not unpacking.eof:
        raise ValueError("it is cut off, or larger than any that was stored")
    return text
