"""What waits to be sent over one websocket.

A client that reads slowly is first given fewer previews and less progress; the newest of them stay. If what
it must not miss fills its share of memory, its websocket is closed: it can come again.

What is sent may wait in sockets for ever, and is lost if the connection breaks. So an end counts as told only
once its client has answered the ping that follows it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.services.socket_client import MOST_UNTOLD

SPARE_BYTES = 256 * 1024
"""Of what waits; beyond it, what is spare is dropped."""
_COST = 128
"""Bytes that even the shortest message takes."""


class Outgoing:
    """Messages for one client, in order.

    Attributes:
        metadata: Whether it wants pictures with metadata.
        waiting_bytes: How much waits.
        full: Set when more waited than may: its websocket has to be closed.
        on_told: Called with jobs whose ends have been told.

    Args:
        most_bytes: Of what waits; one message may be larger if nothing else waits.
    """

    def __init__(self, most_bytes: int) -> None:
        self.metadata = False
        self.full = asyncio.Event()
        self.on_told: Callable[[Sequence[str]], None] = lambda _: None
        self._most_bytes = most_bytes
        self._waiting: deque[ClientMessage] = deque()
        self.waiting_bytes = 0
        self._came = asyncio.Event()
        self._dropped: list[str] = []
        self._sent: deque[str] = deque(maxlen=MOST_UNTOLD)

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, messages: Sequence[ClientMessage]) -> None:
        """Take messages to send."""
        if self.full.is_set():
            self._dropped += _ends(messages)
            return
        for place, one in enumerate(messages):
            cost = len(one.data) + _COST
            if one.spare and self._waiting and self.waiting_bytes + cost > SPARE_BYTES:
                self._drop_spare()
                if self.waiting_bytes + cost > SPARE_BYTES:
                    continue
            elif self._waiting and self.waiting_bytes + cost > self._most_bytes:
                self._drop_spare()
                if self._waiting and self.waiting_bytes + cost > self._most_bytes:
                    self.full.set()
                    self._dropped = [*_ends(self._waiting), *_ends(messages[place:])]
                    self._waiting.clear()
                    self.waiting_bytes = 0
                    break
            self._waiting.append(one)
            self.waiting_bytes += cost
        self._came.set()

    async def next(self) -> ClientMessage:
        """Wait for the next message."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        one = self._waiting.popleft()
        self.waiting_bytes -= len(one.data) + _COST
        if one.ends:
            self._sent.append(one.ends)
        return one

    def told(self, job_id: str) -> None:
        """Note that the client has got a job's end, and all that was sent before it."""
        if job_id in self._sent:
            got = [self._sent.popleft()]
            while got[-1] != job_id:
                got.append(self._sent.popleft())
            self.on_told(got)

    def all_told(self) -> None:
        """Note that the client has said goodbye: it has got what was sent."""
        got = list(self._sent)
        self._sent.clear()
        self.on_told(got)

    def untold(self) -> list[str]:
        """Return the jobs whose ends were to be told and, as far as is known, were not."""
        return [*self._sent, *self._dropped, *_ends(self._waiting)]

    def _drop_spare(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.spare)
        self.waiting_bytes = sum(len(one.data) + _COST for one in self._waiting)


def _ends(messages: Iterable[ClientMessage]) -> list[str]:
    return [one.ends for one in messages if one.ends]
