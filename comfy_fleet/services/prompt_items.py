"""What ComfyUI's jobs API lists of each job, kept in memory: every editor asks again after each change.

What a list shows of a job never changes before the job's end, except its state, which the list itself tells;
and nothing changes after it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import orjson

from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import ListedState, final_item, live_item
from comfy_fleet.domain.jobs.shown_ui import whole_ui
from comfy_fleet.ports.prompts import PromptLists

MOST_KEPT = 5000
"""Jobs whose item is kept; one takes about 500 bytes, more with a long error."""
_MOST_BYTES = 16 * 1024 * 1024
_LONGEST = 8192


class PromptItems:
    """The items of jobs, as JSON.

    Args:
        prompts: Reads what is not kept.
    """

    def __init__(self, prompts: PromptLists) -> None:
        self._prompts = prompts
        self._kept: OrderedDict[tuple[str, ListedState], bytes] = OrderedDict()

    async def of(self, rows: Sequence[tuple[str, ListedState]]) -> list[bytes]:
        """Return the item of each job of a page; jobs that were forgotten meanwhile are left out."""
        found = {row: text for row in rows if (text := self._kept.get(row)) is not None}
        missing = [row for row in rows if row not in found]
        states = dict(missing)
        jobs = await self._prompts.load([job_id for job_id, _ in missing]) if missing else []
        for job in jobs:
            if not states[job.id].final:
                found[job.id, states[job.id]] = _live(job, states[job.id])
        over = [job for job in jobs if states[job.id].final]
        while over:  # what they returned is read in parts that fit into memory
            contents = await self._prompts.contents(over, _MOST_BYTES)
            for job, content in zip(over, contents, strict=False):
                ui = whole_ui(content.ui, job.outputs)
                found[job.id, states[job.id]] = orjson.dumps(final_item(job, states[job.id], ui))
            over = over[len(contents) :]
        for row, text in found.items():
            self._keep(row, text)
        return [found[row] for row in rows if row in found]

    def _keep(self, row: tuple[str, ListedState], text: bytes) -> None:
        if len(text) > _LONGEST:
            return
        self._kept[row] = text
        self._kept.move_to_end(row)
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)


def _live(job: Job, state: ListedState) -> bytes:
    item = live_item(
        prompt_id=job.prompt_id,
        state=state,
        number=job.number,
        created_at=job.created_at,
        workflow_id=job.workflow_id,
    )
    return orjson.dumps(item)
