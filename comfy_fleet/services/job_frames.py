"""Frames of a job's runs, and its record, in its client's words.

Frames are read as bytes wherever possible: they come by the thousand. What a run says about its end is kept
until the end is in the job's record.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.jobs.frames import (
    NOT_THE_CLIENTS,
    RawFrame,
    with_metadata,
    with_prompt,
    without_metadata,
)
from comfy_fleet.domain.jobs.job import Job, JobStatus, Output, OutputKind
from comfy_fleet.domain.jobs.outputs import FRAME_NAME
from comfy_fleet.domain.jobs.run_results import BLOCKED
from comfy_fleet.domain.jobs.shown_prompt import (
    PromptEnd,
    PromptMessage,
    RecordedResult,
    ResultKey,
    Topic,
)
from comfy_fleet.domain.jobs.shown_ui import whole_ui

_TYPE = re.compile(rb'\{\s*"type"\s*:\s*"([^"\\]{1,200})"')
_EXPANDED = re.compile(r"(.+?)\.\d+\.\d+\..")
"""A node that another one has made while it ran: ComfyUI shows it as that one."""
_RUN_FOLDER = re.compile(rb"fleet(?:/|\\\\)[0-9a-f-]{36}(?:/|\\\\)[0-9a-f-]{36}(?:/|\\\\)")
"""Where a run's files are on its node, in JSON: an error shows what its node was given."""
_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = (number.to_bytes(4, "big") for number in (1, 3, 4))


class JobFrames:
    """The frames of one job's runs, in its client's words.

    Args:
        prompt_id: What the client calls the job.
    """

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self._prompt = json.dumps(prompt_id)[1:-1].encode()
        self._run = ""
        self._node: tuple[str, str] | None = None  # which computes, and which is shown for it
        self._state = b""
        self._end: ClientMessage | None = None

    def read(self, frame: RawFrame, *, metadata: bool) -> PromptMessage | None:
        """Return a frame in the client's words; None for what it is not told now, or never.

        Args:
            frame: As it was published.
            metadata: Whether the client wants pictures with metadata.
        """
        if frame.run != self._run:
            self._run, self._node, self._state, self._end = frame.run, None, b"", None
        if not frame.text:
            return self._binary(frame, metadata=metadata)
        data = bytes(frame.data).replace(frame.run.encode(), self._prompt)
        match type_of(data):
            case "progress_state":
                self._state = data
                return PromptMessage(frame.run, Topic.PROGRESS_STATE, ClientMessage(data, spare=True))
            case "progress":
                return PromptMessage(frame.run, Topic.OTHER, ClientMessage(data, spare=True))
            case "executing":
                return self._executing(frame.run, data)
            case "execution_start":
                return PromptMessage(frame.run, Topic.START, ClientMessage(data))
            case "execution_cached":
                return PromptMessage(frame.run, Topic.CACHED, ClientMessage(data))
            case "executed":
                node = _data(data).get("node")
                if not isinstance(node, str):
                    return None
                return PromptMessage(frame.run, Topic.RESULT, ClientMessage(data), (node, None))
            case "execution_error" if _data(data).get("exception_type") != BLOCKED:
                told = _RUN_FOLDER.sub(b"", bytes(frame.data))
                self._end = ClientMessage(told.replace(frame.run.encode(), self._prompt))
                return None
            case "execution_interrupted":
                self._end = ClientMessage(data)
                return None
            case type_ if type_ is None or type_ in NOT_THE_CLIENTS:
                return None
            case "execution_error":
                return PromptMessage(frame.run, Topic.OTHER, ClientMessage(data))
            case type_:
                return PromptMessage(frame.run, Topic.OTHER, ClientMessage(data), (type_, None))

    def end_of(self, job: Job, at: float) -> ClientMessage:
        """Return the message that tells a final job's end: the node's own, if there is one."""
        if self._end is not None and self._run == job.run:
            told = "execution_error" if job.status is JobStatus.FAILED else "execution_interrupted"
            if type_of(self._end.data) == told and job.status in (JobStatus.FAILED, JobStatus.CANCELED):
                return self._end
        return client_messages.end_of(job, at)

    def _executing(self, run: str, data: bytes) -> PromptMessage | None:
        told = _data(data)
        node, shown = told.get("node"), told.get("display_node")
        if not isinstance(node, str):
            return None
        self._node = node, shown if isinstance(shown, str) else node
        return PromptMessage(run, Topic.EXECUTING, ClientMessage(data), (node, None))

    def _binary(self, frame: RawFrame, *, metadata: bool) -> PromptMessage:
        data = with_prompt(bytes(frame.data), frame.run.encode(), self._prompt)
        if metadata and data.startswith(_PREVIEW):
            node = frame.place[0] if frame.place is not None else self._node[0] if self._node else None
            if node is not None:
                data = with_metadata(data, self.metadata(node))
        elif not metadata:
            data = without_metadata(data)
        if frame.place is not None:
            return PromptMessage(frame.run, Topic.RESULT, ClientMessage(data, text=False), frame.place)
        spare = data.startswith((_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA))
        return PromptMessage(frame.run, Topic.OTHER, ClientMessage(data, text=False, spare=spare))

    def metadata(self, node: str) -> dict[str, Any]:
        """Return what goes with a picture of a node of the graph."""
        shown = self._node[1] if self._node is not None and self._node[0] == node else shown_node(node)
        known = _data(self._state).get("nodes") if self._state else None
        state = known.get(node) if isinstance(known, Mapping) else None
        state = state if isinstance(state, Mapping) else {}
        return {
            "node_id": node,
            "prompt_id": self.prompt_id,
            "display_node_id": state.get("display_node_id", shown),
            "parent_node_id": state.get("parent_node_id"),
            "real_node_id": state.get("real_node_id", node),
        }


