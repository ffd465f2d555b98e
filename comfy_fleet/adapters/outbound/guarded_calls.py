"""Guarded calls with aiohttp: a name is looked up once, and only checked addresses are connected to."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from typing import Any

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from comfy_fleet import __version__
from comfy_fleet.adapters.comfyui.answer_limits import shown as shown_bytes
from comfy_fleet.adapters.comfyui.head_limits import Connector
from comfy_fleet.domain.errors import OutboundFailed, OutboundRefused
from comfy_fleet.domain.outbound import (
    Address,
    AllowedHosts,
    OutboundTarget,
    checked_addresses,
    parse_target,
)
from comfy_fleet.ports.outbound import OutboundAnswer
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
LOOKUP_S = 5.0
_LOOKUPS = 64  # a name whose servers never answer holds its thread longer than anybody waits for it
_CONNECT_S = 10.0
_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "User-Agent": f"comfy-fleet/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # a compressed body could unpack to any size
}

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a name, for connections to a port. Raises OSError if it has none."""


class SystemLookup:
    """Asks the machine's resolver, in threads of its own.

    The server of a client's name may never answer; the threads that others need are not kept waiting by it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="outbound-lookup")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses. Raises OSError."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(one[4][0]) for one in found))

    def close(self) -> None:
        """Wait for nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class OutboundHttp:
    """Calls URLs that clients name: see :class:`comfy_fleet.ports.outbound.GuardedCalls`.

    * http and https to public addresses, and to what ``allowed`` says; no user info in URLs.
    * A name is looked up once; all of its addresses must pass, and only they are connected to.
    * Every redirect is checked anew. Bytes and time are limited.
    * No cookies, no proxy from the environment, nothing unpacked, certificates verified.

    Each call has a connection of its own, so that none which was checked for one URL serves another.

    Args:
        allowed: Private hosts and networks that may be called, by
            :func:`comfy_fleet.domain.outbound.parse_allowed`.
        lookup: Looks names up; None asks the machine's resolver.
        tls: Which certificates are trusted; None means the machine's authorities.
        purpose: Named in log lines, e.g. ``webhook``.
    """

    def __init__(
        self,
        *,
        allowed: AllowedHosts,
        purpose: str,
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._purpose = purpose
        self._system = SystemLookup() if lookup is None else None
        self._lookup = lookup or self._system
        self._tls = tls

    def close(self) -> None:
        """Give up lookups that are under way."""
        if self._system is not None:
            self._system.close()

    def get(
        self, url: str, *, headers: Mapping[str, str] | None = None, most_bytes: int, within_s: float
    ) -> AbstractAsyncContextManager[OutboundAnswer]:
        """See the port."""
        return self._call("GET", url, None, headers or {}, most_bytes, within_s)

    def post(
        self,
        url: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        most_bytes: int,
        within_s: float,
    ) -> AbstractAsyncContextManager[OutboundAnswer]:
        """See the port."""
        return self._call("POST", url, body, headers or {}, most_bytes, within_s)

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        most_bytes: int,
        within_s: float,
    ) -> AsyncGenerator[OutboundAnswer, None]:
        target = first = parse_target(url)
        timer = Timeout(within_s)
        try:
            async with timer:
                for _ in range(MAX_REDIRECTS + 1):
                    sent = headers if _origin(target) == _origin(first) else _conditions(headers)
                    async with self._hop(method, target, body, sent) as answer:
                        location = answer.headers.get("Location")
                        if method == "GET" and answer.status in _REDIRECTS and location is not None:
                            target = target.redirected(location)
                            continue
                        yield _answered(target, answer, most_bytes)
                        return
                raise _failed(first, f"redirects more than {MAX_REDIRECTS} times")
        except TimeoutError:
            if not timer.expired():
                raise
            raise _failed(target, f"took more than {within_s:g} s") from None

    @asynccontextmanager
    async def _hop(
        self, method: str, target: OutboundTarget, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        pinned = await self._addresses(target)
        connector = Connector(
            resolver=_Pinned(target, pinned),
            use_dns_cache=False,
            force_close=True,
            limit=1,
            ssl=True if self._tls is None else self._tls,
            socket_factory=_gate(pinned),
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            headers=_HEADERS,
        ) as session:
            try:
                answer = await session.request(
                    method,
                    yarl.URL(target.url, encoded=True),
                    data=body,
                    headers=dict(headers),
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _failed(target, _words(error)) from error
            try:
                yield answer
            finally:
                answer.close()

    async def _addresses(self, target: OutboundTarget) -> tuple[Address, ...]:
        found: Sequence[str]
        if target.address is not None:
            found = [str(target.address)]
        else:
            assert self._lookup is not None  # noqa: S101 - one of both is there
            try:
                async with Timeout(LOOKUP_S):
                    found = await self._lookup(target.host, target.port)
            except TimeoutError:
                raise _failed(target, f"has a name that was not found within {LOOKUP_S:g} s") from None
            except (OSError, UnicodeError):
                found = []
            if not found:
                raise _failed(target, "has a name without an address")
        try:
            return checked_addresses(target, map(ip_address, found), self._allowed)
        except OutboundRefused:
            logger.warning("%s refused: %s leads to %s", self._purpose, target.shown, ", ".join(found[:4]))
            raise


def _origin(target: OutboundTarget) -> tuple[str, str, int]:
    return target.scheme, target.host, target.port


def _conditions(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in headers.items() if name.lower().startswith("if-")}


def _answered(target: OutboundTarget, answer: aiohttp.ClientResponse, most_bytes: int) -> OutboundAnswer:
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        if value.isascii():  # the other bytes come as surrogates, which neither Redis nor JSON takes
            headers.setdefault(name.lower(), value)
    return OutboundAnswer(
        url=target.shown, status=answer.status, headers=headers, chunks=_chunks(target, answer, most_bytes)
    )


async def _chunks(
    target: OutboundTarget, answer: aiohttp.ClientResponse, most_bytes: int
) -> AsyncIterator[bytes]:
    """Yield a body within its limits. Who does not read it is not told of what is wrong with it."""
    coding = answer.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise _failed(target, f"sends Content-Encoding {coding[:40]!r}, which was not asked for")
    length = answer.headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:20]) > most_bytes:
        raise _too_long(target, most_bytes)
    size = 0
    try:
        async for chunk in answer.content.iter_chunked(_CHUNK):
            size += len(chunk)
            if size > most_bytes:
                raise _too_long(target, most_bytes)
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise _failed(target, _words(error)) from error


