"""``fleet pool``: the pools and their settings."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.paths import path_of

app = typer.Typer(help="List pools, and change their settings.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The pool's name.")]
DEFAULT = "default"
COLUMNS = ("<Pool", ">Slot", ">Nodes", ">Up", "Unload when idle", "Unload after OOM", "Patience")


@app.callback()
def group() -> None:
    """List pools, and change their settings."""


@app.command("list", hidden=True)
@app.command("ls")
def list_(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the pools with their nodes and settings."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table
    from comfy_fleet.domain.text import natural

    with Client(api, key) as client:
        answer = client.get("/api/v1/pools")
    if json_:
        print_json(answer)
        return
    pools = sorted(answer["pools"], key=lambda pool: natural(str(pool["name"])))
    if not pools:
        stderr().print("no pool has a node; add one: fleet node add NAME URL --pool POOL")
        return
    stdout().print(table(COLUMNS, map(row, pools)))


def row(pool: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a pool as a row under :data:`COLUMNS`."""
    return (
        pool["name"],
        pool.get("slot") or "-",
        pool["nodes"],
        pool["up"],
        _idle(pool),
        _on_oom(pool),
        _patience(pool),
    )


@app.command()
def show(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Show a pool."""
    from comfy_fleet.cli.client import Client

    with Client(api, key) as client:
        _print(client.get(path_of("pool", name)), json_=json_)


@app.command("set")
def set_(
    name: Name,
    free_idle_s: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Idle seconds after which a node unloads its models; 0: never; "
            "the word default: use FLEET_FREE_IDLE_S.",
            show_default="unchanged",
        ),
    ] = None,
    free_on_oom: Annotated[
        str | None,
        typer.Option(
            metavar="yes|no",
            help="Unload a node's models after a job ran out of memory on it; "
            "the word default: use FLEET_FREE_OOM.",
            show_default="unchanged",
        ),
    ] = None,
    patience_s: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Seconds for which a job may be passed over beyond its turn, so that nodes keep the models "
            "that they have; 0: never; the word default: use FLEET_PATIENCE_S.",
            show_default="unchanged",
        ),
    ] = None,
    silence_s: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Seconds without a sign of progress after which a run is interrupted; the word default: use "
            "FLEET_SILENCE_S.",
            show_default="unchanged",
        ),
    ] = None,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Change a pool's settings; they take effect within seconds, without a restart.

    The pool need not have nodes yet. Waiting jobs are not touched.

    Example: `fleet pool set big --free-idle-s 600`.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.domain.nodes.node import check_name
    from comfy_fleet.domain.nodes.pool import LEAST_SILENCE_S, LONGEST_PATIENCE_S, LONGEST_S

    wanted: dict[str, Any] = {}
    if free_idle_s is not None:
        wanted["free_idle_s"] = _seconds("--free-idle-s", free_idle_s, LONGEST_S)
    if free_on_oom is not None:
        wanted["free_on_oom"] = _truth(free_on_oom)
    if patience_s is not None:
        wanted["patience_s"] = _seconds("--patience-s", patience_s, LONGEST_PATIENCE_S)
    if silence_s is not None:
        wanted["silence_s"] = _seconds("--silence-s", silence_s, LONGEST_S, least=LEAST_SILENCE_S)
    if not wanted:
        options = "--free-idle-s S, --free-on-oom yes|no, --patience-s S, --silence-s S"
        raise Fail(f"nothing to set: {options}", code=Exit.USAGE)
    path = path_of("pool", check_name("pool", name))
    with Client(api, key) as client:
        _print(client.patch(path, wanted), json_=json_)


def _seconds(option: str, text: str, most: float, *, least: float = 0) -> float | None:
    if text == DEFAULT:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        why = f"must be a number of seconds from {least:g} to {most:.0f}, or default"
        raise Fail(f"{option} {text!r} {why}", code=Exit.USAGE)
    return seconds


def _truth(text: str) -> bool | None:
    known = {"yes": True, "no": False, DEFAULT: None}
    if text not in known:
        raise Fail(f"--free-on-oom {text!r} must be yes, no or default", code=Exit.USAGE)
    return known[text]


def _print(pool: Mapping[str, Any], *, json_: bool) -> None:
    from comfy_fleet.cli.console import facts, print_json, stdout

    if json_:
        print_json(pool)
        return
    stdout().print(
        facts(
            {
                "pool": pool["name"],
                "slot": pool.get("slot") or "none yet",
                "nodes": f"{pool['nodes']} ({pool['up']} up)",
                "unload when idle": _idle(pool),
                "unload after OOM": _on_oom(pool),
                "patience": _patience(pool),
                "interrupt": _silence(pool),
            }
        )
    )


def _idle(pool: Mapping[str, Any]) -> str:
    idle_s = pool.get("free_idle_s")
    if idle_s is None:
        return DEFAULT
    return f"after {idle_s:g} s" if idle_s else "never"


def _patience(pool: Mapping[str, Any]) -> str:
    patience_s = pool.get("patience_s")
    if patience_s is None:
        return DEFAULT
    return f"{patience_s:g} s"


def _silence(pool: Mapping[str, Any]) -> str:
    silence_s = pool.get("silence_s")
    return DEFAULT if silence_s is None else f"after {silence_s:g} s without progress"


def _on_oom(pool: Mapping[str, Any]) -> str:
    on_oom = pool.get("free_on_oom")
    return DEFAULT if on_oom is None else "yes" if on_oom else "no"
