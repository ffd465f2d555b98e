"""Looks at GPUs in a process of its own, for tests that choose the process's NVML library.

A line on standard input is an order, a line on standard output its pickled answer.
"""

import asyncio
import base64
import pickle
import sys
import time
from typing import Any

from comfy_fleet.adapters.nvml import NvmlProbe, NvmlReader


async def ticks(probe: NvmlProbe) -> tuple[Any, int]:
    """Look, and count how often the event loop got round to something else meanwhile."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.005)
            count += 1

    ticking = asyncio.create_task(tick())
    found = await probe.look()
    ticking.cancel()
    return found, count


def cost_s(reader: NvmlReader) -> float:
    """Look, and return the processor's seconds that it took, however busy this machine is."""
    before = time.process_time()
    reader.read()
    return time.process_time() - before


async def main() -> None:
    reader = NvmlReader(slow_every_s=0, retry_s=0, lost_retry_s=0)
    probe = NvmlProbe(reader, timeout_s=0.2)
    while order := await asyncio.to_thread(sys.stdin.readline):
        match order.strip():
            case "look":
                answer: Any = reader.read()
            case "probe":
                answer = await ticks(probe)
            case "costs":
                answer = [cost_s(reader) for _ in range(200)]
            case "close":
                await probe.close()
                answer = None
            case unknown:
                raise ValueError(unknown)
        sys.stdout.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
