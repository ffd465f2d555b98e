"""The tree of commands."""

from typing import Annotated

import typer

from comfy_fleet.cli import (
    agent,
    demo,
    doctor,
    haproxy,
    health,
    jobs,
    nodes,
    processes,
    sim,
    status,
    submit,
    workflows,
)
from comfy_fleet.cli.exits import MEANING

EPILOG = "Exit codes: " + "; ".join(f"{int(code)} {words.split(';')[0]}" for code, words in MEANING.items())


def build() -> typer.Typer:
    """Return the ``fleet`` command."""
    app = typer.Typer(
        name="fleet",
        help="Many GPUs, one ComfyUI: run a fleet of ComfyUI servers, and send it work.\n\n"
        "Without flags, commands that ask the fleet use FLEET_API_URL and FLEET_API_KEY.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for module in (processes, agent, status, demo, doctor, submit, sim, health):
        module.register(app)
    app.add_typer(nodes.app, name="node", rich_help_panel="Fleet")
    app.add_typer(jobs.app, name="job", rich_help_panel="Jobs")
    app.add_typer(workflows.app, name="workflow", rich_help_panel="Jobs")
    app.add_typer(haproxy.app, name="haproxy", rich_help_panel="Single processes")
    return app


def show_version(wanted: bool) -> None:
    """Print the version and end, if that was asked for."""
    if wanted:
        from comfy_fleet import __version__

        typer.echo(f"comfy-fleet {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=show_version),
    ] = False,
) -> None:
    """Hold the options that stand before any command."""
