"""``fleet node`` for many nodes at once: a whole host, a rolling restart."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.node_state import RemoteNodes, failing, naming, nodes_of, path, wait_drained
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key, words


class Restarts(Enum):
    """Who restarts a node if no command does."""

    AGENT = auto()
    NOBODY = auto()


def cordon_host(
    host: Annotated[str, typer.Argument(help="The host's name or address.")],
    reason: Annotated[
        str | None, typer.Option(help="The reason; shown to everybody.", show_default="the present one")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no job needs any of them.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds.")
    ] = 600,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Put their jobs back into the queue at once.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Stop new jobs on every node of a host."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    with Client(api, key, timeout_s=60) as client:
        names = _on_host(client, host)
        for name in names:
            client.post(f"{path(name)}/drain", {"reason": reason, "requeue": requeue})
        if wait:
            wait_drained(client, names, timeout)
    print_answer({"host": host, "nodes": names}, f"drained {', '.join(names)}", json_=json_)


def uncordon_host(
    host: Annotated[str, typer.Argument(help="The host's name or address.")],
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Allow new jobs on every node of a host again."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    with Client(api, key, timeout_s=60) as client:
        names = _on_host(client, host)
        for name in names:
            client.post(f"{path(name)}/resume")
    print_answer({"host": host, "nodes": names}, f"resumed {', '.join(names)}", json_=json_)


def _on_host(client: Any, host: str) -> list[str]:
    """Return the names of the nodes on a host.

    Raises:
        Fail: There is none.
    """
    nodes = nodes_of(client.get("/api/v1/nodes"))
    names = [str(node["name"]) for node in nodes if host in hosts_of(node)]
    if not names:
        known = sorted({name for node in nodes for name in hosts_of(node) if name})
        raise Fail(
            f"no node is on host {host}", hint=f"hosts: {', '.join(known) or 'none'}", code=Exit.NOT_FOUND
        )
    return names


def roll(
    zone: Annotated[str, typer.Option(help="Only the nodes of this zone, all of them at once.")] = "",
    pool: Annotated[str, typer.Option(help="Only the nodes of this pool.")] = "",
    parallel: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of nodes at a time.", show_default="1; a whole zone"),
    ] = None,
    restart_command: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run this for each node, without a shell; {name}, {host} and {url} are filled in.",
        ),
    ] = None,
    wait_restart: Annotated[
        bool, typer.Option("--wait-restart", help="Wait until somebody else restarts each node.")
    ] = False,
    drain_timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Longest wait for a node's jobs to end, in seconds.")
    ] = 3600,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Longest wait for a node to come back, in seconds.")
    ] = 600,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Restart nodes one after the other, without losing a job.

    The node's agent restarts it, unless you choose another way. Each node is drained and restarted, and gets
    jobs again as soon as it is back. Nodes that somebody else has drained are left alone. If a node does not
    come back, it stays drained and the command ends.

    Examples: `fleet node roll --pool big`, `fleet node roll --restart-command "ssh {host} systemctl restart
    comfyui"`.
    """
    import asyncio

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stderr, stdout

    if restart_command is not None and wait_restart:
        raise Fail("either --restart-command CMD or --wait-restart", code=Exit.USAGE)
    by: Restarts | Sequence[str] = Restarts.NOBODY if wait_restart else Restarts.AGENT
    if restart_command is not None:
        by = _command(restart_command)
    with Client(api, key, timeout_s=60) as client:
        chosen = [
            node
            for node in nodes_of(client.get("/api/v1/nodes"))
            if (not zone or node.get("zone") == zone) and (not pool or node.get("pool") == pool)
        ]
        for node in [node for node in chosen if node.get("cordoned")]:
            stderr().print(f"{node['name']} is drained already: left alone")
            chosen.remove(node)
        if not chosen:
            raise Fail("no node to restart", hint="fleet node ls", code=Exit.NOT_FOUND)
        rows = {str(node["name"]): node for node in chosen}

        done: list[str] = []

        def told(names: Sequence[str]) -> None:
            done.extend(names)
            stdout().print(f"restarted {', '.join(names)} ({len(done)} of {len(rows)})")

        control = RemoteNodes(client)
        with naming(control.drained), failing():
            asyncio.run(
                _roll(
                    control,
                    rows,
                    by,
                    at_once=parallel or (len(rows) if zone else 1),
                    drain_s=drain_timeout,
                    back_s=timeout,
                    told=told,
                )
            )
        for name in [name for name in rows if name not in done]:
            stderr().print(f"{name} was drained meanwhile: left alone")


async def _roll(
    control: RemoteNodes,
    nodes: Mapping[str, Mapping[str, Any]],
    by: Restarts | Sequence[str],
    *,
    told: Callable[[Sequence[str]], None],
    **more: Any,
) -> None:
    """Restart nodes, by name.

    Args:
        control: Controls the nodes.
        nodes: The nodes in the API's form.
        by: Who restarts them, or a command in words.
        told: Called with the names of the finished nodes.
        more: See :func:`comfy_fleet.services.node_life.roll`.
    """
    import asyncio

    from comfy_fleet.services.node_life import check_managed, roll

    async def run(name: str) -> None:
        if by is Restarts.AGENT:
            await control.restart(name)
        elif not isinstance(by, Restarts):
            await asyncio.to_thread(_run, by, nodes[name])

    names = list(nodes)
    if by is Restarts.AGENT:
        await check_managed(control, names)
    async for batch in roll(control, names, restart=None if by is Restarts.NOBODY else run, **more):
        told(batch)


def hosts_of(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a node's host: its label, and its address."""
    labels = node.get("labels") or {}
    address = urlsplit(str(node.get("url") or "")).hostname
    return frozenset(name for name in (labels.get("host"), address) if name)


def _command(text: str) -> list[str]:
    """Return a restart command split into words; checked before any node is drained.

    Raises:
        Fail: It is empty, or its program is not there.
    """
    found = words(text, "--restart-command")
    if not found:
        raise Fail("--restart-command is empty", code=Exit.USAGE)
    if "{" not in found[0] and shutil.which(found[0]) is None:
        raise Fail(f"--restart-command: there is no program {found[0]}", code=Exit.USAGE)
    return found


def _run(command: Sequence[str], node: Mapping[str, Any]) -> None:
    url = str(node.get("url") or "")
    values = {"name": str(node["name"]), "url": url, "host": urlsplit(url).hostname or ""}
    argv = list(command)
    for place, value in values.items():
        argv = [word.replace("{" + place + "}", value) for word in argv]
    try:
        ended = subprocess.run(argv, check=False, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise Fail(
            f"the restart of {node['name']} failed: {argv[0]} can't be run: {error.strerror}", code=Exit.USAGE
        ) from error
    if ended.returncode:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        raise Fail(": ".join((f"the restart of {node['name']} failed with {ended.returncode}", *last)))
