"""The process ``fleet agent``: the central agent, or that of a GPU host."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from comfy_fleet.adapters.nvml import NvmlProbe
from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp
from comfy_fleet.adapters.system.folders import locked
from comfy_fleet.adapters.system.secret_box import NodeCredentials
from comfy_fleet.adapters.telemetry import MetricsServer, new_registry
from comfy_fleet.agent.agent_check_server import AgentCheckServer
from comfy_fleet.agent.api_client import ApiClient
from comfy_fleet.agent.cleaner import Folders
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.commanded_process import CommandedProcess
from comfy_fleet.agent.gpu_places import host_name
from comfy_fleet.agent.host import HostAgent, Member
from comfy_fleet.agent.host_models import HostModels
from comfy_fleet.agent.metrics import AgentMetrics
from comfy_fleet.agent.model_fetcher import ModelFetcher, ModelLimits
from comfy_fleet.agent.node_source import HttpNodes, NodesSource, WithoutAgent
from comfy_fleet.agent.supervisor import Supervision, Supervisor
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.networks import is_any
from comfy_fleet.domain.nodes.gpu_assessment import Policy
from comfy_fleet.domain.nodes.host import Joining
from comfy_fleet.domain.nodes.node import with_credentials
from comfy_fleet.domain.nodes.process_supervision import RestartLimits
from comfy_fleet.domain.nodes.vram import GIB
from comfy_fleet.domain.outbound import parse_allowed
from comfy_fleet.memory import give_memory_back
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A ComfyUI that already runs on this host.

    Attributes:
        name: The node's name.
        url: Its URL as HAProxy reaches it.
        credentials: ``USER:PASSWORD`` for it; empty for none.
        gpu: Its GPU, as in ``CUDA_VISIBLE_DEVICES``.
        output: Its output folder; None: its files are not deleted.
        input: Its input folder.
        models: Its folder ``models``; None: the agent does not see it.
        restart: The command that restarts it, as program and arguments; empty: the agent never restarts it.
    """

    name: str
    url: str
    gpu: str | None = None
    output: Path | None = None
    input: Path | None = None
    models: Path | None = None
    restart: tuple[str, ...] = ()
    credentials: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """What the operator asked for.

    Attributes:
        join: Base of the API or of the edge; None: the API of the settings.
        token: The agents' token; None: that of the settings.
        host: The host's name; None: the machine's own.
        advertise: The address at which HAProxy reaches this host; None: determined from the route to the API.
        port: Where agent-checks are answered; None: the settings' port.
        supervision: The ComfyUIs to run; None runs none.
        beside: ComfyUIs that run already.
        limits: When those of them that have a command are restarted.
        pool: Pool of the nodes; None keeps the registry's.
        weight: Their weight; None keeps the registry's.
        zone: Their zone; None keeps the registry's.
        labels: Their labels.
        editor: Whether they serve ComfyUI's editor; None keeps the registry's.
    """

    join: str | None = None
    token: str | None = None
    host: str | None = None
    advertise: str | None = None
    port: int | None = None
    supervision: Supervision | None = None
    beside: Sequence[Beside] = ()
    limits: RestartLimits = field(default_factory=RestartLimits)
    pool: str | None = None
    weight: int | None = None
    zone: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    editor: bool | None = None

    @property
    def central(self) -> bool:
        """Whether this is the agent of all nodes without an agent of their own."""
        return self.supervision is None and not self.beside


def serve(settings: Settings, options: AgentOptions) -> None:
    """Run until SIGTERM or SIGINT; a second signal ends it without waiting for prompts.

    Raises:
        ConfigError: A port is taken, or a GPU or program is missing.
    """
    give_memory_back()
    uvloop.run(_serve(settings, options))


def own_address(url: str) -> str:
    """Return the address from which this machine reaches a URL.

    Raises:
        ConfigError: The URL's host does not resolve, or no route leads there.
    """
    parts = urlsplit(url)
    try:
        # This sends nothing: connecting a datagram socket only chooses a route.
        found = socket.getaddrinfo(parts.hostname or "", parts.port or 80, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--join {url}: no way there: {error}; check the URL, or name this host's address: --advertise"
        ) from error


