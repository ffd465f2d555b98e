"""Ports that an agent listens on."""

import asyncio
import errno
import socket
from collections.abc import Awaitable

from comfy_fleet.domain.errors import ConfigError


async def listen(opening: Awaitable[asyncio.Server], host: str, port: int, *, way_out: str) -> asyncio.Server:
    """Return a server that listens.

    Args:
        opening: Opens it.
        host: Address that it listens on.
        port: Port that it listens on.
        way_out: What to do if the port is taken; for the message.

    Raises:
        ConfigError: The port is taken, or the address is not this machine's.
    """
    try:
        return await opening
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            way_out = (
                "that is not an address of this machine: --advertise, or the central agent's FLEET_AGENT_HOST"
            )
        raise ConfigError(
            f"the agent can't listen on {host}:{port}: {error.strerror or error}; {way_out}",
            details={"port": port},
        ) from error


def port_of(server: asyncio.Server | None, wanted: int) -> int:
    """Return the port that a server listens on; the wanted one while it does not listen."""
    if server is not None and server.sockets:
        return int(server.sockets[0].getsockname()[1])
    return wanted
