"""Keep the edge pointed at the API when the API goes by a name: a container comes back elsewhere.

HAProxy looks names up once, when it starts. Its own resolvers would ask DNS servers only and so miss the
hosts file; this asks the system, as the start did.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.domain.errors import BrokerError

logger = logging.getLogger(__name__)

BACKEND = "be_api"


async def follow_api(
    runtime: Runtime,
    host: str,
    port: int,
    *,
    resolve: Callable[[str], Awaitable[Sequence[str]]],
    reload: Callable[[], None],
    pause_s: float = 1.0,
) -> None:
    """Move the edge's server whenever the name no longer means its address; runs until it is cancelled.

    Args:
        runtime: The edge's control socket.
        host: The API's host name.
        port: The API's port.
        resolve: Returns the addresses of a name, the preferred one first; none when it can't.
        reload: Starts the edge's worker anew: HAProxy gives no address to a server that never had one.
        pause_s: How long to wait between two looks.
    """
    while True:
        try:
            await _look(runtime, host, port, await resolve(host), reload)
        except BrokerError as error:  # the edge restarts, and looks the name up itself
            logger.debug("edge not asked", extra={"reason": error.message})
        await asyncio.sleep(pause_s)


async def _look(
    runtime: Runtime, host: str, port: int, addresses: Sequence[str], reload: Callable[[], None]
) -> None:
    if not addresses:
        return  # nothing better is known than what it has
    for server in await runtime.servers():
        if server.backend != BACKEND or server.host in addresses:
            continue
        if not server.host:
            reload()
        else:
            await runtime.move(server, addresses[0], port)
        logger.info("api found elsewhere", extra={"host": host, "address": addresses[0], "port": port})