async def _serve(settings: Settings, options: AgentOptions) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await run(settings, options, stop, hurry=hurry)


async def run(
    settings: Settings, options: AgentOptions, stop: asyncio.Event, *, hurry: asyncio.Event | None = None
) -> None:
    """Run an agent until ``stop`` is set.

    Args:
        settings: Where the API is, and when GPUs drain.
        options: What the operator asked for.
        stop: Ends it, once the running prompts have finished or ``stop_wait_s`` is over.
        hurry: Ends it without waiting for them.

    Raises:
        ConfigError: A port is taken, a GPU or program is missing, or another agent works on the folder.
    """
    api_host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    api_url = options.join or f"http://{api_host}:{settings.api_port}"
    if urlsplit(api_url).scheme not in ("http", "https"):
        raise ConfigError(f"--join {api_url} must look like http://HOST:PORT or https://HOST")
    token = options.token or settings.agent_token
    name = options.host or host_name()
    central = options.central
    address = settings.agent_host if central else options.advertise or own_address(api_url)
    port = settings.agent_port if options.port is None else options.port
    nvml = None if central else NvmlProbe()
    opened = NodeCredentials(settings.secret_key_file)
    host = HostAgent(
        f"{name}.central" if central else name,
        central=central,
        policy=_policy(settings),
        pools=settings.pool_defaults,
        nvml=nvml,
        ca_file=settings.node_ca_file,
        credentials=lambda node: opened(node.sealed),
    )
    server = AgentCheckServer(host.answer, host=address, port=port)
    own_metrics = AgentMetrics(host.heartbeat, host.answer, host.confirmed_s_ago)
    registry = new_registry()
    registry.register(own_metrics)
    metrics = MetricsServer(
        registry,
        host=settings.metrics_host,
        port=settings.agent_metrics_port,
        setting="FLEET_AGENT_METRICS_PORT",
        more={"/health/{node}": own_metrics.health},
    )

    def metrics_at() -> str:
        if metrics.port is None:
            return ""
        shown = address if is_any(settings.metrics_host) else settings.metrics_host
        return f"[{shown}]:{metrics.port}" if ":" in shown else f"{shown}:{metrics.port}"

    client = ApiClient(
        api_url,
        host.host,
        compose=host.compose,
        take=host.take,
        changed=host.changed,
        token=token,
        ca_file=settings.api_ca_file,
        metrics=metrics_at,
    )
    await server.start()
    supervisor: Supervisor | None = None
    tasks: list[asyncio.Task[None]] = []
    alone = contextlib.ExitStack()
    try:
        await metrics.start()
        host.address = f"[{address}]:{server.port}" if ":" in address else f"{address}:{server.port}"
        gpus = await host.look_at_gpus()
        for node in options.beside:
            member = _beside(host, node, options, settings.data)
            host.add(member)
            if member.process is not None:
                tasks.append(asyncio.create_task(member.process.run(), name=f"care for {node.name}"))
            for folder in (node.output, node.input):
                if folder is not None and not folder.is_dir():
                    logger.warning(
                        "folder is not there: its files are not deleted",
                        extra={"node": node.name, "folder": str(folder)},
                    )
            if node.models is not None and not node.models.is_dir():
                logger.warning(
                    "folder is not there: models can't be fetched into it",
                    extra={"node": node.name, "folder": str(node.models)},
                )
        if options.supervision is not None:
            # Two agents would start two ComfyUIs on one GPU, in one folder, with one database.
            alone.enter_context(
                locked(
                    settings.data / "comfyui" / "agent.lock",
                    who="`fleet agent --comfyui`",
                    instead="give this one another --data",
                )
            )
            supervisor = Supervisor(options.supervision, host, address=address, data=settings.data)
            for member in supervisor.plan(gpus, lambda **more: _joining(host, options, **more)):
                host.add(member)
            tasks.append(asyncio.create_task(supervisor.run(), name="supervisor"))
        tasks += [
            asyncio.create_task(host.run(), name="host"),
            asyncio.create_task(client.run(), name="heartbeats"),
        ]
        if not central:
            models = _host_models(settings, host, api_url, token=token, address=address)
            tasks.append(asyncio.create_task(models.run(), name="models"))
        if central:
            source = WithoutAgent(HttpNodes(api_url, token=token, ca_file=settings.api_ca_file))
            tasks.append(asyncio.create_task(_follow(host, source), name="agent's nodes"))
        waiter = asyncio.create_task(_wait(stop), name="stop")
        done, _ = await asyncio.wait({*tasks, waiter}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        for task in done - {waiter}:
            task.result()  # none of them ends without an error: this raises
        host.stopping = True
        if supervisor is not None:
            host.changed.set()
            await _let_work_end(host, settings.stop_wait_s, hurry or asyncio.Event())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
        await metrics.stop()
        alone.close()


async def _follow(host: HostAgent, source: NodesSource) -> None:
    async for nodes in source.watch():
        host.follow(nodes)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def _let_work_end(host: HostAgent, patience_s: float, hurry: asyncio.Event) -> None:
    """Wait for running prompts on nodes that will be ended; no new job comes meanwhile."""
    for _ in range(int(patience_s * 10)):
        if not host.busy or hurry.is_set():
            return
        await asyncio.sleep(0.1)


def _host_models(
    settings: Settings, host: HostAgent, api_url: str, *, token: str | None, address: str
) -> HostModels:
    tokens = {"huggingface.co": settings.huggingface_token, "civitai.com": settings.civitai_token}
    changed = asyncio.Event()
    fetcher = ModelFetcher(
        host.model_folders,
        OutboundHttp(allowed=parse_allowed("FLEET_MODEL_ALLOW", settings.model_allow), purpose="model"),
        ModelLimits(
            most_bytes=settings.model_bytes,
            within_s=settings.model_s,
            keep_free=settings.model_free_bytes,
            tokens={site: shown for site, shown in tokens.items() if shown},
        ),
        told=changed.set,
    )
    host.fetch = fetcher.take
    return HostModels(
        api_url,
        host.host,
        instance=host.instance,
        roots=host.model_folders,
        fetcher=fetcher,
        address=address,
        port=settings.agent_models_port,
        changed=changed,
        token=token,
        ca_file=settings.api_ca_file,
    )


def _policy(settings: Settings) -> Policy:
    return Policy(
        need_bytes=None if settings.vram_need_gb is None else int(settings.vram_need_gb * GIB),
        reserve_bytes=None if settings.vram_reserve_gb is None else int(settings.vram_reserve_gb * GIB),
    )


def _beside(host: HostAgent, node: Beside, options: AgentOptions, data: Path) -> Member:
    probe = host.probe(node.name, node.url, node.credentials)
    process = None
    if node.restart:
        process = ComfyUIProcess(
            ProcessSpec(name=node.name, argv=node.restart, log=data / "logs" / f"{node.name}.log"),
            probe,
            client_id=f"fleet-agent-{node.name}",
            limits=options.limits,
            gpu_busy=lambda: host.busy_gpu(node.gpu),
            on_change=host.changed.set,
            turn=lambda: host.turn(node.name),
            commanded=CommandedProcess(node.name, node.restart, node.url),
        )
    return Member(
        probe=probe,
        gpu=node.gpu,
        process=process,
        joining=_joining(
            host,
            options,
            name=node.name,
            url=with_credentials(node.url, node.credentials),
            cleans_up=node.output is not None,
        ),
        folders=None if node.output is None else Folders(output=node.output, input=node.input),
        models=node.models,
    )


def _joining(
    host: HostAgent, options: AgentOptions, *, name: str, url: str, cleans_up: bool, simulated: bool = False
) -> Joining:
    return Joining(
        name=name,
        url=url,
        agent=host.address,
        pool=options.pool,
        weight=options.weight,
        zone=options.zone,
        labels=options.labels,
        simulated=simulated,
        cleans_up=cleans_up,
        editor=options.editor,
    )
