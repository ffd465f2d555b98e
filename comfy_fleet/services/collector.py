"""Collect a run's outputs: fetch each from the node, store its bytes, commit it to the job.

A picture that carries the graph as the run has posted it is stored with the graph as submitted.

There are three kinds of trouble. The fleet's own (Redis is away, its disk is full) is waited out, since the
run has succeeded. An output that the node does not have *yet* is asked for again. An output that it will
never have, or that exceeds a limit, ends the job, which keeps the outputs that could be fetched.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from comfy_fleet.domain.disk_room import size_text
from comfy_fleet.domain.errors import (
    LeaseLost,
    NodeError,
    NoRoom,
    OutputGone,
    OutputLimit,
    OutputRefused,
    StoreDown,
)
from comfy_fleet.domain.graphs.pictures.restoring import PictureRestorer
from comfy_fleet.domain.graphs.pictures.submitted import SubmittedGraph
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.outputs import FileRef, InlineText, OutputItem
from comfy_fleet.domain.moderation import ModerationMode, load_mode, placeholder
from comfy_fleet.domain.schedule.waiting_job import WARMING
from comfy_fleet.ports.assets import AssetStore, Content
from comfy_fleet.ports.comfyui import RunNodes
from comfy_fleet.ports.runs import Claim, RunStore, StoredOutput
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.output_naming import OutputNaming
from comfy_fleet.services.store_retry import Reminder, retry_while_store_down
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE = 1024 * 1024  # bytes of a picture that are copied in one step
AT_ONCE = 8  # per run: more would only make each of them slower
FETCH_TRIES = 5
FETCH_GAP_S = 0.2  # grows with every try
LATE_S = 3.0  # some nodes name a file before another thread has written it
LATE_PREVIEW_S = 1.0  # the same for a preview beside real outputs, which would not be missed
LINGER_S = 0.05  # small outputs arrive within it; then one write ends the run and frees the node
YIELD_S = 0.01
ROOM_GAP_S = 1.0  # between two looks at a full disk


@dataclass(frozen=True, kw_only=True)
class OutputLimits:
    """The operator's limits; see :class:`comfy_fleet.settings.Settings`.

    Attributes:
        outputs: Most outputs of one job.
        output_bytes: Largest output.
        job_bytes: Largest sum of a job's outputs.
        output_s: Longest transfer of one output from the node, in seconds.
    """

    outputs: int = 1000
    output_bytes: int = 10**9
    job_bytes: int = 4 * 10**9
    output_s: float = 1800.0


class Sharing:
    """What the runs of one process share.

    Attributes:
        slots: Limits how many transfers from nodes run at once.
        waiting: Runs that wait for room on the fleet's disk.

    Args:
        transfers: The number of slots.
        on_room: Called when a run no longer waits for room.
    """

    def __init__(self, transfers: int, *, on_room: Callable[[], None] = lambda: None) -> None:
        self.slots = asyncio.Semaphore(transfers)
        self.waiting = 0
        self._on_room = on_room

    def waits(self) -> None:
        """Note that a run waits for room."""
        self.waiting += 1

    def goes_on(self) -> None:
        """Note that a run no longer waits."""
        self.waiting -= 1
        self._on_room()


class Collector:
    """Fetches the outputs of one run, several at a time and each once.

    While other jobs wait, the node's next job comes first, because fetching would take time from the event
    loop. So outputs are then delayed until a little after the run has left the node.

    Attributes:
        gone: Nodes of the graph whose files are no longer there.
        held_bytes: Memory of the outputs that exist nowhere else.
        over: The limit that the outputs have exceeded; then nothing more is fetched.
        last: An output that is stored, and to be committed by the write that ends the run.

    Args:
        claim: The run.
        runs: Where outputs are committed.
        nodes: Where they are fetched.
        assets: Where their bytes are stored.
        limits: The operator's limits for one job.
        sharing: Shared by all runs of this process.
        telemetry: Is told when Redis does not answer.
        moderation: Judges files of jobs that say so.
    """

    def __init__(
        self,
        claim: Claim,
        *,
        runs: RunStore,
        nodes: RunNodes,
        assets: AssetStore,
        limits: OutputLimits,
        sharing: Sharing,
        telemetry: Telemetry,
        moderation: Moderation | None = None,
    ) -> None:
        self._claim = claim
        self._moderation = moderation
        self._runs = runs
        self._nodes = nodes
        self._assets = assets
        self._limits = limits
        self._sharing = sharing
        self._own_slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._items: dict[tuple[str, str, int], OutputItem] = {}
        self._committed: dict[tuple[str, str, int], Output] = {}
        self._added = asyncio.Event()
        self._bytes = 0
        self.held_bytes = 0
        self._waiting = 0
        self._hasten = asyncio.Event()
        self._naming = OutputNaming(partial(runs.name_outputs, claim))
        self._telemetry = telemetry
        self._extra = claim.log_fields
        self._submitted = SubmittedGraph(claim.graph)
        self.gone: set[str] = set()
        self.over: OutputLimit | None = None
        self.last: StoredOutput | None = None
        self._run_over = False

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, items: Iterable[OutputItem]) -> None:
        """Start to collect the outputs that were not started yet; nobody wants those of a run that warms."""
        if self._claim.job.tier == WARMING:
            return
        new = {item.id: item for item in items if item.id not in self._items}
        if len(self._items) + len(new) > self._limits.outputs:
            self._refuse(
                "max_outputs",
                self._limits.outputs,
                f"the job makes more than {self._limits.outputs} outputs",
            )
        if self.over is not None:
            return
        self._items |= new
        self._naming.want(new.values())
        for id_, item in new.items():
            self.held_bytes += item.held_bytes
            self._tasks[id_] = task = asyncio.create_task(self._collect(item))
            task.add_done_callback(partial(self._collected, id_))
        if new:
            self._added.set()

    async def stored(self, items: Iterable[OutputItem]) -> bool:
        """Return True if all outputs of a run that is over are stored; wait a moment for small ones."""
        self._run_over = True
        self.add(items)
        pending = [task for task in self._tasks.values() if not task.done()]
        if pending:
            _, rest = await asyncio.wait(pending, timeout=LINGER_S)
            return not rest
        return True

    async def committed(self, ids: Iterable[tuple[str, str, int]]) -> list[Output] | None:
        """Wait until some outputs are committed and return them; None if that fails for one of them."""
        wanted = list(ids)
        while any(id_ not in self._tasks for id_ in wanted):
            self._added.clear()
            await self._added.wait()
        if wanted:
            await asyncio.wait([self._tasks[id_] for id_ in wanted])
        found = [self._committed[id_] for id_ in wanted if id_ in self._committed]
        return found if len(found) == len(wanted) else None

    def unsafe(self, items: Iterable[OutputItem]) -> list[OutputItem]:
        """Return the outputs for a dispatcher that takes the run over: on the node, or not committed yet."""
        known = (self._items.get(item.id, item) for item in items)
        return [item for item in known if isinstance(item.source, FileRef) or item.id not in self._committed]

    def left(self, items: Iterable[OutputItem]) -> None:
        """Collect the outputs of a run that has left its node; the next job's prompt goes there first."""
        if self._claim.jobs_behind:
            asyncio.get_running_loop().call_later(YIELD_S, self._hasten.set)
        self._run_over = True
        self.add(items)

    async def settled(self) -> list[BaseException]:
        """Wait for every output; return why some can't be fetched.

        A missing preview is not reported if there are real outputs.

        Raises:
            LeaseLost: Another dispatcher has the run.
        """
        results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._naming.close()
        broken = {
            id_: result
            for id_, result in zip(self._tasks, results, strict=True)
            if isinstance(result, BaseException)
        }
        for error in broken.values():
            if isinstance(error, LeaseLost):
                raise error
        if self.over is not None:
            return [self.over]
        if any(not self._items[id_].temporary for id_ in self._committed):
            for id_ in [id_ for id_, error in broken.items() if self._spare(id_, error)]:
                logger.info("preview lost", extra={**self._extra, "error": str(broken.pop(id_))})
        return list(broken.values())

    def cancel(self) -> None:
        """Fetch nothing more."""
        self._naming.close()
        for task in self._tasks.values():
            task.cancel()

    def _spare(self, id_: tuple[str, str, int], error: BaseException) -> bool:
        return self._items[id_].temporary and isinstance(error, NodeError)

    def _refuse(self, limit: str, value: float, what: str, node_id: str | None = None) -> OutputLimit:
        """Stop: transfers in progress are dropped, stored outputs stay."""
        error = OutputLimit(
            f"{what} (FLEET_{limit.upper()})",
            details={"limit": limit, "value": value, **({"node_id": node_id} if node_id else {})},
        )
        if self.over is None:
            self.over = error
            current = asyncio.current_task()
            for task in self._tasks.values():
                if task is not current:
                    task.cancel()
        return error

    async def _collect(self, item: OutputItem) -> None:
        """Store one output and commit it. Raises NodeError or OutputLimit if that is impossible."""
        # A long text exists nowhere else, and is too long for a record of the run.
        if self._claim.jobs_behind and not (isinstance(item.source, InlineText) and item.source.long):
            with contextlib.suppress(TimeoutError):
                async with Timeout(LINGER_S):
                    await self._hasten.wait()
        self._naming.start()
        asset = await self._kept(item)
        allowed = await self._released(item, asset)
        if not allowed:
            asset = await self._withheld(item, asset)
        saved = await self._naming.of(item)
        output = Output(
            asset_id=asset.id,
            node_id=item.node_id,
            key=item.key,
            index=item.index,
            name=saved.filename if saved else item.name,
            kind=item.kind,
            content_type=item.content_type if allowed else asset.content_type,
            size_bytes=asset.size_bytes,
            hash=asset.hash,
            withheld=not allowed,
            temporary=item.temporary,
            saved=saved is not None,
            subfolder=saved.subfolder if saved else "",
        )
        made = StoredOutput(output=output, asset=asset)
        if self._ends_with(item.id, made):
            self.last = made
        else:
            self._committed[item.id] = await self._commit(made)

    async def _released(self, item: OutputItem, asset: Asset) -> bool:
        """Return whether a file may be given out. Texts that a node returns are in its other answers, too."""
        job = self._claim.job
        if not job.moderation or isinstance(item.source, InlineText):
            return True
        if self._moderation is None:
            return load_mode(job.moderation)[0] is ModerationMode.OPEN
        judged = await self._moderation.releases(job, asset, node_id=item.node_id, key=item.key)
        if not judged.allowed:
            logger.info("output withheld", extra={**self._extra, "reason": judged.reason})
        return judged.allowed

    async def _withheld(self, item: OutputItem, asset: Asset) -> Asset:
        """Delete a file's bytes, which have no record yet, and store a placeholder."""
        data, content_type = placeholder(item.content_type)
        job = self._claim.job
        await self._assets.discard_output(asset)
        saved = await self._naming.of(item)
        while True:
            try:
                return await self._insist(
                    lambda: self._assets.put_output(
                        owner=job.owner,
                        job_id=job.id,
                        chunks=_pieces(data),
                        name=saved.filename if saved else item.name,
                        content_type=content_type,
                        expires_at=job.expires_at,
                    )
                )
            except NoRoom as error:
                await self._room(len(data), error)

    def _ends_with(self, id_: tuple[str, str, int], made: StoredOutput) -> bool:
        """Return whether an output can wait for the write that ends the run, because it is the last one.

        Not if its bytes may be there already and have to be replaced, nor if a client is told of each file.
        """
        job = self._claim.job
        return (
            self._run_over
            and self.last is None
            and job.client_id is None
            and not job.attempts
            and self._committed.keys() == self._items.keys() - {id_}
            and all(other.hash != made.asset.hash for other in self._committed.values())
        )

    async def _commit(self, made: StoredOutput) -> Output:
        asset = await self._insist(lambda: self._runs.commit(self._claim, made))
        if asset.path != made.asset.path:
            with contextlib.suppress(NoRoom):  # what is there are the same bytes
                await self._assets.replace_output(asset.path, by=made.asset)
        return replace(made.output, asset_id=asset.id)

    async def commit_last(self) -> None:
        """Commit the output that was to be committed with the run's end, if there is one."""
        if self.last is not None:
            made, self.last = self.last, None
            await self._commit(made)

    def _collected(self, id_: tuple[str, str, int], _: asyncio.Task[None]) -> None:
        self.held_bytes -= self._items[id_].held_bytes
        if id_ in self._committed:
            self._items[id_] = self._items[id_].emptied()

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry_while_store_down(call, about=self._extra, telemetry=self._telemetry)

    async def _kept(self, item: OutputItem) -> Asset:
        """Store an output's bytes; wait for as long as the fleet's own disk has no room."""
        size = _Size()
        while True:
            try:
                return await self._insist(lambda: self._store(item, size))
            except NoRoom as error:
                await self._room(size.bytes, error)

    async def _room(self, size_bytes: int, error: NoRoom) -> None:
        """Wait until this many bytes fit, without a slot and without calls to the node."""
        reminder = Reminder()
        self._waiting += 1
        if self._waiting == 1:
            self._sharing.waits()
        try:
            while True:
                if reminder.due():
                    logger.warning(
                        "outputs wait for room on the fleet's disk",
                        extra={**self._extra, "error": str(error)},
                    )
                    await self._show(str(error))
                await asyncio.sleep(ROOM_GAP_S)
                try:
                    self._assets.check_room(size_bytes, output=True)
                except NoRoom as still:
                    error = still
                else:
                    return
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._sharing.goes_on()
                await self._show(None)

    async def _show(self, why: str | None) -> None:
        with contextlib.suppress(StoreDown):  # a full disk is usually a problem for Redis, too
            await self._runs.waits(self._claim, why)

    async def _store(self, item: OutputItem, size: "_Size") -> Asset:
        """Store an output's bytes; try again while the node may still have them."""
        loop = asyncio.get_running_loop()
        attempt, late_until = 1, None
        while True:
            try:
                return await self._transfer(item, size)
            except OutputGone as error:
                error.details["node_id"] = item.node_id
                if late_until is None:
                    spare = item.temporary and any(not other.temporary for other in self._items.values())
                    late_until = loop.time() + (LATE_PREVIEW_S if spare else LATE_S)
                if loop.time() >= late_until:
                    self.gone.add(item.node_id)
                    raise
                await asyncio.sleep(FETCH_GAP_S)
            except NodeError as error:
                error.details["node_id"] = item.node_id
                if attempt == FETCH_TRIES or isinstance(error, OutputRefused):
                    raise
                await asyncio.sleep(FETCH_GAP_S * attempt)
                attempt += 1

    async def _transfer(self, item: OutputItem, size: "_Size") -> Asset:
        """Store an output's bytes within the time that it may take, once there is a slot."""
        async with self._own_slots, self._sharing.slots:
            patience = Timeout(self._limits.output_s)
            try:
                async with patience:
                    return await self._fetch(item, size)
            except TimeoutError as error:
                if not patience.expired():
                    raise
                seconds = self._limits.output_s
                what = f"output {item.name!r} took longer than {seconds:g} s"
                raise self._refuse("output_timeout_s", seconds, what, item.node_id) from error

    async def _fetch(self, item: OutputItem, size: "_Size") -> Asset:
        mine = 0

        async def counted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            nonlocal mine
            async for chunk in chunks:
                mine += len(chunk)
                self._bytes += len(chunk)
                size.bytes = max(size.bytes, mine)
                self._weigh(item, mine, self._bytes)
                yield chunk

        job = self._claim.job
        try:
            async with self._content(item) as content:
                if content.length is not None:
                    size.bytes = content.length
                    self._weigh(item, content.length, self._bytes + content.length)
                    self._assets.check_room(content.length, output=True)
                saved = await self._naming.of(item)  # drawn since before the node was asked for the file
                return await self._assets.put_output(
                    owner=job.owner,
                    job_id=job.id,
                    chunks=counted(content.chunks),
                    name=saved.filename if saved else item.name,
                    content_type=item.content_type,
                    expires_at=job.expires_at,
                    corrections=PictureRestorer(self._submitted),
                )
        except BaseException:
            self._bytes -= mine  # nothing was kept of it
            raise

    def _weigh(self, item: OutputItem, size_bytes: int, all_bytes: int) -> None:
        """Raise OutputLimit if an output, or all of them together, are too large."""
        one, most = self._limits.output_bytes, self._limits.job_bytes
        if size_bytes > one:
            what = f"output {item.name!r} is larger than {size_text(one)}"
            raise self._refuse("max_output_bytes", one, what, item.node_id)
        if all_bytes > most:
            what = f"the job's outputs are larger than {size_text(most)} together"
            raise self._refuse("max_job_bytes", most, what, item.node_id)

    async def _view(self, stack: contextlib.AsyncExitStack, ref: FileRef) -> Content:
        """Open a file; if its node did not say in which of two folders it is, try both."""
        node = self._claim.node
        try:
            return await stack.enter_async_context(self._nodes.view(node, ref))
        except OutputGone:
            if not ref.or_type:
                raise
            return await stack.enter_async_context(self._nodes.view(node, replace(ref, type=ref.or_type)))

    @contextlib.asynccontextmanager
    async def _content(self, item: OutputItem) -> AsyncIterator[Content]:
        match item.source:
            case FileRef():
                async with contextlib.AsyncExitStack() as stack:
                    yield await self._view(stack, item.source)
            case InlineText():
                data = item.source.text.encode()
                yield Content(chunks=_pieces(data), length=len(data))
            case _:
                yield Content(chunks=_pieces(item.source.data), length=len(item.source.data))


@dataclass
class _Size:
    """The least number of bytes an output has, as far as its node has announced."""

    bytes: int = 0


async def _pieces(data: bytes | memoryview) -> AsyncIterator[bytes]:
    for start in range(0, max(1, len(data)), _PIECE):
        yield bytes(data[start : start + _PIECE])
