"""Find HAProxy, and run our own Redis."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comfy_fleet.adapters.system.folders import private_folder
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.cli.exits import Fail

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on an ordinary user's PATH on Debian
SYNC_S = 1.0
_SOCKET_LIMIT = 100  # a unix socket's path has at most 107 bytes
_EMPTY_BYTES = 512  # a base without records has fewer
OLDEST_REDIS = (6, 2)
INSTALL_HAPROXY = "apt-get update && apt-get install -y haproxy"


def find_haproxy(name: str) -> str:
    """Return HAProxy's program with its full path.

    Raises:
        Fail: It is not installed.
    """
    found = shutil.which(name) or next(
        (path for folder in _SBIN if (path := shutil.which(name, path=folder))), None
    )
    if found is None:
        if name != "haproxy":
            raise Fail(
                f"FLEET_HAPROXY_BIN: there is no program {name[:200]}",
                hint="name HAProxy's program, or unset it for the one on the PATH",
            )
        raise Fail(f"there is no {name}", hint=f"as root: {INSTALL_HAPROXY}")
    return found


@dataclass(frozen=True, kw_only=True)
class OwnRedis:
    """A Redis that runs with the fleet and keeps its data in the fleet's folder.

    Attributes:
        argv: Program and arguments.
        url: Where it answers.
        folder: Where its data is.
    """

    argv: tuple[str, ...]
    url: str
    folder: Path

    @classmethod
    def plan(cls, data: Path, *, port: int) -> "OwnRedis":
        """Choose how to run it: on a unix socket if the path is short enough, else on loopback.

        Args:
            data: The fleet's data folder, absolute.
            port: A free port, for when the path is too long.

        Raises:
            ConfigError: No Redis-compatible server is installed.
            Fail: Files of its data are missing.
        """
        folder = private_folder(data / "redis")
        check_complete(folder / "appendonlydir")
        socket = folder / "redis.sock"
        argv = [program(), "--dir", str(folder), "--daemonize", "no"]
        # An accepted job survives a crash: Redis answers after it has written to the append-only file. With
        # `everysec` and a slow disk it answers earlier (Redis: flushAppendOnlyFile), and a kill -9 loses
        # those writes. :meth:`sync` is for power cuts.
        argv += ["--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        if len(str(socket).encode()) <= _SOCKET_LIMIT:
            argv += ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
            return cls(argv=tuple(argv), url=f"unix://{socket}?db=0", folder=folder)
        argv += ["--bind", "127.0.0.1", "--port", str(port)]
        return cls(argv=tuple(argv), url=f"redis://127.0.0.1:{port}/0", folder=folder)

    async def sync(self, on_error: Callable[[OSError], None]) -> None:
        """Sync Redis' files to the disk once a second, until canceled.

        Args:
            on_error: Called if that fails; it is tried again.
        """
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await asyncio.to_thread(sync_files, self.folder)
            except OSError as error:
                on_error(error)


def check_complete(folder: Path) -> None:
    """Refuse data of which files are missing: Redis would begin anew, and overwrite the rest.

    Args:
        folder: Where Redis 7 and newer have the append-only files, and a manifest that names them.

    Raises:
        Fail: There is no manifest, or a file that it names.
    """
    manifest = folder / "appendonly.aof.manifest"
    try:
        lines = manifest.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        # A first start that was broken off leaves files without a record.
        found = [path for path in folder.glob("appendonly.aof.*") if path.stat().st_size > _EMPTY_BYTES]
        missing = [manifest.name] if found else []
    else:
        words = [line.split() for line in lines]
        named = [line[1] for line in words if len(line) >= 6 and line[0] == "file" and line[5] != "h"]
        missing = [name for name in named if not (folder / name).exists()]
    if missing:
        raise Fail(
            f"Redis' data in {folder} are not complete: {', '.join(missing)} is missing",
            hint="restore the whole folder `redis` from a backup (docs/howto/backup.md), or begin without "
            f"any jobs: remove {folder}",
        )


def sync_files(folder: Path) -> None:
    """Sync Redis' append-only files: a folder since Redis 7, one file before."""
    for path in (*folder.glob("appendonlydir/*.aof"), *folder.glob("appendonly.aof")):
        with contextlib.suppress(FileNotFoundError):  # Redis has just rewritten it
            file = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(file)  # costs nothing where nothing was written
            finally:
                os.close(file)


async def wait_for_redis(url: str, *, timeout_s: float) -> None:
    """Wait until Redis answers and has loaded its data.

    Raises:
        Fail: It does not answer within ``timeout_s``, or is too old.
    """
    from comfy_fleet.adapters.redis.client import connect_once
    from comfy_fleet.domain.errors import StoreDown

    deadline = asyncio.get_running_loop().time() + timeout_s
    async with connect_once(url) as client:
        while True:
            try:
                await client.ping()
            except StoreDown as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise Fail(
                        f"{masked(url)}: {error}",
                        hint="check --redis URL, or leave it out: `fleet up` then runs its own",
                    ) from error
                await asyncio.sleep(0.05)
            else:
                break
        with contextlib.suppress(StoreDown):  # this Redis user may not be allowed to ask
            told = str((await client.info("server")).get("redis_version", ""))
            if told and tuple(map(int, re.findall(r"\d+", told)[:2])) < OLDEST_REDIS:
                needed = ".".join(map(str, OLDEST_REDIS))
                raise Fail(
                    f"Redis at {masked(url)} is version {told}, which is too old",
                    hint=f"install Redis {needed} or newer, or Valkey",
                )


def masked(url: str) -> str:
    """Return a URL with its password masked."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}***@{host}" if at and credentials else url
