"""A fleet beside recordings of one ComfyUI: the same requests get the same answers and the same frames.

Each recording is replayed on a fleet with one simulated node of its version. What may differ, and why:

- ``status``: the fleet sends at most a few a second. The first one says that nothing waits, none counts more
  than one prompt, and the last one nothing again;
- ``executed`` comes once ``/view`` has its files, which may be after the node's last progress and after other
  nodes' ``executed``;
- prompt and file numbers: refused prompts draw none, and others' recordings on the same server counted, too;
- what a node had received and made when it failed is told in the frame, and not kept for history;
- the refusal of an unknown class has the form of newer versions, whatever the nodes are;
- ``feature_flags``: the fleet's own, whatever its nodes are;
- an output node runs again in a graph that is equal to an earlier one, and makes a new file;
- ``create_time`` in ``extra_data``, which 0.3.64 has not;
- a run whose graph closed a circle while it ran is an error in history; ComfyUI says ``success`` beside the
  message about the error;
- whatever may differ between a simulated node and a recording; see ``tests/contract/test_sim_recordings.py``.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.contract.test_sim_recordings import (
    FOLDERS,
    GAP,
    HEAD,
    LISTS,
    NOT_SIMULATED,
    OLD,
    ORDER,
    RECORDED_MODELS,
    normal,
    read,
    replay,
    steps,
    upload,
    without_texts,
)
from tests.integration.native.socket_kit import Faced, faced

RUN_AGAIN = ("cached_rerun", "intermediate_output_cached")
STOPPED = ("error_execution", "interrupted")  # recordings of 0.3.64 that end early
RAN_INTO_A_CIRCLE = "error_cycle_while_running"
UNKNOWN_CLASS = "error_unknown_node"
NUMBER = re.compile(r"(_|TEMPORARY)\d{5}(?=[_.])")
NOT_KEPT = ("executed", "current_inputs", "current_outputs")


@pytest.fixture(params=FOLDERS)
async def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def face(version: str, redis: Redis, redis_port: int) -> AsyncIterator[Faced]:
    """A fleet with one node of a version."""
    async with faced(redis_port, "g1", sim={"comfyui": version, "models": RECORDED_MODELS}) as started:
        upload(started.fleet.sims["g1"])
        yield started


async def test_recordings_look_the_same_on_a_fleet(version: str, face: Faced) -> None:
    different: list[str] = []
    for name in ORDER[version]:
        if name in (GAP, *LISTS, *NOT_SIMULATED):
            continue
        recorded = read(version, name)
        if name == "interrupted":  # 5 s of sleep may be over before a busy machine comes to interrupt it
            recorded = json.loads(re.sub(r"\b5\.0\b", "50.0", json.dumps(recorded)))
        done = await replay(face.url, recorded)
        different += [f"{name}: {line}" for line in frames_apart(version, name, recorded["ws"], done.frames)]
        for exchange, answer in zip(recorded["http"], done.answers, strict=True):
            request = exchange["request"]
            said = answers_apart(name, exchange["response"], answer)
            different += [f"{name}: {request['method']} {request['path']}: {line}" for line in said]
    assert not different, "\n".join(different)


def frames_apart(version: str, name: str, recorded: list[Any], seen: list[Any]) -> list[str]:
    """Return how frames differ."""
    was, now = without_status(recorded), without_status(seen)
    counts = [
        frame["data"]["status"]["exec_info"]["queue_remaining"]
        for frame in seen
        if frame.get("type") == "status"
    ]
    found = [] if counts[0] == 0 and max(counts) <= 1 else [f"status counts {counts}"]
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
    return [(kind, without_numbers(data)) for kind, data in steps(left)]


def answers_apart(name: str, recorded: dict[str, Any], answer: httpx.Response) -> list[str]:
    """Return how two answers differ."""
    if answer.status_code != recorded["status"]:
        return [f"{answer.status_code}, not {recorded['status']}: {answer.text[:300]}"]
    body = recorded["body"]
    if isinstance(body, dict) and "base64_head" in body:
        return [] if answer.content[1:4] == b"PNG" and len(answer.content) > HEAD else ["no picture"]
    if isinstance(body, str):
        return apart(body, answer.text)
    was, now = without_texts(body), answer.json()
    if name == UNKNOWN_CLASS:
        was, now = was["node_errors"], now["node_errors"]
    return apart(comparable(name, was), comparable(name, now))


def comparable(name: str, body: Any) -> Any:
    """Return an answer without what may differ."""
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
