"""Brings what happens to jobs to their clients' websockets, in one API process.

For each owner with a websocket here there is one feed of its jobs' events and its clients' frames, in the
order in which Redis published them. A websocket may be at another process than the requests of its client.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TypeAlias
from uuid import uuid4

from comfy_fleet.ports.sockets import ClientSocket
from comfy_fleet.services.owner_clients import HubDeps, OwnerClients
from comfy_fleet.services.socket_client import Receiver

Detach: TypeAlias = Callable[[], None]


class ClientHub:
    """All websockets of this process."""

    def __init__(self, deps: HubDeps) -> None:
        self._deps = deps
        self._id = uuid4().hex
        self._sockets = count(1)
        self._owners: dict[str, OwnerClients] = {}

    async def attach(self, owner: str, client_id: str, receiver: Receiver) -> Detach:
        """Make a websocket its client's newest, and send it what a client is told first.

        Args:
            owner: Whose client it is.
            client_id: The client.
            receiver: The websocket.

        Returns:
            What to call when the websocket is closed.

        Raises:
            StoreDown: Redis is away.
        """
        socket = f"{self._id}-{next(self._sockets)}"
        while True:
            found = self._owners.get(owner)
            if found is None or found.closed:
                found = self._owners[owner] = OwnerClients(owner, self._id, self._deps, self._forget)
            if (client := await found.attach(client_id, socket, receiver)) is not None:
                return partial(found.detach, client, socket)

    async def newest(self, owner: str) -> ClientSocket | None:
        """Return the owner's newest open websocket, at whichever process it is; None if there is none.

        The job whose prompt it shows is what ``POST /interrupt`` without an id is about.

        Raises:
            StoreDown: Redis is away.
        """
        if (here := self._owners.get(owner)) is not None:
            await here.keep()
        return await self._deps.sockets.newest(owner)

    async def close(self) -> None:
        """Follow nobody any more."""
        for one in tuple(self._owners.values()):
            await one.close()

    def _forget(self, owner: "OwnerClients") -> None:
        if self._owners.get(owner.name) is owner:
            del self._owners[owner.name]
