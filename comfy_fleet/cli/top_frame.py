"""What ``fleet top`` shows: the fleet as lines of text that fit into a terminal."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from comfy_fleet.cli.console import SIMULATED, UNBOUNDED, parse_time, span
from comfy_fleet.cli.grids import Column, cell, fitted, grid
from comfy_fleet.domain.text import natural

GIB = 2**30
WIDE = 100  # columns from which on there is room for ids of jobs
MOST_ALONE = 40  # idle nodes in a pipe, which has no end
KEYS = "q quit  p pause  s sort"
_NODES = (
    Column(title="Node", least=16),
    Column(title="Pool", least=7),
    Column(title="GPU", least=8),
    Column(title="Memory", right=True),
    Column(title="Temp", right=True),
    Column(title="Load", right=True),
    Column(title="Job"),
    Column(title="Now", least=20),
)
_POOLS = (
    Column(title="Pool", least=8),
    Column(title="Waiting", right=True),
    Column(title="Oldest", right=True),
    Column(title="Nodes", right=True),
    Column(title="Up", right=True),
    Column(title="Busy", right=True),
)
_WAITING = (
    Column(title="Waiting"),
    Column(title="Workflow", least=8),
    Column(title="User", least=6),
    Column(title="For", right=True),
    Column(title="Why", least=20),
)
_ENDED = (
    Column(title="Ended"),
    Column(title="Status"),
    Column(title="Workflow", least=8),
    Column(title="User", least=6),
    Column(title="Node", least=6),
    Column(title="Ran", right=True),
    Column(title="Ago", right=True),
    Column(title="Error", least=12),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is to be shown.

    Attributes:
        seen: The API's answer to ``GET /api/v1/overview``.
        url: Where it came from.
        pool: The pool that is shown; empty: all.
        by_name: Whether nodes are in the order of their names; else those with trouble come first, then
            those that work.
        paused: Whether the answer is no longer asked for.
        silent: Since when there is no answer, and why; empty if there is one.
        keys: Whether keys can be pressed.
    """

    seen: Mapping[str, Any]
    url: str
    pool: str = ""
    by_name: bool = False
    paused: bool = False
    silent: str = ""
    keys: bool = False


