"""A lean HTTP/1.1 client for load: one connection, kept open, one request at a time.

A general client needs more CPU time for a request than the server does, and would measure itself.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """One answer; its headers' names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RawConnection:
    """One connection; an async context manager by :meth:`open` and :meth:`close`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, host: str, port: int) -> "RawConnection":
        """Connect."""
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, f"{host}:{port}")

    @property
    def ended(self) -> bool:
        """Whether the server has closed it, as it does when no request came for some time."""
        return self._reader.at_eof()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Post JSON; returns status and body.

        Raises:
            ValueError: The answer has no ``Content-Length``.
        """
        answer = await self.ask("POST", path, body)
        return answer.status, answer.body

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> RawAnswer:
        """Send a request with JSON and return the answer.

        Raises:
            ValueError: The answer has no ``Content-Length``.
            asyncio.IncompleteReadError: The server has closed the connection.
        """
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{more}\r\n"
        )
        self._writer.write(head.encode() + body)
        top = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, _, fields = top.partition("\r\n")
        lines = (line.partition(":") for line in fields.split("\r\n") if line)
        found = {name.lower(): value.strip() for name, _, value in lines}
        if "content-length" not in found:
            raise ValueError(f"no Content-Length in the answer to {method} {path}")
        body = await self._reader.readexactly(int(found["content-length"]))
        return RawAnswer(status=int(status.split(" ")[1]), headers=found, body=body)

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Drop the connection, whatever is under way."""
        self._writer.transport.abort()
