"""A fleet beside recordings of one ComfyUI: the same requests get the same answers and the same frames.

Each recording is replayed on a fleet of simulated nodes of its version by three clients at the same time, all
of one owner: a script in the recorded form, another one with ``/api`` in front of every path, and today's
editor. Each sees what is recorded, as if it were alone. A simulated node without a graph's classes plays the
recorded run (``played_runs``). What may differ, and why:

- ``status``: the fleet sends at most a few a second, and they count all prompts of the owner, as ``/queue``
  lists them: one of each client at most;
- an editor announces flags, so its pictures come with metadata, which the recordings with pictures have not;
- ``executed`` comes once ``/view`` has its files, which may be after the node's last progress and after other
  nodes' ``executed``;
- prompt and file numbers: refused prompts draw none, and others' recordings on the same server counted, too;
- what a node had received and made when it failed is told in the frame, and not kept for history; of an
  interrupted prompt, what had run is missing where its end was read from the node before its frame was;
- the refusal of an unknown class has the form of newer versions, whatever the nodes are;
- ``feature_flags``: the fleet's own, whatever its nodes are;
- an output node runs again in a graph that is equal to an earlier one, and makes a new file;
- ``create_time`` in ``extra_data``, which 0.3.64 has not;
- a run whose graph closed a circle while it ran is an error in history; ComfyUI says ``success`` beside the
  message about the error;
- whatever may differ between a simulated node and a recording; see ``tests/contract/test_sim_recordings.py``.
"""

import asyncio
import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.contract.test_sim_recordings import (
    FOLDERS,
    GAP,
    HEAD,
    LISTS,
    NEW,
    NOT_SIMULATED,
    OLD,
    ORDER,
    RECORDED_MODELS,
    Replay,
    normal,
    read,
    steps,
    upload,
    without_texts,
)
from tests.integration.native.clients_at_once import Editor, Script
from tests.integration.native.hints import without_hints
from tests.integration.native.played_runs import play, write_classes
from tests.integration.native.socket_kit import faced

RUN_AGAIN = ("cached_rerun", "intermediate_output_cached")
CLIENTS = 3  # at once
STOPPED = ("error_execution", "interrupted")  # recordings of 0.3.64 that end early
RAN_INTO_A_CIRCLE = "error_cycle_while_running"
UNKNOWN_CLASS = "error_unknown_node"
NUMBER = re.compile(r"(_|TEMPORARY)\d{5}(?=[_.])")
NOT_KEPT = ("executed", "current_inputs", "current_outputs")


