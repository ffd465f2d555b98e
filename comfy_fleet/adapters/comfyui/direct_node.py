"""A ComfyUI called at its own URL, as agents do: without the broker, with the same limits."""

import logging
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson

from comfy_fleet.adapters.comfyui.answer_limits import PLAIN, AnswerLimits, decoded, read_body
from comfy_fleet.adapters.comfyui.head_limits import Connector
from comfy_fleet.domain.errors import ConfigError, NodeError, NodeFault
from comfy_fleet.domain.nodes.node import authorization
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_WANTED = "it wants a user and password, as in https://USER:PASSWORD@HOST"
_REFUSED = "it refuses its user and password"
_JSON = {"Content-Type": "application/json"}
_CHUNK = 256 * 1024
_KEEPALIVE_S = 5.0
LIMITS = AnswerLimits(seconds=10.0)
_HINTS = {403: "it refuses the fleet", 404: "that is not a ComfyUI"}


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Return the certificate authorities for https nodes: those in a file, or the machine's.

    Raises:
        ConfigError: The file can't be read or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # includes SSLError
        raise ConfigError(f"FLEET_NODE_CA_FILE {ca_file}: {error}") from error


class NodeSession:
    """Connections to nodes at their own URLs. What a node sets as a cookie is neither kept nor sent again.

    On aiohttp, because an agent asks each node several times a second: a fifth of httpx's CPU time.

    Args:
        tls: Checks certificates of https nodes; False: nobody does.
    """

    def __init__(self, tls: ssl.SSLContext | bool = True) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> aiohttp.ClientSession:
        """Return the session; it is made when it is first used, in the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=Connector(limit=0, keepalive_timeout=_KEEPALIVE_S, ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={**PLAIN, "User-Agent": "comfy-fleet"},
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class DirectNode:
    """One ComfyUI.

    Args:
        url: Its base URL.
        session: Its connections; the caller closes them.
        credentials: ``USER:PASSWORD``; empty for none.
        limits: How much of an answer is read.
    """

    def __init__(
        self,
        url: str,
        session: NodeSession,
        *,
        credentials: str = "",
        limits: AnswerLimits = LIMITS,
    ) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._headers = {"Authorization": authorization(credentials)} if credentials else {}
        self._hints = _HINTS | {401: _REFUSED if credentials else _WANTED}
        self._limits = limits

    async def json(
        self,
        path: str,
        *,
        timeout_s: float,
        post: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        method: str = "POST",
    ) -> Any:
        """Ask, and return the answer's JSON, perhaps without its long texts; None if it is not JSON.

        Args:
            path: The path.
            timeout_s: Limit for the answer's head, and between two pieces of the body.
            post: Body of a POST, if given.
            params: The query.
            method: The method of what has a body.

        Raises:
            NodeFault: The answer breaks a limit.
            NodeError: No answer in time, or not 200; the message says why in words.
        """
        patience = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        try:
            async with (
                Timeout(timeout_s + self._limits.seconds),
                self._session.open().request(
                    "GET" if post is None else method,
                    f"{self.url}{path}",
                    params=params,
                    data=None if post is None else orjson.dumps(post),
                    headers=self._headers if post is None else {**self._headers, **_JSON},
                    timeout=patience,
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status != HTTPStatus.OK:
                    hint = self._hints.get(answer.status)
                    words = f"{answer.status} at {path}"
                    raise NodeError(f"{hint}: {words}" if hint else f"it answered {words}")
                chunks = answer.content.iter_chunked(_CHUNK)
                body = await read_body(answer.headers, chunks, self._limits, what=path)
            return await decoded(body, self._limits, what=path, brief=True)
        except (aiohttp.ClientError, OSError) as error:  # OSError includes TimeoutError
            raise NodeError(why_silent(self.url, error, timeout_s), details={"url": self.url}) from error


def why_silent(url: str, error: Exception, timeout_s: float) -> str:
    """Return in words why there was no answer from a URL."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"nothing answers at {url}: no connection within {timeout_s:g} s"
    if isinstance(error, TimeoutError):
        return f"no answer from {url} within {timeout_s:g} s"
    words = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.__cause__, ConnectionRefusedError):
            return f"nothing listens at {url}: connection refused"
        return f"no connection to {url}: {words}"
    if isinstance(error, aiohttp.ClientConnectionError) and not isinstance(error, OSError):
        return f"what listens at {url} speaks no HTTP: {words}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"what listens at {url} speaks no HTTP: {error.message}"
    return f"{url}: {words}"


__all__ = ["LIMITS", "DirectNode", "NodeFault", "NodeSession", "trust", "why_silent"]
