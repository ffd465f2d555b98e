"""Clients of several kinds that replay one recording at the same time, for one owner.

Each has a copy of its own: other ids, other colours, and another input of no meaning in each node of a graph
that would be equal else, so that no node has anything of one in its cache for another, whoever meets there.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import httpx

from comfy_fleet.domain.jobs.frames import Picture, parse_binary
from tests.contract.test_sim_recordings import Replay, play
from tests.integration.shapes import With, has_shape
from tests.native_client import NativeClient

EDITORS_FLAGS = {
    "supports_preview_metadata": True,
    "supports_manager_v4_ui": True,
    "supports_progress_text_metadata": True,
}
LISTS = (
    "/jobs?status=in_progress,pending&limit=200&offset=0",
    "/jobs?status=completed,failed,cancelled&limit=64&offset=0",
)
STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
MADE_FILES_OF = "outputs_3d"  # its history has bare names, of which ComfyUI's jobs API, too, makes files
NUMBER = (int, float)
JOB = With({"id": str, "status": str, "create_time": NUMBER, "priority": NUMBER, "outputs_count": int})
PREVIEW = With({"nodeId": str, "mediaType": str})
ERROR = With(
    {"node_id": str, "node_type": str, "exception_message": str, "exception_type": str, "traceback": list}
)
PAGE = {"offset": NUMBER, "limit": NUMBER, "total": NUMBER, "has_more": bool}


def copy_of(recording: dict[str, Any], client_id: str, number: int) -> dict[str, Any]:
    """Return a recording with a client's own ids and colours."""
    text = json.dumps(recording).replace(recording["client_id"], client_id)
    for exchange in recording["http"]:
        if prompt := (exchange["request"].get("json") or {}).get("prompt_id"):
            text = text.replace(prompt, str(uuid4()))
    copied: dict[str, Any] = recolored(json.loads(text), number)
    return copied


def recolored(value: Any, number: int) -> Any:
    if isinstance(value, dict):
        copied = {
            key: one ^ 0x1110 * number if key == "color" and isinstance(one, int) else recolored(one, number)
            for key, one in value.items()
        }
        inputs = copied.get("inputs") if "class_type" in value else None
        if isinstance(inputs, dict) and not any(
            key == "color" or isinstance(one, list) for key, one in inputs.items()
        ):
            inputs["copy"] = number  # ComfyUI ignores it, but its cache does not
        return copied
    return [recolored(one, number) for one in value] if isinstance(value, list) else value


class Script:
    """A client of today's or yesterday's libraries: it says its id, and asks for what it wants to know."""

    def __init__(self, url: str, form: str, number: int) -> None:
        self.name = f"script{form and f' below {form}'}"
        self.recording: dict[str, Any] = {}
        self._url, self._number = url + form, number

    async def replay(self, recording: dict[str, Any]) -> Replay:
        self.recording = copy_of(recording, uuid4().hex, self._number)
        flags = {"supports_preview_metadata": True} if recording["name"] == "flags" else None
        async with NativeClient(self._url, self.recording["client_id"], flags) as client:
            return await play(client, self.recording)


class Editor:
    """ComfyUI's own: the server draws its id, it announces flags, and asks for jobs at every ``status``."""

    name = "editor"

    def __init__(self, url: str, number: int) -> None:
        self.recording: dict[str, Any] = {}
        self._url, self._number = url, number
        self._wrong: list[str] = []

    async def replay(self, recording: dict[str, Any]) -> Replay:
        async with self.open() as client:
            self.recording = copy_of(recording, client.client_id, self._number)
            done = await play(client, self.recording)
            await self._look_at_job(client, done)
        if recording["name"] != "flags":  # that client had said that it takes them
            done.frames = [self._without_metadata(frame) for frame in done.frames]
        assert not self._wrong, self._wrong
        return done

    @asynccontextmanager
    async def open(self) -> AsyncIterator[NativeClient]:
        """Be open for a while; at the end, all that it was told has stood its check."""
        async with NativeClient(self._url, "", EDITORS_FLAGS) as client:
            client.http.base_url = httpx.URL(f"{self._url}/api")
            asking = asyncio.create_task(self._ask(client))
            yield client
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await self._poll(client)
        assert not self._wrong, self._wrong

    async def _ask(self, client: NativeClient) -> None:
        heard = 0
        while True:
            await client.until(partial(_more_than, client, heard), timeout_s=120)
            heard = client.kinds().count("status")
            await self._poll(client)

    async def _poll(self, client: NativeClient) -> None:
        for path in LISTS:
            answer = await client.http.get(path)
            if wrong := schema_faults(answer):
                self._wrong.append(f"{path}: {wrong}")

    async def _look_at_job(self, client: NativeClient, done: Replay) -> None:
        """A prompt that is over is the same in the list, by itself and in the history."""
        posted = done.answers[0]
        if posted.status_code != 200:
            return
        prompt = posted.json()["prompt_id"]
        entry = (await client.http.get(f"/history/{prompt}")).json()[prompt]
        listed = {job["id"]: job for job in (await client.http.get(LISTS[1])).json()["jobs"]}
        details = (await client.http.get(f"/jobs/{prompt}")).json()
        assert listed[prompt] == {key: details[key] for key in listed[prompt]}
        if self.recording["name"] != MADE_FILES_OF:
            assert details["outputs"] == entry["outputs"]
        assert details["workflow"]["prompt"] == entry["prompt"][2]
        assert details["execution_status"]["status_str"] == entry["status"]["status_str"]

    def _without_metadata(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Return a picture as a client without flags would get it."""
        if "binary" not in frame:
            return frame
        data = frame["binary"]
        picture = parse_binary(data)
        prompt = self.recording["http"][0]["request"]["json"]
        whose = (data[:4], getattr(picture, "prompt_id", ""), getattr(picture, "node_id", ""))
        if not isinstance(picture, Picture) or whose[:2] != (b"\0\0\0\4", prompt["prompt_id"]):
            self._wrong.append(f"a picture of nobody's: {whose}")
            return frame
        if picture.node_id not in prompt["prompt"]:
            self._wrong.append(f"a picture of no node: {whose}")
        kind = b"\0\0\0\2" if picture.content_type == "image/png" else b"\0\0\0\1"
        return {"binary": b"\0\0\0\1" + kind + bytes(picture.data)}


def _more_than(client: NativeClient, heard: int) -> bool:
    return client.kinds().count("status") > heard


def schema_faults(answer: httpx.Response) -> str:
    """Return what the editor's check of an answer to ``GET /api/jobs`` would find; empty: nothing."""
    if answer.status_code != 200 or answer.headers["content-type"] != "application/json":
        return f"{answer.status_code} {answer.headers.get('content-type')}"
    body = answer.json()
    if not has_shape(body, {"jobs": list, "pagination": PAGE}):
        return f"not a page: {answer.text[:300]}"
    for job in body["jobs"]:
        right = (
            has_shape(job, JOB)
            and job["status"] in STATES
            and (job.get("preview_output") is None or has_shape(job["preview_output"], PREVIEW))
            and (job.get("execution_error") is None or has_shape(job["execution_error"], ERROR))
        )
        times = [job.get(name) for name in ("execution_start_time", "execution_end_time")]
        if not right or not all(one is None or isinstance(one, int | float) for one in times):
            return f"not a job: {job}"
    return ""
