"""A receiver of webhooks on a real socket, whose answers tests choose."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier

Answer = Callable[["Received"], int]


@dataclass(frozen=True)
class Received:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found

    def verified(self, secret: str) -> dict[str, Any]:
        """Return the message, checked with the reference library."""
        found: dict[str, Any] = Verifier(secret).verify(self.body, self.headers)
        return found


@dataclass
class Receiver:
    """What came, and what is answered to it."""

    url: str
    answer: Answer = lambda _: 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    received: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    held: asyncio.Event | None = None

    @property
    def counts(self) -> Counter[str]:
        """How often each message was taken, by its id."""
        return Counter(one.id for one in self.taken)

    async def handle(self, request: web.Request) -> web.Response:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            one = Received(
                request.path, {k.lower(): v for k, v in request.headers.items()}, await request.read()
            )
            self.received.append(one)
            if self.held is not None:
                await self.held.wait()
            status = self.answer(one)
            if 200 <= status < 300:
                self.taken.append(one)
            return web.Response(status=status, headers=self.headers, body=self.body or None)
        finally:
            self.open -= 1


@asynccontextmanager
async def receiver(port: int = 0) -> AsyncIterator[Receiver]:
    """Run a receiver on a port; 0: one that is free."""
    app = web.Application()
    made = Receiver("")
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        if made.held is not None:
            made.held.set()
        await runner.cleanup()
