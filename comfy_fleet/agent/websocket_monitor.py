"""A websocket to a ComfyUI that the agent runs: a second sign of life, and a count of finished prompts.

Short prompts come and go between two looks at the queue. ComfyUI sends every change of the queue's length to
every websocket; a smaller length means that a prompt has ended.
"""

import asyncio
import json
import time
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, WebSocketException

from comfy_fleet.adapters.comfyui.unredirected import UnredirectedConnect

_PING_EVERY_S = 5.0
_AGAIN_S = 0.25
_MOST_BYTES = 2**20


class WebsocketMonitor:
    """Listens on one websocket.

    Attributes:
        open: Whether it is open now, so that prompts that end are counted.
        heard_at: When the last message came; None: never.
        jobs: Prompts that have left its queue.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up; nothing is opened before :meth:`run`.

        Args:
            url: Base of the ComfyUI.
            client_id: A unique id: ComfyUI drops a socket when its id is used a second time.
            clock: Seconds, monotonic.
            on_log: Called with what it logs, once somebody has subscribed this websocket to that.
        """
        self._url = f"ws{url.removeprefix('http').rstrip('/')}/ws?clientId={client_id}"
        self._clock = clock
        self._on_log = on_log
        self._waiting = 0
        self.open = False
        self.opened = 0  # how often
        self.heard_at: float | None = None
        self.jobs = 0

    def restarted(self) -> None:
        """Reset the count."""
        self.heard_at = None
        self.jobs = self._waiting = 0

    async def run(self) -> None:
        """Listen until canceled; a broken websocket is opened again."""
        while True:
            try:
                async with UnredirectedConnect(
                    self._url,
                    ping_interval=None,
                    open_timeout=5,
                    close_timeout=1,  # don't wait for a frozen one to close
                    max_size=_MOST_BYTES,
                    max_queue=4,
                    compression=None,
                    proxy=None,
                ) as socket:
                    await self._listen(socket)
            except (OSError, TimeoutError, InvalidHandshake, WebSocketException):
                pass
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self, socket: ClientConnection) -> None:
        pinging = asyncio.create_task(self._ping(socket))
        self.open = True
        self.opened += 1
        try:
            async for message in socket:
                self.heard_at = self._clock()
                if isinstance(message, str):
                    self._read(message)
        finally:
            self.open = False
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    async def _ping(self, socket: ClientConnection) -> None:
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            await (await socket.ping())
            self.heard_at = self._clock()

    def _read(self, message: str) -> None:
        try:
            match json.loads(message):
                case {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": int(waiting)}}}}:
                    self.jobs += max(0, self._waiting - waiting)
                    self._waiting = waiting
                case {"type": "logs", "data": {"entries": list(entries)}}:
                    texts = (one.get("m") for one in entries if isinstance(one, dict))
                    self._on_log("".join(text for text in texts if isinstance(text, str)))
        except (ValueError, RecursionError):
            return
