"""What other API processes know of one owner's websockets here, should a client come back to one of those."""

import asyncio
import contextlib
from collections.abc import Callable

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.sockets import ClientSocket, SocketStore
from comfy_fleet.services.socket_client import MOST_UNTOLD, SocketClient
from comfy_fleet.tasks import start

KEEP_S, AGAIN_S = 0.1, 1.0
"""How soon a change of what a websocket shows is written, and how soon again if Redis did not answer."""
UNHEARD_S = 5.0
"""How long the news of a new job may be under way to a busy process, or wait in it."""


class KeptSockets:
    """Writes the state of an owner's clients, and reads what others have written.

    Args:
        owner: Whose clients they are.
        sockets: Where their states are kept.
        jobs: The jobs.
        monotonic: Monotonic seconds.
        is_here: Tells whether a client is still followed here.
    """

    def __init__(
        self,
        owner: str,
        sockets: SocketStore,
        jobs: JobStore,
        monotonic: Callable[[], float],
        is_here: Callable[[SocketClient], bool],
    ) -> None:
        self._owner = owner
        self._sockets = sockets
        self._jobs = jobs
        self._monotonic = monotonic
        self._is_here = is_here
        self._changed: dict[str, SocketClient] = {}
        self._due: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()  # a newer state must not be replaced by an older one
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def note(self, client: SocketClient) -> None:
        """Write a client's state soon."""
        self._changed[client.client_id] = client
        self._keep_in(KEEP_S)

    def forget(self, client: SocketClient) -> None:
        """Leave a client's state to another process."""
        self._changed.pop(client.client_id, None)

    async def keep(self) -> None:
        """Write what has changed since the last time. Raises StoreDown; it is written later then."""
        async with self._turn:
            if not self._changed:
                return
            changed: dict[str, SocketClient] = {}
            try:
                now = await self._sockets.now()
                changed, self._changed = self._changed, {}
                await self._sockets.keep([self._state(client, now) for client in changed.values()])
            except BaseException:  # whoever waited for it may have been canceled
                left = {name: client for name, client in changed.items() if self._is_here(client)}
                self._changed = {**left, **self._changed}
                self._keep_in(AGAIN_S)
                raise

    async def close(self) -> None:
        """Write what has changed, if Redis answers, and nothing more."""
        self._closed = True
        if self._due is not None:
            self._due.cancel()
        await self._try()

    async def missed(self, client_id: str) -> list[str]:
        """Return jobs whose ends a client that comes here was not told elsewhere, as far as is known."""
        before = await self._sockets.last(self._owner, client_id)
        if before is None:
            return []
        newer: list[str] = []
        if (
            before.open
        ):  # its process has died, or does not know yet that it is gone: newer jobs aren't written
            known = frozenset(before.told)
            since = before.kept_at - UNHEARD_S
            made = await self._jobs.made_since(self._owner, client_id, since)
            newer = [job_id for job_id in made if job_id not in known]
        return list(dict.fromkeys([*before.untold, *newer]))

    def _keep_in(self, wait_s: float) -> None:
        if self._due is None and not self._closed:
            self._due = asyncio.get_running_loop().call_later(wait_s, self._keep_now)

    def _keep_now(self) -> None:
        self._due = None
        task = start(self._try())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self) -> None:
        with contextlib.suppress(StoreDown):
            await self.keep()

    def _state(self, client: SocketClient, now: float) -> ClientSocket:
        sent = [] if client.receiver is None else client.receiver.untold()
        untold = tuple(
            dict.fromkeys([*client.missed, *sent, *client.ending, *client.view.held_ends, *client.jobs])
        )
        while client.told and client.told[0][0] < self._monotonic() - 2 * UNHEARD_S:
            client.told.popleft()
        return ClientSocket(
            owner=self._owner,
            client_id=client.client_id,
            socket=client.socket,
            since=client.since,
            open=client.receiver is not None,
            shown=client.view.shown,
            untold=untold[:MOST_UNTOLD],
            told=tuple(job_id for _, job_id in client.told),
            kept_at=now,
        )