@pytest.mark.parametrize("version", FOLDERS)
async def test_recordings_look_the_same_to_each_of_several_clients(
    version: str, redis: Redis, redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    different: list[str] = []
    options: dict[str, Any] = {"comfyui": version, "models": RECORDED_MODELS}
    if version == NEW:
        options["object_info"] = write_classes(tmp_path / "classes.json")
        play(monkeypatch, NOT_SIMULATED)
    async with faced(redis_port, "g1", "g2", "g3", sim=options) as face:
        for sim in face.fleet.sims.values():
            upload(sim)
        for name in ORDER[version]:
            if name in (GAP, *LISTS):
                continue
            clients: list[Script | Editor] = [
                Script(face.url, "", 1),
                Script(face.url, "/api", 2),
                Editor(face.url, 3),
            ]
            for sim in face.fleet.sims.values():
                sim.engine.forget()  # who meets a node again would find an earlier recording's results
            recorded = timed(read(version, name))
            done = await asyncio.gather(*(client.replay(recorded) for client in clients))
            for client, seen in zip(clients, done, strict=True):
                faults = differences(version, name, client.recording, seen)
                different += [f"{name}: {client.name}: {line}" for line in faults]
    assert not different, "\n".join(different)


def timed(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recording with other sleeps: a busy machine comes late to one, and nobody waits in vain."""
    seconds = {"interrupted": (r"\b5\.0\b", "50.0"), "sleep_progress": (r"\b2\.0\b", "0.3")}
    changed = seconds.get(recorded["name"], ("$^", ""))
    found: dict[str, Any] = json.loads(re.sub(*changed, json.dumps(recorded)))
    return found


def differences(version: str, name: str, recorded: dict[str, Any], seen: Replay) -> list[str]:
    """Return how a client's frames and answers differ from its recording."""
    found = frames_apart(version, name, recorded["ws"], seen.frames)
    for exchange, answer in zip(recorded["http"], seen.answers, strict=True):
        request = exchange["request"]
        said = answers_apart(name, exchange["response"], answer)
        found += [f"{request['method']} {request['path']}: {line}" for line in said]
    return found


def frames_apart(version: str, name: str, recorded: list[Any], seen: list[Any]) -> list[str]:
    """Return how frames differ."""
    was, now = without_status(recorded), without_status(seen)
    counts = [
        frame["data"]["status"]["exec_info"]["queue_remaining"]
        for frame in seen
        if frame.get("type") == "status"
    ]
    found = [] if counts[0] < CLIENTS and max(counts) <= CLIENTS else [f"status counts {counts}"]
    if name in RUN_AGAIN:
        kinds = [kind for kind, _ in now]
        return found if kinds.count("executed") and kinds[-1] == "executing" else [*found, f"told {kinds}"]
    for which in (is_executed, lambda kind: not is_executed(kind)):
        old = [one for one in was if which(one[0])]
        new = [one for one in now if which(one[0])]
        if version == OLD and name in STOPPED:
            new = new[: len(old)]
        if which is is_executed:
            old, new = (sorted(some, key=lambda one: str(one[1]["node"])) for some in (old, new))
        found += apart(old, new)
    order = [kind for kind, _ in now]
    if "execution_success" in order and "executed" in order[order.index("execution_success") :]:
        found.append("executed after execution_success")
    return found


def is_executed(kind: str) -> bool:
    return kind == "executed"


def without_status(frames: list[Any]) -> list[tuple[str, Any]]:
    left = [one for one in frames if one.get("text", one).get("type") not in ("status", "feature_flags")]
    found = [(kind, without_numbers(data)) for kind, data in steps(left)]
    return [
        (kind, {**data, "executed": []} if kind == "execution_interrupted" else data) for kind, data in found
    ]


def answers_apart(name: str, recorded: dict[str, Any], answer: httpx.Response) -> list[str]:
    """Return how two answers differ."""
    if answer.status_code != recorded["status"]:
        return [f"{answer.status_code}, not {recorded['status']}: {answer.text[:300]}"]
    body = recorded["body"]
    if isinstance(body, dict) and "base64_head" in body:
        kind = b64decode(body["base64_head"])[:8]  # as PNG and MP4 say what they are
        alike = answer.content[:8] == kind and len(answer.content) > HEAD
        return [] if alike else [f"other bytes: {answer.content[:8]!r}"]
    if isinstance(body, str):
        return apart(body, answer.text)
    was, now = without_texts(body), without_texts(answer.json())
    if "queue_running" in was:  # the others' prompts are the same person's
        mine = {item[1] for items in was.values() for item in items}
        now = {part: [item for item in items if item[1] in mine] for part, items in now.items()}
    if name == UNKNOWN_CLASS:
        was, now = was["node_errors"], now["node_errors"]
    return apart(comparable(name, was), comparable(name, now))


def comparable(name: str, body: Any) -> Any:
    """Return an answer without what may differ."""
    body = without_hints(body)
    if isinstance(body, dict):
        body = {key: comparable(name, item) for key, item in body.items() if key != "create_time"}
        if "number" in body:
            body["number"] = 0
        if isinstance(body.get("prompt"), list):
            body["prompt"][0] = 0
        if "timestamp" in body:
            body |= {key: None for key in NOT_KEPT if key in body}
            if "exception_message" in body:
                body["exception_message"] = body["exception_message"].rstrip()
        if name == RAN_INTO_A_CIRCLE and "status_str" in body:
            body |= {"status_str": "error", "completed": False}
        if name in RUN_AGAIN and "nodes" in body:
            body["nodes"] = []
    elif isinstance(body, list):
        body = [comparable(name, item) for item in body]
        if len(body) >= 5 and isinstance(body[0], int | float) and isinstance(body[1], str):
            body[0] = 0  # an item of the queue
    return without_numbers(normal(body))


def without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_numbers(item) for item in value]
    return NUMBER.sub(r"\1N", value) if isinstance(value, str) else value


def apart(was: Any, now: Any, at: str = "") -> list[str]:
    """Return where two values differ."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        return [line for key in was for line in apart(was[key], now[key], f"{at}.{key}")]
    if isinstance(was, list | tuple) and isinstance(now, list | tuple) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return [line for number, pair in pairs for line in apart(*pair, f"{at}[{number}]")]
    return [] if was == now else [f"{at or 'it'}: {str(now)[:400]}, not {str(was)[:400]}"]
