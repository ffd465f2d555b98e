"""``fleet model fetch``: have agents fetch model files."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

PATH = "/api/v1/model-fetches"
_ENDS = ("done", "failed", "canceled")
_LOOK_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("fetch")(fetch)
    app.command("fetches")(fetches)
    app.command("cancel")(cancel)


def fetch(
    url: Annotated[str, typer.Argument(help="http(s) URL of the file.")],
    folder: Annotated[str, typer.Option(metavar="FOLDER", help="The folder below models, e.g. loras.")],
    sha256: Annotated[str, typer.Option(metavar="HASH", help="The file's SHA-256.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name there.", show_default="as the URL ends")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only nodes of this pool.", show_default="all")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Also .ckpt, .pt, .pth and .bin, which can run code where they are loaded."
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all hosts are through.")] = True,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", min=0, help="Give up waiting after this many seconds; agents go on."),
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Have the agents of the nodes' hosts download a model file, check it, and put it into their folder.

    Example: `fleet model fetch https://models.example.com/kids.safetensors --folder loras --sha256 HASH`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr

    body = {"url": url, "folder": folder, "sha256": sha256, "allow_pickle": allow_pickle}
    body |= {what: value for what, value in (("name", name), ("pool", pool)) if value is not None}
    with Client(api, key) as client:
        found = client.post(PATH, body)
        if wait:
            stderr().print(f"fetch {found['id']}; Ctrl-C leaves the agents at it: fleet model cancel ID")
            found = _watched(client, found, timeout, quiet=json_)
    if json_:
        print_json(found)
    else:
        _print(found)
    if wait and found["state"] != "done":
        raise Fail(
            f"not all hosts have it: {_counted(found)}",
            code=Exit.CANCELED if found["state"] == "canceled" else Exit.FAILED,
        )


def fetches(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List what was fetched in the last days, and how far agents are."""
    from datetime import UTC, datetime

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import ago, print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get(PATH)
    if json_:
        print_json(answer)
        return
    if not answer["fetches"]:
        stderr().print("nothing was fetched lately; have a model fetched: fleet model fetch URL")
        return
    now = datetime.now(UTC)
    rows = [
        (one["id"], _place(one), one["state"], _counted(one), ago(one["created_at"], now))
        for one in answer["fetches"]
    ]
    stdout().print(table(("<Fetch", "File", "<State", "Hosts", "<Begun"), rows))


def cancel(
    fetch_id: Annotated[str, typer.Argument(metavar="FETCH", help="Its id; see `fleet model fetches`.")],
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Have agents stop fetching a file; hosts that have it keep it."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_answer

    with Client(api, key) as client:
        found = client.post(f"{PATH}/{fetch_id}/cancel")
    print_answer(found, f"canceled {_place(found)}: {_counted(found)}", json_=json_)


def _place(found: Mapping[str, Any]) -> str:
    return f"{found['folder']}/{found['name']}"


def _watched(
    client: Any, found: Mapping[str, Any], timeout: float | None, *, quiet: bool
) -> Mapping[str, Any]:
    """Show progress until all hosts are through. Raises Fail once the time is up."""
    from comfy_fleet.cli.console import size
    from comfy_fleet.cli.watching import progress_bar

    until = None if timeout is None else time.monotonic() + timeout
    seen = ""
    with progress_bar(quiet) as show:
        while found["state"] not in _ENDS:
            if until is not None and time.monotonic() >= until:
                why = f"not all hosts have it yet: {_counted(found)}"
                raise Fail(why, hint="the agents go on", code=Exit.TIMEOUT)
            time.sleep(_LOOK_S)
            found = client.get(f"{PATH}/{found['id']}")
            bytes_ = sum(host["bytes"] for host in found["hosts"])
            known = max((host["total"] or 0 for host in found["hosts"]), default=0)
            share = min(1.0, bytes_ / (known * len(found["hosts"]))) if known else 0.0
            words = _counted(found)
            show(words if words != seen else f"{words} ({size(bytes_)})", share if words == seen else None)
            seen = words
    return found


def _counted(found: Mapping[str, Any]) -> str:
    """Return how many hosts are how far."""
    states = [host["state"] for host in found["hosts"]]
    return ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(sorted(states)))


def _print(found: Mapping[str, Any]) -> None:
    from comfy_fleet.cli.console import size, stdout, table

    rows = [
        (host["host"], ", ".join(host["nodes"]), host["state"], size(host["bytes"]), host["words"])
        for host in found["hosts"]
    ]
    stdout().print(f"{_place(found)}  {found['state']}", markup=False)
    stdout().print(table(("<Host", "Nodes", "<State", ">Bytes", "How"), rows))
