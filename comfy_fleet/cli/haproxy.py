"""``fleet haproxy``: run both HAProxy processes, and show their configurations."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import NAME_ITS_FOLDER, Data, Json
from comfy_fleet.cli.processes import load, load_running, logging_as

if TYPE_CHECKING:
    from comfy_fleet.adapters.haproxy.config_render import Rendered
    from comfy_fleet.domain.nodes.node import Node
    from comfy_fleet.settings import Settings

app = typer.Typer(
    help="Run HAProxy, which decides who gets a node; show its configuration.", no_args_is_help=True
)

Empty = Annotated[bool, typer.Option("--empty", help="Assume that no node is registered; needs no Redis.")]


@app.command()
def run() -> None:
    """Run broker and edge, and keep them in agreement with the node registry."""
    from comfy_fleet.processes.haproxy import serve

    serve(logging_as("haproxy"))


@app.command()
def render(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the files there instead of stdout.")
    ] = None,
    empty: Empty = False,
    data: Data = None,
) -> None:
    """Print the configurations for the registered nodes; changes nothing."""
    from comfy_fleet.cli.console import printable, stderr

    texts = _texts(_rendered(load_running(data), empty=empty))
    if out is None:
        for name, text in texts.items():
            typer.echo(printable(f"### {name}\n{text}"))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Fail(f"can't write in {out}: {error.strerror}") from error
    stderr().print(f"wrote {', '.join(texts)} to {out}", markup=False)


@app.command()
def check(empty: Empty = False, data: Data = None) -> None:
    """Render the configurations and have HAProxy check them; exits with 1 if it refuses."""
    from comfy_fleet.adapters.haproxy.certificates import write_private
    from comfy_fleet.adapters.haproxy.config_apply import check as ask
    from comfy_fleet.adapters.haproxy.config_render import files
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.up.programs import find_haproxy

    settings = load_running(data)
    program = find_haproxy(settings.haproxy_bin)
    rendered = _rendered(settings, empty=empty)
    places = files(settings)
    console = stdout()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _texts(rendered).items():
            checked = text
            # The maps may not be in place yet, so the check reads those just rendered.
            for live in (places.pools, places.vias, places.no_editors):
                checked = checked.replace(str(live), f"{folder}/{live.name}")
            for file in rendered.certificates:
                checked = checked.replace(str(places.folder / file), f"{folder}/{file}")
            (Path(folder) / name).write_text(checked)
        for file, pem in rendered.certificates.items():
            write_private(Path(folder) / file, pem)
        for name in ("broker.cfg", "edge.cfg"):
            warnings = ask(program, Path(folder) / name)
            console.print(f"{name}: ok" + (f"\n{warnings}" if warnings else ""), markup=False)


@app.command()
def show(
    pinned: Annotated[bool, typer.Option("--pinned", help="Include the backend of pinned calls.")] = False,
    json_: Json = False,
    data: Data = None,
) -> None:
    """Show the servers of the running broker in their present state."""
    import asyncio

    from comfy_fleet.cli.console import print_json, stdout, table

    settings = load(data=data)
    nodes = ("be_pool_", "be_direct") if pinned else ("be_pool_",)
    rows = [row for row in asyncio.run(_servers(settings)) if str(row["backend"]).startswith(nodes)]
    if json_:
        print_json(rows)
        return
    stdout().print(
        table(
            ["<Backend", "<Server", "<Address", "<State", ">Weight", ">Leased", ">Leases", "Agent"],
            [
                (
                    row["backend"],
                    row["server"],
                    row["address"],
                    row["status"],
                    row["weight"],
                    row["leased"],
                    row["leases"],
                    row["last_check"],
                )
                for row in rows
            ],
        )
    )


def _rendered(settings: "Settings", *, empty: bool) -> "Rendered":
    import asyncio

    from comfy_fleet.adapters.haproxy.config_render import render as render_text
    from comfy_fleet.adapters.haproxy.server_lines import pools_of

    nodes = [] if empty else asyncio.run(_nodes(settings))
    pools = pools_of(nodes, _slots(settings), slots=settings.pool_slots)
    return render_text(settings, nodes, pools, ticket_key=b"***")  # the real one is shown to nobody


def _slots(settings: "Settings") -> dict[str, int]:
    """Return the pools' present slots, which they keep."""
    from comfy_fleet.adapters.haproxy.config_render import files

    try:
        lines = files(settings).pools.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {pool: int(backend.rsplit("_", 1)[1]) for pool, backend in (line.split() for line in lines)}


def _texts(rendered: "Rendered") -> dict[str, str]:
    return {
        "broker.cfg": rendered.broker,
        "edge.cfg": rendered.edge,
        "pools.map": rendered.pools,
        "nodes.map": rendered.vias,
        "no-editors.map": rendered.no_editors,
    }  # no certificate's file: there is a key in it


async def _nodes(settings: "Settings") -> Sequence["Node"]:
    from comfy_fleet.bootstrap import open_stores
    from comfy_fleet.cli.up.programs import masked
    from comfy_fleet.domain.errors import Busy

    try:
        async with open_stores(settings) as stores:
            return await stores.nodes.nodes()
    except Busy as error:  # the store is away, or refuses writes
        raise Fail(
            f"Redis at {masked(settings.redis_url)}: {error}",
            hint=f"{NAME_ITS_FOLDER}, or FLEET_REDIS_URL; --empty needs no Redis",
            code=Exit.UNREACHABLE,
        ) from error


async def _servers(settings: "Settings") -> list[dict[str, Any]]:
    from comfy_fleet.adapters.haproxy.config_render import files
    from comfy_fleet.adapters.haproxy.runtime import Runtime
    from comfy_fleet.adapters.haproxy.server_lines import prefix_of
    from comfy_fleet.domain.errors import BrokerError

    runtime = Runtime(files(settings).broker_socket, prefix=prefix_of(settings.namespace))
    found = []
    try:
        servers = await runtime.servers()
        for backend in sorted({server.backend for server in servers}):
            stats = {row["svname"]: row for row in await runtime.stats(backend)}
            for server in (server for server in servers if server.backend == backend):
                row = stats.get(server.name, {})
                answer = row.get("last_agt") or row.get("last_chk") or ""
                found.append(
                    {
                        "backend": backend,
                        "server": server.name,
                        "address": f"{server.host or '?'}:{server.port}",
                        "status": row.get("status", ""),
                        "weight": server.weight,
                        "leased": int(row.get("scur") or 0),
                        "leases": int(row.get("stot") or 0),
                        "last_check": answer.removeprefix("via agent : "),
                    }
                )
    except BrokerError as error:
        raise Fail(str(error), hint=NAME_ITS_FOLDER, code=Exit.UNREACHABLE) from error
    return found
