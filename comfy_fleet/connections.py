"""The end of a server: asyncio's own leaves open what it has taken."""

import asyncio
from collections.abc import Collection
from typing import Protocol

_TURNS = 10  # more than either event loop, asyncio's or uvloop, needs to make a connection known


class Connection(Protocol):
    """What can be dropped: a transport, or what has one."""

    def abort(self) -> None:
        """Close at once, whatever was still to be sent."""


async def close(server: asyncio.Server, connections: Collection[Connection] = ()) -> None:
    """Close a server and drop its connections, also those that it has taken and nobody knows of yet.

    ``Server.close`` leaves its connections as they are. One that was taken just now becomes known only in the
    loop's next turns; if the server is closed before that, asyncio forgets the connection and leaves it open.

    Args:
        server: Closed; nothing happens if it is already.
        connections: Those that are known; the server adds to it meanwhile.
    """
    for sock in server.sockets:
        asyncio.get_running_loop().remove_reader(sock.fileno())  # it takes no more
    for _ in range(_TURNS):
        for connection in tuple(connections):
            connection.abort()
        await asyncio.sleep(0)
    server.close()
