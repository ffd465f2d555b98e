"""``fleet node``: which ComfyUI servers belong to the fleet."""

import time
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.submit import pairs

app = typer.Typer(help="Add, drain and remove ComfyUI servers.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The node's name.")]
COLUMNS = ("<Node", "State", "Pool", ">Done", ">Failed", "Running", "URL")


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="http://HOST:PORT of the ComfyUI.")],
    pool: Annotated[str, typer.Option(help="The pool that it stands in.")] = "default",
    weight: Annotated[int, typer.Option(min=1, max=256, help="Its share of the work.")] = 100,
    zone: Annotated[str, typer.Option(help="Where it stands, e.g. a rack.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label. Repeatable.")] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Who answers HAProxy's agent-check.", show_default="the fleet"
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="S", help="Wait so long until it is up; 0 does not wait.")
    ] = 0,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Add a ComfyUI server; it gets jobs as soon as HAProxy finds it healthy."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    body: dict[str, Any] = {"name": name, "url": url, "pool": pool, "weight": weight, "zone": zone}
    body["labels"] = pairs(label or [], "--label")
    if agent:
        body["agent"] = agent
    with Client(api, key) as client:
        node = client.post("/api/v1/nodes", body)
        if wait:
            node = _wait(client, name, wait, lambda node: node.get("verdict") == "up", "up")
    if json_:
        print_json(node)
    else:
        stdout().print(f"added {name}")


@app.command("ls")
def list_(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the nodes with what they do now."""
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


@app.command()
def show(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Show everything that is known of a node."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import SIMULATED, facts, print_json, stdout

    with Client(api, key) as client:
        node = client.get(_path(name))
    if json_:
        print_json(node)
        return
    labels = node.get("labels") or {}
    stdout().print(
        facts(
            {
                "node": node["name"],
                "": SIMULATED if node.get("simulated") else None,
                "url": node["url"],
                "state": node.get("verdict"),
                "why": node.get("why"),
                "cordoned": (node.get("cordon_reason") or "yes") if node.get("cordoned") else None,
                "pool": node.get("pool"),
                "weight": node.get("weight"),
                "zone": node.get("zone"),
                "labels": ", ".join(f"{key}={value}" for key, value in labels.items()),
                "agent": node.get("agent"),
                "running job": node.get("job"),
                "succeeded": node.get("done"),
                "failed": node.get("failed") or None,
                "files": None
                if node.get("agent")
                else "stay on the node: no agent beside it can delete them",
            }
        )
    )


@app.command()
def drain(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; shown to everybody.")] = "drained by hand",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no job runs on it.")] = False,
    timeout: Annotated[float, typer.Option(metavar="S", help="With --wait: give up after this.")] = 600,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Keep new jobs away from a node; the job that runs there finishes."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    with Client(api, key) as client:
        node = client.post(f"{_path(name)}/drain", {"reason": reason})
        if wait:
            node = _wait(client, name, timeout, lambda node: not node.get("run"), "empty")
    if json_:
        print_json(node)
    else:
        busy = " (a job still runs there)" if (node or {}).get("run") else ""
        stdout().print(f"drained {name}{busy}")


@app.command()
def resume(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Let jobs come to a drained node again."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    with Client(api, key) as client:
        node = client.post(f"{_path(name)}/resume")
    if json_:
        print_json(node)
    else:
        stdout().print(f"resumed {name}")


@app.command()
def rm(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if a job runs on it; it runs again.")] = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Remove a node from the fleet."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stdout

    with Client(api, key) as client:
        client.delete(_path(name), force=str(force).lower())
    stdout().print(f"removed {name}")


def nodes_of(answer: Any) -> list[dict[str, Any]]:
    """Return the nodes in a listing."""
    return list(answer["nodes"])


def state(node: Mapping[str, Any]) -> str:
    """Return a node's state in a word, or in a few if it gets no jobs."""
    if node.get("cordoned"):
        return f"drain: {node.get('cordon_reason') or 'by hand'}"
    verdict = str(node.get("verdict") or "new")
    return f"{verdict}: {node['why']}" if node.get("why") and verdict != "up" else verdict


def row(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a node as a row under :data:`COLUMNS`."""
    from rich.text import Text

    from comfy_fleet.cli.console import SIMULATED, STATUS_STYLE

    word = state(node)
    job = node.get("job") or ""
    where = Text(str(node.get("url") or ""))
    if node.get("simulated"):
        where = Text(SIMULATED, style="magenta")
    return (
        node["name"],
        Text(word, style=STATUS_STYLE.get(word.split(":")[0], "")),
        node.get("pool"),
        node.get("done") or 0,
        node.get("failed") or 0,
        job[:8],
        where,
    )


def _path(name: str) -> str:
    return f"/api/v1/nodes/{quote(name, safe='')}"


def _wait(client: Any, name: str, timeout_s: float, done: Any, what: str) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        node = dict(client.get(_path(name)))
        if done(node):
            return node
        if time.monotonic() > deadline:
            raise Fail(
                f"node {name} is not {what} after {timeout_s:g} s: {state(node)}",
                hint=f"fleet node show {name}",
                code=Exit.TIMEOUT,
            )
        time.sleep(0.2)
