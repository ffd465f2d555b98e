"""What ComfyUI's lists show of each job, kept in memory: every editor asks again after each change.

What a list shows of a job never changes before the job's end, except its state, which the list itself tells;
and nothing changes after it. So an item is made once, however large its graph is and however often it is
asked for.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeVar

import orjson

from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import (
    ListedState,
    final_item,
    history_entry,
    live_item,
    shown_extra_data,
    shown_number,
)
from comfy_fleet.domain.jobs.shown_ui import whole_ui
from comfy_fleet.ports.prompts import PromptContent, PromptLists, QueuedPrompt

MOST_KEPT_BYTES = 64 * 1024 * 1024
"""Of all items; an item may have a quarter of it."""
_ENTRY_BYTES = 300
_MOST_BYTES = 16 * 1024 * 1024
_QUEUE, _HISTORY = "queue", "history"
RowT = TypeVar("RowT", Job, QueuedPrompt)


class PromptItems:
    """The items of jobs, as JSON.

    Attributes:
        kept_bytes: About how much memory they take.

    Args:
        prompts: Reads what is not kept.
        most_bytes: How much is kept.
    """

    def __init__(self, prompts: PromptLists, *, most_bytes: int = MOST_KEPT_BYTES) -> None:
        self._prompts = prompts
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, str], tuple[str, bytes]] = OrderedDict()
        self.kept_bytes = 0

    async def of(self, rows: Sequence[tuple[str, ListedState]]) -> list[bytes]:
        """Return the item of each job of a page of ``/api/jobs``; jobs that were forgotten are left out."""
        found: dict[str, bytes] = {}
        for job_id, state in rows:
            found |= {one: text for one, (_, text) in self._all_known(state, [job_id]).items()}
        states = {job_id: state for job_id, state in rows if job_id not in found}
        jobs = await self._prompts.load(list(states)) if states else []
        for job in jobs:
            if not states[job.id].final:
                found[job.id] = self._keep(states[job.id], job, _live(job, states[job.id]))
        over = [job for job in jobs if states[job.id].final]
        while over:  # what they returned is read in parts that fit into memory
            contents = await self._prompts.contents(over, _MOST_BYTES)
            for job, content in zip(over, contents, strict=False):
                ui = whole_ui(content.ui, job.outputs)
                text = orjson.dumps(final_item(job, states[job.id], ui))
                found[job.id] = self._keep(states[job.id], job, text)
            over = over[len(contents) :]
        return [found[job_id] for job_id, _ in rows if job_id in found]

    async def queue(self, prompts: Sequence[QueuedPrompt], most_bytes: int) -> list[bytes]:
        """Return the entry of each prompt in ``/queue``; beyond so many bytes they have no graph."""
        kept = self._all_known(_QUEUE, [prompt.id for prompt in prompts])
        rows = {prompt.id: prompt for prompt in prompts}
        found = await self._first(_QUEUE, list(rows), kept, rows, most_bytes, _queue_item)
        return [text for _, text in found] + [_queue_item(prompt, None) for prompt in prompts[len(found) :]]

    async def history(self, job_ids: Sequence[str], most_bytes: int) -> tuple[list[tuple[str, bytes]], bool]:
        """Return prompt id and entry in ``/history`` of the first of these jobs.

        Jobs that were forgotten are left out.

        Returns:
            Of as many as fit, and at least one; and whether these are all.
        """
        kept = self._all_known(_HISTORY, job_ids)
        missing = [job_id for job_id in job_ids if job_id not in kept]
        jobs = await self._prompts.load(missing) if missing else []
        rows = {job.id: job for job in jobs if job.status.terminal}
        there = [job_id for job_id in job_ids if job_id in kept or job_id in rows]
        found = await self._first(_HISTORY, there, kept, rows, most_bytes, history_item)
        return found, len(found) == len(there)

    async def _first(
        self,
        kind: str,
        job_ids: Sequence[str],
        kept: Mapping[str, tuple[str, bytes]],
        rows: Mapping[str, RowT],
        most_bytes: int,
        make: Callable[[RowT, PromptContent], bytes],
    ) -> list[tuple[str, bytes]]:
        """Return prompt id and entry of the first jobs, as many as fit, at least one.

        Args:
            kind: Which entries.
            job_ids: The jobs.
            kept: Entries that are known.
            rows: The other jobs.
            most_bytes: How many bytes the entries may have together; about, if they are not known.
            make: Makes an entry.
        """
        found: list[tuple[str, bytes]] = []
        left = most_bytes
        while len(found) < len(job_ids) and (left > 0 or not found):
            if (entry := kept.get(job_ids[len(found)])) is not None:
                if found and len(entry[1]) > left:
                    break
                found.append(entry)
                left -= len(entry[1])
                continue
            part = [rows[job_id] for job_id in takewhile(lambda one: one not in kept, job_ids[len(found) :])]
            contents = await self._prompts.contents(part, left)
            for row, content in zip(part, contents, strict=False):
                text = make(row, content)
                if content.graph:  # else the job was forgotten meanwhile
                    self._keep(kind, row, text)
                found.append((row.prompt_id, text))
                left -= len(text)
            if len(contents) < len(part):
                break
        return found

    def _all_known(self, kind: str, job_ids: Sequence[str]) -> dict[str, tuple[str, bytes]]:
        """Return prompt id and entry of those jobs whose entry is kept."""
        found = {}
        for job_id in job_ids:
            if (entry := self._kept.get((kind, job_id))) is not None:
                self._kept.move_to_end((kind, job_id))
                found[job_id] = entry
        return found

    def _keep(self, kind: str, row: Job | QueuedPrompt, text: bytes) -> bytes:
        """Keep an entry, unless it is too large; return it."""
        key, entry = (kind, row.id), (row.prompt_id, text)
        size = _size(entry)
        if size > self._most_bytes // 4:
            return text
        if (former := self._kept.pop(key, None)) is not None:
            self.kept_bytes -= _size(former)
        self._kept[key] = entry
        self.kept_bytes += size
        while self.kept_bytes > self._most_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.kept_bytes -= _size(dropped)
        return text


def graph_of(content: PromptContent | None) -> Any:
    """Return a graph for an answer, without parsing it."""
    return orjson.Fragment(content.graph) if content and content.graph else {}


def _size(entry: tuple[str, bytes]) -> int:
    return _ENTRY_BYTES + len(entry[0]) + len(entry[1])


def _queue_item(prompt: QueuedPrompt, content: PromptContent | None) -> bytes:
    """Return the five parts that an entry of ``/queue`` has; without content, its graph is empty."""
    extra: Mapping[str, Any] = content.extra_data if content else {}
    return orjson.dumps(
        [
            shown_number(prompt.number),
            prompt.prompt_id,
            graph_of(content),
            shown_extra_data(extra, client_id=prompt.client_id, created_at=prompt.created_at),
            list(prompt.output_nodes),
        ]
    )


def history_item(job: Job, content: PromptContent) -> bytes:
    """Return a final job's entry of ``/history``."""
    extra = shown_extra_data(content.extra_data, client_id=job.client_id, created_at=job.created_at)
    entry = history_entry(
        job,
        graph=graph_of(content),
        extra_data=extra,
        outputs=job.output_nodes or job.targets,
        ui=whole_ui(content.ui, job.outputs),
    )
    return orjson.dumps(entry)


def _live(job: Job, state: ListedState) -> bytes:
    item = live_item(
        prompt_id=job.prompt_id,
        state=state,
        number=job.number,
        created_at=job.created_at,
        workflow_id=job.workflow_id,
    )
    return orjson.dumps(item)
