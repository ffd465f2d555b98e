"""``fleet health``: does one process of the fleet work? For containers and monitors."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import NAME_ITS_FOLDER, Data

if TYPE_CHECKING:
    from comfy_fleet.settings import Settings

_PATIENCE_S = 5.0


class Part(StrEnum):
    """A process that can be asked."""

    API = "api"
    DISPATCH = "dispatch"
    HAPROXY = "haproxy"
    AGENT = "agent"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Single processes")(health)


def health(
    part: Annotated[Part, typer.Argument(help="Which process to ask.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the dispatcher.", show_default="any one of this host")
    ] = None,
    data: Data = None,
) -> None:
    """Check that a process on this host works; exits with 1 if a restart would help.

    It needs the process's own FLEET_* variables, and no API key. An API without nodes works: `fleet status`
    shows if a job could run.
    """
    import asyncio

    from comfy_fleet.cli.processes import load_running

    why = asyncio.run(_ask(part, load_running(data), name))
    if why is not None:
        raise Fail(f"{part}: {why}", hint=NAME_ITS_FOLDER, code=Exit.FAILED)
    typer.echo("ok")


async def _ask(part: Part, settings: "Settings", name: str | None) -> str | None:
    from comfy_fleet.timeouts import Timeout

    probes = {Part.API: _api, Part.HAPROXY: _haproxy, Part.AGENT: _agent}
    try:
        async with Timeout(_PATIENCE_S):
            if part is Part.DISPATCH:
                return await _dispatch(settings, name)
            return await probes[part](settings)
    except TimeoutError:
        return f"no answer within {_PATIENCE_S:g} s"


async def _api(settings: "Settings") -> str | None:
    import httpx

    from comfy_fleet.adapters.haproxy.server_lines import join
    from comfy_fleet.adapters.system.authorities import authorities
    from comfy_fleet.cli.up import ports

    url = f"http://{join(ports.asked(settings.api_host), settings.api_port)}/api/v1/health"
    async with httpx.AsyncClient(trust_env=False, timeout=_PATIENCE_S, verify=authorities(url)) as client:
        try:
            answer = await client.get(url)
        except httpx.HTTPError as error:
            return f"nothing answers at {url} ({str(error) or type(error).__name__})"
    return None if answer.is_success else f"{url} answered {answer.status_code}"


async def _haproxy(settings: "Settings") -> str | None:
    import httpx

    from comfy_fleet.adapters.haproxy.config_render import files
    from comfy_fleet.adapters.system.authorities import authorities

    places = files(settings)
    for name, socket in (("broker", places.broker_monitor), ("edge", places.edge_monitor)):
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=authorities("http://haproxy"))
        async with httpx.AsyncClient(transport=transport, timeout=_PATIENCE_S, trust_env=False) as client:
            try:
                answer = await client.get("http://haproxy/health")
            except httpx.HTTPError as error:
                return f"the {name} does not answer on {socket} ({str(error) or type(error).__name__})"
        if not answer.is_success:
            return f"the {name} answered {answer.status_code}"
    return None


async def _agent(settings: "Settings") -> str | None:
    import asyncio

    from comfy_fleet.cli.up import ports

    host = ports.asked(settings.agent_host)
    try:
        reader, writer = await asyncio.open_connection(host, settings.agent_port)
    except OSError as error:
        return f"nothing answers at {host}:{settings.agent_port} ({error.strerror or error})"
    writer.write(b"fleet-health/")  # any name will do: an agent that lives closes the connection
    await reader.read()
    writer.close()
    return None


async def _dispatch(settings: "Settings", name: str | None) -> str | None:
    import socket

    from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
    from comfy_fleet.bootstrap import open_stores
    from comfy_fleet.domain.errors import StoreDown
    from comfy_fleet.timeouts import Timeout

    async with open_stores(settings) as stores:
        try:
            async with Timeout(_PATIENCE_S * 0.6):
                alive = await live_dispatchers(stores.redis)
        except (StoreDown, TimeoutError) as error:
            # Its runs go on without Redis for a while, and restarting it would not bring Redis back.
            typer.echo(f"unknown: Redis does not answer ({str(error) or type(error).__name__})", err=True)
            return None
    here = socket.gethostname()
    if any(found == name if name else found.startswith(f"{here}.") for found in alive):
        return None
    return f"no heartbeat of {name or f'a dispatcher on {here}'} in Redis"
