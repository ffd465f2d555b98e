"""Usage: use_comfy_script.py URL KEY JOB."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
from comfy_script.client import Client
from comfy_script.runtime import Workflow, load

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
watching = threading.Event()


async def answered(_session: Any, _context: Any, asked: aiohttp.TraceRequestEndParams) -> None:
    if asked.url.path == "/ws":
        watching.set()


def session() -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    return aiohttp.ClientSession(headers=headers, trace_configs=[trace])


load(Client(URL, session_factory=session))
from comfy_script.runtime.nodes import EmptyImage, SaveImage  # noqa: E402 - they exist from now on

# It opens its websocket in a thread, and waits in vain for a prompt that ends before that is done.
assert watching.wait(30), "no websocket"
color = json.loads((JOB / "graph.json").read_text())["1"]["inputs"]["color"]
with Workflow(wait=True):
    saved = SaveImage(EmptyImage(64, 64, 1, color), "ComfyUI")
(image,) = saved.wait().wait()
image.save(JOB / "picture", format="PNG")
