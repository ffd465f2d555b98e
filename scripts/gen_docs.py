"""Write the reference for the command line and the settings from the code that implements them."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import comfy_fleet
from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import MEANING
from comfy_fleet.logs import event_of
from comfy_fleet.settings import Settings

PACKAGE = Path(comfy_fleet.__file__).parent
REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/gen-docs: change the code, not this file. -->"


def pages() -> dict[str, str]:
    """Return the text of every generated page by file name."""
    return {"cli.md": cli_page(), "settings.md": settings_page(), "log-events.md": events_page()}


def cli_page() -> str:
    """Return the reference of the ``fleet`` command."""
    root: Any = typer.main.get_command(build())
    lines = [
        "# The `fleet` command",
        NOTE,
        "",
        "Commands that ask the fleet talk to its HTTP API: `--api` (or `FLEET_API_URL`) says where,",
        "`--key` (or `FLEET_API_KEY`) who asks. Results go to stdout, progress and errors to stderr, so",
        "that results can be piped; every listing has `--json`. `fleet --install-completion` teaches",
        "your shell the commands.",
        "",
        "## Exit codes",
        "| code | meaning |",
        "| --- | --- |",
        *(f"| {int(code)} | {words} |" for code, words in MEANING.items()),
        "",
    ]
    same: dict[Any, list[tuple[str, Any]]] = {}
    for name, command in sorted(commands(root, "fleet"), key=lambda pair: (pair[1].hidden, pair[0])):
        same.setdefault(inspect.unwrap(command.callback), []).append((name, command))
    for (name, command), *others in sorted(same.values(), key=lambda names: names[0][0]):
        lines += [f"## {name}", *describe(name, command, [other for other, _ in others]), ""]
    return "\n".join(lines).rstrip() + "\n"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command except groups, with its full name."""
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child, below in children.items():
        yield from commands(below, f"{name} {child}")


def describe(name: str, command: Any, others: list[str]) -> Iterator[str]:
    """Yield the lines about one command, which may have other names, too."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    words = [usage_word(argument) for argument in arguments]
    yield f"`{' '.join([name, '[OPTIONS]' if options else '', *words]).replace('  ', ' ').strip()}`"
    yield ""
    if others:
        yield f"Other names: {', '.join(f'`{other}`' for other in others)}."
        yield ""
    # One line a paragraph: the docstring's line ends have no meaning.
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        yield " ".join(paragraph.split())
        yield ""
    rows = [(usage_word(argument), argument) for argument in arguments]
    rows += [(flags(option), option) for option in options]
    if rows:
        yield "| | | default |"
        yield "| --- | --- | --- |"
        for shown, param in rows:
            yield f"| `{shown}` | {cell(param.help or '')}{variable(param)} | {cell(default(param))} |"


def usage_word(argument: Any) -> str:
    """Return an argument in the form of the usage line."""
    word = argument.metavar or argument.name.upper()
    return word if argument.required else f"[{word}]"


def flags(option: Any) -> str:
    """Return an option's flags and the placeholder of its value."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar}"


def variable(param: Any) -> str:
    """Return which environment variable sets a parameter, in brackets."""
    return f" (`{param.envvar}`)" if param.envvar else ""


def default(param: Any) -> str:
    """Return a parameter's default in words."""
    if isinstance(param.show_default, str):
        return param.show_default
    if param.required:
        return "required"
    if param.default in (None, False, "", []) or param.show_default is False:
        return ""
    return "on" if param.default is True else f"`{param.default}`"


def settings_page() -> str:
    """Return the reference of the settings."""
    lines = [
        "# Settings",
        NOTE,
        "",
        "Every process of a fleet reads the same environment variables. `fleet up` sets ports, folder and",
        "Redis for its processes itself; all others pass through to them. A `FLEET_*` variable that nothing",
        "reads is warned of, once. Traces follow OpenTelemetry's own variables:",
        "[traces](../howto/traces.md#variables).",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, info in Settings.model_fields.items():
        about = cell(info.description or "")
        lines.append(f"| `FLEET_{name.upper()}` | {setting_default(info)} | {about}{values(info)} |")
    return "\n".join(lines) + "\n"


def events_page() -> str:
    """Return the reference of the events that log lines tell."""
    rows = sorted({(event_of(message), level, message, where) for level, message, where in log_lines()})
    return "\n".join(
        [
            "# Events in the log",
            NOTE,
            "",
            "What `event` can be in [a line of the log](../howto/logs.md#format), the level, the words of",
            "`msg`, and the module that says so. A name stays as it is while the event is there.",
            "",
            "| event | level | `msg` | module |",
            "| --- | --- | --- | --- |",
            *(f"| `{event}` | {level} | {cell(text)} | `{where}` |" for event, level, text, where in rows),
            "",
        ]
    )


LEVELS = {
    **{level: level for level in ("debug", "info", "warning", "error", "critical")},
    "exception": "error",
}


def log_lines() -> Iterator[tuple[str, str, str]]:
    """Yield the level, message and module of each line that our code logs.

    Raises:
        ValueError: A message is no constant, so the event would have no name.
    """
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    constants: dict[str, str] = {}
    given: dict[str, set[str]] = {}  # texts that are passed by these names
    for tree in trees.values():
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                    constants[name] = text
                case ast.keyword(arg=str(name), value=ast.Constant(value=str(text))):
                    given.setdefault(name, set()).add(text)
    for path, tree in trees.items():
        where = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=method), args=[message, *_]
                ) if method in LEVELS:
                    for text in texts(message, constants, given):
                        yield LEVELS[method], text, where


def texts(message: ast.expr, constants: Mapping[str, str], given: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield what a line's message can be."""
    match message:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=other):
            yield from texts(body, constants, given)
            yield from texts(other, constants, given)
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.Attribute(attr=name) if name.lstrip("_") in given:
            yield from given[name.lstrip("_")]
        case _:
            raise ValueError(f"line {message.lineno}: a log line's message must be a constant")


def setting_default(info: FieldInfo) -> str:
    """Return a setting's default in words."""
    if info.default is PydanticUndefined:
        return "required"
    if info.default is None:
        return "unset"
    value = info.default
    return f"`{value:.15g}`" if isinstance(value, float) else f"`{value}`"


def values(info: FieldInfo) -> str:
    """Return the values that a setting takes, if they are few."""
    if get_origin(info.annotation) is Literal:
        return " One of " + ", ".join(f"`{value}`" for value in get_args(info.annotation)) + "."
    return ""


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` compare them; return the exit status."""
    if arguments not in ([], ["--check"]):
        asked = arguments in (["--help"], ["-h"])
        print(
            "usage: scripts/gen-docs [--check]\n\nWrites docs/reference/cli.md and settings.md from the "
            "code; --check only compares them, and exits with 1 if they differ.",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    stale = [name for name, text in pages().items() if current(REFERENCE / name) != text]
    if arguments:
        for name in stale:
            print(f"docs/reference/{name} is not current: run scripts/gen-docs", file=sys.stderr)
        return 1 if stale else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(pages()[name], encoding="utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


def current(path: Path) -> str | None:
    """Return a file's text, or None if it does not exist."""
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
