"""What commands print: tables for people, JSON for programs, and times and sizes in words."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLE = {
    "queued": "cyan",
    "running": "bold blue",
    "canceling": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "canceled": "yellow",
    "expired": "red",
    "up": "green",
    "drain": "yellow",
    "down": "bold red",
    "new": "cyan",
}
SIMULATED = "SIMULATED"


def stdout() -> Console:
    """Return the console for results."""
    return Console(highlight=False)


def stderr() -> Console:
    """Return the console for progress and errors, so that results can be piped."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout, without colours or wrapping."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_answer(value: Any, words: str | Text, *, json_: bool) -> None:
    """Print what a command did: in words for people, or what the API answered for programs."""
    if json_:
        print_json(value)
    else:
        stdout().print(words)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """Return a table that fits 80 columns.

    Args:
        columns: Headings; one that starts with ``>`` is right-aligned, with ``<`` never wraps or shrinks.
        rows: Cells; None becomes empty, states get their colour.
        title: Line above it.
    """
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        name = column.lstrip("<>")
        made.add_column(
            name,
            justify="right" if column.startswith(">") else "left",
            no_wrap=column[:1] in "<>",
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else styled(cell) for cell in row))
    return made


def styled(cell: Any) -> Text:
    """Return a cell as text, in its state's colour if it is a state; markup in it is not interpreted."""
    text = "" if cell is None else str(cell)
    if SIMULATED in text:
        return Text(text, style="magenta")
    return Text(text, style=STATUS_STYLE.get(text, ""))


def facts(pairs: Mapping[str, Any]) -> Table:
    """Return names and values as two columns; empty values are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, "", {}, []):
            made.add_row(name, styled(value))
    return made


def parse_time(value: str | float | None) -> datetime | None:
    """Read a time as the API writes it (RFC 3339, or Unix seconds)."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def ago(value: str | float | None, now: datetime) -> str:
    """Return how long ago a time was, e.g. ``4m``; empty for None."""
    when = parse_time(value)
    return "" if when is None else span(max(0.0, (now - when).total_seconds()))


def span(seconds: float | None) -> str:
    """Return a duration in at most two units, e.g. ``850ms``, ``4.2s``, ``3m 20s``, ``2h 5m``."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    return f"{hours // 24}d {hours % 24}h"


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names as people number them: ``sim-2`` before ``sim-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def size(count: float) -> str:
    """Return a number of bytes in words, e.g. ``1.8 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
