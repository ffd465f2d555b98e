"""Stand-ins for the agents of many GPU hosts, in one process.

They have the real line to the API and the real answers to HAProxy, but no GPU to look at, no ComfyUI to ask.

``python -m benchmarks.hosts API_URL FILE``; the file holds ``{HOST: {NODE: URL}}`` as JSON. Runs
until SIGTERM.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import uvloop

from comfy_fleet.agent.agent_check_server import AgentCheckServer
from comfy_fleet.agent.api_client import Answer, ApiClient
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.host import GpuAllocation, Heartbeat, Joining, NodeReport

_READY = AgentState(readiness=Readiness.READY, weight=100)
_GIB = 2**30


class StandInHost:
    """One host's agent; an async context manager that works while it is open.

    Args:
        api_url: Base of the API or of the edge.
        name: The host's name.
        nodes: URL by name.
        pool: The nodes' pool.
    """

    def __init__(self, api_url: str, name: str, nodes: Mapping[str, str], *, pool: str | None = None) -> None:
        self._name = name
        self._nodes = nodes
        self._pool = pool
        self._joined: frozenset[str] = frozenset()
        self._instance = uuid4().hex
        self._client = ApiClient(api_url, name, compose=self._compose, take=self._take)
        self._agent = AgentCheckServer(self._answer, host="127.0.0.1", port=0)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._agent.start()
        self._beating = asyncio.create_task(self._client.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await self._agent.stop()

    def _compose(self) -> tuple[Heartbeat, Sequence[Joining]]:
        address = f"127.0.0.1:{self._agent.port}"
        beat = Heartbeat(
            host=self._name,
            instance=self._instance,
            version="bench",
            agent=address,
            gpus=[_gpu(index) for index in range(len(self._nodes))],
            nodes=[
                NodeReport(
                    name=name,
                    readiness=Readiness.READY,
                    weight=100,
                    gpu_allocation=GpuAllocation(gpu=f"GPU-{name}", pids=(4242, 4243), own=2**33, used=2**34),
                    facts=_facts(url),
                )
                for name, url in self._nodes.items()
            ],
        )
        return beat, [
            Joining(name=name, url=url, agent=address, pool=self._pool, simulated=True)
            for name, url in self._nodes.items()
            if name not in self._joined
        ]

    def _take(self, answer: Answer) -> None:
        self._joined |= answer.joined

    def _answer(self, node: str) -> AgentState | None:
        return _READY if node in self._joined else None


def _gpu(index: int) -> dict[str, Any]:
    """A GPU as the real agent reports it: as many facts, so that heartbeats are as long."""
    return {
        "index": index,
        "uuid": f"GPU-{index:08d}-1111-2222-3333-444444444444",
        "name": "NVIDIA Stand-in",
        "memory": {"total": 24 * _GIB, "used": 9 * _GIB, "free": 15 * _GIB, "reserved": 0},
        "utilisation": 97,
        "temperature": 66,
        "power_w": 310.5,
        "power_limit_w": 450.0,
        "ecc_uncorrected": 0,
        "remap_failed": False,
        "recovery": "none",
        "lost": False,
        "xids": [],
        "throttles": [],
        "instances": [],
    }


def _facts(url: str) -> dict[str, Any]:
    owners = [{"pid": 4000 + number, "name": "python3", "bytes": _GIB} for number in range(2)]
    return {
        "url": url,
        "gpu": "0",
        "vram": {
            "total": 24 * _GIB,
            "own": 9 * _GIB,
            "own_all": 9 * _GIB,
            "foreign": 0,
            "available": 23 * _GIB,
            "source": "NVML, by process",
            "others": owners,
        },
        "version": "0.3.64",
        "busy": True,
        "orphans": [],
        "answered_s_ago": 0.2,
        "cleans": True,
        "pid": 4711,
        "phase": "up",
        "restarts": 0,
        "jobs": 1234,
        "host_memory_bytes": 4 * _GIB,
    }


async def _run(api_url: str, hosts: Mapping[str, Mapping[str, str]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        for name, nodes in hosts.items():
            await stack.enter_async_context(StandInHost(api_url, name, nodes))
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
