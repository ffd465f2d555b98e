"""Simulated nodes whose prompts send frames at a fixed rate, each with the time at which it was sent.

``python -m benchmarks.frame_nodes FOLDER RATE PORT...``: every node sends RATE frames a second while it runs
a prompt, half of them ``progress`` and half ``progress_state``, as a sampler does.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming

JOB_S = 3600.0
_GRAPH_NODES = 8  # of a graph, in each `progress_state`


async def send(node: SimNode, rate: float) -> None:
    """Send frames for as long as the node lives; what is late is sent at once."""
    gap, due, number = 1 / rate, time.monotonic(), 0
    while True:
        due += gap
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        for item in node.engine.running:
            number += 1
            kind, data = _frame(item.prompt_id, number)
            node.engine.sockets.send(kind, {**data, "sent": time.monotonic()}, item.extra_data["client_id"])


def _frame(prompt: str, number: int) -> tuple[str, dict[str, Any]]:
    if number % 2:
        return "progress", {"value": number, "max": 10**6, "prompt_id": prompt, "node": "3"}
    nodes = {
        str(node): {
            "value": number,
            "max": 10**6,
            "state": "running",
            "node_id": str(node),
            "prompt_id": prompt,
            "display_node_id": str(node),
            "parent_node_id": None,
            "real_node_id": str(node),
        }
        for node in range(_GRAPH_NODES)
    }
    return "progress_state", {"prompt_id": prompt, "nodes": nodes}


async def serve(folder: Path, rate: float, ports: Sequence[int]) -> None:
    """Serve nodes until this is killed."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for port in ports:
            options = NodeOptions(
                name=f"sim-{port}", timing=SimTiming(job_s=JOB_S), folder=folder / str(port)
            )
            node = await stack.enter_async_context(SimNode(options, port=port))
            tasks.append(asyncio.create_task(send(node, rate)))
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), float(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
