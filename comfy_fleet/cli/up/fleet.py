"""Run a whole fleet on this machine: plan it, start it, wait until a job could run, stop it."""

import asyncio
import contextlib
import secrets
import shlex
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
from rich.console import Console
from rich.status import Status

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.adapters.folders import private_folder
from comfy_fleet.agent.main import host_name
from comfy_fleet.api.auth import Keys
from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.cli.console import SIMULATED, facts, natural, span, table
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports
from comfy_fleet.cli.up.lock import DataLock, read_note
from comfy_fleet.cli.up.nodes import NodePlan
from comfy_fleet.cli.up.programs import OwnRedis, find_haproxy, wait_for_redis
from comfy_fleet.cli.up.supervisor import Spec, Supervised, is_loud, stop_all
from comfy_fleet.domain.gpu import Gpus
from comfy_fleet.domain.node import Node
from comfy_fleet.settings import Settings

_GIVE_UP_AFTER = 3  # crashes in a row before the fleet was ever ready: it won't start by waiting
_SAY_AGAIN_S = 10.0  # the same line of the same process comes on the terminal this often at most
_FRAME = " │╭╮╰╯─"  # around the errors of the command line's own
_REDIS, _NODES, _PROXY, _API, _DISPATCH = range(5)  # stages; the last is stopped first


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the operator asked for.

    Attributes:
        nodes: How many nodes to start; None: three simulated, or one ComfyUI per GPU.
        running: ComfyUIs that run already, as URL or ``NAME=URL``.
        comfyui: ComfyUI to start processes of; None starts simulated nodes.
        own_redis: Whether to run a Redis of the fleet's own.
        sim_args: More arguments for ``fleet sim``.
        ready_timeout_s: How long the start may take.
        verbose: Show all log lines, not only warnings.
    """

    nodes: int | None = None
    running: Sequence[str] = ()
    comfyui: Checkout | None = None
    own_redis: bool = True
    sim_args: Sequence[str] = ()
    ready_timeout_s: float = 60.0
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will run."""

    settings: Settings
    env: Mapping[str, str]
    redis: OwnRedis | None
    nodes: NodePlan
    ports: Sequence[int] = ()
    node_ports: Sequence[int] = ()

    @property
    def url(self) -> str:
        """Where the fleet answers, as seen from this machine."""
        return public_url(self.settings.host, self.settings.port)

    @property
    def found_by(self) -> dict[str, Any]:
        """The settings by which other commands find the parts; a Redis that was named is theirs to name."""
        names = ["host", "port", "api_port", "lease_port", "direct_port", "agent_port", "haproxy_bin"]
        return {
            name: getattr(self.settings, name) for name in (*names, *(["redis_url"] if self.redis else []))
        }


