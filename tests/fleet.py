"""A whole fleet for tests: real Redis, real HAProxy, simulated nodes, one or more dispatchers.

Everything but Redis and HAProxy lives in the test's own event loop.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.adapters.haproxy.controller import Controller
from comfy_fleet.agent.agent_check_server import AgentCheckServer
from comfy_fleet.agent.host import HostAgent
from comfy_fleet.agent.node_source import NodesSource
from comfy_fleet.bootstrap import Stores, open_secrets, open_stores
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.processes.dispatcher import open_dispatcher
from comfy_fleet.processes.haproxy import BrokerSecret
from comfy_fleet.services.dispatcher import Dispatcher
from comfy_fleet.services.editor_ticket import EditorTickets
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.settings import Settings
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.conftest import free_port
from tests.factories import new_job
from tests.looks import pauses

PATIENCE_S = 60.0
"""For what has to happen at all, on a machine that others load. Tests of a bound give their own."""


class RegistryNodes:
    """What the agent would hear from the API, without an API."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def watch(self) -> AsyncIterator[Any]:
        async for _ in self._stores.nodes.changes():
            yield await self._stores.nodes.nodes()


@dataclass
class Running:
    """A dispatcher at work."""

    dispatcher: Dispatcher
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def end(self) -> None:
        self.stop.set()
        await self.task

    async def kill(self) -> None:
        """As kill -9 would: nothing is handed over, every socket closes."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Fleet:
    """Handles on everything."""

    settings: Settings
    stores: Stores
    controller: Controller
    host: HostAgent
    sims: dict[str, SimNode] = field(default_factory=dict)
    dispatchers: list[Running] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def add_sim(self, name: str, *, node: dict[str, Any] | None = None, **options: Any) -> SimNode:
        options.setdefault("timing", SimTiming(scale=0))
        sim = await self.stack.enter_async_context(
            SimNode(NodeOptions(name=name, **options), port=free_port())
        )
        self.sims[name] = sim
        fields = {"added_at": time.time(), **(node or {})}
        await self.stores.nodes.add(Node(name=name, url=sim.url, simulated=True, **fields))
        return sim

    async def dispatcher(
        self, name: str = "d1", *, telemetry: Telemetry | None = None, **changes: Any
    ) -> Running:
        settings = self.settings.model_copy(update=changes)
        opening = open_dispatcher(settings, self.stores, name=name, telemetry=telemetry)
        built = await self.stack.enter_async_context(opening)
        stop = asyncio.Event()
        running = Running(built, stop, asyncio.create_task(built.run(stop)))
        self.dispatchers.append(running)
        return running

    async def refresher(self) -> NodeInventories:
        """Read what the nodes have, as the API does; returns when the API and every dispatcher know it."""
        ask = await self.stack.enter_async_context(NodeClient(self.settings.direct_url))
        known = NodeInventories(self.stores.nodes, self.stores.inventories, ask)
        self.tasks.append(asyncio.create_task(known.run()))

        def all_read() -> bool:
            snapshots = [running.dispatcher.snapshot() for running in self.dispatchers]
            seen = [{one.node.name for one in it.nodes if one.reading.inventory} for it in snapshots]
            return all(names == set(self.sims) for names in (known.known, *seen))

        await until(all_read, what="all nodes are read")
        return known

    async def send(
        self, known: NodeInventories, graph: dict[str, Any], wish: PlacementRequest, **fields: Any
    ) -> Job:
        """Submit a graph to the nodes that can run it."""
        return await self.submit(graph, placement=await known.placement(check(graph), wish), **fields)

    async def state(self, name: str) -> NodeState:
        return next(state for state in await self.stores.nodes.states() if state.node.name == name)

    async def verdict(self, name: str, wanted: str = "up") -> None:
        """Wait until HAProxy says so of a node."""

        async def there() -> bool:
            states = await self.stores.nodes.states()
            return any(state.node.name == name and state.verdict == wanted for state in states)

        await until(there, what=f"{name} is {wanted}")

    async def submit(self, graph: dict[str, Any] | None = None, **fields: Any) -> Job:
        new = new_job(graph, **fields)
        return (await self.stores.jobs.submit(new, idempotency=None, depth_limit=10_000)).job

    async def job(self, job_id: str) -> Job:
        job = await self.stores.jobs.get(job_id)
        assert job is not None
        return job

    async def ended(self, job_id: str, *, timeout_s: float = PATIENCE_S) -> Job:
        """Wait for a job's end."""

        async def over() -> bool:
            return (await self.job(job_id)).status.terminal

        await until(over, what=f"job {job_id} ends", timeout_s=timeout_s)
        return await self.job(job_id)


async def until(condition: Callable[[], Any], *, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Poll until a condition, plain or async, holds."""
    try:
        async with asyncio.timeout(timeout_s):
            for pause in pauses():
                result = condition()
                if await result if asyncio.iscoroutine(result) else result:
                    return
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s} s in vain until {what}") from None


def unsealed(node: Node) -> str:
    """Return a node's password: these tests keep it as it is."""
    return node.sealed


async def followed(host: HostAgent, source: NodesSource) -> None:
    """Keep an agent at a source's nodes."""
    async for nodes in source.watch():
        host.follow(nodes)


@asynccontextmanager
async def fleet_of(
    redis_port: int,
    *names: str,
    dispatch: bool = True,
    sim: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """Start a fleet of simulated nodes; yields when all of them are up."""
    with tempfile.TemporaryDirectory() as folder:
        config = Settings(
            data=Path(folder),
            **{
                "redis_url": f"redis://127.0.0.1:{redis_port}/0",
                "port": free_port(),
                "console_port": free_port(),
                "api_port": free_port(),
                "agent_port": free_port(),
                "lease_ttl_s": 2.0,
                "beat_s": 0.25,
                **settings,
            },
        )
        async with AsyncExitStack() as stack, open_stores(config) as stores:
            host = HostAgent("central", central=True, ca_file=config.node_ca_file, credentials=unsealed)
            server = AgentCheckServer(host.answer, host="127.0.0.1", port=config.agent_port)
            await server.start()
            stack.push_async_callback(server.stop)
            ticket_key = EditorTickets.under(open_secrets(config)).key
            controller = Controller(
                config,
                stores.nodes,
                pools=stores.pools,
                ready_leases=stores.ready_leases,
                ticket_key=lambda: ticket_key,
                broker_secret=BrokerSecret(config.secret_key_file),
            )
            fleet = Fleet(config, stores, controller, host=host, stack=stack)
            fleet.tasks += [
                asyncio.create_task(host.run()),
                asyncio.create_task(followed(host, RegistryNodes(stores))),
            ]
            for name in names:
                await fleet.add_sim(name, **(sim or {}))
            stop = asyncio.Event()
            services = [asyncio.create_task(controller.run(stop))]
            try:
                if dispatch:
                    await fleet.dispatcher()
                for name in names:
                    await fleet.verdict(name)
                yield fleet
            finally:
                for running in fleet.dispatchers:
                    await running.kill()
                for task in fleet.tasks:
                    task.cancel()
                await asyncio.gather(*fleet.tasks, return_exceptions=True)
                stop.set()
                results = await asyncio.gather(*services, return_exceptions=True)
                for result in results:
                    if isinstance(result, Exception):
                        raise result
