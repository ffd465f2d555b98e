"""Ports that an agent listens on."""

import asyncio
from collections.abc import Awaitable

from comfy_fleet.domain.errors import ConfigError


async def listen(opening: Awaitable[asyncio.Server], host: str, port: int, *, way_out: str) -> asyncio.Server:
    """Return a server that listens.

    Args:
        opening: Makes it.
        host: Address that it listens on.
        port: Port that it listens on.
        way_out: What to do if it can't, for the message.

    Raises:
        ConfigError: The port is taken.
    """
    try:
        return await opening
    except OSError as error:
        raise ConfigError(
            f"the agent can't listen on {host}:{port}: {error.strerror or error}; {way_out}",
            details={"port": port},
        ) from error


def port_of(server: asyncio.Server | None, wanted: int) -> int:
    """Return the port that a server listens on, the wanted one while it does not."""
    if server is not None and server.sockets:
        return int(server.sockets[0].getsockname()[1])
    return wanted
