"""Closing a server with its connections, which asyncio leaves open."""

import asyncio
from collections.abc import Collection
from typing import Protocol

_TURNS = 10  # more turns than asyncio or uvloop needs to report a connection


class Connection(Protocol):
    """A transport, or an object that has one."""

    def abort(self) -> None:
        """Close at once; unsent data is lost."""


async def close(server: asyncio.Server, connections: Collection[Connection] = ()) -> None:
    """Close a server and drop its connections, even those that were accepted but not reported yet.

    ``Server.close`` leaves its connections open. One that was just accepted is reported only in the loop's
    next turns; if the server is closed before that, asyncio forgets the connection and leaves it open.

    Args:
        server: The server; nothing happens if it is closed already.
        connections: The known connections; the server may add to it meanwhile.
    """
    for sock in server.sockets:
        asyncio.get_running_loop().remove_reader(sock.fileno())  # it accepts no more
    for _ in range(_TURNS):
        for connection in tuple(connections):
            connection.abort()
        await asyncio.sleep(0)
    server.close()
