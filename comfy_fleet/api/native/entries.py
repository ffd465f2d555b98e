"""Entries of ComfyUI's queue and history for an owner's jobs."""

from collections.abc import Mapping
from typing import Any

import orjson

from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import history_entry, shown_extra_data, shown_number
from comfy_fleet.domain.jobs.shown_ui import whole_ui
from comfy_fleet.ports.prompts import PromptContent, QueuedPrompt


def queue_item(prompt: QueuedPrompt, content: PromptContent | None) -> list[Any]:
    """Return the five parts that an entry of ``/queue`` has; without content, its graph is empty."""
    extra: Mapping[str, Any] = content.extra_data if content else {}
    return [
        shown_number(prompt.number),
        prompt.prompt_id,
        graph_of(content),
        shown_extra_data(extra, client_id=prompt.client_id, created_at=prompt.created_at),
        list(prompt.output_nodes),
    ]


def history_item(job: Job, content: PromptContent) -> bytes:
    """Return a final job's entry of ``/history``, as JSON."""
    extra = shown_extra_data(content.extra_data, client_id=job.client_id, created_at=job.created_at)
    entry = history_entry(
        job,
        graph=graph_of(content),
        extra_data=extra,
        outputs=job.output_nodes or job.targets,
        ui=whole_ui(content.ui, job.outputs),
    )
    return orjson.dumps(entry)


def graph_of(content: PromptContent | None) -> Any:
    """Return a graph for an answer, without parsing it."""
    return orjson.Fragment(content.graph) if content and content.graph else {}
