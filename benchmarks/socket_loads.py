"""Websocket clients of ComfyUI's own interface, as loads of :mod:`benchmarks.loads`."""

import asyncio
import gc
import time
from typing import Any
from uuid import uuid4

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.clients import trivial_graph
from comfy_fleet.timeouts import Timeout

_OPENING = 50
_SETTLE_S = 2.0
PATIENCE_S = 120.0


async def follow(urls: list[str], prompts: int, idle: int, seconds: float) -> dict[str, Any]:
    """Open websockets, run a prompt for some of them, and count the frames that come.

    Args:
        urls: Servers; the n-th prompt is posted to the n-th of them, in turn.
        prompts: Websockets whose client has a prompt that runs.
        idle: Further ones, which hear nothing of it.
        seconds: How long is measured.

    Returns:
        The frames' seconds from node to client, how many came to whom, and how long that was.
    """
    opening = asyncio.Semaphore(_OPENING)
    names = [uuid4().hex for _ in range(prompts + idle)]

    async def opened(number: int) -> ClientConnection:
        url = urls[number % len(urls)].replace("http", "ws")
        async with opening:
            return await connect(
                f"{url}/ws?clientId={names[number]}", proxy=None, compression=None, open_timeout=60
            )

    sockets = await asyncio.gather(*map(opened, range(prompts + idle)))
    latencies: list[float] = []
    measuring = False
    running = [asyncio.Event() for _ in range(prompts)]

    async def read(number: int) -> None:
        async for raw in sockets[number]:
            now = time.monotonic()
            if number < prompts and (sent := orjson.loads(raw)["data"].get("sent")) is not None:
                running[number].set()
                if measuring:
                    latencies.append(now - sent)

    readers = [asyncio.create_task(read(number)) for number in range(prompts + idle)]
    async with httpx.AsyncClient(timeout=60) as http:
        for number in range(prompts):
            body = {"prompt": trivial_graph(), "client_id": names[number]}
            (await http.post(f"{urls[number % len(urls)]}/prompt", json=body)).raise_for_status()
        async with Timeout(PATIENCE_S):
            for one in running:
                await one.wait()
        await asyncio.sleep(_SETTLE_S)
        gc.collect()
        gc.freeze()
        measuring, began = True, time.monotonic()
        await asyncio.sleep(seconds)
        measuring, wall_s = False, time.monotonic() - began
    for task in readers:
        task.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await asyncio.gather(*(socket.close() for socket in sockets))
    return {"latencies": latencies, "wall_s": wall_s, "sockets": len(sockets)}
