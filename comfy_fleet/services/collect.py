"""Collect a run's outputs: fetch each from the node, store its bytes, commit it to the job."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from comfy_fleet.domain.asset import Asset
from comfy_fleet.domain.errors import LeaseLost, NodeError, OutputGone
from comfy_fleet.domain.job import Output
from comfy_fleet.domain.outputs import FileRef, InlineText, OutputItem
from comfy_fleet.ports import AssetStore, Claim, NodeApi, RunStore
from comfy_fleet.services.insist import insist

FETCH_TRIES = 5
FETCH_GAP_S = 0.2  # grows with every try
LINGER_S = 0.05  # small outputs are here sooner; then one write ends the run and frees the node
YIELD_S = 0.01


class Collector:
    """Fetches the outputs of one run, side by side and each once.

    While others wait, the node's next job comes first: fetching would take the loop from it. So an output is
    then left for a moment, which ends a little after the run has left the node.

    Attributes:
        gone: Nodes of the graph whose files are no longer there.

    Args:
        claim: The run.
        runs: Where outputs are committed.
        nodes: Where they are fetched.
        assets: Where their bytes are stored.
    """

    def __init__(self, claim: Claim, *, runs: RunStore, nodes: NodeApi, assets: AssetStore) -> None:
        self._claim = claim
        self._runs = runs
        self._nodes = nodes
        self._assets = assets
        self._tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        self._hasten = asyncio.Event()
        self._extra = {"job_id": claim.job.id, "run": claim.run, "node": claim.node}
        self.gone: set[str] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, items: Iterable[OutputItem]) -> None:
        """Begin to collect what has not been begun."""
        for item in items:
            if item.id not in self._tasks:
                self._tasks[item.id] = asyncio.create_task(self._collect(item))

    async def stored(self, items: Iterable[OutputItem]) -> bool:
        """Whether all outputs are stored; waits a moment for small ones."""
        self.add(items)
        pending = [task for task in self._tasks.values() if not task.done()]
        if pending:
            _, rest = await asyncio.wait(pending, timeout=LINGER_S)
            return not rest
        return True

    def left(self, items: Iterable[OutputItem]) -> None:
        """Collect the outputs of a run that has left its node; the next job's prompt goes there first."""
        if self._claim.behind:
            asyncio.get_running_loop().call_later(YIELD_S, self._hasten.set)
        self.add(items)

    async def settled(self) -> list[BaseException]:
        """Wait for every output; returns why some can't be had.

        Raises:
            LeaseLost: Another dispatcher has the run.
        """
        results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        broken = [result for result in results if isinstance(result, BaseException)]
        for error in broken:
            if isinstance(error, LeaseLost):
                raise error
        return broken

    def cancel(self) -> None:
        """Fetch nothing more."""
        for task in self._tasks.values():
            task.cancel()

    async def _collect(self, item: OutputItem) -> None:
        """Store one output and commit it. Raises OutputGone or NodeError when it can't be had."""
        if self._claim.behind:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._hasten.wait()
        asset = await insist(lambda: self._store(item), extra=self._extra)
        output = Output(
            asset_id=asset.id,
            node_id=item.node_id,
            key=item.key,
            index=item.index,
            name=item.name,
            kind=item.kind,
            content_type=item.content_type,
            size_bytes=asset.size_bytes,
            hash=asset.hash,
            temporary=item.temporary,
        )
        await insist(lambda: self._runs.output(self._claim, output), extra=self._extra)

    async def _store(self, item: OutputItem) -> Asset:
        """Store an output's bytes, trying again while its node may still give them."""
        job, attempt = self._claim.job, 1
        while True:
            try:
                async with self._content(item) as chunks:
                    return await self._assets.add_output(
                        owner=job.owner,
                        job_id=job.id,
                        chunks=chunks,
                        name=item.name,
                        content_type=item.content_type,
                        expires_at=job.expires_at,
                    )
            except OutputGone as error:
                self.gone.add(item.node_id)
                error.details["node_id"] = item.node_id
                raise
            except NodeError as error:
                if attempt == FETCH_TRIES:
                    error.details["node_id"] = item.node_id
                    raise
                await asyncio.sleep(FETCH_GAP_S * attempt)
                attempt += 1

    @contextlib.asynccontextmanager
    async def _content(self, item: OutputItem) -> AsyncIterator[AsyncIterator[bytes]]:
        match item.source:
            case FileRef():
                async with self._nodes.view(self._claim.node, item.source) as chunks:
                    yield chunks
            case InlineText():
                yield _once(item.source.text.encode())
            case _:
                yield _once(item.source.data)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
