"""``fleet node``: the fleet's ComfyUI servers."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from comfy_fleet.cli import rolling_restart
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.node_diff import diff, say_unequal
from comfy_fleet.cli.node_state import (
    COLUMNS,
    drained,
    nodes_of,
    path,
    row,
    still_working,
    wait_drained,
    wait_up,
)
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.parameters import pairs

app = typer.Typer(help="Add, drain and remove ComfyUI servers.", no_args_is_help=True)

_MOST_READ = 4096

Name = Annotated[str, typer.Argument(help="The node's name.")]
app.command("cordon-host")(rolling_restart.cordon_host)
app.command("uncordon-host")(rolling_restart.uncordon_host)
app.command("roll")(rolling_restart.roll)
app.command("diff")(diff)


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="http://HOST:PORT or https://HOST:PORT/PREFIX of the ComfyUI.")],
    credentials: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with USER:PASSWORD for the URL; -: read stdin.",
        ),
    ] = None,
    pool: Annotated[str, typer.Option(help="The node's pool.")] = "default",
    weight: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Its share of the work.", show_default="by GPU model"),
    ] = None,
    zone: Annotated[str, typer.Option(help="The node's zone, e.g. a rack.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label. Repeatable.")] = None,
    agent: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of the node's agent.", show_default="the fleet"),
    ] = None,
    editor: Annotated[
        bool | None,
        typer.Option(
            "--editor/--no-editor",
            help="Let it serve ComfyUI's editor, before others or never.",
            show_default="if no other node does",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is up.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds.")
    ] = 60,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Add a ComfyUI server; it gets jobs as soon as HAProxy finds it healthy.

    Example: `fleet node add gpu7 http://10.0.0.7:8188 --pool big --wait`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer, stderr
    from comfy_fleet.domain.nodes.node import with_credentials

    if credentials is not None:
        if "@" in url:
            raise Fail("two passwords: one in the URL, one of --credentials; give one", code=Exit.USAGE)
        url = with_credentials(url, read_credentials(credentials))
    body: dict[str, Any] = {"name": name, "url": url, "pool": pool, "zone": zone}
    body["labels"] = pairs(label or [], "--label")
    if weight is not None:
        body["weight"] = weight
    if agent:
        body["agent"] = agent
    if editor is not None:
        body["editor"] = editor
    with Client(api, key) as client:
        node = client.post("/api/v1/nodes", body)
        if wait:
            node = wait_up(client, name, timeout)
    if node.get("credentials") and str(node.get("url")).startswith("http:"):
        stderr().print(f"warning: the password of {name} is sent unencrypted: use https, or a tunnel")
    print_answer(node, f"added {name}", json_=json_)


def read_credentials(file: str) -> str:
    """Return ``USER:PASSWORD`` from a file, or from stdin for ``-``.

    Raises:
        Fail: It can't be read.
        BadInput: It is not ``USER:PASSWORD``.
    """
    from comfy_fleet.domain.nodes.node import check_credentials

    try:
        text = sys.stdin.read(_MOST_READ) if file == "-" else _first_of(Path(file))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Fail(f"--credentials {file}: {why}", code=Exit.USAGE) from error
    return check_credentials(text.rstrip("\r\n"))


def _first_of(path: Path) -> str:
    with path.open(encoding="utf-8") as opened:
        return opened.read(_MOST_READ)


@app.command("list", hidden=True)
@app.command("ls")
def list_(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the nodes with their state and their current job."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get("/api/v1/nodes")
    if json_:
        print_json(answer)
        return
    nodes = nodes_of(answer)
    if not nodes:
        stderr().print("no nodes; add one: fleet node add NAME URL")
        return
    stdout().print(table(COLUMNS, [row(node) for node in nodes]))
    say_unequal(nodes)


@app.command()
def show(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Show everything about a node."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import SIMULATED, ago, facts, print_json, stdout, table

    with Client(api, key) as client:
        node = client.get(path(name))
    if json_:
        print_json(node)
        return
    labels, now = node.get("labels") or {}, datetime.now(UTC)
    stdout().print(
        facts(
            {
                "node": node["name"],
                "": SIMULATED if node.get("simulated") else None,
                "url": node["url"],
                "password": "kept, not shown" if node.get("credentials") else None,
                "state": node.get("verdict"),
                "why": node.get("why"),
                "can't be read": node.get("trouble") or None,
                "last asked": (node.get("report") or {}).get("trouble"),
                "cordoned": (node.get("cordon_reason") or "yes") if node.get("cordoned") else None,
                "pool": node.get("pool"),
                "weight": _weight(node),
                "ComfyUI": node.get("comfyui"),
                "inventory": node.get("inventory"),
                "read": f"{ago(node['read_at'], now)} ago" if node.get("read_at") else None,
                "GPU": node.get("gpu"),
                **_memory(node),
                "models used": "\n".join(node.get("models") or ()) or None,
                "zone": node.get("zone"),
                "labels": ", ".join(f"{key}={value}" for key, value in labels.items()),
                "editor": {True: "yes, before others", False: "never"}.get(node.get("editor")),
                "agent": node.get("agent"),
                "works on": still_working(node) if node.get("work") else node.get("job"),
                "succeeded": node.get("done"),
                "failed": node.get("failed") or None,
                "files": None
                if node.get("agent")
                else "stay on the node: no agent beside it can delete them",
            }
        )
    )
    if errors := node.get("errors"):
        rows = [
            (f"{ago(e['at'], now)} ago", str(e["job"])[:8], e["code"], str(e["message"])[:200])
            for e in errors
        ]
        stdout().print(table(("<When", "<Job", "<Error", "Message"), rows, title="last errors"))


def _weight(node: Mapping[str, Any]) -> str:
    """Return a node's weight, its effective weight, and why."""
    told = str(node.get("weight") or "")
    now = (node.get("report") or {}).get("weight")
    if now and now != node.get("weight"):
        told += f", now {now}"
    if node.get("speed"):
        told += f" (measured speed: {node['speed']:g} times what its GPU's model promises"
        told += ")" if node.get("weight_by_gpu") else ", not used: the weight was set by hand)"
    return told


