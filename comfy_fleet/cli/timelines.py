"""How ``fleet job show --timeline`` draws where a job's time went."""

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from comfy_fleet.cli.console import one_line, span, table

WIDTH = 80
LABEL, TOOK = 30, 8
WORDS = {
    "queue": "wait in the queue",
    "follow": "wait for an equal job",
    "stage": "prepare, stage inputs",
    "post": "hand it to the node",
    "wait_on_node": "wait on the node",
    "execute": "execute",
    "collect": "collect outputs",
    "store": "upload to the store",
    "webhook": "webhook",
}
INDENT = {"stage": 2, "post": 2, "wait_on_node": 2, "execute": 2, "graph_node": 4, "collect": 2}
STYLES = {"queue": "yellow", "follow": "yellow", "wait_on_node": "yellow", "attempt": "bold blue"}


def show(console: Console, record: Mapping[str, Any]) -> None:
    """Print a timeline: bars on a terminal, else a line for each part."""
    spans = record["spans"]
    if not console.is_terminal:
        rows = [
            (f"{one['start_s']:.3f}", f"{one['seconds']:.3f}", one["name"], _label(one), _note(one))
            for one in spans
        ]
        console.print(table([">Start", ">Seconds", "<Part", "<What", "Note"], rows))
        for text in record["unknown"]:
            console.print(one_line(f"not known: {text}"), markup=False)
        return
    bars(console, record)


def bars(console: Console, record: Mapping[str, Any]) -> None:
    """Print a timeline as bars, at most :data:`WIDTH` columns wide."""
    spans = record["spans"]
    width = max(60, min(console.width, WIDTH))
    room = width - LABEL - TOOK - 2
    total = max(float(record["seconds"]), 1e-6)
    head = f"{record['id']}  {record['status']}, {span(float(record['seconds']))} in all"
    console.print(Text(one_line(head)))
    for one in spans:
        console.print(_line(one, total, room))
        if note := _note(one):
            console.print(Text(f"  {' ' * INDENT.get(one['name'], 0)}{one_line(note)}", style="dim"))
    for text in record["unknown"]:
        console.print(Text(one_line(f"not known: {text}"), style="dim"))


def _line(one: Mapping[str, Any], total: float, room: int) -> Text:
    label = " " * INDENT.get(one["name"], 0) + one_line(_label(one))
    label = label if cell_len(label) <= LABEL else f"{set_cell_size(label, LABEL - 1)}…"
    start = min(room - 1, max(0, int(room * float(one["start_s"]) / total)))
    length = max(1, min(room - start, round(room * float(one["seconds"]) / total)))
    bar = "█" * length if float(one["seconds"]) * room / total >= 0.5 else "▏"
    line = Text(set_cell_size(label, LABEL))
    line.append(f"{span(float(one['seconds'])):>{TOOK}}{'+' if one['lasting'] else ' '}", style="bold")
    line.append(" " * start + " ")
    line.append(bar, style=STYLES.get(one["name"], "cyan"))
    return line


def _label(one: Mapping[str, Any]) -> str:
    if one["name"] == "attempt":
        return f"attempt {one['attempt']} on {one['node']}"
    if one["name"] == "graph_node":
        return f"{one['class_type']} ({one['node_id']})"
    return WORDS.get(one["name"], str(one["name"]))


def _note(one: Mapping[str, Any]) -> str:
    return str(one["note"] or "")
