"""People's files in the editor, in Redis (port ``UserData``).

An owner's records are one hash; each content is a key of its own, compressed, named by the version of its
record. So a move carries no content, and a reader never sees one file's record with another one's bytes.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.graphs.folders import MAX_PATH_BYTES
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.domain.user_data import (
    MOST_FILE_BYTES,
    MOST_FILES,
    WORKFLOWS,
    BadUserPath,
    Moved,
    UserDataFull,
    UserFile,
    UserFileChanged,
    UserFileExists,
    UserTree,
    check_user_path,
    folders_of,
)
from comfy_fleet.ports.editor import KEPT_S, MOST_MOVES

_IN_THREAD_BYTES = 256 * 1024
_LEVEL = 3
_TRIES = 8


class RedisUserData:
    """:class:`comfy_fleet.ports.userdata.UserData`.

    Args:
        redis: The client.
        most_bytes: How much one owner may have, in bytes.
        new_version: Draws the version of each write.
    """

    def __init__(
        self, redis: FleetRedis, *, most_bytes: int, new_version: Callable[[], str] = lambda: uuid4().hex
    ) -> None:
        self._redis: Any = redis
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._most_bytes = most_bytes
        self._new_version = new_version
        self._complaints = Complaints()

    async def tree(self, owner: str) -> UserTree:
        """See :meth:`comfy_fleet.ports.userdata.UserData.tree`."""
        kept: dict[bytes, bytes] = await self._redis.hgetall(self._keys.user_files(owner))
        names = {field.decode(): raw for field, raw in kept.items()}
        files = {path: self._file(path, raw) for path, raw in names.items() if not path.endswith("/")}
        return UserTree(
            files={path: file for path, file in files.items() if file is not None},
            folders=frozenset(name[:-1] for name in names if name.endswith("/")),
        )

    async def has_any(self, owner: str) -> bool:
        """See :meth:`comfy_fleet.ports.userdata.UserData.has_any`."""
        return bool(await self._redis.hlen(self._keys.user_files(owner)))

    async def read(self, owner: str, path: str) -> tuple[UserFile, bytes] | None:
        """See :meth:`comfy_fleet.ports.userdata.UserData.read`."""
        before = None
        for _ in range(_TRIES):  # a version may be replaced between the two
            raw = await self._redis.hget(self._keys.user_files(owner), path)
            file = None if raw is None else self._file(path, raw)
            if file is None or file.version == before:
                return None
            packed = await self._redis.get(self._keys.user_content(owner, file.version))
            if packed is not None:
                return file, await self._content(file, packed)
            before = file.version
        return None

    async def save(
        self,
        owner: str,
        path: str,
        content: bytes,
        *,
        overwrite: bool = True,
        expected: str | None = None,
    ) -> UserFile:
        """See :meth:`comfy_fleet.ports.userdata.UserData.save`."""
        check_user_path(path)
        if len(content) > MOST_FILE_BYTES:
            raise UserDataFull(f"the file has {len(content)} bytes; at most {MOST_FILE_BYTES} are kept")
        outcome, *rest = await self._scripts.call(
            "save_user_file",
            await _in_thread(len(content), zlib.compress, content, _LEVEL),
            owner=owner,
            path=path,
            folders=folders_of(path),
            version=self._new_version(),
            size=len(content),
            absent=not overwrite,
            expected=expected,
            most_bytes=self._most_bytes,
            most_files=MOST_FILES,
        )
        self._refuse(outcome, rest, path)
        return _load(path, rest[0])

    async def move(self, owner: str, source: str, dest: str, *, overwrite: bool = True) -> Moved:
        """See :meth:`comfy_fleet.ports.userdata.UserData.move`."""
        check_user_path(source)
        check_user_path(dest)
        outcome, *rest = await self._scripts.call(
            "move_user_file",
            owner=owner,
            source=source,
            name=source.rpartition("/")[2],
            dest=dest,
            folders=folders_of(dest),
            version=self._new_version(),
            absent=not overwrite,
            most_files=MOST_FILES,
            most_path=MAX_PATH_BYTES,
            graphs=WORKFLOWS,
            most_words=MOST_MOVES,
            words_kept_s=int(KEPT_S),
        )
        self._refuse(outcome, rest, dest)
        path = rest[0].decode()
        return Moved(path=path, file=_load(path, rest[1]) if len(rest) == 2 else None)

    async def delete(self, owner: str, path: str) -> bool:
        """See :meth:`comfy_fleet.ports.userdata.UserData.delete`."""
        (outcome,) = await self._scripts.call("delete_user_file", owner=owner, path=path)
        if outcome == b"folder":
            raise BadUserPath(f"{path} is a folder with files: delete these first", details={"field": "file"})
        return bool(outcome == b"ok")

    def _refuse(self, outcome: bytes, rest: list[bytes], path: str) -> None:
        told = rest[0].decode() if rest else ""
        match outcome:
            case b"ok":
                return
            case b"none":
                raise NotFound("there is no such file")
            case b"exists":
                raise UserFileExists("File already exists")
            case b"changed":
                raise UserFileChanged(f"{path} was written by somebody else meanwhile")
            case b"bytes":
                raise UserDataFull(
                    f"with this file you would have {told} bytes; at most {self._most_bytes} are kept "
                    "(FLEET_USERDATA_BYTES): delete others first"
                )
            case b"files":
                raise UserDataFull(
                    f"you have {told} files and folders; at most {MOST_FILES} are kept: delete some first"
                )
            case b"folder":
                raise BadUserPath(f"{path} is a folder", details={"field": "file"})
            case b"file":
                raise BadUserPath(f"{told} is a file: nothing can be below it", details={"field": "file"})
            case b"inside":
                raise BadUserPath("a folder can't be moved into itself", details={"field": "dest"})
            case _:
                raise BadUserPath(f"the path of {told} would be too long", details={"field": "dest"})

    def _file(self, path: str, raw: bytes) -> UserFile | None:
        try:
            return _load(path, raw)
        except UNREADABLE as error:
            self._complaints.about("user file", path, error)
            return None

    async def _content(self, file: UserFile, packed: bytes) -> bytes:
        return await _in_thread(file.size_bytes, _unpacked, packed)


def _load(path: str, raw: bytes) -> UserFile:
    record = orjson.loads(raw)
    return UserFile(
        path=path,
        size_bytes=int(record["size"]),
        created=float(record["created"]),
        modified=float(record["modified"]),
        version=str(record["version"]),
    )


def _unpacked(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, MOST_FILE_BYTES)


async def _in_thread(size: int, work: Callable[..., bytes], *args: Any) -> bytes:
    """Do some work, in a thread if it takes long."""
    return await asyncio.to_thread(work, *args) if size > _IN_THREAD_BYTES else work(*args)
