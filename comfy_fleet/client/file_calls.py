"""Uploads and downloads."""

import mimetypes
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from comfy_fleet.client.calls import Caller, id_of, path_part, submit_headers
from comfy_fleet.client.data import AssetData, JobData, OutputData
from comfy_fleet.client.errors import BrokenDownload, FleetUnavailable, RequestRefused, error_of
from comfy_fleet.client.saving import (
    OnBytes,
    PartFile,
    check_folder,
    other_files,
    same_output,
    target_paths,
)

FileSource: TypeAlias = "str | Path | bytes | BinaryIO"
"""A file: its path, its bytes, or an open binary file."""
PictureFormat = Literal["png", "jpeg", "webp"]

TRIES = 5
"""How often a transfer is begun that has brought something, and then broke off."""
_HERE: dict[str, Any] = {"redirect": "false"}
"""The fleet sends the bytes itself: a store may not be reachable from here."""
_UPLOAD_S = 300.0
_PIECES_S = 60.0
_FIRST_BYTES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"PK\x03\x04": ".zip",
}


def is_file(value: object) -> bool:
    """Return whether a parameter's value is a file of this machine; a text never is."""
    return isinstance(value, Path | bytes | bytearray) or callable(getattr(value, "read", None))


class FileCalls(Caller):
    """What is done with files."""

    async def upload(
        self,
        file: FileSource,
        *,
        name: str | None = None,
        content_type: str | None = None,
        tags: Sequence[str] = (),
        expires_in_s: int | None = None,
    ) -> AssetData:
        """Upload a file, and return it as the fleet has it: its ``id`` is what parameters and graphs name.

        Args:
            file: A path, bytes, or an open binary file, which is read from its beginning.
            name: What it is called there; else as here.
            content_type: Its type; else by its name.
            tags: Words to find it by.
            expires_in_s: When it is deleted, 60 to 604,800 seconds from now; else as the operator says.

        Raises:
            OSError: It can't be read.
            ClientError: It is refused, or does not get there.
        """
        if isinstance(file, str):
            file = Path(file)
        called = name or _name_of(file)
        kind = content_type or mimetypes.guess_type(called)[0] or "application/octet-stream"
        fields = {"content_type": kind, "file_path": called}
        if tags:
            fields["tags"] = ",".join(tags)
        if expires_in_s is not None:
            fields["expires_in"] = str(expires_in_s)
        headers = submit_headers(None)
        opened: Any = (
            await self._transport.aside(partial(file.open, "rb")) if isinstance(file, Path) else file
        )
        seekable = isinstance(opened, bytes | bytearray) or opened.seekable()
        try:
            made = await self.request(
                "POST",
                "/api/v2/assets",
                headers=headers,
                timeout_s=max(_UPLOAD_S, self._timeout_s),
                repeat=seekable,
                data=fields,
                files={"file": (called, opened, kind)},
            )
        except RequestRefused as error:
            earlier = error.details.get("asset_id")
            if error.code != "idempotency_key_reuse" or not isinstance(earlier, str):
                raise
            return await self.file(earlier)  # an answer of ours got lost
        finally:
            if isinstance(file, Path):
                opened.close()
        return cast("AssetData", made)

    async def file(self, file_id: str) -> AssetData:
        """Return what the fleet knows of an upload or an output.

        Raises:
            NothingFound: There is none of yours.
        """
        return cast("AssetData", await self.request("GET", f"/api/v2/assets/{path_part('file', file_id)}"))

    async def delete_file(self, file_id: str) -> None:
        """Delete an upload, or an output.

        Raises:
            StateConflict: A job still needs it.
            NothingFound: There is none of yours.
        """
        await self._deleted(f"/api/v2/assets/{path_part('file', file_id)}")

    async def read(
        self,
        output: OutputData | AssetData | str,
        *,
        format: PictureFormat | None = None,  # noqa: A002 - as the query is called
        width: int | None = None,
        quality: int | None = None,
    ) -> bytes:
        """Return a file's bytes; as it is stored, it is checked against its hash.

        Args:
            output: An output of a job, an upload, or the id of either.
            format: A picture is wanted in this format.
            width: With so many pixels in a row at most.
            quality: 1 to 100, of WebP and JPEG.

        Raises:
            BrokenDownload: What came is not what the fleet has stored.
            NothingFound: There is none of yours, or no longer.
        """
        wanted = {"format": format, "width": width, "quality": quality}
        form = {name: value for name, value in wanted.items() if value is not None}

        async def attempt() -> bytes:
            found = bytearray()
            async with aclosing(self._pieces(_content(output), params=_HERE | form)) as pieces:
                async for piece in pieces:
                    found += piece
            return bytes(found)

        content = await self.repeated(attempt)
        told = output.get("hash") if isinstance(output, Mapping) and not form else None
        if told is not None:
            from blake3 import blake3

            if told != f"blake3:{blake3(content).hexdigest()}":
                raise BrokenDownload("what came is not what the fleet has stored: try again")
        return content

    async def save(
        self,
        output: OutputData | AssetData,
        path: str | Path,
        *,
        replace: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> Path:
        """Save a file under a name, complete or not at all, and return its path.

        It is written to ``PATH.part`` first. If that breaks off, the next call goes on where it ended.

        Args:
            output: An output of a job, or an upload.
            path: The file.
            replace: Whether another file of this name is replaced; one with the same bytes stays in any case.
            on_bytes: Is called with the number of bytes that have come.

        Raises:
            FileConflict: Another file has the name, or another program writes it.
            BrokenDownload: What came is not what the fleet has stored.
            OSError: It can't be written.
        """
        target = Path(path)
        same = await self._transport.aside(partial(same_output, target, output))
        if same is False and not replace:
            raise other_files(target.parent, [target])
        if not same:
            await self._fetch(output, target, replace, on_bytes)
        return target

    async def download(
        self,
        job: JobData,
        folder: str | Path,
        *,
        job_in_name: bool = True,
        replace: bool = False,
        on_bytes: Callable[[str, int], Any] | None = None,
    ) -> list[Path]:
        """Save all outputs of a job in a folder, and return the files. Equal ones that are there stay.

        Args:
            job: The job, as it is after its end.
            folder: Where to; it is made if it is missing.
            job_in_name: Whether files are called ``JOB-NAME``, so that those of different jobs never meet.
            replace: Whether other files of these names are replaced.
            on_bytes: Is called with a file's name and the number of its bytes that have come.

        Raises:
            FileConflict: Other files have these names: nothing is saved.
            BrokenDownload, OSError: One can't be fetched or written. Complete ones stay.
        """
        where = Path(folder)
        outputs = job["outputs"]
        paths = target_paths(job, where, job_in_name=job_in_name)

        def look() -> list[Path]:
            check_folder(where)
            there = [
                path for path, one in zip(paths, outputs, strict=True) if same_output(path, one) is False
            ]
            return [] if replace else there

        if others := await self._transport.aside(look):
            raise other_files(where, others)
        for path, output in zip(paths, outputs, strict=True):
            told = None if on_bytes is None else partial(on_bytes, path.name)
            await self.save(output, path, replace=replace, on_bytes=told)
        return paths

    async def _fetch(
        self, output: Mapping[str, Any], target: Path, replace: bool, on_bytes: OnBytes | None
    ) -> None:
        aside = self._transport.aside
        part = await aside(partial(PartFile, target))
        try:
            for _ in range(TRIES):
                await self.repeated(partial(self._go_on, output, part, on_bytes))
                if await aside(partial(part.holds, output)):
                    await aside(partial(part.place, replace=replace))
                    return
                # Another file's beginning was there, or the transfer was disturbed: once more from the start.
                await aside(part.restart)
            raise BrokenDownload(f"{target.name}: what came is not what the fleet has stored")
        finally:
            await aside(part.close)

    async def _go_on(self, output: Mapping[str, Any], part: PartFile, on_bytes: OnBytes | None) -> None:
        aside = self._transport.aside
        start = await aside(lambda: part.size)
        whole = output.get("size_bytes")
        if isinstance(whole, int) and start >= whole > 0:
            return  # the hash decides
        headers = {"Range": f"bytes={start}-"} if start else {}
        again = part.restart if start else None
        pieces = self._pieces(_content(output), params=_HERE, headers=headers, restart=again)
        async with aclosing(pieces):
            async for piece in pieces:
                count = await aside(partial(part.write, piece))
                if on_bytes is not None:
                    await self._transport.tell(on_bytes, count)

    async def _pieces(
        self, path: str, *, restart: Callable[[], None] | None = None, **more: Any
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a path; call ``restart`` if all come although only the rest was asked for."""
        async with self._transport.stream(path, timeout=max(_PIECES_S, self._timeout_s), **more) as stream:
            if stream.head.is_error:
                await stream.read()
                raise error_of(stream.head)
            if restart is not None and stream.head.status_code != 206:
                await self._transport.aside(restart)
            async for piece in stream.pieces():
                yield piece

    async def _spooled(self, path: str, file: BinaryIO) -> None:
        """Write what a path answers into a file, from its beginning."""

        async def attempt() -> None:
            await self._transport.aside(lambda: (file.seek(0), file.truncate(0)))
            async with aclosing(self._pieces(path)) as pieces:
                async for piece in pieces:
                    await self._transport.aside(partial(file.write, piece))
            await self._transport.aside(lambda: file.seek(0))

        await self.repeated(attempt)

    async def _deleted(self, path: str, **params: Any) -> None:
        gone = False

        async def attempt() -> None:
            nonlocal gone
            try:
                answer = await self._transport.send("DELETE", path, params=params)
            except Exception:
                gone = True  # perhaps
                raise
            if answer.is_error and not (answer.status_code == 404 and gone):
                error = error_of(answer)
                gone = gone or isinstance(error, FleetUnavailable)
                raise error

        await self.repeated(attempt)

    async def _with_files(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with the ids of their files, which are uploaded, each once."""
        if not isinstance(values, Mapping):
            raise RequestRefused("params must be a mapping of names to values", details={"field": "params"})
        made: dict[str, Any] = {}
        for name, value in values.items():
            made[name] = (await self.upload(value))["id"] if is_file(value) else value
        return made


def temporary(folder: Path | None = None) -> BinaryIO:
    """Return a file without a name, in this folder if there is one."""
    return cast("BinaryIO", tempfile.TemporaryFile(dir=folder))


def _content(output: Mapping[str, Any] | str) -> str:
    """Return the path of a file's bytes: the URL that the fleet tells may not be reachable from here."""
    return f"/api/v2/assets/{id_of('file', output)}/content"


def _name_of(file: Path | bytes | BinaryIO) -> str:
    if isinstance(file, Path):
        return file.name
    if isinstance(file, bytes | bytearray):
        suffixes = (suffix for first, suffix in _FIRST_BYTES.items() if file.startswith(first))
        return f"upload{next(suffixes, '.bin')}"
    told = getattr(file, "name", None)
    return Path(told).name if isinstance(told, str) and Path(told).name else "upload.bin"
