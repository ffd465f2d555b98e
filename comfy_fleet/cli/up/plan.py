"""Decide what ``fleet up`` runs, without running anything."""

import contextlib
import ipaddress
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.adapters.haproxy import build
from comfy_fleet.adapters.haproxy.certificates import edge_certificates
from comfy_fleet.adapters.haproxy.config_render import check_data
from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
from comfy_fleet.agent.gpu_places import host_name
from comfy_fleet.api.auth import Keys
from comfy_fleet.bootstrap import open_keys_file, open_secrets
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import nodes as node_plans
from comfy_fleet.cli.up import ports, public_port
from comfy_fleet.cli.up.lock import read_note
from comfy_fleet.cli.up.nodes import NodePlan
from comfy_fleet.cli.up.programs import OwnRedis, find_haproxy
from comfy_fleet.cli.up.public_port import PublicPort
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.domain.nodes.gpu import Gpus
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.settings import Settings


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the operator asked for.

    Attributes:
        goes_on: Whether it named no nodes, so that the fleet goes on with those that it had.
        nodes: How many nodes to start; None: three simulated, or one ComfyUI per GPU.
        running: ComfyUIs that run already, as URL or ``NAME=URL``.
        comfyui: ComfyUI to start processes of; None starts simulated nodes.
        own_redis: Whether to run a Redis of the fleet's own.
        port_named: What named the public port, ``--port`` or ``FLEET_PORT``; empty: any port will do.
        console_named: What named the console's port, ``FLEET_CONSOLE_PORT``; empty: any port will do.
        sim_args: More arguments for ``fleet sim``.
        ready_timeout_s: How long the start may take; None: 300 with ComfyUIs to start, else 60.
        verbose: Show all log lines, not only warnings.
        leave: Called once it is ready, with the file that gets what is said from then on; None: it stays on
            its terminal.
    """

    goes_on: bool = False
    nodes: int | None = None
    running: Sequence[str] = ()
    comfyui: Checkout | None = None
    own_redis: bool = True
    port_named: str = "--port"
    console_named: str = ""
    sim_args: Sequence[str] = ()
    ready_timeout_s: float | None = None
    verbose: bool = False
    leave: Callable[[Path], None] | None = None

    @property
    def patience_s(self) -> float:
        """How long the start may take, in seconds."""
        return self.ready_timeout_s or (300.0 if self.comfyui else 60.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will run."""

    settings: Settings
    env: Mapping[str, str]
    redis: OwnRedis | None
    nodes: NodePlan
    port: PublicPort
    owners: Sequence[str] = ()
    ports: Sequence[int] = ()
    node_ports: Sequence[int] = ()

    @property
    def url(self) -> str:
        """Where the fleet answers, as seen from this machine."""
        return public_url(self.settings.host, self.settings.port, tls=self.settings.tls)

    @property
    def console_url(self) -> str:
        """Where its console answers, as seen from this machine."""
        return public_url(self.settings.host, self.settings.console_port, tls=self.settings.tls)

    @property
    def console_certificate(self) -> Path | None:
        """The file of the certificate that the console shows, if it speaks TLS."""
        file = self.settings.console_tls_cert_file or self.settings.tls_cert_file
        return None if file is None else file.absolute()

    @property
    def found_by(self) -> dict[str, Any]:
        """The settings by which other commands find the parts; a Redis that was named is theirs to name."""
        names = [
            "namespace",
            "host",
            "port",
            "console_port",
            "editor",
            "api_port",
            "agent_port",
            "haproxy_bin",
        ]
        names += ["dispatch_metrics_port", "haproxy_metrics_port", "agent_metrics_port"]
        return {
            name: getattr(self.settings, name) for name in (*names, *(["redis_url"] if self.redis else []))
        }


