"""A batch's items from files with a line for each: CSV and JSON Lines."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.workflow import FILES, Parameter, ParameterType, Workflow

SEPARATORS = ",;\t"
MOST_COLUMNS = 500
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,20}([.,][0-9]{0,20})?|[.,][0-9]{1,20})([eE][+-]?[0-9]{1,3})?")
_SEPARATOR = re.compile(rf'"?sep=([{SEPARATORS}])"?', re.IGNORECASE)
_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})
_SENT = ("custom_id", "priority")
_OUTPUT = ("output.store", "output.key", "output.format", "output.on_conflict")


@dataclass(frozen=True, kw_only=True)
class SentItem:
    """An item as its client has sent it.

    Attributes:
        line: Where it begins in a file with a line for each, from 1; 0: it came in a list.
        values: Its fields; nothing if they can't be read.
        fault: Why they can't; empty if they can.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0
    fault: str = ""


def read_json_lines(data: bytes) -> Iterator[SentItem]:
    """Yield the items of JSON Lines: an object a line; empty lines are left out."""
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, parse_constant=_no_number)
            json.dumps(found, ensure_ascii=False).encode()  # half a character is refused here
        except (ValueError, RecursionError) as error:
            yield SentItem(line=number, fault=f"is not JSON: {error}"[:300])
            continue
        if isinstance(found, dict):
            yield SentItem(line=number, values=found)
        else:
            yield SentItem(line=number, fault="must be a JSON object")


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def read_csv(data: bytes, workflow: Workflow) -> Iterator[SentItem]:
    """Yield the items of a table with a column for each parameter; an empty cell is the default.

    Its first line names the columns: parameters of the workflow, and ``custom_id``, ``priority``,
    ``metadata.LABEL``, ``output.store``, ``output.key``, ``output.format`` and ``output.on_conflict``.
    Commas, semicolons or tabs stand between them, whichever the first line has or names (``sep=;``).

    Raises:
        BadInput: It is not UTF-8, or its first line can't be used.
    """
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _bad(f"line {line} is not UTF-8: save the table as `CSV UTF-8`") from None
    separator, skipped = table_form(text)
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        lines.readline()
    rows = csv.reader(lines, delimiter=separator, strict=True)
    columns: list[_Column] = []
    begins = 1 + skipped
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            if not columns:
                raise _bad(f"line {begins} {_unreadable(error)}") from None
            yield SentItem(line=begins, fault=_unreadable(error))
            return  # where the next row begins is not known
        line, begins = begins, rows.line_num + 1 + skipped
        if not any(cell.strip() for cell in row):
            continue
        if not columns:
            columns = _columns(row, line, workflow)
            continue
        if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
            fault = f"has {len(row)} cells for {len(columns)} columns: texts with `{separator}` need quotes"
            yield SentItem(line=line, fault=fault)
            continue
        yield SentItem(line=line, values=_values(columns, row, comma=separator != ","))
    if not columns:
        raise _bad("the table is empty: its first line must name the columns")


def table_form(text: str) -> tuple[str, int]:
    """Return what stands between a table's cells, and how many lines before its first one are no part of it.

    Excel writes ``sep=;`` as the first line for other programs of its kind.
    """
    first = next((one for one in io.StringIO(text) if one.strip()), "")
    said = _SEPARATOR.fullmatch(first.strip("\r\n "))
    if said is not None and text.startswith(first):
        return said[1], 1
    bare = re.sub(r'"[^"]*"', "", first)
    return max(SEPARATORS, key=bare.count), 0


def _unreadable(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "can't be read: it opens a quote that is never closed; within quotes, `\"` is written twice"
    return f'can\'t be read: {error}; a text with `"` needs quotes around it, and each `"` in it twice'


@dataclass(frozen=True, kw_only=True)
class _Column:
    """Where a cell goes: a parameter, a field of the item, or one within ``metadata`` or ``output``."""

    name: str
    parameter: Parameter | None = None
    label: str = ""


def _columns(row: list[str], line: int, workflow: Workflow) -> list[_Column]:
    if len(row) > MOST_COLUMNS:
        raise _bad(f"line {line} names {len(row)} columns, at most {MOST_COLUMNS} are read")
    found: list[_Column] = []
    names = [cell.strip() for cell in row]
    while names and not names[-1]:
        names.pop()
    for name in names:
        if names.count(name) > 1:
            raise _bad(f"line {line}: the column {name[:80]!r} is there twice", name)
        parameter = workflow.parameter(name.removeprefix("params."))
        if name in _SENT:
            found.append(_Column(name=name))
        elif name.startswith("metadata.") and name != "metadata.":
            found.append(_Column(name="metadata", label=name.removeprefix("metadata.")))
        elif name in _OUTPUT:
            found.append(_Column(name="output", label=name.removeprefix("output.")))
        elif parameter is not None:
            if any(one.parameter == parameter for one in found):
                raise _bad(f"line {line}: two columns are the parameter {parameter.name!r}", name)
            found.append(_Column(name="params", parameter=parameter))
        else:
            own = [one.name for one in workflow.parameters]
            known = ", ".join([*_SENT, "metadata.LABEL", *_OUTPUT, *own])
            raise _bad(
                f"line {line}: the column {name[:80]!r} is no parameter of workflow {workflow.name!r}: "
                f"there are {known}",
                name,
            )
    return found


def _values(columns: list[_Column], row: list[str], *, comma: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for column, cell in zip(columns, row, strict=False):
        if not cell.strip():
            continue
        if column.parameter is not None:
            values.setdefault("params", {})[column.parameter.name] = converted(
                column.parameter, cell, comma=comma
            )
        elif column.label:
            values.setdefault(column.name, {})[column.label] = cell
        elif column.name == "priority" and _WHOLE.fullmatch(cell.strip()):
            values["priority"] = int(cell)
        else:
            values[column.name] = cell.strip()
    return values


def converted(parameter: Parameter, cell: str, *, comma: bool = False) -> Any:
    """Return a cell as a value of the parameter's type; as it is if it is none, which is refused later.

    Args:
        parameter: Whose value it is.
        cell: The text, not empty.
        comma: Whether a decimal comma is taken.
    """
    text = cell.strip()
    match parameter.type:
        case ParameterType.INTEGER | ParameterType.SEED if _WHOLE.fullmatch(text):
            return int(text)
        case ParameterType.NUMBER if _DECIMAL.fullmatch(text) and (comma or "," not in text):
            return int(text) if _WHOLE.fullmatch(text) else float(text.replace(",", "."))
        case ParameterType.BOOLEAN if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        case ParameterType.STRING:
            return cell
        case _ if parameter.type in FILES:
            return text
    return text


def _bad(message: str, column: str = "") -> BadInput:
    return BadInput(message, details={"field": column[:80] or "items"})
