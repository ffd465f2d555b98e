"""``fleet autoscale``: add nodes under load, and remove them after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import Data, Json

if TYPE_CHECKING:
    from comfy_fleet.ports.scaling import ScalingState
    from comfy_fleet.services.autoscaler import PoolReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Single processes")(autoscale)


def autoscale(
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pools, rules and providers, as TOML.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, at each look.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, act, and end.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show who is active, and what was decided last and why.")
    ] = False,
    json_: Json = False,
    data: Data = None,
) -> None:
    """Add nodes to pools under load, and remove them after it, by the rules of a file.

    It needs Redis, as the fleet's other processes do; of a `fleet up` on this machine, name the folder with
    --data. Several may run: one is active. Nodes outlive it. See docs/howto/autoscale.md.

    Examples: `fleet autoscale --file autoscale.toml --dry-run`, `fleet autoscale --status`.
    """
    from comfy_fleet import logs
    from comfy_fleet.cli.processes import keep_private, load_running
    from comfy_fleet.processes import autoscaler

    if status:
        if file is not None or dry_run or once:
            raise Fail("--status needs no --file, --dry-run or --once", code=Exit.USAGE)
        _show_status(*autoscaler.stored(load_running(data)), as_json=json_)
        return
    if json_:
        raise Fail("--json is for --status", code=Exit.USAGE)
    if file is None:
        raise Fail(
            "--file FILE is missing: it says which pools grow, and how",
            hint="docs/howto/autoscale.md has one to begin with",
            code=Exit.USAGE,
        )
    keep_private()
    settings = load_running(data)
    wanted = autoscaler.read_file(file)
    logs.setup("autoscale", level=settings.log_level, fmt=settings.log_format)
    if dry_run:
        autoscaler.say(settings, wanted, _show, once=once)
    elif once:
        found = autoscaler.look_once(settings, wanted)
        if found is None:
            raise Fail("another autoscaler is active", hint="fleet autoscale --status", code=Exit.REFUSED)
        for report in found:
            _show(report)
    else:
        autoscaler.serve(settings, wanted)


def _show(report: "PoolReport") -> None:
    typer.echo(report.words)


def _show_status(state: "ScalingState", now: float, *, as_json: bool) -> None:
    from dataclasses import asdict

    from comfy_fleet.cli.console import print_json, span, stderr, stdout, table

    if as_json:
        pools = {pool: asdict(book) for pool, book in sorted(state.books.items())}
        print_json({"active": state.holder or None, "pools": pools})
        return
    rows = [
        (
            pool,
            ", ".join(f"{order.name} ({order.phase})" for order in book.orders) or "none",
            book.told,
            f"{span(max(0.0, now - book.told_at))} ago",
        )
        for pool, book in sorted(state.books.items())
    ]
    stdout().print(table(("<Pool", "<Its nodes", "<Decision", "<When"), rows))
    stderr().print(f"active: {state.holder}" if state.holder else "no autoscaler is active", markup=False)
