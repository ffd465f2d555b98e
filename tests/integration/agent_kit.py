"""A GPU host for tests: an agent in this event loop, and stand-ins for ComfyUI as real child processes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.adapters.haproxy.controller import Controller
from comfy_fleet.agent.main import AgentOptions, run
from comfy_fleet.agent.supervisor import Supervision
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.nodes.process_supervision import RestartLimits
from comfy_fleet.settings import Settings
from tests.conftest import free_port
from tests.factories import bare_checkout
from tests.fleet import PATIENCE_S
from tests.integration.api_kit import Api, running
from tests.integration.haproxy_kit import client, eventually

SOURCE = Path(__file__).parents[2]

MAIN = '''
"""Takes ComfyUI's arguments and serves a simulated node; leaks memory while a file `leak` is there.

Like a model that is loaded, a signal starves its event loop: SIGUSR1 by computing, SIGUSR2 by reading a file,
both until a file `loaded` is there.
"""
import argparse, os, signal, socket, sys, threading, time
from pathlib import Path

ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # from boot to our start
born = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")

sys.path.insert(0, {source!r})
from comfy_fleet.sim.options import SimOptions, SimTiming
from comfy_fleet.sim.server import serve

parser = argparse.ArgumentParser()
parser.add_argument("--listen")
parser.add_argument("--port", type=int)
parser.add_argument("--output-directory", type=Path)
parser.add_argument("--job-s", type=float, default=0.0)
parser.add_argument("--sim-name")
parser.add_argument("--slow-start", type=float, default=0.0)
given, _ = parser.parse_known_args()
folder = given.output_directory.parent
held = []

def load(number, _):
    while not (folder / "loaded").exists():
        if number == signal.SIGUSR2:
            with open(sys.executable, "rb", buffering=0) as weights:
                while weights.read(2**20):
                    pass

def leak():
    while True:
        if (folder / "leak").exists():
            held.append(bytearray(b"x") * 8_000_000)
        time.sleep(0.02)

def answer():
    while socket.socket().connect_ex((given.listen, given.port)):
        time.sleep(0.01)
    (folder / "own").write_text(f"{{born}} {{time.time()}}")

threading.Thread(target=leak, daemon=True).start()
threading.Thread(target=answer, daemon=True).start()
signal.signal(signal.SIGUSR1, load)
signal.signal(signal.SIGUSR2, load)
(folder / "born").write_text(repr(born))
time.sleep(given.slow_start)
with (folder / "starts").open("a") as starts:
    starts.write("x")
timing = SimTiming(job_s=given.job_s)
place = {{"host": given.listen, "port": given.port, "name_prefix": given.sim_name or folder.name}}
place["data"] = folder / "sim"
pack = Path("custom_nodes/pack.json")  # a node pack: what /object_info tells of its classes
if pack.exists():
    place["object_info"] = pack
serve(SimOptions(**place, timing=timing))
'''


def checkout(folder: Path, *args: str) -> Checkout:
    """Make a folder that looks like a ComfyUI checkout."""
    home = bare_checkout(folder, main=MAIN.format(source=str(SOURCE)))
    return Checkout.find(home, python=sys.executable, args=args)


@dataclass
class Host:
    """A running host agent."""

    api: Api
    stop: asyncio.Event
    task: asyncio.Task[None]
    settings: Settings
    http: httpx.AsyncClient

    async def state(self, name: str) -> NodeState:
        found = [s for s in await self.api.stores.nodes.states() if s.node.name == name]
        assert found, f"{name} is not registered"
        return found[0]

    async def report(self, name: str) -> dict[str, Any]:
        return dict(await self.api.stores.hosts.report(name) or {})

    async def said(self, name: str, wanted: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait until the agent's last word on a node is this."""

        async def there() -> bool:
            return (await self.api.stores.hosts.words(name))[0] == wanted

        await eventually(f"the agent says {wanted} of {name}", there, within_s=within_s)

    async def is_up(self, name: str, wanted: str = "up", *, within_s: float = PATIENCE_S) -> None:
        """Wait until HAProxy's verdict on a node is this."""

        async def there() -> bool:
            states = await self.api.stores.nodes.states()
            return any(s.node.name == name and s.verdict == wanted for s in states)

        await eventually(f"{name} is {wanted} at HAProxy", there, within_s=within_s)


@asynccontextmanager
async def host_of(
    redis_port: int,
    folder: Path,
    *,
    supervision: Supervision | None = None,
    haproxy: bool = False,
    ask_nodes: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Host]:
    """Run an API and a host's agent, with a broker on demand; ``ask_nodes`` through it what they have."""
    ports = ("port", "console_port", "api_port", "agent_port")
    made = {**{name: free_port() for name in ports}, "stop_wait_s": 0.0, **settings}
    async with (
        NodeClient(Settings(data=folder).direct_url) as nodes,  # the broker's sockets are in the API's folder
        running(redis_port, folder, info=nodes if ask_nodes else None, **made) as api,
        client() as http,
    ):
        stop = asyncio.Event()
        config = api.deps.settings
        wanted = AgentOptions(join=api.url, host="h1", port=0, supervision=supervision, **(options or {}))
        tasks = [asyncio.create_task(run(config, wanted, stop))]
        if haproxy:
            stores = api.stores
            controller = Controller(config, stores.nodes, ready_leases=stores.ready_leases)
            tasks.append(asyncio.create_task(controller.run(stop)))
        try:
            yield Host(api, stop, tasks[0], config, http)
        finally:
            stop.set()
            await asyncio.gather(*tasks)


def cpu(folder: Path, *args: str, limits: RestartLimits | None = None, per_gpu: int = 1) -> Supervision:
    """Return what to run: stand-ins on the CPU."""
    return Supervision(
        checkout=checkout(folder, *args),
        gpus="cpu",
        per_gpu=per_gpu,
        limits=limits or RestartLimits(),
        simulated=True,
    )
