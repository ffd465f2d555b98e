"""The recordings' requests to a real ComfyUI, and to a fleet whose node it is: each client sees the same.

What the server itself answers and sends is recorded anew. Three clients replay that on the fleet, one after
the other, since a real node remembers what it has computed for another; an editor is open all the time. What
may differ says ``test_recordings``; here also:

- progress of nodes that sleep: a real one reports at other moments each time.
"""

from base64 import b64encode
from itertools import count
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.nodes.node import Node
from tests.comfyui_server import ANSWER_S, ComfyServer
from tests.contract.test_sim_recordings import GAP, GLB, LISTS, NEW, OLD, ORDER, read, replay
from tests.factories import picture
from tests.integration.native.clients_at_once import Editor, Script, copy_of
from tests.integration.native.socket_kit import faced
from tests.integration.native.test_recordings import differences, timed
from tests.native_client import NativeClient

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

SLEEPS = ("sleep_progress", "flags", "interrupted", "expansion")


@pytest.fixture
async def version(comfyui_server: ComfyServer) -> str:
    async with httpx.AsyncClient(base_url=comfyui_server.url, timeout=ANSWER_S) as http:
        told = (await http.get("/system_stats")).json()["system"]["comfyui_version"]
    return OLD if str(told).startswith("0.3.") else NEW


async def test_a_fleets_clients_see_what_the_server_itself_shows(
    version: str, redis: Redis, redis_port: int, comfyui_server: ComfyServer
) -> None:
    different: list[str] = []
    model = comfyui_server.folder / "input" / "3d" / "m.glb"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(GLB)
    numbers = count(1)
    async with faced(redis_port) as face, NativeClient(comfyui_server.url, "forgets") as server:
        await face.fleet.stores.nodes.add(Node(name="real", url=comfyui_server.url))
        await face.fleet.verdict("real")
        async with Editor(face.url, 0).open():
            for name in ORDER[version]:
                if name in (GAP, *LISTS):
                    continue
                await forget(server, next(numbers))
                here = await recorded_at(server, timed(read(version, name)), next(numbers))
                for client in (
                    Script(face.url, "", next(numbers)),
                    Script(face.url, "/api", next(numbers)),
                    Editor(face.url, next(numbers)),
                ):
                    await forget(server, next(numbers))
                    seen = await client.replay(here)
                    recorded = {**client.recording, "ws": comparable(name, client.recording["ws"])}
                    seen.frames = comparable(name, seen.frames)
                    faults = differences(version, name, recorded, seen)
                    different += [f"{name}: {client.name}: {line}" for line in faults]
    assert not different, "\n".join(different)


async def forget(server: NativeClient, number: int) -> None:
    """Have the server forget what it has computed: at once, or with the next prompt."""
    await server.http.post("/free", json={"unload_models": True, "free_memory": True})
    await server.run(picture(0x700000 + number))


def comparable(name: str, frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what comes at other moments each time."""
    if name not in SLEEPS:
        return frames
    return [
        frame
        for frame in frames
        if frame.get("text", frame).get("type") not in ("progress", "progress_state")
    ]


async def recorded_at(server: NativeClient, recording: dict[str, Any], number: int) -> dict[str, Any]:
    """Replay a recording on a server and return a recording of that."""
    asked = copy_of(recording, f"recorded-{number}", number)
    done = await replay(server.url, asked)
    exchanges = zip(asked["http"], done.answers, strict=True)
    return {
        "name": asked["name"],
        "client_id": asked["client_id"],
        "ws": [_frame(frame) for frame in done.frames],
        "http": [
            {
                "request": {**exchange["request"], "path": answer.request.url.raw_path.decode()},
                "response": {
                    "status": answer.status_code,
                    "body": _body(answer),
                    "headers": dict(answer.headers),
                },
            }
            for exchange, answer in exchanges
        ],
    }


def _frame(frame: dict[str, Any]) -> dict[str, Any]:
    if "binary" in frame:
        return {"binary_head_hex": frame["binary"][:100].hex()}
    return {"text": frame}


def _body(answer: httpx.Response) -> Any:
    if answer.headers.get("content-type", "").startswith("application/json"):
        return answer.json()
    if answer.headers.get("content-type", "").startswith(("image/", "video/", "audio/")):
        return {"bytes": len(answer.content), "base64_head": b64encode(answer.content[:64]).decode()}
    return answer.text
