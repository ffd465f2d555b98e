"""A file on its way to a node: a multipart form (RFC 7578), streamed."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from comfy_fleet.adapters.system.disk import reading

CHUNK_BYTES = 256 * 1024


class UploadForm:
    """A form with one file.

    Attributes:
        boundary: What separates its parts.
        broken: Why the file could not be read, once that is so. The request breaks off with it, and whoever
            sends it can't tell that from a node that has hung up.

    Args:
        fields: Texts that stand before the file.
        name: The file's name on the node.
        content: A file of ours, or its bytes as they come.
        content_type: Its MIME type.
    """

    def __init__(
        self, fields: dict[str, str], name: str, content: Path | AsyncIterator[bytes], content_type: str
    ) -> None:
        self.boundary = secrets.token_hex(16)
        self.broken: Exception | None = None
        self._content = content
        edge = f"--{self.boundary}\r\n"
        parts = [
            f'{edge}Content-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        ]
        parts.append(
            f'{edge}Content-Disposition: form-data; name="image"; filename="{_quoted(name)}"\r\n'
            f"Content-Type: {content_type}\r\n\r\n"
        )
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()

    async def length(self) -> int | None:
        """Return how many bytes the form has, if that is known before.

        Raises:
            FileNotFoundError: There is no such file.
            NoRoom: Our disk does not tell.
        """
        if not isinstance(self._content, Path):
            return None
        with reading(self._content):
            found = await asyncio.to_thread(self._content.stat)
        return len(self._head) + found.st_size + len(self._tail)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Walk the whole form."""
        yield self._head
        content = _read(self._content) if isinstance(self._content, Path) else self._content
        try:
            async for chunk in content:
                yield chunk
        except Exception as error:
            self.broken = error
            raise
        yield self._tail


async def _read(path: Path) -> AsyncIterator[bytes]:
    with reading(path):
        file = await asyncio.to_thread(path.open, "rb")
    with file:
        while True:
            with reading(path):
                chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _quoted(name: str) -> str:
    for character, code in (('"', "%22"), ("\r", "%0D"), ("\n", "%0A")):
        name = name.replace(character, code)
    return name
