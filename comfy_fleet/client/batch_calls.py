"""Batches and stored workflows."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial as bound
from pathlib import Path
from typing import Any, Literal, cast

from comfy_fleet.client.calls import id_of, path_part, submit_headers
from comfy_fleet.client.data import (
    BatchData,
    BatchDetailData,
    BatchItemData,
    ItemStatus,
    MadeBatchData,
    RetriedBatchData,
    StreamEvent,
    WorkflowData,
    WorkflowSummaryData,
)
from comfy_fleet.client.file_calls import temporary
from comfy_fleet.client.job_calls import JobCalls, OnEvent, sent_options
from comfy_fleet.client.saving import PartFile, check_folder, other_files, unpack

CHECK_S = 900.0
"""How long the fleet may check a batch."""
BatchReference = str | BatchData | BatchDetailData | MadeBatchData
"""A batch that the fleet has answered, or its id."""


def _completed(event: StreamEvent) -> bool:
    return event.name == "batch" and event.data.get("status") == "completed"


class BatchCalls(JobCalls):
    """What is done with batches, and what is asked about stored workflows."""

    async def submit_batch(
        self,
        workflow: str,
        items: Iterable[Mapping[str, Any]],
        *,
        defaults: Mapping[str, Any] | None = None,
        partial: bool = False,
        files: str | None = None,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> MadeBatchData:
        """Submit many jobs of a stored workflow at once. If an item is wrong, nothing is queued.

        Args:
            workflow: The workflow's name.
            items: An object for each: ``params``, with files as for :meth:`submit`, ``custom_id``, and what
                :class:`SubmitOptions` has.
            defaults: What items don't say themselves; ``params`` and ``metadata`` are merged name by name.
            partial: Leave out the items that can't be taken: ``errors`` of the answer tells why.
            files: The id of an uploaded zip, whose files items name as ``@NAME``.
            webhook_url: Gets one message when the last item has ended.
            idempotency_key: As for :meth:`submit`.

        Raises:
            RequestRefused: Items are wrong: ``problems`` names item and field.
            ClientError: It can't be submitted.
        """
        body: dict[str, Any] = {"items": [await self._item(one) for one in items]}
        body |= {} if defaults is None else {"defaults": await self._item(defaults)}
        path = f"/api/v1/workflows/{path_part('workflow', workflow)}/batches"
        more = {"partial": partial or None, "files": files, "webhook_url": webhook_url}
        return await self._submit_batch(path, body, more, idempotency_key)

    async def submit_graph_batch(
        self,
        items: Iterable[Mapping[str, Any]],
        *,
        partial: bool = False,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> MadeBatchData:
        """Submit many graphs at once: an object for each, with ``workflow``, the graph, and ``custom_id``.

        Args and errors are otherwise those of :meth:`submit_batch`.
        """
        sent = [{**sent_options(one), "workflow": await self._with_uploads(one["workflow"])} for one in items]
        more = {"partial": partial or None, "webhook_url": webhook_url}
        return await self._submit_batch("/api/v2/batches", {"items": sent}, more, idempotency_key)

    async def _item(self, item: Mapping[str, Any]) -> dict[str, Any]:
        params = {"params": await self._with_files(item["params"])} if "params" in item else {}
        return {**sent_options(item), **params}

    async def _submit_batch(
        self, path: str, body: Mapping[str, Any], more: Mapping[str, Any], key: str | None
    ) -> MadeBatchData:
        told = {name: value for name, value in more.items() if value is not None}
        made = await self.request(
            "POST",
            path,
            body={**body, **told},
            headers=submit_headers(key),
            timeout_s=max(CHECK_S, self._timeout_s),
        )
        return cast("MadeBatchData", made)

    async def batch(
        self, batch: BatchReference, *, status: Sequence[ItemStatus] = (), limit: int = 100
    ) -> BatchDetailData:
        """Return a batch as it is now, with its probable end and a page of its items.

        Args:
            batch: The batch.
            status: Only items in these states.
            limit: How many items, at most 100.
        """
        query = {"limit": limit, "status": ",".join(status) or None}
        path = f"/api/v1/batches/{id_of('batch', batch)}"
        return cast("BatchDetailData", await self.request("GET", path, params=query))

    async def batch_items(
        self, batch: BatchReference, *, status: Sequence[ItemStatus] = ()
    ) -> AsyncGenerator[BatchItemData, None]:
        """Yield all items of a batch, or those in some states, with their jobs, errors and outputs."""
        query: dict[str, Any] = {"limit": 100, "status": ",".join(status) or None}
        while True:
            path = f"/api/v1/batches/{id_of('batch', batch)}"
            found = await self.request("GET", path, params=query)
            for one in found["items"]:
                yield one
            if found["next_cursor"] is None:
                return
            query["cursor"] = found["next_cursor"]

    async def batches(self) -> AsyncGenerator[BatchData, None]:
        """Yield your batches, newest first."""
        query: dict[str, Any] = {"limit": 100}
        while True:
            found = await self.request("GET", "/api/v1/batches", params=query)
            for one in found["batches"]:
                yield one
            if found["next_cursor"] is None:
                return
            query["cursor"] = found["next_cursor"]

    async def follow_batch(
        self, batch: BatchReference, *, wait_s: float | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield a batch's events until its last item has ended: ``batch`` with counts, ``item`` with a state.

        Raises:
            WaitExpired: The time is up; the batch goes on.
            ClientError: There is none of yours, or the fleet can't be reached any more.
        """
        batch_id = id_of("batch", batch)

        async def look() -> StreamEvent:
            return StreamEvent(name="batch", data=await self.batch(batch_id, limit=0))

        followed = self.followed(
            f"/api/v1/batches/{batch_id}/events",
            what=f"batch {batch_id}",
            state="batch",
            final=_completed,
            look=look,
            timeout_s=wait_s,
        )
        async with aclosing(followed) as events:
            async for event in events:
                yield event

    async def wait_batch(
        self, batch: BatchReference, *, wait_s: float | None = None, on_event: OnEvent | None = None
    ) -> BatchDetailData:
        """Wait until the last item of a batch has ended, however; ``counts`` tells how many succeeded.

        Args and errors are those of :meth:`wait`.
        """
        async with aclosing(self.follow_batch(batch, wait_s=wait_s)) as events:
            async for event in events:
                if on_event is not None:
                    await self._transport.tell(on_event, event)
        return await self.batch(batch)

    async def cancel_batch(self, batch: BatchReference) -> BatchData:
        """Cancel those items of a batch that have not ended."""
        path = f"/api/v1/batches/{id_of('batch', batch)}/cancel"
        timeout_s = max(CHECK_S, self._timeout_s)
        return cast("BatchData", await self.request("POST", path, repeat=True, timeout_s=timeout_s))

    async def retry_batch(
        self,
        batch: BatchReference,
        *,
        statuses: Sequence[Literal["failed", "canceled", "expired"]] = ("failed",),
        new_seed: bool = False,
        partial: bool = False,
        idempotency_key: str | None = None,
    ) -> RetriedBatchData:
        """Run items of a batch again, under the same names; ``retried`` of the answer says how many.

        Args:
            batch: The batch.
            statuses: Items in these states.
            new_seed: Draw their seeds anew.
            partial: Leave out those that can't run again.
            idempotency_key: As for :meth:`submit`.
        """
        made = await self.request(
            "POST",
            f"/api/v1/batches/{id_of('batch', batch)}/retry",
            body={"statuses": list(statuses), "new_seed": new_seed, "partial": partial},
            headers=submit_headers(idempotency_key),
            timeout_s=max(CHECK_S, self._timeout_s),
        )
        return cast("RetriedBatchData", made)

    async def save_batch_zip(self, batch: BatchReference, path: str | Path, *, replace: bool = False) -> Path:
        """Save the zip of all that a batch has made, with ``manifest.csv``, under a name.

        Raises:
            FileConflict: Another file has the name.
            ClientError, OSError: It can't be loaded or written.
        """
        target, aside = Path(path), self._transport.aside
        if not replace and await aside(target.exists):
            raise other_files(target.parent, [target])
        part = await aside(bound(PartFile, target))
        try:

            async def attempt() -> None:
                await aside(part.restart)
                async with aclosing(self._pieces(_zip_of(batch))) as pieces:
                    async for piece in pieces:
                        await aside(bound(part.write, piece))

            await self.repeated(attempt)
            await aside(bound(part.place, replace=replace))
        finally:
            await aside(part.close)
        return target

    async def download_batch(
        self, batch: BatchReference, folder: str | Path, *, replace: bool = False
    ) -> list[Path]:
        """Save all that a batch has made in a folder, named by ``custom_id``, with ``manifest.csv``.

        Equal files that are there stay.

        Raises:
            FileConflict: Other files have these names: nothing is saved.
            BrokenDownload: What came is incomplete.
            ClientError, OSError: It can't be loaded or written.
        """
        where, aside = Path(folder), self._transport.aside
        await aside(bound(check_folder, where))
        packed = await aside(bound(temporary, where))
        try:
            await self._spooled(_zip_of(batch), packed)
            return await aside(bound(unpack, packed, where, replace=replace))
        finally:
            await aside(packed.close)

    async def workflows(self) -> list[WorkflowSummaryData]:
        """Return the stored workflows."""
        found = await self.request("GET", "/api/v1/workflows")
        return cast("list[WorkflowSummaryData]", found["workflows"])

    async def workflow(self, name: str) -> WorkflowData:
        """Return a stored workflow; its ``parameters`` are a JSON Schema.

        Raises:
            NothingFound: There is none.
        """
        path = f"/api/v1/workflows/{path_part('workflow', name)}"
        return cast("WorkflowData", await self.request("GET", path))


def _zip_of(batch: BatchReference) -> str:
    return f"/api/v1/batches/{id_of('batch', batch)}/outputs.zip"
