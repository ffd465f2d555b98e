"""Each row of the table of routes, asked of a real ComfyUI and of a fleet whose node it is."""

import re
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.nodes.node import Node
from tests.comfyui_server import ComfyServer
from tests.contract.test_sim_recordings import shape
from tests.integration.native.socket_kit import faced
from tests.integration.native.test_recordings import apart, comparable
from tests.integration.native.test_route_table import ASSETS, JOBS, JSON, SERVED, Asked, Row, ask_rows
from tests.native_client import NativeClient

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

#: Routes that 0.3.64 has not.
NEWER_ROUTES = ("GET /node_replacements", "GET /global_subgraphs", "GET /global_subgraphs/ID")
NEWER = (*JOBS, *ASSETS, *(row for row in SERVED if row.route in NEWER_ROUTES))
DRAWN = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
#: Rows that a ComfyUI answers otherwise, and why.
OTHERWISE = {
    "GET /ws": "426 says more than 400",
    "GET /": "the fleet's page is not the editor",
    "GET /features": "the fleet's own flags",
    "POST /users": "people are added by an operator; 0.3.64 fails at an empty name",
    "POST /upload/mask": "the same picture again keeps its name; ComfyUI compares the mask with the picture",
}
#: Rows that each server fills by itself: the kinds of their values are compared.
ITS_OWN = (
    *("GET /object_info", "GET /system_stats", "GET /experiment/models", "GET /prompt", "GET /jobs"),
    *("GET /internal/files/input", "GET /internal/files/output", "GET /internal/files/temp"),
)
#: Numbers of each server's own; 0.3.64 tells some times in seconds.
MASKED = ("priority", "modified", "created")
#: What is at work or over at this moment: only its keys are compared, and those of one entry.
MOMENTARY = ("GET /queue", "GET /history")


async def test_rows_are_answered_as_by_the_server_itself(
    redis: Redis, redis_port: int, comfyui_server: ComfyServer
) -> None:
    found = []
    async with faced(redis_port) as face:
        await face.fleet.stores.nodes.add(Node(name="real", url=comfyui_server.url))
        await face.fleet.verdict("real")
        for url in (face.url, comfyui_server.url):
            asked = Asked({}, {}, {})
            async with NativeClient(url, uuid4().hex) as client:
                await ask_rows(client, asked)
            found.append(asked)
    ours, theirs = found
    different = []
    older = any(theirs.served[row, "/api"].status_code in (404, 405) for row in ASSETS)
    for (row, form), answer in ours.served.items():
        like = theirs.served[row, form]
        if row.route in OTHERWISE or (older and row in NEWER):
            continue
        different += [f"{form} {row}: {line}" for line in differences(row, answer, like)]
        if row.method == "GET":
            heads = (ours.heads[row, form], theirs.heads[row, form])
            different += [f"HEAD {form} {row}: {line}" for line in differences(row, *heads)]
    different += [f"{key}: {one.status_code}" for key, one in ours.absent.items() if one.status_code != 404]
    assert not different, "\n".join(different)


def differences(row: Row, answer: Any, like: Any) -> list[str]:
    if answer.status_code != like.status_code:
        return [f"{answer.status_code}, not {like.status_code}: {answer.text[:300]}"]
    if bool(answer.content) != bool(like.content):
        return [f"{len(answer.content)} bytes, not {len(like.content)}"]
    kinds = [one.headers.get("content-type", "").removesuffix("; charset=utf-8") for one in (answer, like)]
    if like.content and kinds[0] != kinds[1]:
        return [f"{kinds[0]}, not {kinds[1]}"]
    if not like.content or kinds[1] != JSON:
        return []
    was, now = like.json(), answer.json()
    if row.route == "GET /extensions":  # the fleet's own are installed nowhere
        now = [path for path in now if not path.startswith("/extensions/comfy_fleet/")]
    if row.route in MOMENTARY:
        if "queue_running" in was:
            return apart(sorted(was), sorted(now))
        return apart(sorted(next(iter(was.values()))), sorted(next(iter(now.values()))))
    if "in_progress" in row.ask:
        was["jobs"], now["jobs"] = [], []
    if isinstance(was, list) and not (was and now):
        return [] if isinstance(now, list) else ["no list"]
    if row.route in ITS_OWN:
        return apart(shape(without_machine(was)), shape(without_machine(now)))
    return apart(masked(was), masked(now))


def without_machine(value: Any) -> Any:
    """Return an answer without what a fleet hides or names anew, and without lists of files in ``input``."""
    if isinstance(value, dict) and "devices" in value:
        devices = [{**device, "index": 0} for device in value["devices"]]
        return {"system": {**value["system"], "argv": []}, "devices": devices}
    if isinstance(value, dict):
        return {
            name: one
            for name, one in value.items()
            if not any(word in name for word in ("FromFolder", "Load3D"))
        }
    return value


def masked(value: Any) -> Any:
    """Return an answer without what is drawn: ids, numbers, times."""
    if isinstance(value, dict):
        value = {masked(key): 0 if key in MASKED else masked(one) for key, one in value.items()}
    elif isinstance(value, list):
        value = [masked(one) for one in value]
    elif isinstance(value, str):
        return DRAWN.sub("ID", value)
    return comparable("", value)