def _memory(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card's memory by owner, from the agent's last report."""
    from comfy_fleet.cli.console import size

    vram = (node.get("report") or {}).get("vram") or {}
    total = vram.get("total") or node.get("vram_bytes")
    told: dict[str, Any] = {"memory": size(total) if total else None}
    for name, word in (("own_all", "of the fleet"), ("foreign", "foreign"), ("available", "available")):
        if vram.get(name) is not None:
            told[f"  {word}"] = size(vram[name])
    for other in vram.get("others") or ():
        told[f"  process {other['pid']}"] = f"{other['name']} {size(other['bytes'])}"
    if vram.get("source"):
        told["  seen by"] = vram["source"]
    return told


@app.command()
def drain(
    name: Name,
    reason: Annotated[
        str | None, typer.Option(help="The reason; shown to everybody.", show_default="the present one")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until no job needs it, outputs included.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="With --wait: give up after this many seconds.")
    ] = 600,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Put its jobs back into the queue at once.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Stop new jobs on a node; its running job finishes."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    body: dict[str, Any] = {"reason": reason} if reason else {}
    if requeue:
        body["requeue"] = True
    with Client(api, key) as client:
        node = client.post(f"{path(name)}/drain", body)
        if wait:
            node = wait_drained(client, [name], timeout)[name]
    busy = "" if drained(node) else f" ({still_working(node)} still)"
    print_answer(node, f"drained {name}{busy}", json_=json_)


@app.command()
def resume(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Allow new jobs on a drained node again."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    with Client(api, key) as client:
        node = client.post(f"{path(name)}/resume")
    print_answer(node, f"resumed {name}", json_=json_)


@app.command()
def rm(
    name: Name,
    force: Annotated[
        bool,
        typer.Option("--force", help="Remove it even if a job runs on it; the job goes back to the queue."),
    ] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove a node from the fleet."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout

    with Client(api, key, timeout_s=60) as client:
        client.delete(path(name), force=str(force).lower())
    stdout().print(f"removed {name}")


@app.command()
def refresh(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Read a node's classes, model files and versions again, for example after models were added."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    with Client(api, key) as client:
        node = client.post(f"{path(name)}/refresh")
    words = f"read {name}: ComfyUI {node.get('comfyui')}, inventory {node.get('inventory')}"
    print_answer(node, words, json_=json_)
