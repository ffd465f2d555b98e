"""What commands print: tables for people, JSON for programs, and times and sizes in words."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
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
LAST_COLUMN = 24  # least width of a last column that wraps
UNBOUNDED = 100_000  # width if the output is not a terminal: programs want one record per line

# Characters that control a terminal or are hidden by it: C0 (except tab and line feed), DEL, C1, and those
# that change the text's direction. Names and messages come from nodes and users.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_BREAKS = re.compile(r"\s*[\r\n]\s*")


def printable(text: str) -> str:
    r"""Return a text with control characters spelled out, e.g. ``\x1b`` or ``\u202e``."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class FleetConsole(Console):
    """A console that never breaks ids or URLs, and prints no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        if not self.is_terminal:
            self.width = UNBOUNDED

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, but let the terminal wrap lines that are too wide.

        A line that is broken here can't be copied whole.
        """
        lines = all(isinstance(one, str | Text) for one in objects)
        super().print(*objects, **{"crop": False, "soft_wrap": lines, **options})

    def on_broken_pipe(self) -> None:
        """Let the caller decide what to do when the reader of a pipe has gone: Rich would exit."""
        raise BrokenPipeError

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render as Rich does, with control characters spelled out: all output goes through here."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNSAFE.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


class Listing(Table):
    """A table without lines, in which words are never broken.

    Columns that wrap are narrowed down to their longest word; the last one even further, so that one long
    word makes only its own line too long. The terminal wraps what is still too wide, so that ids and URLs can
    be copied whole.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Choose the columns' widths, and omit blanks at the ends of lines."""
        gaps = 2 * (len(self.columns) - 1)
        for column, width in zip(self.columns, self._widths(options.max_width - gaps), strict=True):
            column.width = width
        if self.columns and not self.columns[-1].no_wrap:
            self._wrap_last()
        whole = options.update(width=sum(column.width or 0 for column in self.columns) + gaps)
        for line in Segment.split_lines(cast("Iterable[Segment]", super().__rich_console__(console, whole))):
            words = list(line)
            while words and not words[-1].text.strip():
                words.pop()
            if words:
                words[-1] = Segment(words[-1].text.rstrip(), words[-1].style)
            yield from words
            yield Segment.line()

    def _wrap_last(self) -> None:
        """Wrap the last column's cells between words; it becomes as wide as its longest line."""
        column = self.columns[-1]
        room, lengths = column.width or 1, [cell_len(_plain(column.header))]
        for place, cell in enumerate(column._cells):  # noqa: SLF001 - rich has no other way to its cells
            text = cell if isinstance(cell, Text) else Text(str(cell))
            lines = [part for line in text.split("\n") for part in line.divide(_breaks(line.plain, room))]
            lengths += [cell_len(line.plain.rstrip()) for line in lines]
            column._cells[place] = Text("\n").join(lines)  # noqa: SLF001
        column.width = max(lengths)

    def _widths(self, room: int) -> list[int]:
        cells = [[_plain(cell) for cell in (column.header, *column.cells)] for column in self.columns]
        if not self.show_header:
            cells = [column[1:] for column in cells]
        widths = [
            max((cell_len(line) for cell in column for line in cell.split("\n")), default=0)
            for column in cells
        ]
        words = [
            max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells
        ]
        words[-1] = min(words[-1], LAST_COLUMN)
        while sum(widths) > room:
            spare, index = max(
                (0 if column.no_wrap else widths[index] - words[index], index)
                for index, column in enumerate(self.columns)
            )
            if spare <= 0:
                break
            widths[index] -= min(spare, sum(widths) - room)
        return widths


def _breaks(line: str, room: int) -> list[int]:
    """Return where to break a line between words, so that only a word that is too long passes the room."""
    breaks, used = [], 0
    for word in re.finditer(r"\S+\s*", line):
        if used and used + cell_len(word[0].rstrip()) > room:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    return breaks


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def stdout() -> Console:
    """Return the console for results."""
    return FleetConsole()


def stderr() -> Console:
    """Return the console for progress and errors, so that results can be piped."""
    return FleetConsole(stderr=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout, without colours or wrapping."""
    sys.stdout.write(json_text(value, indent=2) + "\n")
    sys.stdout.flush()


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON with control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_answer(value: Any, words: str | Text, *, json_: bool) -> None:
    """Print what a command did: in words for people, or the API's answer for programs."""
    if json_:
        print_json(value)
    else:
        stdout().print(words)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """Return a table.

    Args:
        columns: Headings; one that starts with ``>`` is right-aligned, with ``<`` never wraps.
        rows: Cells; None becomes empty, states get their colour.
        title: Line above it.
    """
    made = Listing(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        name = column.lstrip("<>")
        made.add_column(
            name, justify="right" if column.startswith(">") else "left", no_wrap=column[:1] in "<>"
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else styled(one_line(cell)) for cell in row))
    return made


def one_line(cell: Any) -> str:
    """Return a cell's text with blanks for line breaks, so that a record is one line in a pipe."""
    return "" if cell is None else printable(_BREAKS.sub(" ", str(cell)).strip())


def styled(cell: Any) -> Text:
    """Return a cell as text, colored if it is a state; markup in it is not interpreted."""
    text = "" if cell is None else printable(str(cell))
    if SIMULATED in text:
        return Text(text, style="magenta")
    return Text(text, style=STATUS_STYLE.get(text, ""))


def facts(pairs: Mapping[str, Any]) -> Table:
    """Return names and values as two columns; empty values are left out."""
    made = Listing(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column()
    for name, value in pairs.items():
        if value not in (None, "", {}, []):
            made.add_row(printable(name), styled(value))
    return made


def parse_time(value: str | float | None) -> datetime | None:
    """Read a time in the API's form (RFC 3339, or Unix seconds)."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def ago(value: str | float | None, now: datetime) -> str:
    """Return the time since then, e.g. ``4m``; empty for None."""
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


def size(count: float) -> str:
    """Return a number of bytes in words, e.g. ``1.8 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