def type_of(data: bytes) -> str | None:
    """Return a text message's type without reading all of it."""
    if found := _TYPE.match(data):
        return found[1].decode(errors="replace")
    told = _object(data).get("type")
    return told if isinstance(told, str) else None


def is_for_anybody(frame: RawFrame) -> bool:
    """Return whether every websocket of an owner gets a frame of a job that is no client's."""
    if frame.text:
        return type_of(bytes(frame.data[:256])) == "progress_state"
    return frame.data.startswith(_TEXT)


def shown_node(node: str) -> str:
    """Return the node of the posted graph that is shown for a node."""
    found = _EXPANDED.match(node)
    return node if found is None else found[1]


def prompt_end(
    job: Job,
    ui: Mapping[str, Any],
    frames: JobFrames,
    *,
    told: Iterable[ResultKey] = (),
    metadata: bool,
    live: ClientMessage | None,
    at: float,
) -> PromptEnd:
    """Return a final job's end.

    Args:
        job: Its record, with outputs.
        ui: What its nodes have returned for the user interface.
        frames: What was heard of its runs.
        told: Results that need not be told again.
        metadata: Whether the client wants pictures with metadata.
        live: How many prompts of the owner wait or run, told before the prompt leaves the queue.
        at: The time in Unix seconds.
    """
    left = replace(client_messages.left(job.prompt_id), ends=job.id)
    last = [frames.end_of(job, at), *([] if live is None else [live]), left]
    start = client_messages.execution_start(job.prompt_id, job.started_at or at)
    if job.run is None:
        return PromptEnd(run="", start=start, last=last)
    known = frozenset(told)
    cached = [_cached(job, job.started_at or at)] if job.cached else []
    results = [*cached, *_pictures(job, frames, known, metadata=metadata), *_executed(job, ui, known)]
    return PromptEnd(run=job.run, start=start, results=results, last=last)


def _cached(job: Job, at: float) -> RecordedResult:
    """Return what ComfyUI says of a prompt that it answers from its cache."""
    return RecordedResult(("", None), client_messages.execution_cached(job.prompt_id, job.output_nodes, at))


def _executed(job: Job, ui: Mapping[str, Any], told: frozenset[ResultKey]) -> list[RecordedResult]:
    return [
        RecordedResult(
            (node, None), client_messages.executed(job.prompt_id, node, output, display_node=shown_node(node))
        )
        for node, output in whole_ui(ui, job.outputs).items()
        if output and (node, None) not in told
    ]


def _pictures(
    job: Job, frames: JobFrames, told: frozenset[ResultKey], *, metadata: bool
) -> list[RecordedResult]:
    return [
        RecordedResult(
            (output.node_id, output.index),
            _picture(output, frames, metadata=metadata),
            before=client_messages.executing(job.prompt_id, output.node_id, shown_node(output.node_id)),
        )
        for output in job.outputs
        if is_frame_picture(output) and (output.node_id, output.index) not in told
    ]


def is_frame_picture(output: Output) -> bool:
    """Return whether an output came as a websocket frame and not as a file."""
    return not output.saved and output.kind is OutputKind.IMAGE and output.name.startswith(FRAME_NAME)


def _picture(output: Output, frames: JobFrames, *, metadata: bool) -> ClientMessage:
    """Return a picture as a message without the image, which is read when its turn comes."""
    code = 2 if output.content_type == "image/png" else 1
    head = b"".join((_PREVIEW, code.to_bytes(4, "big")))
    if metadata:
        head = with_metadata(head + b"\0", frames.metadata(output.node_id))[:-1]
    return ClientMessage(head, text=False, asset=output.asset_id)


def _data(data: bytes) -> Mapping[str, Any]:
    found = _object(data).get("data")
    return found if isinstance(found, Mapping) else {}


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError:
        try:
            found = json.loads(data)  # nodes send NaN, which is no JSON
        except (ValueError, RecursionError):
            return {}
    return found if isinstance(found, Mapping) else {}
