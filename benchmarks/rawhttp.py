"""A lean HTTP/1.1 client for load: one connection, kept open, one request at a time.

A general client needs more CPU time for a request than the server does, and would measure itself.
"""

import asyncio


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

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Post JSON; returns status and body.

        Raises:
            ValueError: The answer has no ``Content-Length``.
        """
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        top = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, _, fields = top.partition("\r\n")
        for line in fields.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                return int(status.split(" ")[1]), await self._reader.readexactly(int(value))
        raise ValueError(f"no Content-Length in the answer to POST {path}")

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()
