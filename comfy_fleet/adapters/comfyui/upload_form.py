"""A file on its way to a node: a multipart form (RFC 7578), streamed."""

import secrets
from collections.abc import AsyncIterator


class UploadForm:
    """A form with one file.

    Attributes:
        boundary: What separates its parts.
        length: Bytes of the whole form, if known in advance.
        broken: Why the file could not be read, if so. The request then breaks off, and the HTTP client can't
            distinguish that from a node that has hung up.

    Args:
        fields: Text fields, sent before the file.
        name: The file's name on the node.
        content: Its bytes.
        content_type: Its MIME type.
        size_bytes: Its size, if known.
    """

    def __init__(
        self,
        fields: dict[str, str],
        name: str,
        content: AsyncIterator[bytes],
        content_type: str,
        *,
        size_bytes: int | None = None,
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
        around = len(self._head) + len(self._tail)
        self.length = None if size_bytes is None else around + size_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the whole form."""
        yield self._head
        try:
            async for chunk in self._content:
                yield chunk
        except Exception as error:
            self.broken = error
            raise
        yield self._tail


def _quoted(name: str) -> str:
    for character, code in (('"', "%22"), ("\r", "%0D"), ("\n", "%0A")):
        name = name.replace(character, code)
    return name