def public_url(host: str, port: int) -> str:
    """Return the base URL for clients on this machine."""
    name = ports.asked(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def plan(settings: Settings, options: UpOptions, *, gpus: Gpus, visible: str | None) -> Plan:
    """Decide what to run, without running anything.

    Args:
        settings: With the flags of the command line applied; ``data`` absolute.
        options: What the operator asked for.
        gpus: GPUs that the driver sees.
        visible: This process's ``CUDA_VISIBLE_DEVICES``.

    Raises:
        Fail: The port is taken, or HAProxy is missing.
        ConfigError: No Redis-compatible server is installed, a GPU is not there, or API keys are wrong or
            missing where they are needed.
        BadInput: A node's name or URL can't be used.
    """
    ports.require_free(settings.port, settings.host)
    Keys.load(settings)  # the API would refuse to start, again and again
    haproxy = find_haproxy(settings.haproxy_bin)
    devices = node_plans.visible_gpus(gpus, visible) if options.comfyui else []
    count = options.nodes
    if count is None:
        count = 0 if options.running else (max(1, len(devices)) if options.comfyui else 3)
    # The ports of the last start, where they are still free: nodes keep their URLs, and so their history.
    note = read_note(settings.run_dir / "up.json")
    api, lease, direct, agent, redis_port = inner = ports.draw(5, prefer=note.get("ports", []))
    simulated = 0 if options.comfyui else count
    node_ports = ports.draw_block(simulated, prefer=next(iter(note.get("node_ports", [])), None))
    redis = OwnRedis.plan(settings.data, port=redis_port) if options.own_redis else None
    made = node_plans.running(options.running)
    if options.comfyui and count:
        made += node_plans.comfyuis(options.comfyui, count, host=host_name(), gpus=gpus, devices=devices)
    elif count:
        made += node_plans.simulated(node_ports, data=settings.data, args=options.sim_args)
    _require_distinct(made.nodes)
    ours = settings.model_copy(
        update={
            "haproxy_bin": haproxy,
            "redis_url": redis.url if redis else settings.redis_url,
            "api_port": api,
            "lease_port": lease,
            "direct_port": direct,
            "agent_port": agent,
        }
    )
    env = {
        f"FLEET_{name.upper()}": str(getattr(ours, name))
        for name in (
            *("data", "redis_url", "haproxy_bin", "host", "port", "log_level"),
            *("api_host", "api_port", "lease_port", "direct_port", "agent_port", "broker_host"),
        )
    }
    env |= {"FLEET_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
    if settings.agent_token is None:
        env["FLEET_AGENT_TOKEN"] = secrets.token_urlsafe(24)  # API and agent need one where keys are set
    return Plan(settings=ours, env=env, redis=redis, nodes=made, ports=inner, node_ports=node_ports)


def _require_distinct(nodes: Sequence[Node]) -> None:
    """Refuse two nodes of one name or at one URL, before anything is started.

    Raises:
        Fail: There are such.
    """
    for what, values in (("name", [n.name for n in nodes]), ("URL", [n.url for n in nodes])):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise Fail(
                f"two nodes have the {what} {twice}",
                hint="each --node [NAME=]URL is one ComfyUI, with a name of its own",
                code=Exit.USAGE,
            )


class Roster(Protocol):
    """The part of the node registry that :func:`reconcile` needs."""

    async def nodes(self) -> Sequence[Node]:
        """Return all nodes."""

    async def add(self, node: Node) -> Node:
        """Register a node."""

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Forget a node."""

    async def cordon(self, name: str, *, reason: str) -> Node:
        """Keep new jobs away."""


async def reconcile(
    registry: Roster, wanted: Sequence[Node], joining: Collection[str] = (), *, now: float
) -> None:
    """Make the registry hold the wanted nodes; nodes that others added stay.

    Args:
        registry: Where nodes are registered.
        wanted: What this ``fleet up`` serves.
        joining: Names of nodes that an agent will register, where they are not yet.
        now: Unix seconds: when nodes that are new were added.

    Raises:
        Conflict: A name or URL belongs to a node that somebody else added.
    """
    by_name = {node.name: node for node in wanted}
    kept = set(joining)
    cordons: dict[str, str] = {}
    for node in await registry.nodes():
        new = by_name.get(node.name)
        if new and (node.url, node.simulated) == (new.url, new.simulated):
            kept.add(node.name)
        elif node.name not in kept and node.labels.get(node_plans.MANAGED) == node_plans.MANAGER:
            await registry.remove(node.name, force=True)
            if node.cordoned:
                cordons[node.name] = node.cordon_reason
    for node in wanted:
        if node.name not in kept:
            await registry.add(replace(node, added_at=now))
            if node.name in cordons:  # an operator's word holds for the name, wherever it listens now
                await registry.cordon(node.name, reason=cordons[node.name])


class Fleet:
    """A planned fleet, with its processes."""

    def __init__(self, planned: Plan, options: UpOptions, console: Console) -> None:
        self.plan = planned
        self._options = options
        self._console = console
        self._children: list[Supervised] = []
        self._nodes: Sequence[Node] = ()
        self._stopping = False
        self._ready = False
        self._told: dict[tuple[str, str], float] = {}
        self._stop = asyncio.Event()
        self._syncing: asyncio.Task[None] | None = None

    async def run(self, lock: DataLock) -> None:
        """Start everything, say where it is, serve until a signal comes, and stop everything.

        Args:
            lock: Holds the data folder; the note in it gets our address.

        Raises:
            Fail: It could not be started.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        lock.note(
            {
                "url": self.plan.url,
                "ports": list(self.plan.ports),
                "node_ports": list(self.plan.node_ports),
                "settings": self.plan.found_by,
            }
        )
        started = time.monotonic()
        try:
            with self._console.status("starting Redis") as status:
                starting = asyncio.create_task(self._start(status))
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if starting.done():
                    starting.result()
                else:
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
            if not self._stop.is_set():
                self._ready = True
                self._say_ready(time.monotonic() - started)
            await self._stop.wait()
        finally:
            self._stopping = True
            with self._console.status("stopping"):
                await stop_all(self._children)
            if self._syncing:
                self._syncing.cancel()
                await asyncio.gather(self._syncing, return_exceptions=True)
            self._console.print("stopped; queue and files stay in", end=" ")
            self._console.print(str(self.plan.settings.data), markup=False, soft_wrap=True)

    def _on_signal(self) -> None:
        if self._stopping:  # asked twice: don't wait for anybody
            for child in self._children:
                child.kill()
        self._stop.set()

    async def _start(self, status: Status) -> None:
        settings = self.plan.settings
        if self.plan.redis:
            await self._child(Spec(name="redis", argv=self.plan.redis.argv, stage=_REDIS))
            self._syncing = asyncio.create_task(self.plan.redis.sync(self._not_synced))
        await wait_for_redis(settings.redis_url, timeout_s=30 if self.plan.redis else 5)
        async with open_stores(settings) as stores:
            await reconcile(stores.nodes, self.plan.nodes.nodes, self.plan.nodes.joining, now=time.time())
            status.update("starting nodes, HAProxy, API and dispatcher")
            await self._start_parts()
            await self._until_ready(status, stores)
            self._nodes = await stores.nodes.nodes()

    def _not_synced(self, error: OSError) -> None:
        facts = {"level": "warning", "msg": "Redis' data not synced to the disk", "error": str(error)}
        self._echo("redis", facts)

    async def _start_parts(self) -> None:
        settings = self.plan.settings
        specs = [
            replace(process, env={**self.plan.env, **process.env}, stage=_NODES)
            for process in self.plan.nodes.processes
        ]
        parts = (("haproxy", _PROXY), ("agent", _PROXY), ("api", _API), ("dispatch", _DISPATCH))
        for name, stage in parts:
            command = node_plans.fleet(*(("haproxy", "run") if name == "haproxy" else (name,)))
            # A dispatcher lets its runs finish first.
            patience_s = 10 + (settings.stop_wait_s if name == "dispatch" else 0)
            specs.append(
                Spec(name=name, argv=command, env=self.plan.env, stop_timeout_s=patience_s, stage=stage)
            )
        for spec in specs:
            await self._child(spec)

    async def _child(self, spec: Spec) -> None:
        logs = private_folder(self.plan.settings.data / "logs")
        child = Supervised(spec, logs=logs, echo=self._echo)
        self._children.append(child)
        await child.start()

    async def _until_ready(self, status: Status, stores: Stores) -> None:
        wanted = self.plan.nodes
        path = "/api/v1/ready" if wanted.nodes or wanted.joining else "/api/v1/health"
        deadline = time.monotonic() + self._options.ready_timeout_s
        why = "nothing answers yet"
        async with httpx.AsyncClient(base_url=self.plan.url, timeout=5, trust_env=False) as client:
            while True:
                try:
                    answer = await client.get(path)
                    if answer.status_code == 200:
                        return
                    why = not_ready(answer)
                except httpx.HTTPError:
                    why = "the public port does not answer yet"
                status.update(f"waiting until a job could run: {why}")
                self._check_crashes()
                await self._check_comfyuis(stores)
                if time.monotonic() > deadline:
                    raise Fail(
                        f"not ready after {span(self._options.ready_timeout_s)}: {why}",
                        hint=f"see {self.plan.settings.data / 'logs'}; --ready-timeout S waits longer",
                        code=Exit.TIMEOUT,
                    )
                await asyncio.sleep(0.1)

    def _check_crashes(self) -> None:
        for child in self._children:
            if child.crashes >= _GIVE_UP_AFTER:
                told = [words for line in child.last_lines if (words := line.strip(_FRAME))]
                last = told[-1] if told else "it said nothing"
                raise Fail(
                    f"{child.spec.name} ends again and again: {last}",
                    hint=f"see {self.plan.settings.data / 'logs' / child.spec.name}.log",
                )

    async def _check_comfyuis(self, stores: Stores) -> None:
        for name in self.plan.nodes.joining:
            seen = await stores.hosts.report(name) or {}
            if seen.get("phase") == "waiting" and int(seen.get("restarts", 0)) + 1 >= _GIVE_UP_AFTER:
                _, why = await stores.hosts.words(name)
                raise Fail(
                    f"{name} ends again and again: {why}",
                    hint=f"see {self.plan.settings.data / 'logs' / name}.log",
                )

    def _echo(self, process: str, fields: Mapping[str, Any]) -> None:
        if self._options.verbose or self._matters(process, fields):
            known = {"ts", "level", "process", "logger", "msg", "traceback"}
            more = "".join(f" {key}={value}" for key, value in fields.items() if key not in known)
            line = f"{fields.get('level', 'info')} {process}: {fields.get('msg')}{more}"
            self._console.print(line, markup=False, soft_wrap=True, style="dim")

    def _matters(self, process: str, fields: Mapping[str, Any]) -> bool:
        """Return whether a line belongs on the terminal now."""
        if self._stopping or not is_loud(fields):
            return False
        if not self._ready and fields.get("level") == "warning":
            return False  # while everything starts, everybody misses somebody
        now, key = time.monotonic(), (process, str(fields.get("msg")))
        if now - self._told.get(key, float("-inf")) < _SAY_AGAIN_S:
            return False
        self._told[key] = now
        return True

    def _say_ready(self, took_s: float) -> None:
        settings = self.plan.settings
        shown = self._console.print
        simulated = any(node.simulated for node in self._nodes)
        shown(f"[bold green]The fleet is ready[/] at [bold]{self.plan.url}[/]  ({span(took_s)})")
        shown()
        nodes = sorted(self._nodes, key=lambda node: natural(node.name))
        rows = [(node.name, node.url, SIMULATED if node.simulated else "ComfyUI") for node in nodes]
        if rows:
            shown(table(["<Node", "URL", "What"], rows))
        else:
            shown("no nodes yet: `fleet node add NAME URL`, or an agent on a GPU host adds its own")
        shown()
        if simulated:
            shown(f"[magenta]{SIMULATED}[/] nodes draw test pictures; real ones: --comfyui DIR, --node URL")
        elsewhere = "" if settings.port == 8188 else f"export FLEET_API_URL={self.plan.url}; "
        example = f'fleet submit {settings.default_workflow} -p prompt="a red fox" --wait'
        usual = settings.data == Path(".fleet").absolute()
        down = "fleet down" if usual else f"fleet down --data {shlex.quote(str(settings.data))}"
        shown(
            facts(
                {
                    "try": elsewhere + example,
                    "data": f"{settings.data} (logs/ has one file per process)",
                    "stop": f"Ctrl-C, or `{down}`",
                }
            )
        )


def not_ready(answer: httpx.Response) -> str:
    """Return why the fleet is not ready, from the API's answer, in a few words."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        body = answer.json()
        message = body.get("error", {}).get("message") or body.get("message") or body.get("why")
        if message:
            return str(message)
    return {502: "the API starts", 503: "the API starts", 504: "the API starts"}.get(
        answer.status_code, f"the API answers {answer.status_code}"
    )
