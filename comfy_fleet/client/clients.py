"""The two clients: one that waits in the caller's thread, one for an event loop."""

import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from comfy_fleet.client.address import address_of
from comfy_fleet.client.batch_calls import BatchCalls
from comfy_fleet.client.transport import AwaitedTransport, BlockingTransport, finished, stepped

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0
RETRY_S = 60.0


class AsyncFleetClient(BatchCalls):
    """A fleet, for programs with an event loop. Use it with ``async with``, or :meth:`close` it.

    Args:
        url: The fleet's address, also one below a path; else ``FLEET_API_URL``, else the console of a fleet
            on this machine.
        key: The API key, or an empty text for none; else ``FLEET_API_KEY``.
        timeout_s: How long one request may take.
        retry_s: For how long a request is repeated while the fleet is busy, restarts or can't be reached; 0:
            not at all. No repetition makes a second job.
        verify: What the fleet's certificate is checked with: a file of certificates (PEM), or a context; else
            ``FLEET_API_CA_FILE``, else the public authorities.

    Raises:
        ValueError: The address or the key can't be used.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry_s: float = RETRY_S,
        verify: ssl.SSLContext | bool | str | Path = True,
    ) -> None:
        where = address_of(url, key, verify)
        http = httpx.AsyncClient(**where.options(timeout_s))
        super().__init__(AwaitedTransport(http), url=where.url, timeout_s=timeout_s, retry_s=retry_s)

    def __repr__(self) -> str:
        return f"<AsyncFleetClient {self._url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()


def _call(
    method: Callable[Concatenate[BatchCalls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["FleetClient", P], T]:
    @wraps(method)
    def call(self: "FleetClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return finished(method(self._calls, *args, **kwargs))

    return call


def _iterate(
    method: Callable[Concatenate[BatchCalls, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate["FleetClient", P], Iterator[T]]:
    @wraps(method)
    def iterate(self: "FleetClient", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return stepped(method(self._calls, *args, **kwargs))

    return iterate


class FleetClient:
    """A fleet, for programs without an event loop. Use it with ``with``, or :meth:`close` it.

    It has the same methods as :class:`AsyncFleetClient`, and takes the same arguments. Threads may share it.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry_s: float = RETRY_S,
        verify: ssl.SSLContext | bool | str | Path = True,
    ) -> None:
        where = address_of(url, key, verify)
        transport = BlockingTransport(httpx.Client(**where.options(timeout_s)))
        self.url = where.url
        self._calls = BatchCalls(transport, url=where.url, timeout_s=timeout_s, retry_s=retry_s)
        self._transport = transport

    def __repr__(self) -> str:
        return f"<FleetClient {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        finished(self._transport.close())

    request = _call(BatchCalls.request)

    submit = _call(BatchCalls.submit)
    submit_graph = _call(BatchCalls.submit_graph)
    run = _call(BatchCalls.run)
    wait = _call(BatchCalls.wait)
    follow = _iterate(BatchCalls.follow)
    job = _call(BatchCalls.job)
    jobs = _iterate(BatchCalls.jobs)
    estimate = _call(BatchCalls.estimate)
    cancel = _call(BatchCalls.cancel)
    retry = _call(BatchCalls.retry)
    delete = _call(BatchCalls.delete)
    keep = _call(BatchCalls.keep)

    upload = _call(BatchCalls.upload)
    file = _call(BatchCalls.file)
    delete_file = _call(BatchCalls.delete_file)
    read = _call(BatchCalls.read)
    save = _call(BatchCalls.save)
    download = _call(BatchCalls.download)

    submit_batch = _call(BatchCalls.submit_batch)
    submit_graph_batch = _call(BatchCalls.submit_graph_batch)
    batch = _call(BatchCalls.batch)
    batch_items = _iterate(BatchCalls.batch_items)
    batches = _iterate(BatchCalls.batches)
    follow_batch = _iterate(BatchCalls.follow_batch)
    wait_batch = _call(BatchCalls.wait_batch)
    cancel_batch = _call(BatchCalls.cancel_batch)
    retry_batch = _call(BatchCalls.retry_batch)
    save_batch_zip = _call(BatchCalls.save_batch_zip)
    download_batch = _call(BatchCalls.download_batch)

    workflows = _call(BatchCalls.workflows)
    workflow = _call(BatchCalls.workflow)
