"""``fleet mcp``: stored workflows as tools of agents."""

import re
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.adapters.system import extras
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Key

if TYPE_CHECKING:
    from comfy_fleet.mcp.server import FleetTools

RETRY_S = 30.0
USUAL_WAIT_S = 240.0
USUAL_BYTES = 500_000
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Jobs")(mcp)


def mcp(
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="[HOST:]PORT",
            help="Serve Streamable HTTP at /mcp instead of standard input and output.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="HOST", help="With --http: a name that clients call it by. Repeatable."
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--origin", metavar="URL", help="With --http: an origin whose pages may call it. Repeatable."
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", min=1, max=3600, help="How long a call waits for its job.")
    ] = USUAL_WAIT_S,
    picture_bytes: Annotated[
        int,
        typer.Option(metavar="N", min=10_000, max=10_000_000, help="Bytes of all pictures in one answer."),
    ] = USUAL_BYTES,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Serve the stored workflows as tools to agents, over the Model Context Protocol.

    Without --http an agent starts it, and speaks to it by its standard input and output.
    """
    try:
        import mcp as _  # noqa: F401 - whether it is there
    except ImportError:
        raise Fail("the package mcp is not installed", hint=extras.command("mcp"), code=Exit.USAGE) from None
    if http is None and (name or origin):
        raise Fail("--name and --origin need --http", code=Exit.USAGE)
    import anyio

    from comfy_fleet.cli.client import trusted, usual_url
    from comfy_fleet.client import AsyncFleetClient
    from comfy_fleet.client.address import address_of
    from comfy_fleet.mcp.over_http import key_of
    from comfy_fleet.mcp.server import FleetTools

    url = api or usual_url()
    verify = trusted(url)

    def connect(shown: str | None) -> AsyncFleetClient:
        return AsyncFleetClient(url, shown or "", verify=verify, retry_s=RETRY_S)

    try:
        address_of(url, key, verify)
    except ValueError as error:
        raise Fail(str(error), code=Exit.USAGE) from None
    tools = FleetTools(connect, key_of=key_of, own_key=key, wait_s=wait, most_bytes=picture_bytes)
    if http is None:
        anyio.run(_over_stdio, tools)
    else:
        _over_http(tools, http, name or [], origin or [], partial(keys_needed_at, url, key))


def keys_needed_at(url: str, key: str | None, host: str) -> bool:
    """Return whether each HTTP request has to show a key: nobody borrows what this server itself may do.

    Args:
        url: The fleet's, which may have a key in it.
        key: The server's own.
        host: Where it listens.
    """
    from comfy_fleet.client.address import address_of
    from comfy_fleet.mcp.over_http import is_loopback

    own = address_of(url, key, True)
    return bool(own.headers or own.login) or not is_loopback(host)


async def _over_stdio(tools: "FleetTools") -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await tools.server.run(read, write, tools.server.create_initialization_options())


def _over_http(
    tools: "FleetTools", where: str, names: list[str], origins: list[str], keys_needed: Callable[[str], bool]
) -> None:
    import anyio

    from comfy_fleet.cli.console import stderr
    from comfy_fleet.mcp.over_http import PATH, app_of, is_loopback, serve

    found = _ADDRESS.fullmatch(where)
    if found is None or int(found["port"]) > 65535:
        raise Fail(f"--http {where!r} is not [HOST:]PORT", hint="e.g. --http 8191", code=Exit.USAGE)
    host = (found["host"] or "127.0.0.1").strip("[]")
    local = is_loopback(host)
    if not local and not names:
        raise Fail(
            f"--http {where}: who calls it from elsewhere calls it by a name",
            hint="say which: --name mcp.example.org",
            code=Exit.USAGE,
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, int(found["port"])), family=family)
    except OSError as error:
        raise Fail(f"can't listen on {where}: {error.strerror or error}", code=Exit.FAILED) from None
    shown = f"[{host}]" if ":" in host else host
    stderr().print(f"MCP at http://{shown}:{listener.getsockname()[1]}{PATH}", markup=False)
    app = app_of(tools, keys_needed=keys_needed(host), names=names, origins=origins)
    anyio.run(serve, app, listener)
