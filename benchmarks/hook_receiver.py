"""A receiver of webhooks that can be away in every way; it checks signatures with the reference library."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from types import TracebackType
from typing import Self

from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from comfy_fleet.cli.up import ports


class Mood(StrEnum):
    """How it answers."""

    TAKES = "takes what comes"
    REFUSES = "refuses connections"
    FAILS = "answers 500"
    HANGS = "never answers"


class HookReceiver:
    """Listens on a port of this machine; an async context manager.

    Attributes:
        url: Its base; whose a message is stands behind it.
        secrets: What messages are signed with, by owner.
        taken: How often each message was taken, by its id.
        first_at: When that was first (monotonic seconds).
        asked: How often it was asked while it was away, by mood.
        forged: What was wrong with messages that the library refused.
    """

    def __init__(self) -> None:
        (self._port,) = ports.draw(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.secrets: dict[str, str] = {}
        self.taken: Counter[str] = Counter()
        self.first_at: dict[str, float] = {}
        self.asked: Counter[str] = Counter()
        self.forged: Counter[str] = Counter()
        self._mood = Mood.TAKES
        self._changed = asyncio.Event()
        self._site: web.TCPSite | None = None
        app = web.Application()
        app.router.add_post("/{owner}", self._hear)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self.feel(Mood.TAKES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._changed.set()
        await self._runner.cleanup()

    async def feel(self, mood: Mood) -> None:
        """Answer in another way from now on; whoever was never answered is not answered now either."""
        self._mood = mood
        self._changed.set()
        self._changed = asyncio.Event()
        if mood is Mood.REFUSES and self._site is not None:
            await self._site.stop()
            self._site = None
        elif mood is not Mood.REFUSES and self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
            await self._site.start()

    async def _hear(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        mood = self._mood
        if mood is not Mood.TAKES:
            self.asked[mood.value] += 1
        if mood is Mood.HANGS:
            await self._changed.wait()
            if request.transport is not None:
                request.transport.abort()
        if mood is not Mood.TAKES:
            return web.Response(status=500)
        owner = request.match_info["owner"]
        if why := self._forged(owner, body, {name.lower(): value for name, value in request.headers.items()}):
            self.forged[why] += 1
            return web.Response(status=400)
        message = request.headers["webhook-id"]
        self.taken[message] += 1
        self.first_at.setdefault(message, time.monotonic())
        return web.Response(status=204)

    def _forged(self, owner: str, body: bytes, headers: Mapping[str, str]) -> str:
        """Return why the reference library refuses a message; empty if it does not."""
        if owner not in self.secrets:
            return f"nobody is called {owner[:40]}"
        try:
            Verifier(self.secrets[owner]).verify(body, dict(headers))
        except WebhookVerificationError as error:
            return f"{owner}: {error}"
        return ""
