"""Two agents whose nodes share one GPU: neither node is foreign to the other, and strangers are, to both."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from comfy_fleet.cli.up.nodes import fleet
from comfy_fleet.domain.nodes.vram import CONTEXT_BYTES, GIB
from comfy_fleet.sim import NodeOptions, SimNode
from tests.conftest import free_port
from tests.integration.agent_kit import SOURCE, Host, host_of
from tests.integration.haproxy_kit import eventually

NAMES = ("g1", "g2")


class Card:
    """A GPU of 24 GiB as the stand-in tells of it."""

    def __init__(self, scenario: Path) -> None:
        self.scenario = scenario
        self.holds(0.5)

    def holds(self, used: float, processes: Sequence[tuple[int, float]] = ()) -> None:
        """Say, in one step, how many GiB are used, and by which of the processes that can be seen."""
        lines = ["gpu 0", "set total 24576", f"set used {int(used * 1024)}"]
        lines += [f"proc c {pid} {int(held * 1024)}" for pid, held in processes]
        fresh = self.scenario.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self.scenario)


@asynccontextmanager
async def two_agents(
    redis_port: int, folder: Path, library: Path, card: Card, urls: Mapping[str, str]
) -> AsyncIterator[Host]:
    """Run an agent for each node."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STANDIN": str(card.scenario)}
    async with host_of(redis_port, folder) as host:
        command = [sys.executable, "-m", "comfy_fleet", "agent", "--port", "0", "--join", host.api.url]
        agents = [
            subprocess.Popen(
                [*command, "--host", f"{name}-host", "--node", f"{name}={url}@0"],
                env=environment,
                stderr=subprocess.DEVNULL,
                cwd=SOURCE,
            )
            for name, url in urls.items()
        ]
        try:
            for name in urls:
                await host.said(name, "ready")
            # Each has heard of the other: until then the other's memory is a stranger's. Both know them from
            # their own count, which is nothing beside what CUDA takes.
            await knows(host, 2 * CONTEXT_BYTES / GIB)
            yield host
        finally:
            for agent in agents:
                agent.terminate()
            for agent in agents:
                await asyncio.to_thread(agent.wait, 20)


async def knows(host: Host, own: float) -> None:
    """Wait until both see so many GiB as the fleet's own."""

    async def both() -> bool:
        facts = [(await host.report(name)).get("vram") or {} for name in NAMES]
        return all(fact.get("own_all", 0) >= own * GIB for fact in facts)

    await eventually(f"both know of {own} GiB", both)


async def stays_ready(host: Host) -> None:
    """Both are ready at every one of several heartbeats of both agents."""

    async def beats() -> dict[str, float]:
        return {seen.host: seen.seen_at for seen in await host.api.stores.hosts.hosts()}

    for _ in range(3):
        before = await beats()

        async def again(before: dict[str, float] = before) -> bool:
            words = [await host.api.stores.hosts.words(name) for name in NAMES]
            assert words == [("ready", "")] * 2
            now = await beats()
            return all(now[f"{name}-host"] > before[f"{name}-host"] for name in NAMES)

        await eventually("both have told again", again)


async def test_by_process(
    build: Callable[[str], Path], redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    card = Card(tmp_path / "scenario")
    with ExitStack() as stack:
        nodes = {}
        for name in NAMES:
            port = free_port()
            argv = fleet("sim", "--port", str(port), "--name-prefix", name, "--data", str(tmp_path / name))
            child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=SOURCE)
            stack.callback(child.wait)
            stack.callback(child.kill)
            nodes[name] = child.pid, f"http://127.0.0.1:{port}"
        urls = {name: url for name, (_, url) in nodes.items()}
        async with two_agents(redis_port, tmp_path, build("-DNEW_DRIVER"), card, urls) as host:
            ours = [(pid, 7.0) for pid, _ in nodes.values()]
            card.holds(15, ours)
            await knows(host, 14)
            await stays_ready(host)
            card.holds(23, [*ours, (4194304, 8.0)])
            for name in NAMES:
                await host.said(name, "drain")
                assert "other programs hold 9.0 GiB" in (await host.api.stores.hosts.words(name))[1]


async def test_counted_where_processes_are_hidden(
    build: Callable[[str], Path], redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    card = Card(tmp_path / "scenario")
    async with SimNode(NodeOptions(name="g1")) as one, SimNode(NodeOptions(name="g2")) as two:
        urls = {"g1": one.url, "g2": two.url}
        async with two_agents(redis_port, tmp_path, build("-DNEW_DRIVER"), card, urls) as host:
            card.holds(15)
            for sim in (one, two):
                sim.vram.load("big.safetensors", 7 * GIB)
                sim.vram.foreign = 8 * GIB
            await knows(host, 14)
            await stays_ready(host)
            card.holds(23)
            for sim in (one, two):
                sim.vram.foreign = 16 * GIB
            for name in NAMES:
                await host.said(name, "drain")
                assert "other programs hold" in (await host.api.stores.hosts.words(name))[1]
