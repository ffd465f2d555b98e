"""Keep the edge pointed at the API when it is given by host name: a restarted container may get a new
address.

HAProxy looks names up once, at its start. Its own resolvers would ask only DNS servers and miss the hosts
file; this asks the system, as HAProxy's start does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.domain.errors import BrokerError

logger = logging.getLogger(__name__)

SERVER = "api"
"""The name of the server that is the API, in each of the edge's backends that lead to it."""


async def follow_api(
    runtime: Runtime,
    host: str,
    port: int,
    *,
    resolve: Callable[[str], Awaitable[Sequence[str]]],
    reload: Callable[[], None],
    pause_s: float = 1.0,
) -> None:
    """Move all of the edge's API servers when the name resolves to another address; runs until canceled.

    Args:
        runtime: The edge's control socket.
        host: The API's host name.
        port: The API's port.
        resolve: Returns the addresses of a name, the preferred one first; empty if it fails.
        reload: Restarts the edge's worker: HAProxy can't give an address to a server that never had one.
        pause_s: How long to wait between two looks.
    """
    while True:
        try:
            await _look(runtime, host, port, await resolve(host), reload)
        except BrokerError as error:  # the edge restarts and looks the name up itself
            logger.debug("edge not asked", extra={"reason": error.message})
        await asyncio.sleep(pause_s)


async def _look(
    runtime: Runtime, host: str, port: int, addresses: Sequence[str], reload: Callable[[], None]
) -> None:
    if not addresses:
        return  # no better address is known
    elsewhere = [
        server for server in await runtime.servers() if server.name == SERVER and server.host not in addresses
    ]
    if not elsewhere:
        return
    if all(server.host for server in elsewhere):
        for server in elsewhere:
            await runtime.move(server, addresses[0], port)
    else:
        reload()
    logger.info("api found elsewhere", extra={"host": host, "address": addresses[0], "port": port})
