"""What commands print about versions of stored workflows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 12
"""Digits of a version that people are shown; any beginning of seven is taken."""
_SIGNS = {"added": "+", "removed": "-"}
_STYLES = {"+": "green", "-": "red", "~": "yellow", "!": "bold red"}
_HEADINGS = {"text": "About", "parameter": "Parameters", "requirement": "Needs", "node": "Nodes"}


def short(version: str | None) -> str:
    """Return a version's first digits; empty for none."""
    return (version or "").removeprefix("sha256:")[:SHORT]


def print_differences(console: "Console", found: Sequence[Mapping[str, Any]]) -> None:
    """Print what differs between two versions: parameters first, then each node with its inputs.

    Args:
        console: Where to.
        found: The API's ``differences``.
    """
    last, node = "", ""
    for one in found:
        kind, _, what = str(one["kind"]).partition("_")
        if kind == "input":
            kind, what = "node", "input"
        if kind != last:
            console.print(f"[bold dim]{_HEADINGS.get(kind, kind)}[/]")
            last, node = kind, ""
        message = str(one["message"])
        if kind == "node" and what in ("input", "title"):
            name, change = _named(message, str(one.get("field") or "title"))
            if name != node:
                console.print(f"  {name}", markup=False)
                node = name
            _change(console, change, "    ")
            continue
        sign = _SIGNS.get(what, "~")
        text = message.removesuffix(" is added").removesuffix(" is removed")
        text = text.removeprefix("parameter ").removeprefix("requires ")
        if sign == "~":
            _change(console, text, "  ", sign)
        else:
            _line(console, sign, text)


def print_breaking(console: "Console", found: Sequence[Mapping[str, Any]]) -> None:
    """Print which changes can break callers."""
    if found:
        console.print("[bold red]This breaks programs that use it:[/]")
        for one in found:
            _line(console, "!", str(one["message"]))


def _line(console: "Console", sign: str, text: str) -> None:
    from rich.text import Text

    console.print(Text.assemble("  ", (sign, _STYLES[sign]), " ", text))


def _change(console: "Console", text: str, indent: str, sign: str = "") -> None:
    """Print ``NAME OLD → NEW``, on three lines if it is too long for one."""
    from rich.cells import cell_len
    from rich.text import Text

    mark = f"{sign} " if sign else ""
    before, arrow, after = text.rpartition(" → ")
    if not arrow or not console.is_terminal or cell_len(indent + mark + text) <= console.width:
        console.print(Text.assemble(indent, (mark, _STYLES.get(sign, "")), text))
        return
    name, _, old = before.partition(" ")
    if sign:  # "steps: max 30": the parameter's name comes before the field's
        field, _, old = old.partition(" ")
        name = f"{name} {field}"
    console.print(Text.assemble(indent, (mark, _STYLES.get(sign, "")), name))
    console.print(Text.assemble(indent, "  ", ("- ", "red"), old))
    console.print(Text.assemble(indent, "  ", ("+ ", "green"), after))


def _named(message: str, field: str) -> tuple[str, str]:
    """Split ``node 3 (KSampler 'Detail'): steps 20 → 30`` into the node and the change."""
    head, found, tail = message.partition(f"): {field} ")
    return (f"{head})", f"{field} {tail}") if found else (message.partition(": ")[0], message)


def who_and_when(answer: Mapping[str, Any]) -> str:
    """Return who made a version and how long ago, from an answer or an error's details."""
    from datetime import UTC, datetime

    from comfy_fleet.cli.console import ago

    when = ago(answer.get("changed_at"), datetime.now(UTC))
    return f"{answer.get('changed_by') or 'somebody'}{f', {when} ago' if when else ''}"
