"""Files from a zip that items of a batch name as ``@NAME``: only these are unpacked, each once."""

import asyncio
import io
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from blake3 import blake3

from comfy_fleet.domain.errors import InvalidBatch, InvalidParameter
from comfy_fleet.domain.graphs.workflow import FILES, Workflow
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.sniffing import HEAD_BYTES, content_type_of_bytes, file_name
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.ports.assets import AssetStore

MOST_DIRECTORY = 4 * 1024 * 1024
"""Bytes of a zip's list of files: some 40,000 names. Reading it takes many times as much memory."""
_END = b"PK\x05\x06"
_TAIL = 65_557  # a zip ends with 22 bytes, and a comment of at most 64 KiB
_PIECE = 1024 * 1024
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


class BatchFiles:
    """The files of a zip. Use it as an asynchronous context manager.

    Args:
        assets: Has the zip, and gets the files.
        archive: The zip; None: there is none.
        owner: Whose the files are.
        quotas: Their limits.
        most_bytes: Largest file.
        folder: Where the zip is unpacked from: a file there without a name.
    """

    def __init__(
        self,
        assets: AssetStore,
        archive: Asset | None,
        *,
        owner: str,
        quotas: tuple[ScopedLimits, ...],
        most_bytes: int,
        folder: Path,
    ) -> None:
        self._assets = assets
        self._archive = archive
        self._owner = owner
        self._quotas = quotas
        self._most_bytes = most_bytes
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._zip: zipfile.ZipFile | None = None
        self._names: dict[str, str] = {}
        self._several: dict[str, list[str]] = {}
        self._made: dict[str, asyncio.Task[str]] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Open the zip.

        Raises:
            InvalidBatch: It is none, or has too many files.
        """
        if self._archive is None:
            return self
        file = self._file = await asyncio.to_thread(self._without_name)
        try:
            async for chunk in await self._assets.open(self._archive):
                await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(self._open, file)
        except BaseException:
            file.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it; what was unpacked stays."""
        for task in self._made.values():
            task.cancel()
        await asyncio.gather(*self._made.values(), return_exceptions=True)
        if self._file is not None:
            self._file.close()

    def _without_name(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)

    def _open(self, file: IO[bytes]) -> None:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) < at + 22:
            raise _bad("is no zip")
        directory = struct.unpack("<I", tail[at + 12 : at + 16])[0]
        if directory > MOST_DIRECTORY:  # also a zip of the form for more than 4 GiB
            raise _bad("has too many files, or is too large: pack what the items name")
        try:
            self._zip = zipfile.ZipFile(file)
        except _BROKEN as error:
            raise _bad(f"can't be read: {error}") from None
        bases: dict[str, list[str]] = {}
        for info in self._zip.infolist():
            if not info.is_dir():
                name = _same(info.filename)
                self._names[name] = info.filename
                bases.setdefault(name.rpartition("/")[2], []).append(info.filename)
        for base, there in bases.items():
            if len(there) == 1:  # the folder may be left out
                self._names.setdefault(base, there[0])
            else:
                self._several[base] = there

    async def resolved(self, params: Mapping[str, Any], workflow: Workflow) -> Mapping[str, Any]:
        """Return parameters with assets' ids in place of ``@NAME``, where a parameter is a file.

        Raises:
            InvalidParameter: There is no such file, or it can't be unpacked.
            FleetError: It can't be stored.
        """
        found = {}
        for parameter in workflow.parameters:
            value = params.get(parameter.name)
            if parameter.type in FILES and isinstance(value, str) and value.startswith("@"):
                found[parameter.name] = await self._asset(parameter.name, value[1:])
        return {**params, **found} if found else params

    async def _asset(self, parameter: str, name: str) -> str:
        archive = self._zip
        if archive is None:
            raise _no_file(
                parameter,
                name,
                "names a file of a zip, and the batch has none: upload one, give its asset's id as `files`",
            )
        wanted = _same(name)
        inner = self._names.get(wanted)
        if inner is None and (several := self._several.get(wanted)):
            shown = ", ".join(f"@{one[:80]}" for one in several[:3]) + (", ..." if len(several) > 3 else "")
            what = f"{len(several)} files of the zip are called {name[:80]!r}: name one, {shown}"
            raise _no_file(parameter, name, what)
        if inner is None:
            raise _no_file(parameter, name, f"there is no file {name[:80]!r} in the zip")
        if inner not in self._made:
            self._made[inner] = asyncio.create_task(self._stored(archive, parameter, inner))
        return await asyncio.shield(self._made[inner])

    async def _stored(self, archive: zipfile.ZipFile, parameter: str, inner: str) -> str:
        async with self._turn:  # one file at a time is in memory
            try:
                data = await asyncio.to_thread(self._unpacked, archive, inner)
            except _BROKEN as error:
                raise _no_file(parameter, inner, f"{inner[:80]!r} can't be unpacked: {error}"[:300]) from None
            if data is None:
                most = f"{self._most_bytes} bytes (FLEET_FETCH_BYTES)"
                raise _no_file(parameter, inner, f"{inner[:80]!r} is larger than {most}")
            kind = content_type_of_bytes(data[:HEAD_BYTES], inner)
            async with self._assets.receive(_pieces(data)) as received:
                asset, _ = await self._assets.keep(
                    received,
                    owner=self._owner,
                    content_type=kind,
                    file_path=file_name(f"/{inner}", kind, blake3(data).hexdigest()),
                    numbered=True,  # the same bytes are the same asset again
                    quotas=self._quotas,
                )
            return asset.id

    def _unpacked(self, archive: zipfile.ZipFile, inner: str) -> bytes | None:
        with archive.open(inner) as file:  # what it says of its own size may be wrong
            data = file.read(self._most_bytes + 1)
        return None if len(data) > self._most_bytes else data


def _same(name: str) -> str:
    """Return a name as names are compared: Windows writes `\\` for `/`, a Mac two characters for `ü`."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


def _bad(what: str) -> InvalidBatch:
    return InvalidBatch(f"files: the asset {what}", details={"field": "files"})


def _no_file(parameter: str, name: str, what: str) -> InvalidParameter:
    return InvalidParameter(
        f"parameter {parameter!r}: {what}",
        details={"field": f"params.{parameter}", "parameter": parameter, "value": f"@{name[:80]}"},
    )
