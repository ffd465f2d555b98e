"""Fetches the files that jobs name by URL, before any of these jobs can get a node.

Each process of the API does. A URL is fetched once for all of an owner's jobs that wait for it. If a process
dies meanwhile, another one fetches it some seconds later.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from comfy_fleet.domain.errors import (
    FleetError,
    NoRoom,
    OutboundFailed,
    OutboundRefused,
    Outdated,
    StoreDown,
)
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.input_fetch import (
    ERROR,
    RETRY_S,
    fresh_s,
    is_in_store,
    may_succeed_later,
)
from comfy_fleet.domain.jobs.job import JobError
from comfy_fleet.domain.jobs.sniffing import HEAD_BYTES, content_type_of_bytes, file_name
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.domain.moderation import ContentRefused
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.fetches import Fetch, FetchStore
from comfy_fleet.ports.outbound import GuardedCalls, OutboundAnswer
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.input_files import shown_url
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.store_inputs import StoreInputs

logger = logging.getLogger(__name__)

AT_ONCE, EACH = 8, 4
"""How many URLs a process fetches at the same time, and the whole fleet for one owner."""
LOOK_S, BEAT_S = 1.0, 3.0
OWN_FAULT_S = 10.0
_OK, _UNCHANGED = 200, 304


class _Useless(Exception):
    """The file can't be had. ``again``: another try may get it."""

    def __init__(self, message: str, *, again: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.status = status


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What may be fetched.

    Attributes:
        most_bytes: Largest file.
        within_s: Longest time for one.
    """

    most_bytes: int
    within_s: float


class InputFetcher:
    """Fetches what jobs wait for.

    Args:
        fetches: Which URLs these are.
        calls: Calls them.
        assets: Where the files go: each becomes an asset of its job's owner.
        limits: What may be fetched.
        moderation: Judges the files.
        telemetry: Told what came of each.
        stores: Reads those that are in stores.
        quotas_of: Returns the limits of an owner.
    """

    def __init__(
        self,
        fetches: FetchStore,
        calls: GuardedCalls,
        assets: AssetStore,
        limits: FetchLimits,
        moderation: Moderation,
        telemetry: Telemetry,
        stores: StoreInputs,
        quotas_of: Callable[[str], tuple[ScopedLimits, ...]] = lambda _: (),
    ) -> None:
        self._fetches = fetches
        self._calls = calls
        self._assets = assets
        self._limits = limits
        self._moderation = moderation
        self._telemetry = telemetry
        self._stores = stores
        self._quotas_of = quotas_of
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look at once: a job has come."""
        self._news.set()

    async def run(self) -> None:
        """Fetch for ever."""
        try:
            while True:
                await self._fill()
                waits = [asyncio.create_task(self._news.wait()), *self._tasks]
                try:
                    await asyncio.wait(waits, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waits[0].cancel()
                self._news.clear()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fill(self) -> None:
        while len(self._tasks) < AT_ONCE:
            fetch = await self._fetches.take(each=EACH)
            if fetch is None:
                return
            task = asyncio.create_task(self._see_through(fetch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _see_through(self, fetch: Fetch) -> None:
        """Fetch one; if that can't be written down, it stays, and is fetched again."""
        work = asyncio.create_task(self._one(fetch))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=BEAT_S)
                if not work.done() and not await self._is_ours(fetch):
                    return
            await work
        except StoreDown as error:
            logger.warning("input not written down", extra={"url": _shown(fetch), "error": str(error)})
        except Exception:  # what nobody has foreseen is not tried for ever
            logger.exception("input not fetched", extra={"url": _shown(fetch)})
            with contextlib.suppress(StoreDown):
                await self._missed(
                    fetch, _Useless(f"{_shown(fetch)} can't be fetched: see the fleet's log", again=True)
                )
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    async def _is_ours(self, fetch: Fetch) -> bool:
        try:
            return await self._fetches.beat(fetch)
        except StoreDown:
            return True

    async def _one(self, fetch: Fetch) -> None:
        headers = {"If-None-Match": fetch.etag} if fetch.etag else {}
        if fetch.modified:
            headers["If-Modified-Since"] = fetch.modified
        try:
            async with self._got(fetch, headers) as answer:
                asset = await self._asset(fetch, answer)
                await self._moderation.check_input(fetch.owner, asset)
                facts = answer.headers
                if answer.status == _UNCHANGED:
                    facts = {"etag": fetch.etag, "last-modified": fetch.modified, **facts}
        except (NoRoom, Outdated, OSError) as error:  # the fleet's own trouble is not the URL's
            logger.warning("input not stored", extra={"url": _shown(fetch), "error": str(error)})
            self._telemetry.fetched("no_room")
            await self._fetches.again(fetch, in_s=OWN_FAULT_S, counts=False)
        except StoreDown:
            raise
        except (FleetError, _Useless) as error:
            await self._missed(fetch, error)
        else:
            self._telemetry.fetched("unchanged" if answer.status == _UNCHANGED else "stored")
            await self._fetches.done(
                fetch,
                asset,
                etag=facts.get("etag", "")[:256],
                modified=facts.get("last-modified", "")[:64],
                fresh_s=fresh_s(facts),
            )

    def _got(self, fetch: Fetch, headers: Mapping[str, str]) -> AbstractAsyncContextManager[OutboundAnswer]:
        most_bytes, within_s = self._limits.most_bytes, self._limits.within_s
        if is_in_store(fetch.url):
            return self._stores.get(
                fetch.owner, fetch.url, etag=fetch.etag, most_bytes=most_bytes, within_s=within_s
            )
        return self._calls.get(fetch.url, headers=headers, most_bytes=most_bytes, within_s=within_s)

    async def _missed(self, fetch: Fetch, error: FleetError | _Useless) -> None:
        again = error.again if isinstance(error, _Useless) else error.retryable
        if again and fetch.tries < len(RETRY_S):
            self._telemetry.fetched("again")
            await self._fetches.again(fetch, in_s=RETRY_S[fetch.tries], counts=True)
            return
        refused = isinstance(error, OutboundRefused | ContentRefused)
        self._telemetry.fetched("refused" if refused else "failed")
        status = error.status if isinstance(error, _Useless) else None
        details = {"url": _shown(fetch), **({"status": status} if status else {})}
        usual = isinstance(error, OutboundRefused | OutboundFailed | _Useless)
        code = ERROR if usual or not isinstance(error, FleetError) else error.code
        await self._fetches.failed(fetch, JobError(code=code, message=str(error), details=details))

    async def _asset(self, fetch: Fetch, answer: OutboundAnswer) -> Asset:
        if answer.status == _UNCHANGED and fetch.asset_id:
            asset = await self._assets.get(fetch.asset_id)
            if asset is not None:
                return asset
        if answer.status != _OK:
            raise _Useless(
                f"{answer.url} answered {answer.status}",
                again=may_succeed_later(answer.status) or answer.status == _UNCHANGED,
                status=answer.status,
            )
        head = bytearray()
        async with self._assets.receive(_noting(answer.chunks, head)) as received:
            if not received.size_bytes:
                raise _Useless(f"{answer.url} is empty", again=False)
            path = fetch.url.partition("?")[0]
            content_type = content_type_of_bytes(bytes(head), path)
            digest = received.hash.removeprefix("blake3:")
            asset, _ = await self._assets.keep(
                received,
                owner=fetch.owner,
                content_type=content_type,
                file_path=file_name(path, content_type, digest),
                numbered=True,  # the same bytes are the same asset again
                quotas=self._quotas_of(fetch.owner),
            )
            return asset


async def _noting(chunks: AsyncIterator[bytes], head: bytearray) -> AsyncIterator[bytes]:
    """Pass a file on, and keep its beginning."""
    async for chunk in chunks:
        if len(head) < HEAD_BYTES:
            head += chunk[: HEAD_BYTES - len(head)]
        yield chunk


def _shown(fetch: Fetch) -> str:
    return shown_url(fetch.url)
