"""``fleet host``: the GPU hosts whose agents report to the fleet."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

app = typer.Typer(help="List the GPU hosts whose agents report.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """List the GPU hosts whose agents report."""


@app.command("list", hidden=True)
@app.command("ls")
def list_(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the hosts, their GPUs and their nodes."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table
    from comfy_fleet.domain.text import natural

    with Client(api, key) as client:
        answer = client.get("/api/v1/hosts")
    if json_:
        print_json(answer)
        return
    now = datetime.now(UTC)
    hosts = sorted(answer["hosts"], key=lambda host: natural(str(host["host"])))
    if not hosts:
        stderr().print("no host reports; start an agent there: fleet agent --join URL")
        return
    rows = [(host["host"], _gpus(host), _nodes(host), ago(host.get("seen_at"), now)) for host in hosts]
    stdout().print(table(["<Host", "GPUs", "Nodes", ">Heard"], rows))


tokens = typer.Typer(help="Make, list and revoke agents' tokens.", no_args_is_help=True)
app.add_typer(tokens, name="token")


@tokens.callback()
def token_group() -> None:
    """Make, list and revoke agents' tokens."""


@tokens.command()
def create(
    host: Annotated[str, typer.Argument(help="The host that its agent speaks for.")],
    central: Annotated[
        bool, typer.Option("--central", help="Its agent may answer for nodes that were added by URL.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Make a token for a host's agent, and print it; it can't be shown again.

    The agent reads it from FLEET_AGENT_TOKEN_FILE. From now on the host's agent needs it, and the token
    that all agents share no longer counts for this host.

    Example: `fleet host token create gpu1 > agent_token`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, printable

    with Client(api, key) as client:
        answer = client.post("/api/v1/agent-tokens", {"host": host, "central": central})
    if json_:
        print_json(answer)
    else:
        typer.echo(printable(answer["token"]))


@tokens.command("list", hidden=True)
@tokens.command("ls")
def list_tokens(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the tokens, without their text."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get("/api/v1/agent-tokens")
    if json_:
        print_json(answer)
        return
    if not answer["tokens"]:
        stderr().print("no host has a token of its own; make one: fleet host token create HOST")
        return
    now = datetime.now(UTC)
    rows = [
        (one["id"], one["host"], "yes" if one["central"] else "no", ago(one["created_at"], now))
        for one in answer["tokens"]
    ]
    stdout().print(table(["<Token", "Host", "Central", ">Made"], rows))


@tokens.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as in `fleet host token ls`.")],
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Revoke a token: its agent is refused from its next heartbeat on."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import stderr
    from comfy_fleet.cli.paths import path_of

    with Client(api, key) as client:
        client.delete(path_of("agent-token", token))
    stderr().print(f"revoked {token}")


def _gpus(host: dict[str, Any]) -> str:
    """Return a host's cards by model: ``2 × NVIDIA L4``, or why they are not known."""
    from collections import Counter

    models = Counter(str(gpu.get("name") or "GPU") for gpu in host.get("gpus") or () if isinstance(gpu, dict))
    if models:
        return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in models.items())
    return str(host.get("gpus_why") or "").replace("_", " ")


def _nodes(host: dict[str, Any]) -> str:
    names = [str(node.get("name")) for node in host.get("nodes") or () if isinstance(node, dict)]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
