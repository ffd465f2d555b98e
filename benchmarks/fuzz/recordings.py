"""What real ComfyUIs sent, as it was recorded for the tests."""

import gzip
import json
from functools import cache
from typing import Any

from comfy_fleet.settings import SOURCE

RUN = "0b0e3f5c-0000-4000-8000-000000000001"
"""The run that every recording is made to be about."""
_FOLDERS = ("recordings", "recordings-0.33")


@cache
def exchanges() -> tuple[dict[str, Any], ...]:
    """Return the recorded runs: requests, answers and frames."""
    found = []
    for folder in _FOLDERS:
        for file in sorted((SOURCE / "tests" / folder).glob("*.json")):
            text = file.read_text()
            record = json.loads(text)
            if isinstance(record, dict) and "ws" in record and "http" in record:
                found.append(json.loads(_as_run(text, record)))
    return tuple(found)


def frames() -> list[dict[str, Any]]:
    """Return all text frames."""
    return [entry["text"] for record in exchanges() for entry in record["ws"] if "text" in entry]


def binary_frames() -> list[bytes]:
    """Return the heads of binary frames, and whole ones of each kind."""
    heads = [
        bytes.fromhex(entry["binary_head_hex"])
        for record in exchanges()
        for entry in record["ws"]
        if "binary_head_hex" in entry
    ]
    picture = b"\x89PNG\r\n\x1a\n" + bytes(32)
    head = json.dumps({"node_id": "2", "prompt_id": RUN, "image_type": "image/png"}).encode()
    own = [
        (1).to_bytes(4, "big") + (2).to_bytes(4, "big") + picture,
        (3).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"2" + b"ten percent",
        (4).to_bytes(4, "big") + len(head).to_bytes(4, "big") + head + picture,
    ]
    return [*heads, *own]


def answers(path: str) -> list[Any]:
    """Return the bodies of all answers to requests whose path begins so."""
    return [
        call["response"]["body"]
        for record in exchanges()
        for call in record["http"]
        if call["request"]["path"].startswith(path) and isinstance(call["response"].get("body"), dict)
    ]


def answer(name: str) -> Any:
    """Return one recorded answer."""
    return json.loads((SOURCE / "tests" / "recordings" / f"{name}.json").read_text())


def graphs() -> list[dict[str, Any]]:
    """Return graphs in API format."""
    posted = [
        call["request"]["json"]["prompt"]
        for record in exchanges()
        for call in record["http"]
        if isinstance(call["request"].get("json"), dict) and "prompt" in call["request"]["json"]
    ]
    stored = [json.loads(file.read_text()) for file in sorted((SOURCE / "workflows").glob("*/workflow.json"))]
    return [*posted, *stored]


@cache
def editor_graphs() -> list[Any]:
    """Return graphs in the editor's format."""
    kept = json.loads(gzip.decompress((SOURCE / "tests" / "data" / "editor_graphs.json.gz").read_bytes()))
    return [one for one in _dicts(kept) if isinstance(one.get("nodes"), list)]


@cache
def classes(count: int = 40) -> dict[str, Any]:
    """Return some classes of a real ``/object_info``, of every size."""
    kept = (SOURCE / "tests" / "data" / "object_info_0.3.64.json.gz").read_bytes()
    whole: dict[str, Any] = json.loads(gzip.decompress(kept))
    names = sorted(whole)
    return {name: whole[name] for name in names[:: max(1, len(names) // count)]} | {
        name: whole[name] for name in ("LoadImage", "SaveImage", "KSampler", "EmptyImage") if name in whole
    }


def _dicts(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(one for inner in value.values() for one in _dicts(inner) if "nodes" not in value)]
    return [one for inner in value for one in _dicts(inner)] if isinstance(value, list) else []


def _as_run(text: str, record: dict[str, Any]) -> str:
    for call in record["http"]:
        body = call["request"].get("json")
        if isinstance(body, dict) and isinstance(body.get("prompt_id"), str):
            text = text.replace(body["prompt_id"], RUN)
    return text
