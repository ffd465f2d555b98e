"""Fetches model files for a host's nodes as the API orders, and gives them to other agents.

What an order says is checked here, too: an agent never writes outside of its folders of models, whoever
speaks for the API. A file gets its name once all of it is there and has the hash that was ordered.
"""

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp
from comfy_fleet.agent.model_folders import opened
from comfy_fleet.agent.model_place import FetchFailed, FetchPlace, PlaceTaken, chunks_of
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.nodes.model_fetch import ENDS, LONGEST_WORDS, FetchState, HostFetch, ModelOrder
from comfy_fleet.domain.outbound import AllowedHosts, parse_target
from comfy_fleet.ports.outbound import GuardedCalls, OutboundAnswer
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

AT_ONCE = 2
MOST_ORDERS = 100
STALL_S = 60.0
_AGAIN_S = 0.5
_DONE = FetchState.DONE
_BATCH = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """What an agent fetches at most.

    Attributes:
        most_bytes: Of one file.
        within_s: For one file.
        keep_free: Bytes that stay free on the disk.
        stall_s: Longest time without a byte.
        tokens: What is shown to a site alone, by its host.
    """

    most_bytes: int
    within_s: float
    keep_free: int
    stall_s: float = STALL_S
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)


class ModelFetcher:
    """Carries out orders to fetch model files.

    Args:
        roots: Returns the nodes' folders ``models``.
        calls: Calls URLs.
        limits: What is fetched at most.
        told: Called when there is something to tell the API.

    Attributes:
        ordered: Set by the first order.
        serves: ``HOST:PORT`` where files are given to other agents; empty: nowhere yet.
    """

    def __init__(
        self,
        roots: Callable[[], Mapping[str, Path]],
        calls: GuardedCalls,
        limits: ModelLimits,
        *,
        told: Callable[[], None],
    ) -> None:
        self._roots = roots
        self._calls = calls
        self._limits = limits
        self._told = told
        self._orders: dict[str, ModelOrder] = {}
        self._states: dict[str, HostFetch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.ordered = asyncio.Event()
        self.serves = ""

    def take(self, orders: Sequence[ModelOrder]) -> None:
        """Begin, stop and forget as the API's last answer says."""
        self._orders = {order.id: order for order in orders[:MOST_ORDERS]}
        if orders:
            self.ordered.set()
        for id_ in [one for one in self._states if one not in self._orders]:
            self._stop(id_)
            del self._states[id_]
        for order in self._orders.values():
            state = self._states.get(order.id)
            if order.serve:
                if state is None or state.state is not FetchState.DONE:
                    self._say(order.id, FetchState.DONE, "")  # so that the API knows where it is given away
            elif order.canceled:
                if state is None or state.state not in ENDS:
                    self._stop(order.id)
                    self._say(order.id, FetchState.CANCELED, "")
            elif state is None and not order.wait:
                self._say(order.id, FetchState.FETCHING, "")
                self._tasks[order.id] = start(self._carry_out(order), name=f"model {order.name}")

    def reports(self) -> Mapping[str, HostFetch]:
        """Return how far each order is, as long as the API repeats it."""
        return dict(self._states)

    async def stop(self) -> None:
        """Stop fetching."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self, id_: str) -> None:
        if (task := self._tasks.pop(id_, None)) is not None:
            task.cancel()

    def _say(self, id_: str, state: FetchState, words: str, size: int = 0, total: int | None = None) -> None:
        told = HostFetch(state=state, words=words[:LONGEST_WORDS], bytes=size, total=total)
        known = self._states.get(id_)
        self._states[id_] = told
        if known is None or known.state is not state:
            self._told()

    # ---- fetching ------------------------------------------------------------------------------------------

    async def _carry_out(self, order: ModelOrder) -> None:
        try:
            order.checked()
            async with self._turns:
                words = await self._fetch(order)
        except FleetError as error:
            logger.warning(
                "model not fetched",
                extra={"fetch": order.id, "file": f"{order.folder}/{order.name}", "reason": error.message},
            )
            self._say(order.id, FetchState.FAILED, error.message)
        except OSError as error:
            why = f"{order.folder}/{order.name}: {error.strerror or error}"
            logger.warning("model not fetched", extra={"fetch": order.id, "reason": why})
            self._say(order.id, FetchState.FAILED, why)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("model not fetched", extra={"fetch": order.id})
            self._say(order.id, FetchState.FAILED, "its agent failed; its log says how")
        else:
            size, file = self._states[order.id].bytes, f"{order.folder}/{order.name}"
            about = {"fetch": order.id, "file": file, "source": words, "bytes": size}
            logger.info("model fetched", extra=about)
            self._say(order.id, FetchState.DONE, words, size, size)
        finally:
            self._tasks.pop(order.id, None)

    async def _fetch(self, order: ModelOrder) -> str:
        """Put the file into each different folder of the order's nodes; return in words where from."""
        roots = await asyncio.to_thread(_different, self._roots(), order)
        if not roots:
            raise FetchFailed(
                f"none of its nodes has a folder {order.folder} in its folder of models that this agent sees"
            )
        words, had = "", None
        for root in roots:
            said = await self._into(root, order, had)
            words, had = words or said, had or root
        return words

    async def _into(self, root: Path, order: ModelOrder, had: Path | None) -> str:
        *below, name = order.name.split("/")
        with ExitStack() as stack:
            here = stack.enter_context(opened(root, order.folder, below, make=True))
            place = stack.enter_context(
                FetchPlace(
                    here,
                    name,
                    sha256=order.sha256,
                    keep_free=self._limits.keep_free,
                    most=self._limits.most_bytes,
                )
            )
            while True:
                if await _thread(place.is_there):
                    return "was there already"
                try:
                    place.lock()
                except PlaceTaken:
                    self._say(order.id, FetchState.FETCHING, "another agent fetches it into the same folder")
                    await asyncio.sleep(_AGAIN_S)
                    continue
                if await _thread(place.is_there):  # put there before the lock was had
                    return "was there already"
                break
            return await self._filled(place, order, had)

    async def _filled(self, place: FetchPlace, order: ModelOrder, had: Path | None) -> str:
        """Fill a file from the nearest source that has it; return in words where from."""
        if had is not None:
            async with aclosing(_read(had, order)) as chunks:
                await self._write(place, order, chunks, None, "from another folder of this host")
            await _thread(place.put)
            return "from another folder of this host"
        # Those of now: another host may have got it since the order came.
        known = self._orders.get(order.id, order)
        for address in known.neighbours:
            try:
                await self._from_neighbour(place, known, address)
                if place.right:
                    await _thread(place.put)
                    return f"from the agent at {address}"
                why = "what it sent has another hash"
            except FleetError as error:
                why = error.message
            logger.warning("model not got from a neighbour", extra={"neighbour": address, "reason": why})
        await self._from_url(place, order)
        await _thread(place.put)
        return f"from {parse_target(order.url).host}"

    async def _from_url(self, place: FetchPlace, order: ModelOrder) -> None:
        target = parse_target(order.url)
        safe = (target.scheme, target.port) == ("https", 443)
        token = self._limits.tokens.get(target.host) if safe else None
        # Other origins never see it: a guarded call sends it to the first one only.
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._answered(self._calls, order.url, headers) as answer:
            if answer.status != 200:
                hint = _hint(answer.status, target.host)
                raise FetchFailed(f"{answer.url} answers with status {answer.status}{hint}")
            total = _length(answer.headers.get("content-length", ""))
            await self._write(place, order, answer.chunks, total, f"from {target.host}")

    async def _from_neighbour(self, place: FetchPlace, order: ModelOrder, address: str) -> None:
        """Get the file from another agent: only at this address, and only with the order's ticket."""
        calls = OutboundHttp(allowed=_only(address), purpose="model from a neighbour")
        headers = {"Authorization": f"Bearer {order.ticket}"}
        try:
            async with self._answered(calls, f"http://{address}/models/{order.id}", headers) as answer:
                if answer.status != 200:
                    raise FetchFailed(f"it answers with status {answer.status}")
                total = _length(answer.headers.get("content-length", ""))
                await self._write(place, order, answer.chunks, total, f"from the agent at {address}")
        finally:
            calls.close()

    @asynccontextmanager
    async def _answered(
        self, calls: GuardedCalls, url: str, headers: Mapping[str, str]
    ) -> AsyncGenerator[OutboundAnswer, None]:
        """Yield an answer. Raises FetchFailed if it does not begin in time, OutboundFailed."""
        limits = self._limits
        async with AsyncExitStack() as stack:
            timer = Timeout(limits.stall_s)
            try:
                async with timer:
                    answer = await stack.enter_async_context(
                        calls.get(
                            url, headers=headers, most_bytes=limits.most_bytes, within_s=limits.within_s
                        )
                    )
            except TimeoutError:
                if not timer.expired():
                    raise
                host = parse_target(url).host
                raise FetchFailed(f"{host} does not answer within {limits.stall_s:g} s") from None
            yield answer

    async def _write(
        self,
        place: FetchPlace,
        order: ModelOrder,
        chunks: AsyncIterator[bytes],
        total: int | None,
        words: str,
    ) -> None:
        """Write what comes.

        Raises:
            FetchFailed: It does not fit, or nothing comes any more.
            OutboundFailed: It breaks off.
        """
        await _thread(lambda: place.restart(total))
        batch = bytearray()
        rest = aiter(chunks)
        while True:
            try:
                async with Timeout(self._limits.stall_s):
                    chunk = await anext(rest, None)
            except TimeoutError:
                raise FetchFailed(f"nothing more came for {self._limits.stall_s:g} s") from None
            if chunk:
                batch += chunk
            if batch and (chunk is None or len(batch) >= _BATCH):
                data = bytes(batch)
                batch.clear()
                await _thread(partial(place.write, data))
                self._say(order.id, FetchState.FETCHING, words, place.size, total)
            if chunk is None:
                return

    # ---- giving it to others -------------------------------------------------------------------------------

    async def give(self, request: web.Request) -> web.StreamResponse:
        """``GET /models/ID``: the file of an order that this host has, for who shows the order's ticket."""
        order = self._orders.get(request.match_info["id"])
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        has = order is not None and (order.serve or self._states.get(order.id, HostFetch()).state is _DONE)
        if order is None or not has or not order.ticket:
            return web.Response(status=404, text="no such file here\n")
        if not hmac.compare_digest(shown.encode(errors="replace"), order.ticket.encode()):
            return web.Response(status=403, text="this needs the order's ticket\n")
        chunks: Iterator[bytes] = iter(())
        try:
            order.checked()
            roots = await asyncio.to_thread(_different, self._roots(), order)
            chunks = chunks_of(roots[0], order.folder, order.name) if roots else iter(())
            size = await asyncio.to_thread(next, chunks, None)
        except (OSError, FleetError):
            size = None
        if size is None:
            return web.Response(status=404, text="no such file here\n")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = int(size)
        await response.prepare(request)
        while data := await asyncio.to_thread(next, chunks, b""):
            await response.write(data)
        await response.write_eof()
        return response


async def _thread(work: Callable[[], object]) -> bool:
    """Run in a thread, to its end: a file that is written must not be closed meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return bool(await asyncio.shield(task))
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _different(roots: Mapping[str, Path], order: ModelOrder) -> list[Path]:
    """Return one of the nodes' folders of models for each different folder that the file goes to."""
    found: dict[tuple[int, int], Path] = {}
    for node in order.nodes:
        if (root := roots.get(node)) is None:
            continue
        try:
            with opened(root, order.folder) as here:
                at = os.fstat(here)
        except OSError:
            continue
        found.setdefault((at.st_dev, at.st_ino), root)
    return list(found.values())


async def _read(root: Path, order: ModelOrder) -> AsyncGenerator[bytes, None]:
    chunks: Iterator[bytes] = chunks_of(root, order.folder, order.name)
    await asyncio.to_thread(next, chunks, b"")  # its size
    while data := await asyncio.to_thread(next, chunks, b""):
        yield data


def _only(address: str) -> AllowedHosts:
    """Return that nothing but this ``HOST:PORT`` is allowed besides the public internet."""
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port
    try:
        return AllowedHosts(networks=((ip_network(ip_address(host)), port),))
    except ValueError:
        return AllowedHosts(hosts=((host, port),))


def _length(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _hint(status: int, host: str) -> str:
    settings = {"huggingface.co": "FLEET_HUGGINGFACE_TOKEN", "civitai.com": "FLEET_CIVITAI_TOKEN"}
    if status in (401, 403) and host in settings:
        return f": it may need {settings[host]} in the agent's environment"
    return ""
