"""What a fleet gets from those who mean it no good: each must be refused, and cost nothing that stays."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from comfy_fleet.timeouts import Timeout

HOLD_S = (2.0, 20.0)
"""How long slow clients stay."""
PAUSE_S = (0.02, 0.3)
ANSWER_S = 60.0

_CHUNKED = b"Transfer-Encoding: chunked"
_INNER = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def _head(*lines: bytes, method: bytes = b"POST", path: bytes = b"/api/v2/jobs") -> bytes:
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", *lines]) + b"\r\n\r\n"


SMUGGLED: Sequence[bytes] = (
    _head(b"Content-Length: 4", _CHUNKED) + _INNER,
    _head(_CHUNKED, b"Content-Length: 4") + _INNER,
    _head(_CHUNKED, b"Transfer-Encoding: identity") + _INNER,
    _head(b"Transfer-Encoding:\x0bchunked") + _INNER,
    _head(b"Transfer-Encoding : chunked") + _INNER,
    _head(b"X: y", b" Transfer-Encoding: chunked", b"Content-Length: 0") + _INNER,
    _head(b"Content-Length: 0", b"Content-Length: 50") + _INNER,
    _head(b"Content-Length: -1") + _INNER,
    _head(_CHUNKED) + b"ffffffffffffffff\r\n" + _INNER,
    _head(b"Content-Length: 62", method=b"GET") + _INNER,
    _head(b"X: a\0b"),
    _head(b"X: " + b"a" * 20_000),
    _head(*[b"X: y"] * 500),
    _head(b"Connection: Upgrade", b"Upgrade: websocket", method=b"GET"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
    b"GET http://evil.test/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
)
PATHS: Sequence[str] = (
    "/metrics",
    "/api/v1/../../metrics",
    "/api/v1/%2e%2e/%2e%2e/metrics",
    "/api/v1/..%c0%af..%c0%afmetrics",
    "/api/v2/assets/..%2f..%2fsecret.key/content",
    "/api/v2/jobs/" + "a" * 300,
    "/api/v2/jobs/%ff%fe",
    "/api/v2/jobs/fleet:job:x",
    "/api/v1/workflows/a%0d%0ab",
    "/view?filename=../../secret.key",
)
BODIES: Sequence[bytes] = (
    b"",
    b"[]",
    b'{"workflow":NaN}',
    b'{"workflow":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"workflow":"\xff\xfe"}',
    b'{"workflow":{"1":{"class_type":"X","inputs":{"a":' + b"9" * 5000 + b"}}}}",
    b'{"workflow":{}}',
    b'{"workflow":{"nodes":[],"links":[]}}',
    b'{"workflow":{"1":{"class_type":"SaveImage","inputs":{"images":["1",0]}}}}',
    b'{"workflow":{"1":{"class_type":"LoadImage","inputs":{"image":"../../../etc/passwd"}}}}',
    json.dumps(
        {"workflow": {str(n): {"class_type": "EmptyImage", "inputs": {}} for n in range(999)}}
    ).encode(),
    b'{"workflow":{},"webhook_url":"http://169.254.169.254/"}',
)
FORMS: Sequence[bytes] = (
    b"--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut short',
    b"--b\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(2000)) + b"\r\nx\r\n--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 2000 + b"--b--\r\n",
)


@dataclass(kw_only=True)
class Tally:
    """What came of attacks.

    Attributes:
        made: By what it was and how it was answered; ``cut`` where the connection was closed.
        wrong: Answers that should not have been given.
    """

    made: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


class Attackers:
    """Attack a fleet until they are canceled.

    Args:
        url: The public port.
        console: The console's port.
        key: Some user's key.
        agent: The agents' token.
        rng: Chooses.
    """

    def __init__(self, *, url: str, console: str, key: str, agent: str, rng: random.Random) -> None:
        self.tally = Tally()
        self._ports = {True: urlsplit(url).port or 0, False: urlsplit(console).port or 0}
        self._key = key
        self._agent = agent
        self._rng = rng
        self._quick: Mapping[str, Callable[[], Awaitable[None]]] = {
            "wrong key": self._wrong_key,
            "smuggled bytes": self._smuggled,
            "path": self._path,
            "body": self._body,
            "form": self._form,
            "signature": self._signature,
            "handshake": self._handshake,
            "lying agent": self._lying_agent,
            "forged agent": self._forged_agent,
            "cut upload": self._cut_upload,
            "left at once": self._left,
        }
        self._slow: Mapping[str, Callable[[], Awaitable[None]]] = {
            "slow head": lambda: self._trickle("slow head", b"GET /api/v2/jobs HTTP/1.1\r\nX-Slow: "),
            "slow body": lambda: self._trickle(
                "slow body", _head(self._bearer, b"Content-Length: 9999") + b'{"workflow":"'
            ),
            "silence": lambda: self._trickle("silence", b""),
            "deaf reader": self._deaf,
        }

    async def run(self, quick: int, slow: int) -> None:
        """Let so many of each kind work."""
        async with asyncio.TaskGroup() as group:
            for number in range(quick + slow):
                group.create_task(self._again(self._slow if number >= quick else self._quick))

    async def _again(self, ways: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        names = list(ways)
        while True:
            name = self._rng.choice(names)
            try:
                async with Timeout(ANSWER_S):
                    await ways[name]()
            except TimeoutError:
                self.tally.wrong[f"{name}: no answer within {ANSWER_S:g} s"] += 1
            except (OSError, RuntimeError):  # uvloop's word for a connection that is closed
                self.tally.made[f"{name}: cut"] += 1
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    @property
    def _bearer(self) -> bytes:
        return b"Authorization: Bearer " + self._key.encode()

    async def _send(
        self, name: str, data: bytes, *, public: bool = True, least: int = 400, most: int = 499
    ) -> None:
        """Send bytes, read one answer, and hold it against what it may be."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[public])
        try:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            line = await reader.readline()
        finally:
            writer.transport.abort()
        words = line.split()
        if not words:
            self.tally.made[f"{name}: cut"] += 1
            return
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        self.tally.made[f"{name}: {status}"] += 1
        # Whoever comes while the fleet has its hands full may be told so.
        if not least <= status <= most and status not in (429, 503):
            self.tally.wrong[f"{name}: {line[:80].decode(errors='replace')!r} to {data[:80]!r}"] += 1

    async def _wrong_key(self) -> None:
        wrong = self._key[:-1] + "x"
        way = self._rng.randrange(3)
        if way == 0:
            head = _head(b"Authorization: Bearer " + wrong.encode(), method=b"GET")
        elif way == 1:
            head = _head(method=b"GET")
        else:
            head = _head(method=b"GET", path=f"/k/{wrong}/api/v2/jobs".encode())
        await self._send("wrong key", head)

    async def _smuggled(self) -> None:
        # Some of it is an odd but whole request, which lacks a key.
        await self._send("smuggled bytes", self._rng.choice(SMUGGLED), most=505)

    async def _path(self) -> None:
        path = self._rng.choice(PATHS).encode()
        await self._send("path", _head(self._bearer, method=b"GET", path=path))

    async def _body(self) -> None:
        body = self._rng.choice(BODIES)
        length = b"Content-Length: %d" % len(body)
        path = self._rng.choice((b"/api/v2/jobs", b"/api/v1/workflows/image_card/jobs", b"/prompt"))
        await self._send("body", _head(self._bearer, length, path=path) + body)

    async def _form(self) -> None:
        body = self._rng.choice(FORMS)
        lines = (b"Content-Type: multipart/form-data; boundary=b", b"Content-Length: %d" % len(body))
        await self._send("form", _head(self._bearer, *lines, path=b"/api/v2/assets") + body)

    async def _signature(self) -> None:
        path = f"/api/v2/jobs/{uuid4()}/events?expires=9999999999&signature={'0' * 64}".encode()
        await self._send("signature", _head(method=b"GET", path=path))

    async def _handshake(self) -> None:
        lines = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
        if self._rng.random() < 0.5:
            lines.append(b"Sec-WebSocket-Key: bm90IGEga2V5")
        await self._send("handshake", _head(*lines, method=b"GET", path=b"/ws"))

    async def _lying_agent(self) -> None:
        """Say as an agent what no agent should be believed, or is told to be."""
        node = f"lie-{self._rng.randrange(5)}"
        report = {"name": node, "word": "ready", "weight": 256, "why": "x" * 400, "facts": {"a": "b" * 9000}}
        urls = ("http://169.254.169.254/latest", "http://127.0.0.1:1", "http://[::1]:6379", "gopher://x")
        # In a pool of their own: a node that was never read counts as one that could run any graph.
        joining = {"name": node, "url": self._rng.choice(urls), "agent": "x:1", "pool": "lies"}
        bodies: tuple[dict[str, Any], ...] = (
            {"nodes": [report] * 50},
            {"nodes": [report], "join": [joining]},
            {"seen": [str(uuid4()) for _ in range(2000)]},
            {"deleted": [f"node-1 {uuid4()} {uuid4()}" for _ in range(500)]},
            {"gpus": [{"uuid": f"GPU-{number}", "total": -1} for number in range(200)]},
            {"leaving": ["node-1", "node-2"]},
            {"nodes": "all of them"},
        )
        body = json.dumps({"instance": uuid4().hex, **self._rng.choice(bodies)}).encode()
        lines = (b"Authorization: Bearer " + self._agent.encode(), b"Content-Length: %d" % len(body))
        host = f"/api/v1/agents/liar-{self._rng.randrange(3)}/heartbeat".encode()
        await self._send("lying agent", _head(*lines, path=host) + body, public=False, least=200)

    async def _forged_agent(self) -> None:
        lines = (self._bearer, b"Content-Length: 16")
        await self._send(
            "forged agent",
            _head(*lines, path=b"/api/v1/agents/central/heartbeat") + b'{"instance":"x"}',
            public=False,
        )

    async def _cut_upload(self) -> None:
        """Leave in the middle of a file."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._ports[True])
        lines = (self._bearer, b"Content-Type: multipart/form-data; boundary=b", b"Content-Length: 9999999")
        writer.write(_head(*lines, path=b"/api/v2/assets"))
        writer.write(
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 100_000
        )
        await writer.drain()
        writer.transport.abort()
        self.tally.made["cut upload: cut"] += 1

    async def _left(self) -> None:
        """Ask and leave before the answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._ports[True])
        writer.write(_head(self._bearer, method=b"GET", path=b"/api/v2/jobs?limit=100"))
        await writer.drain()
        writer.transport.abort()
        self.tally.made["left at once: cut"] += 1

    async def _trickle(self, name: str, start: bytes) -> None:
        """Send a byte now and then, until the fleet or this one has had enough."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[True])
        try:
            writer.write(start)
            for _ in range(int(self._rng.uniform(*HOLD_S))):
                await asyncio.sleep(1)
                if start:
                    writer.write(b"x")
                if reader.at_eof():
                    break
            self.tally.made[f"{name}: cut"] += 1
        finally:
            writer.transport.abort()

    async def _deaf(self) -> None:
        """Open a websocket and read nothing of it."""
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        lines = (
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            key,
            self._bearer,
        )
        _, writer = await asyncio.open_connection("127.0.0.1", self._ports[True])
        try:
            writer.write(_head(*lines, method=b"GET", path=f"/ws?clientId={uuid4().hex}".encode()))
            await asyncio.sleep(self._rng.uniform(*HOLD_S))
            self.tally.made["deaf reader: cut"] += 1
        finally:
            writer.transport.abort()
