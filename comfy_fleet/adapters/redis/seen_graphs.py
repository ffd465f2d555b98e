"""What people's editors saved and ran, in Redis (port :class:`comfy_fleet.ports.editor.SeenGraphs`)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.editor import KEPT_S, MOST_SEEN, UNREAD, FileMove, Renames, SavedGraph
from comfy_fleet.ports.workflow_store import BASE_KEPT_S, MAX_DRAFTS


class RedisSeenGraphs:
    """Two hashes for each owner: files by name, and runs by signature.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)

    async def save(self, owner: str, saved: SavedGraph) -> str | None:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.save`."""
        key = self._keys.editor_saves(owner)
        kept = {"at": saved.saved_at, "workflow": saved.workflow, "signature": saved.signature}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, saved.file, orjson.dumps(kept))
            pipe.expire(key, int(KEPT_S))
            pipe.hlen(key)
            pipe.hget(self._keys.editor_runs(owner), saved.signature)
            _, _, count, run = await pipe.execute()
        if count > MOST_SEEN:
            await self._forget_oldest(key)
        found = _read(run)
        fresh = found is not None and found["at"] > saved.saved_at - KEPT_S
        return str(found.get("job", "")) or None if found is not None and fresh else None

    async def run(self, owner: str, signature: str, job_id: str, at: float) -> Sequence[SavedGraph]:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.run`."""
        key = self._keys.editor_runs(owner)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, signature, orjson.dumps({"at": at, "job": job_id}))
            pipe.expire(key, int(KEPT_S))
            pipe.hlen(key)
            pipe.hgetall(self._keys.editor_saves(owner))
            _, _, count, saves = await pipe.execute()
        if count > MOST_SEEN:
            await self._forget_oldest(key)
        same = (one for one in _saves(saves) if one.signature == signature and one.saved_at > at - KEPT_S)
        return sorted(same, key=lambda one: one.file)

    async def forget_save(self, owner: str, file: str) -> None:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.forget_save`."""
        await self._redis.hdel(self._keys.editor_saves(owner), file)

    async def saves(self, owner: str) -> Sequence[SavedGraph]:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.saves`."""
        found = _saves(await self._redis.hgetall(self._keys.editor_saves(owner)))
        return sorted(found, key=lambda one: one.saved_at, reverse=True)

    async def moves(self, owner: str) -> Sequence[FileMove]:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.moves`."""
        key = self._keys.user_moves(owner)
        found = []
        for word in await self._redis.lrange(key, 0, -1):
            try:
                told = orjson.loads(word)
                move = FileMove(
                    source=str(told["source"]),
                    dest=str(told["dest"]),
                    folder=bool(told["folder"]),
                    at=float(told["at"]),
                    new=[str(path) for path in told["new"]],
                    word=word,
                )
            except UNREADABLE:
                await self._redis.lrem(key, 1, word)
                continue
            found.append(move)
        return found

    async def draft_names(self, owner: str) -> Mapping[str, str]:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.draft_names`."""
        found = await self._redis.zrevrange(self._keys.drafts(owner), 0, MAX_DRAFTS - 1)
        ids = [name.decode() for name in found]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in ids:
                pipe.hget(self._keys.draft(owner, name), "editor_name")
            names = await pipe.execute() if ids else []
        return {name: known.decode() for name, known in zip(ids, names, strict=True) if known}

    async def follow(self, owner: str, move: FileMove, renames: Renames) -> bool:
        """See :meth:`comfy_fleet.ports.editor.SeenGraphs.follow`."""
        answer = await self._scripts.begin(
            "follow_move",
            owner=owner,
            word=move.word.decode(),
            at=move.at,
            folder=move.folder,
            saves=[
                {"file": file, "to": to, "workflow": workflow}
                for file, (to, workflow) in renames.saves.items()
            ],
            drafts=[
                {"name": name, "editor_name": before, "to": to, "new_name": now}
                for name, (before, to, now) in renames.drafts.items()
            ],
            new=[
                {"file": file, "workflow": workflow, "editor_name": now}
                for file, (workflow, now) in renames.new.items()
            ],
            unread=UNREAD,
            most=MOST_SEEN,
            kept_s=int(KEPT_S),
            base_kept_s=BASE_KEPT_S,
        )
        if not move.folder and await self._redis.hlen(key := self._keys.editor_saves(owner)) > MOST_SEEN:
            await self._forget_oldest(key)
        return bool(answer[1])

    async def _forget_oldest(self, key: str) -> None:
        found = await self._redis.hgetall(key)
        times = {field: (_read(raw) or {"at": 0.0})["at"] for field, raw in found.items()}
        surplus = sorted(times, key=lambda field: times[field])[: max(0, len(times) - MOST_SEEN)]
        if surplus:
            await self._redis.hdel(key, *surplus)


def _read(raw: bytes | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    try:
        found = orjson.loads(raw)
        return {**found, "at": float(found["at"])}
    except UNREADABLE:
        return None


def _saves(found: Mapping[bytes, bytes]) -> Iterator[SavedGraph]:
    for file, raw in found.items():
        if (kept := _read(raw)) is not None:
            with contextlib.suppress(*UNREADABLE):
                yield from_fields(SavedGraph, {**kept, "file": file.decode(), "saved_at": kept["at"]})
