"""A connector for aiohttp that limits interim responses.

A server may send any number of interim heads (``100 Continue``, ``103 Early Hints``) before its answer.
HAProxy passes them on, aiohttp skips them, and each one restarts the timeout: without a limit, a node that
sends nothing else would block its caller for ever.
"""

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_INTERIM = 8
"""Most interim heads before one answer; ComfyUI sends none, a proxy in front of it one or two."""
_SWITCHING = 101  # counts as an answer


class TooManyHeads(aiohttp.ClientError):
    """A server sent too many interim heads before its answer."""


class _Handler(ResponseHandler):
    _interim = 0

    def feed_data(self, data: Any, size: int = 0) -> None:
        status = data[0].code
        self._interim = self._interim + 1 if 100 <= status < 200 and status != _SWITCHING else 0
        if self._interim <= MAX_INTERIM:
            super().feed_data(data, size)
            return
        if self.exception() is None:
            self.set_exception(TooManyHeads(f"more than {MAX_INTERIM} interim heads before an answer"))
        if self.transport is not None:
            self.transport.abort()


def _handler(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Handler(loop)


class Connector(aiohttp.TCPConnector):
    """A :class:`aiohttp.TCPConnector` whose connections end with :class:`TooManyHeads`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_handler, loop=asyncio.get_running_loop())


class SocketConnector(aiohttp.UnixConnector):
    """The same for a unix socket."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._factory = partial(_handler, loop=asyncio.get_running_loop())
