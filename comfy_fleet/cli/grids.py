"""Tables of lines that all fit into a terminal's width, for what is drawn again and again."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from comfy_fleet.cli.console import STATUS_STYLE, one_line

GAP = 2


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; one without anything in it is left out.

    Attributes:
        title: Its heading.
        right: Whether it is aligned to the right.
        least: How narrow it may become; 0: it keeps its width.
    """

    title: str
    right: bool = False
    least: int = 0


def cell(value: object, style: str = "") -> Text:
    """Return one line of text, in which nothing controls a terminal; a state gets its colour."""
    text = one_line(value)
    return Text(text, style=style or STATUS_STYLE.get(text.partition(":")[0], ""), no_wrap=True)


def fitted(line: Text, width: int) -> Text:
    """Return a line that is cut where the width ends."""
    line.truncate(width, overflow="ellipsis")
    return line


def grid(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Return the heading and the rows as lines.

    The widest columns that may become narrower do so first; what is still too wide is cut off.

    Args:
        columns: The columns.
        rows: A cell for each of them.
        width: Characters of a line.
    """
    kept = [index for index in range(len(columns)) if any(row[index].plain for row in rows)]
    shown = [columns[index] for index in kept]
    cells = [[row[index] for index in kept] for row in rows]
    widths = [
        max(len(column.title), *(row[place].cell_len for row in cells)) for place, column in enumerate(shown)
    ]
    while (over := sum(widths) + GAP * (len(widths) - 1) - width) > 0:
        spare, place = max(
            (widths[place] - max(column.least, 1) if column.least else 0, place)
            for place, column in enumerate(shown)
        )
        if spare <= 0:
            break
        # Those that are as wide as the widest shrink together.
        widths[place] -= min(over, max(1, spare // 2))
    head = [Text(column.title, style="bold dim") for column in shown]
    return [_line(row, shown, widths, width) for row in ([head, *cells] if cells else [])]


def _line(row: Sequence[Text], columns: Sequence[Column], widths: Sequence[int], width: int) -> Text:
    line = Text(no_wrap=True)
    for place, (one, column, size) in enumerate(zip(row, columns, widths, strict=True)):
        part = one.copy()
        part.truncate(size, overflow="ellipsis")
        blanks = " " * (size - part.cell_len)
        if place:
            line.append(" " * GAP)
        if column.right:
            line.append(blanks)
        line.append_text(part)
        if not column.right and place < len(columns) - 1:
            line.append(blanks)
    return fitted(line, width)
