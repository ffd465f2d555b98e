"""Recordings without a websocket, replayed on a fleet in both forms, while an editor is open.

Where a fleet answers otherwise, ``OTHERWISE`` says how and why. What is not compared, besides what
``test_recordings`` names: numbers of prompts, and jobs that other recordings left on the recorded server.
"""

import asyncio
import json
import re
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from tests.contract.test_sim_recordings import LISTS, NEW, RECORDED_MODELS, read, upload
from tests.integration.native.clients_at_once import Editor
from tests.integration.native.socket_kit import Faced, faced
from tests.integration.native.test_recordings import answers_apart
from tests.native_client import NativeClient

ONLY_BELOW_API = re.compile(r"/(jobs|assets|tags)\b")
ONLY_PLAIN = re.compile("/internal/")
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

ANY_ID = "an older version takes any text as a prompt's id, and so does a fleet, for the clients of both"
NO_500 = "what ComfyUI fails at is refused, with the reason"
NO_INPUTS = "a class whose successor gets none of its inputs counts as missing"
#: By recording and place in it: the status of a fleet's answer, and why it differs.
OTHERWISE: dict[tuple[str, int], tuple[int, str]] = {
    ("prompt_refusals", 0): (200, ANY_ID),
    ("prompt_refusals", 1): (200, ANY_ID),
    ("prompt_refusals", 6): (400, NO_500),
    ("prompt_refusals", 7): (400, NO_500),
    ("prompt_refusals", 8): (400, NO_INPUTS),
    ("prompt_refusals", 9): (400, NO_INPUTS),
}
#: By path, without ``/api``.
OTHER_ROUTES: dict[str, tuple[int, str]] = {
    "/assets/hash/blake3:" + "0" * 64: (405, "there is only HEAD; ComfyUI looks for a file of the editor's"),
    "/assets/seed/status": (404, "closed"),
    "/internal/folder_paths": (404, "closed: it tells of a machine"),
    "/internal/files/input": (200, "one's own uploads, not a node's"),
    "/internal/files/output": (200, "one's own outputs, not a node's"),
    "/experiment/models": (200, "without the paths of a machine"),
}


@pytest.mark.parametrize("form", ["", "/api"])
async def test_recorded_requests_get_the_recorded_answers(form: str, redis: Redis, redis_port: int) -> None:
    different = []
    options = {"comfyui": NEW, "models": RECORDED_MODELS}
    async with faced(redis_port, "g1", sim=options) as face:
        upload(face.fleet.sims["g1"])
        async with Editor(face.url, 1).open():
            for name in LISTS:
                for place, (exchange, answer) in enumerate(await repeat(face, form, read(NEW, name))):
                    request = exchange["request"]
                    faults = apart(name, place, exchange, answer)
                    different += [f"{name} {place}: {request['path']}: {fault}" for fault in faults]
    assert not different, "\n".join(different)


def apart(name: str, place: int, exchange: dict[str, Any], answer: httpx.Response) -> list[str]:
    """Return how an answer differs from the recorded one."""
    path = exchange["request"]["path"]
    recorded = exchange["response"]
    otherwise = OTHERWISE.get((name, place)) or OTHER_ROUTES.get(path.removeprefix("/api"))
    if otherwise is None:
        return alike(name, exchange, answer)
    status, _ = otherwise
    if answer.status_code != status:
        return [f"{answer.status_code}, not {status}: {answer.text[:300]}"]
    if path.endswith("/experiment/models"):
        names = [[info["name"] for info in infos] for infos in (recorded["body"], answer.json())]
        return [] if names[0] == names[1] else [f"other folders: {names[1]}"]
    return []


def alike(name: str, exchange: dict[str, Any], answer: httpx.Response) -> list[str]:
    request, recorded = exchange["request"], exchange["response"]
    if answer.status_code != recorded["status"]:
        return [f"{answer.status_code}, not {recorded['status']}: {answer.text[:300]}"]
    if isinstance(recorded["body"], str):
        return []
    body, answered = json.loads(json.dumps(recorded["body"])), answer.json()
    if request.get("json", {}).get("prompt_id", "") is None:
        answered["prompt_id"] = body["prompt_id"]
    for value in (body, answered):
        for job in value.get("jobs", [value]) if isinstance(value, dict) else ():
            if "priority" in job:
                job["priority"] = 0
    if "max_items" in request["path"]:  # the oldest is another recording's
        return [] if len(answered) == 1 else [f"{len(answered)} prompts"]
    if isinstance(body, dict) and "jobs" in body and "completed" in request["path"]:
        ours = {job["id"] for job in answered["jobs"]}
        body["jobs"] = [job for job in body["jobs"] if job["id"] in ours]
        answered["jobs"] = answered["jobs"][: len(body["jobs"])]
        for value in (body, answered):
            value["pagination"] |= {"total": 0, "has_more": False}
    return answers_apart(name, {**recorded, "body": body}, httpx.Response(answer.status_code, json=answered))


async def repeat(face: Faced, form: str, exchanges: Any) -> list[tuple[dict[str, Any], httpx.Response]]:
    """Send requests one after the other, each where the recorded server was when it got it."""
    text = json.dumps(exchanges).replace('"seconds": 2.5', '"seconds": 100.0')  # not over too soon
    for exchange in exchanges:
        name = (exchange["request"].get("json") or {}).get("prompt_id")
        if name and UUID.fullmatch(name):
            text = text.replace(name, str(uuid4()))
    done = []
    (sim,) = face.fleet.sims.values()
    async with NativeClient(face.url + form, "jobs") as client:
        client.http.base_url = httpx.URL(face.url)
        for exchange in json.loads(text):
            request = exchange["request"]
            path = in_form(request["path"], form)
            if path.endswith(
                "/queue"
            ):  # the first of three sleeps, and goes on doing so after it was canceled
                await client.until(lambda: len(client.of("progress")) > 2)
                sim.faults.history_lag_s = 3600
            answer = await client.http.request(request["method"], path, json=request.get("json"))
            done.append((exchange, answer))
            if path.endswith("/jobs/cancel"):
                sim.faults.history_lag_s = 0
            if (
                path.endswith("/prompt")
                and answer.status_code == 200
                and "seconds" not in json.dumps(request)
            ):
                while (await client.http.get("/prompt")).json()["exec_info"]["queue_remaining"]:
                    await asyncio.sleep(0.005)
    return done


def in_form(path: str, form: str) -> str:
    """Return a path with or without ``/api``, if it is there in both forms."""
    plain = path.removeprefix("/api")
    return path if ONLY_BELOW_API.match(plain) or ONLY_PLAIN.match(plain) else form + plain
