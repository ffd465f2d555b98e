"""What an agent is told of a job: a text, its pictures within a limit of bytes, links, or an error."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

from comfy_fleet.client import (
    FINAL,
    AsyncFleetClient,
    ClientError,
    FleetUnavailable,
    JobData,
    OutputData,
    RateLimited,
    RequestRefused,
)
from comfy_fleet.mcp.tools import text

WIDTHS = (1024, 768, 512, 256)
"""Pixels in a row of a picture that is shown; the first one that is small enough."""
MOST_PICTURES = 8
MOST_TEXT = 8_000
LINK_S = 3600
"""How long links can be read without a key."""


async def told(fleet: AsyncFleetClient, job: JobData, *, most_bytes: int) -> CallToolResult:
    """Return what an agent is told of a job.

    Args:
        fleet: Reads its files.
        job: The job.
        most_bytes: How many bytes all pictures together may have.
    """
    if job["status"] not in FINAL:
        return CallToolResult(content=[say(_underway(job))], structured_content=_facts(job, []))
    outputs = await _linked(fleet, job)
    content: list[ContentBlock] = []
    shown = [one for one in outputs if one["type"] == "image" and not one["withheld"]]
    shown = ([one for one in shown if not one["temporary"]] or shown)[:MOST_PICTURES]
    pictures = [await _picture(fleet, one, most_bytes // len(shown)) for one in shown]
    content += [one for one in pictures if one is not None]
    for output in outputs:
        if output["type"] == "text" and output["size_bytes"] <= MOST_TEXT:
            content.append(say((await fleet.read(output)).decode("utf-8", "replace")))
        if not output["withheld"]:
            content.append(_link(output))
    failed = job["status"] != "succeeded"
    return CallToolResult(
        content=[say(_ended(job)), *content], structured_content=_facts(job, outputs), is_error=failed
    )


def say(words: str) -> TextContent:
    """Return a text."""
    return TextContent(text=text(words, MOST_TEXT))


async def _linked(fleet: AsyncFleetClient, job: JobData) -> Sequence[OutputData]:
    """Return a job's outputs with URLs that need no key for a while."""
    if not job["outputs"]:
        return []
    found = await fleet.request("GET", f"/api/v2/jobs/{job['id']}", params={"signed": LINK_S})
    outputs: Sequence[OutputData] = found["outputs"]
    return outputs


async def _picture(fleet: AsyncFleetClient, output: OutputData, most_bytes: int) -> ImageContent | None:
    for width in WIDTHS:
        try:
            content = await fleet.read(output, format="webp", width=width, quality=80)
        except RequestRefused:  # it can't be shown as a picture; its link is there
            return None
        if len(content) <= most_bytes:
            return ImageContent(data=base64.b64encode(content).decode(), mime_type="image/webp")
    return None


def _link(output: OutputData) -> ResourceLink:
    return ResourceLink(
        uri=output["url"],
        name=text(output["name"], 200),
        mime_type=output["content_type"],
        size=output["size_bytes"],
        description=f"The whole file; the link holds for {LINK_S // 60} minutes.",
    )


def _facts(job: JobData, outputs: Sequence[OutputData]) -> dict[str, Any]:
    return {
        "job_id": job["id"],
        "status": job["status"],
        "params": job["params"],
        "outputs": [{key: one[key] for key in ("id", "name", "content_type", "url")} for one in outputs],
    }


def _ended(job: JobData) -> str:
    said = f"Job {job['id']} has {job['status']}."
    if job["status"] == "canceled":
        said = f"Job {job['id']} was canceled."
    if job["simulated"]:
        said += " A SIMULATED node ran it: the pictures are test patterns."
    if error := job["error"]:
        return f"{said} {error['code']}: {error['message']}"
    seeds = {name: value for name, value in job["params"].items() if "seed" in name}
    said += f" Seeds: {json.dumps(seeds)}." if seeds else ""
    if ids := [f"{one['name']} ({one['type']}): {one['id']}" for one in job["outputs"]]:
        said += "\nOutputs with their ids, which parameters for files take:\n" + "\n".join(ids)
    return said


def _underway(job: JobData) -> str:
    said = f"Job {job['id']} is {job['status']}"
    if (progress := job["progress"]) is not None:
        said += f", {progress['value']:.0%} done"
    if job["queue_position"] is not None:
        said += f", place {job['queue_position']} in the queue"
    if job["waiting_for"]:
        said += f", waiting: {job['waiting_for']}"
    if (estimate := job["estimate"]) is not None:
        said += f"; probably done in {estimate['p50_s']:.0f} s"
    return f"{said}. It goes on; ask again with its id."


def failure(error: ClientError) -> CallToolResult:
    """Return an error as a tool's: what an agent can do about it."""
    lines = [error.message]
    if isinstance(error, RequestRefused):
        for problem in error.problems[:20]:
            if problem.message not in error.message:
                lines.append(f"- {problem.field}: {problem.message}")
            elif problem.limit is not None and str(problem.limit) not in error.message:
                lines.append(f"- {problem.field} takes {json.dumps(problem.limit)[:500]}")
    elif isinstance(error, RateLimited | FleetUnavailable):
        wait = f" after {error.retry_after_s:.0f} s" if error.retry_after_s else " later"
        lines.append(f"Try again{wait}; the tool fleet_status says whether the fleet works.")
    return CallToolResult(content=[say("\n".join(lines))], is_error=True)
