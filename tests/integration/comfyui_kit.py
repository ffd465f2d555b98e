"""A broker over two simulated nodes, and a run carried out on them in the plainest way."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from comfy_fleet.adapters.comfyui.lease import LeaseClient, WebsocketLease
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.domain.jobs.outputs import FileRef, OutputItem
from comfy_fleet.domain.jobs.run import Run, RunLimits
from comfy_fleet.domain.jobs.run_messages import (
    Action,
    AskHistory,
    AskQueue,
    Collect,
    DeletePending,
    Event,
    Finish,
    Interrupt,
    InterruptSent,
    Left,
    Opened,
    PostPrompt,
    RunResult,
    SocketClosed,
    Tick,
)
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.integration.haproxy_kit import Broker, eventually, running

LIMITS = RunLimits(silence_s=20, run_s=60, poll_s=0.1, probe_s=0.3, settle_s=0.2, nag_s=0.3)


def graph() -> dict[str, Any]:
    """A graph that no node has in its cache."""
    color = uuid4().int % 0xFFFFFF
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }


@dataclass
class Fleet:
    """Two simulated nodes behind a broker, and our clients of it."""

    broker: Broker
    sims: dict[str, SimNode]
    leases: LeaseClient
    nodes: NodeClient


@asynccontextmanager
async def a_fleet(data: Path, *, job_s: float = 0.15) -> AsyncIterator[Fleet]:
    """Start everything; every prompt takes ``job_s``."""
    async with AsyncExitStack() as stack:
        sims = {
            name: await stack.enter_async_context(
                SimNode(NodeOptions(name=name, timing=SimTiming(job_s=job_s)), port=free_port())
            )
            for name in ("g1", "g2")
        }
        registry = FakeNodeRegistry([Node(name=name, url=sim.url) for name, sim in sims.items()])
        broker = await stack.enter_async_context(running(data, registry))
        for name in sims:
            await broker.told(name, "up")
        nodes = await stack.enter_async_context(NodeClient(broker.settings.direct_url))
        yield Fleet(broker, sims, LeaseClient(broker.settings.lease_url), nodes)


async def granted(fleet: Fleet, run: str, *nodes: str) -> WebsocketLease:
    """A lease on one of these nodes, as soon as it is free."""
    found: list[WebsocketLease] = []

    async def try_once() -> bool:
        lease = await fleet.leases.lease(run=run, pool="default", nodes=nodes)
        if isinstance(lease, WebsocketLease):
            found.append(lease)
        return bool(found)

    await eventually("a lease", try_once)
    return found[0]


@dataclass
class Carried:
    """What became of a run."""

    verdict: RunResult | None = None
    actions: list[Action] = field(default_factory=list)
    left: tuple[OutputItem, ...] = ()
    content: dict[tuple[str, str, int], bytes] = field(default_factory=dict)

    def count(self, kind: type[Action]) -> int:
        return sum(isinstance(action, kind) for action in self.actions)


async def carry(
    fleet: Fleet,
    prompt: dict[str, Any],
    *,
    node: str = "g1",
    meanwhile: Callable[[asyncio.Queue[Event], str], Awaitable[None]] | None = None,
    limits: RunLimits = LIMITS,
) -> Carried:
    """Carry out one run in the plainest way, from lease to release."""
    run_id = str(uuid4())
    lease = await granted(fleet, run_id, node)
    run = Run(run_id=run_id, graph=prompt, limits=limits, now=time.monotonic())
    events: asyncio.Queue[Event] = asyncio.Queue()
    done = Carried()
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Awaitable[Event]) -> None:
        async def put() -> None:
            events.put_nowait(await work)

        tasks.add(asyncio.ensure_future(put()))

    async def tell(order: Awaitable[bool]) -> Event:
        return InterruptSent(ok=await order)

    async def read() -> None:
        async for frame in lease.frames():
            events.put_nowait(frame)
        events.put_nowait(SocketClosed(lease.close_reason))

    async def fetch(item: OutputItem) -> None:
        assert isinstance(item.source, FileRef)
        async with fleet.nodes.view(node, item.source) as content:
            done.content[item.id] = b"".join([chunk async for chunk in content.chunks])

    reader = asyncio.create_task(read())
    if meanwhile is not None:
        tasks.add(asyncio.ensure_future(meanwhile(events, run_id)))
    events.put_nowait(Opened())
    try:
        while done.verdict is None:
            at = run.next_tick()
            try:
                timeout = None if at is None else max(0.0, at - time.monotonic())
                event: Event = await asyncio.wait_for(events.get(), timeout)
            except TimeoutError:
                event = Tick()
            for action in run.handle(event, time.monotonic()):
                done.actions.append(action)
                match action:
                    case PostPrompt():
                        spawn(fleet.nodes.post_prompt(node, graph=prompt, run=run_id, job="j1"))
                    case AskQueue():
                        spawn(fleet.nodes.queue_state(node, run_id))
                    case AskHistory():
                        spawn(fleet.nodes.history(node, run_id))
                    case Interrupt():
                        spawn(tell(fleet.nodes.interrupt(node, run_id)))
                    case DeletePending():
                        spawn(tell(fleet.nodes.delete_pending(node, run_id)))
                    case Collect(items):
                        for item in items:
                            await fetch(item)
                    case Left(items):
                        done.left = items
                    case Finish(verdict):
                        done.verdict = verdict
                    case _:
                        pass
    finally:
        lease.release()
        await asyncio.wait_for(reader, 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return done


def kind(carried: Carried) -> str:
    assert carried.verdict is not None
    return carried.verdict.kind
