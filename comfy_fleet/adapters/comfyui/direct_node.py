"""A ComfyUI called at its own URL, as agents do: without the broker, with the same limits."""

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from comfy_fleet.adapters.comfyui.answer_limits import PLAIN, AnswerLimits, decoded, read_body
from comfy_fleet.domain.errors import ConfigError, NodeError, NodeFault
from comfy_fleet.domain.nodes.node import authorization
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_WANTED = "it wants a user and password, as in https://USER:PASSWORD@HOST"
_REFUSED = "it refuses its user and password"
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


class _Handshake:
    """Closes a connection that is given up in its handshake; httpcore leaves it to the garbage collector.

    It is a request's extension ``trace``, which httpcore tells what it does.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
        elif event == "connection.start_tls.failed" and self._stream is not None:
            await self._stream.aclose()


class DirectNode:
    """One ComfyUI.

    Args:
        url: Its base URL.
        client: The HTTP client; the caller closes it.
        credentials: ``USER:PASSWORD``; empty for none.
        limits: How much of an answer is read.
    """

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        *,
        credentials: str = "",
        limits: AnswerLimits = LIMITS,
    ) -> None:
        self.url = url.rstrip("/")
        self._tls = url.startswith("https:")
        self._client = client
        self._headers = {**PLAIN, **({"Authorization": authorization(credentials)} if credentials else {})}
        self._hints = _HINTS | {401: _REFUSED if credentials else _WANTED}
        self._limits = limits

    async def json(
        self,
        path: str,
        *,
        timeout_s: float,
        post: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask, and return the answer's JSON, perhaps without its long texts; None if it is not JSON.

        Args:
            path: The path.
            timeout_s: Limit for the answer's head, and between two pieces of the body.
            post: Body of a POST, if given.
            params: The query.

        Raises:
            NodeFault: The answer breaks a limit.
            NodeError: No answer in time, or not 200; the message says why in words.
        """
        try:
            async with (
                Timeout(timeout_s + self._limits.seconds),
                self._client.stream(
                    "GET" if post is None else "POST",
                    f"{self.url}{path}",
                    params=params,
                    json=post,
                    timeout=timeout_s,
                    headers=self._headers,
                    extensions={"trace": _Handshake()} if self._tls else {},
                ) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    hint = self._hints.get(answer.status_code)
                    words = f"{answer.status_code} at {path}"
                    raise NodeError(f"{hint}: {words}" if hint else f"it answered {words}")
                body = await read_body(answer.headers, answer.aiter_bytes(), self._limits, what=path)
            return await decoded(body, self._limits, what=path, brief=True)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise NodeError(why_silent(self.url, error, timeout_s), details={"url": self.url}) from error


def why_silent(url: str, error: Exception, timeout_s: float) -> str:
    """Return in words why there was no answer from a URL."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"nothing answers at {url}: no connection within {timeout_s:g} s"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"no answer from {url} within {timeout_s:g} s"
    words = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError):
        cause = _root(error)
        if isinstance(cause, ConnectionRefusedError) or "All connection attempts failed" in words:
            return f"nothing listens at {url}: connection refused"
        return f"no connection to {url}: {words}"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"what listens at {url} speaks no HTTP: {words}"
    return f"{url}: {words}"


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


__all__ = ["LIMITS", "DirectNode", "NodeFault", "trust", "why_silent"]