@dataclass
class _Part:
    """A table, and how many of its rows must be seen before another one gets more."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    least: int
    hidden: Callable[[int], str]  # what is left out if so many rows are shown; empty: nothing
    shown: int = 0

    @property
    def lines(self) -> int:
        """How many lines it takes: a blank one, the heading, its rows, and one that says what is missing."""
        return 2 + self.shown + self.cut if self.rows else 0

    @property
    def cut(self) -> bool:
        return bool(self.hidden(self.shown))


def frame(scene: Scene, width: int = UNBOUNDED, height: int | None = None) -> list[Text]:
    """Return the lines, none wider than the width, and no more than the height.

    Args:
        scene: What is to be shown.
        width: Characters of a line.
        height: How many lines; None: any number.
    """
    seen = scene.seen
    head = [fitted(line, width) for line in _head(scene, width)]
    pools = [_pool(one) for one in seen["pools"]]
    waiting = [_waiting(one, seen["at"]) for one in seen["waiting"]]
    ended = [_ended(one, seen["at"]) for one in seen["ended"]]
    others = [
        _Part(_POOLS, pools, 3, lambda shown: _rest(len(pools) - shown)),
        _Part(_WAITING, waiting, 2, lambda shown: _rest(seen["queued"] - shown if shown else 0)),
        _Part(_ENDED, ended, 3, lambda shown: _rest(len(ended) - shown)),
    ]
    room = None if height is None else height - len(head)
    least = sum(3 + min(len(part.rows), part.least) for part in others if part.rows)
    alone = MOST_ALONE if room is None else room - least - 3
    nodes = _nodes(scene, width, grouped=len(seen["nodes"]) > alone)
    parts = [others[0], nodes, *others[1:]]
    _share_out(parts, room)
    lines = [*head]
    for part in parts:
        if part.shown:
            table = grid(part.columns, part.rows[: part.shown], width)
            lines += [Text(), *table]
            if part.cut:
                lines.append(fitted(Text(f"… {part.hidden(part.shown)}", style="dim"), width))
    return lines if height is None else lines[:height]


def _rest(count: int) -> str:
    return f"{count} more" if count > 0 else ""


def _share_out(parts: Sequence[_Part], room: int | None) -> None:
    """Decide how many rows of each part are shown: first the least of each, then more of the nodes."""
    if room is None:
        for part in parts:
            part.shown = len(part.rows)
        return
    for part in parts:
        part.shown = min(len(part.rows), part.least)

    def left() -> int:
        return room - sum(part.lines for part in parts if part.shown)

    pools, nodes, waiting, ended = parts
    for least in (1, 0):  # too low for all of them
        for part in (nodes, ended, waiting, pools) if least else (ended, waiting, pools, nodes):
            while left() < 0 and part.shown > least:
                part.shown -= 1
    for part in (nodes, pools, ended, waiting):
        while part.shown and part.shown < len(part.rows) and left() > 0:
            part.shown += 1
        if left() < 0:  # the last one took a line more than it saved
            part.shown -= 1


def _head(scene: Scene, width: int) -> list[Text]:
    seen = scene.seen
    at = parse_time(seen["at"])
    first = Text("comfy_fleet ", style="bold", no_wrap=True)
    first.append_text(cell(scene.url))
    if scene.pool:
        first.append(f"  pool {scene.pool}")
    first.append(f"  {at.astimezone():%H:%M:%S}" if at else "", style="dim")
    if scene.paused:
        first.append("  paused", style="bold yellow")
    if scene.keys and width - first.cell_len > len(KEYS) + 2:
        first.append(" " * (width - first.cell_len - len(KEYS)) + KEYS, style="dim")
    states, total = seen["states"], sum(seen["states"].values())
    busy = sum(one["busy"] for one in seen["pools"])
    words = ", ".join(f"{count} {state}" for state, count in _ordered(states))
    oldest = max((one["oldest_s"] for one in seen["pools"]), default=0.0)
    second = Text(no_wrap=True)
    second.append("ready" if seen["ready"] else "NOT READY", style="green" if seen["ready"] else "bold red")
    second.append(f"  {total} nodes: {words}; {busy} busy" if total else "  no nodes")
    second.append(f"  {seen['queued']} waiting" + (f", oldest {span(oldest)}" if seen["queued"] else ""))
    if seen["batch_items"]:
        second.append(f", {seen['batch_items']} items of batches after them")
    lines = [first, second]
    if scene.silent:
        lines.append(cell(scene.silent, "bold red"))
    lines += [cell(f"{one['part']}: {one['why']}", "red") for one in seen["reasons"]]
    lines += [cell(f"note: {one}", "yellow") for one in seen["notes"]]
    simulated = sum(bool(one["simulated"]) for one in seen["nodes"])
    if simulated:
        lines.append(Text(f"{SIMULATED}: {simulated} of {total} nodes", style="magenta"))
    return lines


def _ordered(states: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(states.items(), key=lambda one: (one[0] != "up", one[0]))


def _pool(one: Mapping[str, Any]) -> tuple[Text, ...]:
    return (
        cell(one["name"], "none"),
        Text(str(one["waiting"]), style="cyan" if one["waiting"] else "dim"),
        Text(span(one["oldest_s"]) if one["waiting"] else ""),
        Text(str(one["nodes"])),
        Text(str(one["up"]), style="" if one["up"] else "bold red"),
        Text(str(one["busy"]), style="bold blue" if one["busy"] else "dim"),
    )


def _nodes(scene: Scene, width: int, *, grouped: bool) -> _Part:
    """Return the nodes, each in a row; if grouped, with one row for all that are equal and do nothing."""
    groups: dict[object, list[Mapping[str, Any]]] = {}
    for one in scene.seen["nodes"]:
        alike = (one["pool"], _gpu(one), one["memory_bytes"], one["state"], one["why"])
        groups.setdefault(one["name"] if one["jobs"] or not grouped else alike, []).append(one)
    found = sorted(groups.values(), key=_by_name if scene.by_name else _by_trouble)
    pools = {one["pool"] for one in scene.seen["nodes"]}
    rows = [_row(group, scene.seen["at"], several=len(pools) > 1, wide=width >= WIDE) for group in found]

    def hidden(shown: int) -> str:
        words = Counter(_word(one) for group in found[shown:] for one in group)
        if scene.seen["more_nodes"]:
            words["not listed"] = scene.seen["more_nodes"]
        told = ", ".join(f"{count} {word}" for word, count in words.items())
        return f"{words.total()} more: {told}" if told else ""

    return _Part(_NODES, rows, 6, hidden)


def _word(one: Mapping[str, Any]) -> str:
    return str(one["state"]) if one["state"] != "up" else "busy" if one["jobs"] else "idle"


def _by_name(group: Sequence[Mapping[str, Any]]) -> Any:
    return natural(group[0]["name"])


def _by_trouble(group: Sequence[Mapping[str, Any]]) -> Any:
    first = group[0]
    return (0 if first["state"] != "up" else 1 if first["jobs"] else 2), natural(first["name"])


def _row(group: Sequence[Mapping[str, Any]], at: str, *, several: bool, wide: bool) -> tuple[Text, ...]:
    first, last = group[0], group[-1]
    name = first["name"] if len(group) == 1 else f"{first['name']} … {last['name']}"
    heat = [one["temperature_c"] for one in group if one["temperature_c"] is not None]
    load = [100 * one["utilization"] for one in group if one["utilization"] is not None]
    job = first["jobs"][0] if first["jobs"] else None
    return (
        cell(name, "none"),
        cell(first["pool"] if several else "", "none"),
        cell(_gpu(first), "magenta" if first["simulated"] else "none"),
        Text(_memory(group)),
        Text(_range(heat, "°"), style="bold red" if heat and max(heat) >= 85 else ""),
        Text(_range(load, "%")),
        cell(job["id"][:8] if job and wide else "", "none"),
        _now(group, at),
    )


def _gpu(one: Mapping[str, Any]) -> str:
    gpu = str(one["gpu"]).replace("NVIDIA ", "").replace("GeForce ", "").removesuffix(f" ({one['name']})")
    return f"{SIMULATED} {gpu}".strip() if one["simulated"] and SIMULATED not in gpu else gpu


def _now(group: Sequence[Mapping[str, Any]], at: str) -> Text:
    first, count = group[0], f"{len(group)} " if len(group) > 1 else ""
    if first["state"] != "up":
        why = f": {first['why']}" if first["why"] else ""
        style = "bold red" if first["state"] in ("down", "quarantined") else "yellow"
        shown = cell(f"{count}{first['state']}{why}", style)
        if first["jobs"]:
            shown.append("; ").append_text(_jobs(first["jobs"], at))
        return shown
    return _jobs(first["jobs"], at) if first["jobs"] else Text(f"{count}idle", style="dim")


def _jobs(jobs: Sequence[Mapping[str, Any]], at: str) -> Text:
    line = Text(no_wrap=True)
    for place, job in enumerate(jobs[:3]):
        words = [str(job["workflow"] or "graph")]
        if job["phase"] == "left":
            words.append("outputs are being fetched")
        else:
            words.append(f"{job['progress']:.0%}" if job["progress"] is not None else "")
            words.append(str(job["message"] or ""))
        words += [_since(job["started_at"], at), str(job["user"])]
        line.append("; " if place else "").append_text(cell(" ".join(filter(None, words)), "bold blue"))
    return line


def _memory(group: Sequence[Mapping[str, Any]]) -> str:
    total = group[0]["memory_bytes"]
    if not total:
        return ""
    used = sorted(one["memory_used_bytes"] / GIB for one in group if one["memory_used_bytes"] is not None)
    if not used:
        return f"{total / GIB:.0f}G"
    first, last = f"{used[0]:.1f}", f"{used[-1]:.1f}"
    return f"{first if first == last else f'{first}-{last}'}/{total / GIB:.0f}G"


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    first, last = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{first if first == last else f'{first}-{last}'}{unit}"


def _waiting(job: Mapping[str, Any], at: str) -> tuple[Text, ...]:
    return (
        cell(job["id"][:8], "none"),
        cell(job["workflow"] or "graph", "none"),
        cell(job["user"], "none"),
        Text(_since(job["created_at"], at)),
        cell(job["waiting_for"] or "", "none"),
    )


def _ended(job: Mapping[str, Any], at: str) -> tuple[Text, ...]:
    return (
        cell(job["id"][:8], "none"),
        cell(job["status"]),
        cell(job["workflow"] or "graph", "none"),
        cell(job["user"], "none"),
        cell(job["node"] or "", "none"),
        Text(_since(job["started_at"], job["completed_at"])),
        Text(_since(job["completed_at"], at)),
        cell(job["error"] or "", "none"),
    )


def _since(then: str | None, now: str | None) -> str:
    first, last = parse_time(then), parse_time(now)
    return span(max(0.0, (last - first).total_seconds())) if first and last else ""
