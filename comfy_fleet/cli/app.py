"""The tree of commands."""

import copy
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from comfy_fleet.cli.exits import MEANING

EPILOG = "Exit codes: " + "; ".join(f"{int(code)} {words.split(';')[0]}" for code, words in MEANING.items())

HEADINGS = ("Fleet", "Jobs", "Single processes")

# Which module has which commands, so that a command need not wait for all others.
_COMMANDS = {
    "processes": ("up", "down", "serve", "api", "dispatch"),
    "logs": ("logs",),
    "agent": ("agent",),
    "autoscale": ("autoscale",),
    "status": ("status",),
    "top": ("top",),
    "audit": ("audit",),
    "usage": ("usage",),
    "warm": ("warm",),
    "demo": ("demo",),
    "doctor": ("doctor",),
    "submit": ("submit",),
    "sim": ("sim",),
    "simulate": ("simulate",),
    "health": ("health",),
    "mcp": ("mcp",),
}
# For each group its heading, the module that has it (as `app`, or what stands behind a colon), and those that
# add to it.
_GROUPS = {
    "node": ("Fleet", "nodes"),
    "pool": ("Fleet", "pools"),
    "host": ("Fleet", "hosts"),
    "store": ("Fleet", "stores"),
    "model": ("Fleet", "models", "model_fetches"),
    "tenant": ("Fleet", "people:tenants"),
    "user": ("Fleet", "people:users"),
    "key": ("Fleet", "people:keys"),
    "job": ("Jobs", "jobs", "job_changes"),
    "batch": ("Jobs", "batches"),
    "outputs": ("Jobs", "outputs"),
    "workflow": (
        "Jobs",
        "workflows",
        "missing",
        "workflow_versions",
        "workflow_publish",
        "workflow_folders",
    ),
    "cert": ("Fleet", "certificates"),
    "webhook": ("Jobs", "webhooks"),
    "haproxy": ("Single processes", "haproxy"),
}


class Command(TyperCommand):
    """A command whose help shows an option's value after the option: ``--port PORT``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.metavar is None and not getattr(parameter, "is_flag", False):
                parameter.metavar = str(parameter.name).rpartition("_")[2].upper()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                if kind == "Arguments":
                    name, _, values = record[0].partition(" ")
                    record = (record[0] if "|" in values else name, record[1])  # a type alone says nothing
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        _write(formatter, sections)


class Group(TyperGroup):
    """A group whose help lists its commands under headings, each with its full sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, aligned over all headings."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in HEADINGS}
        names = self.list_commands(ctx)
        widest = max(map(len, names), default=0)
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                heading = getattr(command, "rich_help_panel", None) or "Commands"
                sections.setdefault(heading, []).append((name.ljust(widest), command.get_short_help_str(200)))
        _write(formatter, sections)


def _write(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    for heading, rows in sections.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def build(line: Sequence[str] = ()) -> typer.Typer:
    """Return the ``fleet`` command.

    Args:
        line: The words after ``fleet``. If the first one names a command or a group, only that is there: to
            make all of them takes longer than most commands. Otherwise (help, completion, a wrong name) the
            whole tree is there.
    """
    app = typer.Typer(
        name="fleet",
        cls=Group,
        help="Many GPUs, one ComfyUI: run a fleet of ComfyUI servers, and send it work.\n\n"
        "Without flags, commands that ask the fleet use FLEET_API_URL and FLEET_API_KEY.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    app.command("version", hidden=True)(version)
    first = line[0] if line else ""
    known = first == "version" or first in _GROUPS or any(first in names for names in _COMMANDS.values())
    for module, names in _COMMANDS.items():
        if not known or first in names:
            _part(module).register(app)
    for name, (heading, module, *more) in _GROUPS.items():
        if not known or first == name:
            app.add_typer(_group(module, more), name=name, rich_help_panel=heading)
    _plain(app)
    return app


def _part(module: str) -> Any:
    return import_module(f"comfy_fleet.cli.{module}")


def _group(module: str, more: Sequence[str]) -> typer.Typer:
    """Return a group of its own: what others add must not be in it twice, if this is called twice."""
    name, _, attribute = module.partition(":")
    group: typer.Typer = copy.copy(getattr(_part(name), attribute or "app"))
    group.registered_commands = list(group.registered_commands)
    for part in more:
        _part(part).register(group)
    return group


def _plain(app: typer.Typer) -> None:
    """Make every command's help plain: boxes leave no room for words in 80 columns."""
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            group.cls = Group
            group.typer_instance.rich_markup_mode = None
            _plain(group.typer_instance)


def version() -> None:
    """Print the version."""
    show_version(wanted=True)


def show_version(wanted: bool) -> None:
    """Print the version and exit, if requested."""
    if wanted:
        from comfy_fleet import __version__

        typer.echo(f"comfy-fleet {__version__}")
        raise typer.Exit


def root(
    version_: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=show_version),
    ] = False,
) -> None:
    """Define the options before any command."""
