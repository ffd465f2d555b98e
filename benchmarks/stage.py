"""What is measured, set up on loopback: nodes, a fleet in front of them, and what stands there instead.

Every process is a child of this one and ends with it, whatever happens.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.processes import command, descendants
from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports
from comfy_fleet.cli.up.programs import OwnRedis, find_haproxy, wait_for_redis
from comfy_fleet.cli.up.supervisor import BACKOFF, ChildSpec, Supervised, stop_all
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import SOURCE, Settings
from comfy_fleet.timeouts import Timeout

_NODES, _REDIS, _PROXY, _API, _DISPATCH, _CLIENT = range(6)
READY_S = 60.0
COMFYUI_READY_S = 300.0  # several that start at once on few cores
POLL_S = 0.05


class BenchError(Exception):
    """A measurement can't be made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all measurements share.

    Attributes:
        bench_python: The Python that has comfy-api-proxy.
        comfyui: A ComfyUI checkout whose server stands in for the simulated node where that makes sense.
        comfyui_python: Its Python.
        quick: A tenth of the work: shows that everything runs, the figures mean little.
        trace: Jobs for figures that are simulated.
        backoff: When a process that ended is started again.
        say: Shows one line of progress.
    """

    bench_python: Path
    comfyui: Path | None = None
    comfyui_python: str | None = None
    quick: bool = False
    trace: Path | None = None
    backoff: Backoff = BACKOFF
    say: Callable[[str], None] = field(default=lambda _: None)

    def some(self, full: int, quick: int) -> int:
        """Return how much work to do."""
        return quick if self.quick else full


class Stage:
    """A temporary folder and the processes that work in it; an async context manager."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.children: list[Supervised] = []
        self.warnings: list[str] = []
        self.folder = Path()
        self._syncing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-bench-"))
        (self.folder / "logs").mkdir()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BenchError):
            for line, count in Counter(self.warnings).most_common(5):
                error.add_note(f"{count} x {line}")
        await stop_all(self.children)
        for task in self._syncing:
            task.cancel()
        await asyncio.gather(*self._syncing, return_exceptions=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def child(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stage: int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Supervised:
        """Start a process; it is started again when it ends by itself. :meth:`check` then complains."""

        def echo(process: str, fields: Mapping[str, Any]) -> None:
            if fields.get("level") in ("error", "critical") or "traceback" in fields:
                trace = str(fields.get("traceback") or "").strip().splitlines()
                reason = f" ({trace[-1][:200]})" if trace else ""
                self.warnings.append(f"{process}: {fields.get('msg')}{reason}")

        spec = ChildSpec(name=name, argv=tuple(argv), env=env or {}, cwd=cwd, stage=stage)
        made = Supervised(spec, logs=self.folder / "logs", echo=echo, backoff=self.options.backoff)
        self.children.append(made)
        await made.start()
        return made

    def check(self, but: Sequence[Supervised] = ()) -> None:
        """Say so when something crashed meanwhile.

        Args:
            but: What was killed on purpose.

        Raises:
            BenchError: A process ended by itself.
        """
        for child in self.children:
            if child.crashes and child not in but:
                raise BenchError(f"{child.spec.name} ended while it was measured: {child.reason}")

    # -- parts ----------------------------------------------------------------------------------------

    async def redis(self, name: str = "redis", *, env: Mapping[str, str] | None = None) -> "Served":
        """Start a Redis with AOF as the fleet runs its own, and wait until it answers."""
        plan = OwnRedis.plan(self.folder / name, port=ports.draw(1)[0])
        child = await self.child(name, plan.argv, stage=_REDIS, env=env)
        syncing = plan.sync(lambda error: self.warnings.append(f"{name}: {error}"))
        self._syncing.append(asyncio.create_task(syncing))
        await wait_for_redis(plan.url, timeout_s=READY_S)
        return Served(url=plan.url, child=child)

    async def sims(
        self, count: int, *, job_s: float | None = None, name: str = "sim", more: Sequence[str] = ()
    ) -> list[str]:
        """Start simulated nodes in one process and return their URLs.

        Args:
            count: How many.
            name: Name of the process and of its folder.
            job_s: Every job takes exactly this long; None: as modelled, next to nothing for a trivial one.
            more: More arguments for ``fleet sim``.
        """
        drawn = ports.draw_block(count)
        args = [*more, *(() if job_s is None else ("--job-seconds", str(job_s)))]
        (process,) = node_plans.simulated(drawn, data=self.folder / name, args=args).processes
        await self.child(name, process.argv, stage=_NODES, cwd=SOURCE)
        urls = [f"http://127.0.0.1:{port}" for port in drawn]
        for url in urls:
            await self.until_200(f"{url}/system_stats")
        return urls

    async def sims_apart(self, count: int, *, job_s: float | None = None) -> list["Served"]:
        """Start simulated nodes as :meth:`sims` does, each in a process of its own."""
        made = []
        for number in range(1, count + 1):
            (url,) = await self.sims(1, job_s=job_s, name=f"sim-{number}")
            made.append(Served(url=url, child=self.children[-1]))
        return made

    async def comfyui(self, name: str = "comfyui", *, testing: bool = False) -> str:
        """Start the real ComfyUI of the options, on the CPU, and return its URL.

        Args:
            name: Name of the process and of its folder.
            testing: Whether it gets its own testing nodes, such as ``TestSleep``.
        """
        assert self.options.comfyui is not None
        home = Checkout.find(self.options.comfyui, python=self.options.comfyui_python, custom_nodes=testing)
        (port,) = ports.draw(1)
        folder, args = self.folder / name, []
        if testing:
            folder.mkdir()
            extra = folder / "extra_model_paths.yaml"
            pack = self.options.comfyui.absolute() / "tests" / "execution" / "testing_nodes"
            extra.write_text(f"testing:\n    custom_nodes: {pack}\n")
            args = ["--extra-model-paths-config", str(extra)]
        launch = home.launch(port=port, folder=folder, gpu=None, args=args)
        await self.child(name, launch.argv, stage=_NODES, env=launch.env, cwd=launch.cwd)
        url = f"http://127.0.0.1:{port}"
        await self.until_200(f"{url}/system_stats", COMFYUI_READY_S)
        return url

    async def proxy(self, node_url: str) -> "Served":
        """Start comfy-api-proxy in front of a node."""
        (port,) = ports.draw(1)
        program = self.options.bench_python.parent / "comfy-api-proxy"
        argv = [str(program), "--comfyui", node_url, "--port", str(port)]
        child = await self.child(f"comfy-api-proxy-{port}", argv, stage=_API)
        url = f"http://127.0.0.1:{port}"
        await self.until_200(f"{url}/api/v2/health")
        return Served(url=url, child=child)

    async def fleet(
        self,
        nodes: Sequence[str],
        *,
        dispatchers: int = 1,
        queue_depth: int = 100_000,
        workflows: Path | None = None,
        ready: bool = True,
        together: bool = False,
        serve: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        way: Callable[[str, str], Awaitable[str]] | None = None,
        redis_url: str | None = None,
    ) -> "Fleet":
        """Start a fleet's processes in front of nodes and wait until a job could run.

        Args:
            nodes: URLs; the n-th becomes ``node-n``.
            dispatchers: How many.
            queue_depth: Queued jobs before submits are refused.
            workflows: Folder of stored workflows; None: the shipped ones.
            ready: Whether to wait until a job could run; without a node that never comes.
            together: Whether API and dispatcher are one process, ``fleet serve``.
            serve: What to run in its place.
            env: Further settings of all processes.
            way: Gets a process's name and the URL of Redis; returns the one that this process is to use.
            redis_url: Where Redis is; None: one is started.
        """
        redis = await self.redis() if redis_url is None else None
        public, console, api, agent = ports.draw(4)
        settings = Settings(
            data=self.folder / "fleet",
            redis_url=redis.url if redis is not None else redis_url,
            haproxy_bin=find_haproxy("haproxy"),
            port=public,
            console_port=console,
            api_port=api,
            agent_port=agent,
            queue_depth=queue_depth,
            workflows=workflows,
        )
        own = {
            f"FLEET_{name.upper()}": str(value)
            for name in (
                *("data", "redis_url", "haproxy_bin", "port", "console_port", "api_port"),
                *("agent_port", "queue_depth", "workflows"),
            )
            if (value := getattr(settings, name)) is not None
        }
        env = {**own, "FLEET_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1", **(env or {})}
        own_redis = redis.child if redis is not None else None
        made = Fleet(stage=self, settings=settings, redis=own_redis, env=env, way=way)
        for number, url in enumerate(nodes, start=1):
            await made.add(f"node-{number}", url)
        made.agent = await self.child("agent", node_plans.fleet("agent"), stage=_PROXY, env=env)
        argv = node_plans.fleet("haproxy", "run")
        made.haproxy = await self.child("haproxy", argv, stage=_PROXY, env=await made.env_of("haproxy"))
        if together:
            made.api = await self.child(
                "serve", serve or node_plans.fleet("serve"), stage=_DISPATCH, env=env, cwd=SOURCE
            )
        else:
            own_env = await made.env_of("api")
            made.api = await self.child("api", node_plans.fleet("api"), stage=_API, env=own_env)
        for number in range(1, 1 if together else dispatchers + 1):
            await self.dispatcher(made, f"dispatch-{number}")
        await self.until_200(f"{made.url}/api/v1/{'ready' if ready else 'health'}")
        return made

    async def dispatcher(self, fleet: "Fleet", name: str) -> Supervised:
        """Start one more dispatcher of a fleet."""
        argv = node_plans.fleet("dispatch", "--name", name)
        made = await self.child(name, argv, stage=_DISPATCH, env=await fleet.env_of(name))
        fleet.dispatchers.append(made)
        return made

    async def worker(self, number: int, node_url: str, redis_url: str) -> Supervised:
        """Start a stock RQ worker that is bound to one node."""
        argv = [sys.executable, "-m", "benchmarks.rq_node", redis_url]
        env = {"BENCH_NODE": node_url}
        return await self.child(f"rq-{number}", argv, stage=_CLIENT, env=env, cwd=SOURCE)

    async def until_200(
        self, url: str, timeout_s: float = READY_S, *, but: Sequence[Supervised] = ()
    ) -> None:
        """Wait until a URL answers 200.

        Args:
            url: It.
            timeout_s: How long at most.
            but: What was killed on purpose.

        Raises:
            BenchError: It does not in time, or a process of the stage ended.
        """
        deadline = time.monotonic() + timeout_s
        why = "nothing answers"
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                self.check(but)
                try:
                    answer = await client.get(url)
                    if answer.status_code == 200:
                        return
                    why = f"{answer.status_code} {answer.text[:300]}"
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(POLL_S)
        raise BenchError(f"{url} is not ready after {timeout_s:g} s: {why}")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A process and where it answers."""

    url: str
    child: Supervised

    @property
    def pid(self) -> int:
        """Its process id."""
        return pid_of(self.child)


@dataclass(kw_only=True)
class Fleet:
    """A running fleet."""

    stage: Stage
    settings: Settings
    redis: Supervised | None
    env: Mapping[str, str] = field(default_factory=dict)
    way: Callable[[str, str], Awaitable[str]] | None = None
    agent: Supervised | None = None
    haproxy: Supervised | None = None
    api: Supervised | None = None
    dispatchers: list[Supervised] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The edge."""
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def console_url(self) -> str:
        """The edge, for what operators do."""
        return f"http://127.0.0.1:{self.settings.console_port}"

    @property
    def api_url(self) -> str:
        """The API itself, behind the edge."""
        return f"http://127.0.0.1:{self.settings.api_port}"

    async def env_of(self, process: str) -> Mapping[str, str]:
        """Return the settings of one process, which may have a way of its own to Redis."""
        if self.way is None:
            return self.env
        return {**self.env, "FLEET_REDIS_URL": await self.way(process, self.settings.redis_url)}

    def stores(self) -> AbstractAsyncContextManager[Stores]:
        """Open the fleet's records."""
        return open_stores(self.settings)

    async def add(self, name: str, url: str, *, cordoned: bool = False, pool: str = DEFAULT_POOL) -> None:
        """Register a node."""
        async with open_stores(self.settings) as stores:
            await stores.nodes.add(Node(name=name, url=url, cordoned=cordoned, pool=pool))

    async def cordon(self, name: str) -> None:
        """Keep jobs away from a node."""
        async with open_stores(self.settings) as stores:
            await stores.nodes.cordon(name, reason="benchmark")

    async def until_up(self, count: int) -> None:
        """Wait until HAProxy would give jobs to this many nodes.

        Raises:
            BenchError: It does not in time.
        """
        deadline = time.monotonic() + READY_S
        async with open_stores(self.settings) as stores:
            while True:
                up = [state.node.name for state in await stores.nodes.states() if state.verdict == "up"]
                if len(up) == count:
                    return
                if time.monotonic() > deadline:
                    raise BenchError(f"{count} nodes should be up, but these are: {', '.join(up) or 'none'}")
                await asyncio.sleep(POLL_S)

    def pids(self) -> dict[str, list[int]]:
        """Return process ids by part."""
        assert self.agent and self.haproxy and self.api
        controller = pid_of(self.haproxy)
        return {
            self.api.spec.name: [pid_of(self.api)],
            **({"dispatcher": [pid_of(child) for child in self.dispatchers]} if self.dispatchers else {}),
            **self.haproxy_pids(controller),
            "HAProxy controller": [controller],
            "agent": [pid_of(self.agent)],
            **({"Redis": [pid_of(self.redis)]} if self.redis is not None else {}),
        }

    @staticmethod
    def haproxy_pids(controller: int) -> dict[str, list[int]]:
        """Return the process ids of both HAProxy processes, a master before its worker."""
        below = descendants(controller)
        return {
            "HAProxy edge": [pid for pid in below if "edge.cfg" in command(pid)],
            "HAProxy broker": [pid for pid in below if "broker.cfg" in command(pid)],
        }


def pid_of(child: Supervised) -> int:
    """Return a running child's process id.

    Raises:
        BenchError: It does not run.
    """
    if child.pid is None:
        raise BenchError(f"{child.spec.name} does not run")
    return child.pid


@asynccontextmanager
async def bounded(seconds: float, what: str) -> AsyncIterator[None]:
    """Bound a measurement in time.

    Raises:
        BenchError: It took longer.
    """
    try:
        async with Timeout(seconds):
            yield
    except TimeoutError as error:
        raise BenchError(f"{what} took longer than {seconds:g} s") from error


async def sim_stats(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return the simulated nodes' own accounts (``/sim/stats``)."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answers = await asyncio.gather(*(client.get(f"{url}/sim/stats") for url in urls))
    return [answer.json() for answer in answers]


async def sim_intervals(urls: Sequence[str]) -> list[list[tuple[float, float]]]:
    """Return when each simulated node computed, in Unix seconds."""
    return [[(start, end) for start, end, _ in one["intervals"]] for one in await sim_stats(urls)]


async def sim_done(urls: Sequence[str]) -> int:
    """Return how many prompts simulated nodes have finished."""
    return sum(one["done"] for one in await sim_stats(urls))


async def sim_reset(urls: Sequence[str]) -> None:
    """Start the nodes' accounts anew."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        for url in urls:
            (await client.post(f"{url}/sim/reset")).raise_for_status()