def public_url(host: str, port: int, *, tls: bool = False) -> str:
    """Return the base URL for clients on this machine."""
    name = ports.asked(host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def plan(settings: Settings, options: UpOptions, *, gpus: Gpus, visible: str | None) -> Plan:
    """Decide what to run, without running anything.

    Args:
        settings: With the flags of the command line applied; ``data`` absolute.
        options: What the operator asked for.
        gpus: GPUs that the driver sees.
        visible: This process's ``CUDA_VISIBLE_DEVICES``.

    Raises:
        Fail: The port is taken, HAProxy is missing, or this machine may not ask what it starts.
        ConfigError: No Redis-compatible server is installed, a GPU is not there, API keys are wrong or
            missing where they are needed, a certificate can't be used, or the folder of stored workflows
            can't be read.
        BadInput: A node's name or URL can't be used.
    """
    check_data(settings)
    # The ports of the last start, where they are still free: the fleet and its nodes keep their URLs.
    note = read_note(settings.data)
    made = node_plans.running(
        options.running, seal=lambda plain: open_secrets(settings).seal(plain.encode()).decode()
    )
    port = public_port.choose(
        settings.port,
        settings.host,
        named=options.port_named,
        nodes=made.nodes,
        kept=note.get("instead"),
    )
    console = public_port.choose_console(
        settings.console_port,
        settings.host,
        public=port.number,
        named=options.console_named,
        nodes=made.nodes,
        kept=note.get("console"),
    )
    _require_own_questions(settings)
    # The API would refuse to start, again and again; so below.
    keys = Keys.load(settings, open_keys_file(settings))
    edge_certificates(settings)  # HAProxy would not start
    WorkflowCatalog(settings.workflows_dir).check()
    haproxy = find_haproxy(settings.haproxy_bin)
    build.require(haproxy)
    devices = node_plans.visible_gpus(gpus, visible) if options.comfyui else []
    count = options.nodes
    if count is None:
        count = 0 if options.running else (max(1, len(devices)) if options.comfyui else 3)
    outer = {port.number, console.number}
    inner = [one for one in ports.draw(9, prefer=note.get("ports", [])) if one not in outer][:7]
    api, agent, redis_port, *of_metrics = inner
    simulated = 0 if options.comfyui else count
    node_ports = ports.draw_block(simulated, prefer=next(iter(note.get("node_ports", [])), None))
    redis = OwnRedis.plan(settings.data, port=redis_port) if options.own_redis else None
    if options.comfyui and count:
        made += node_plans.comfyuis(
            options.comfyui,
            count,
            host=host_name(),
            gpus=gpus,
            devices=devices,
            metrics_port=of_metrics[3],
        )
    elif count:
        made += node_plans.simulated(node_ports, data=settings.data, args=options.sim_args)
    _require_distinct(made.nodes)
    ours = settings.model_copy(
        update={
            "port": port.number,
            "console_port": console.number,
            "haproxy_bin": haproxy,
            "redis_url": redis.url if redis else settings.redis_url,
            "api_port": api,
            "agent_port": agent,
            "dispatch_metrics_port": of_metrics[0],
            "haproxy_metrics_port": of_metrics[1],
            "agent_metrics_port": of_metrics[2],
        }
    )
    env = {
        f"FLEET_{name.upper()}": str(getattr(ours, name))
        for name in (
            *("data", "redis_url", "namespace", "haproxy_bin", "host", "port", "log_level"),
            *("console_port", "editor"),
            *("api_host", "api_port", "agent_port"),
            *("dispatch_metrics_port", "haproxy_metrics_port", "agent_metrics_port"),
        )
    }
    env |= {"FLEET_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
    if settings.agent_token is None:
        env["FLEET_AGENT_TOKEN"] = secrets.token_urlsafe(24)  # API and agent need one where keys are set
    return Plan(
        settings=ours,
        env=env,
        redis=redis,
        nodes=made,
        port=port,
        owners=keys.owners,
        ports=inner,
        node_ports=node_ports,
    )


def _require_distinct(nodes: Sequence[Node]) -> None:
    """Refuse two nodes of one name or at one URL, before anything is started.

    Raises:
        Fail: There are such.
    """
    for what, values in (("name", [n.name for n in nodes]), ("URL", [n.url for n in nodes])):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise Fail(
                f"two nodes have the {what} {twice}",
                hint="each --node [NAME=]URL is one ComfyUI, with its own name",
                code=Exit.USAGE,
            )


def _require_own_questions(settings: Settings) -> None:
    """Refuse lists of networks that leave out this machine, at whose console the start and commands ask."""
    served = parse_networks(settings.console_allow_from or settings.allow_from)
    own = ipaddress.ip_address("127.0.0.1")
    with contextlib.suppress(ValueError):  # a name is taken for localhost
        own = ipaddress.ip_address(ports.asked(settings.host))
    if served and not any(own in ipaddress.ip_network(network) for network in served):
        setting = "FLEET_CONSOLE_ALLOW_FROM" if settings.console_allow_from else "FLEET_ALLOW_FROM"
        raise Fail(
            f"{setting} leaves out {own}, from where this start and the commands on this machine ask",
            hint=f"add it: {setting}={','.join(served)},{own}",
            code=Exit.USAGE,
        )
