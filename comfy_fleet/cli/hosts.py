"""``fleet host``: the GPU hosts whose agents report to the fleet."""

from datetime import UTC, datetime
from typing import Any

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