def _too_long(target: OutboundTarget, most_bytes: int) -> OutboundFailed:
    return _failed(target, f"sends more than {shown_bytes(most_bytes)}")


def _failed(target: OutboundTarget, words: str) -> OutboundFailed:
    return OutboundFailed(f"{target.shown} {words}", details={"url": target.shown})


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "has a certificate that is not valid for it"
    if isinstance(error, aiohttp.ClientSSLError):
        return "speaks no TLS that the fleet accepts"
    if isinstance(error, TimeoutError):
        return f"accepts no connection within {_CONNECT_S:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "accepts no connection"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return "broke the connection off"
    return "sends something that is not HTTP"


class _Pinned(AbstractResolver):
    """Gives aiohttp the addresses that were checked, and no others."""

    def __init__(self, target: OutboundTarget, addresses: Sequence[Address]) -> None:
        self._target = target
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if (host, port) != (self._target.host, self._target.port):
            raise OSError(f"{host}:{port} was not checked")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _gate(addresses: Sequence[Address]) -> Callable[[Any], socket.socket]:
    """Return what makes sockets, to these addresses only: the last check before a connection is made."""

    def made(info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        if ip_address(str(place[0])) not in addresses:
            raise OSError("this address was not checked")
        return socket.socket(family=family, type=kind, proto=protocol)

    return made
