"""Nodes in words, and waiting for them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of

COLUMNS = ("<Node", "State", "Pool", ">Done", ">Failed", "Running", "URL")
LOOK_S = 0.2


def nodes_of(answer: Any) -> list[dict[str, Any]]:
    """Return the nodes in a listing, ``gpu-2`` before ``gpu-10``."""
    from comfy_fleet.cli.console import natural

    return sorted(answer["nodes"], key=lambda node: natural(str(node["name"])))


def state(node: Mapping[str, Any]) -> str:
    """Return a node's state in a word, or in a few if it gets no jobs."""
    if node.get("cordoned"):
        return f"drain: {node.get('cordon_reason') or 'by hand'}"
    verdict = str(node.get("verdict") or "new")
    if node.get("why") and verdict != "up":
        return f"{verdict}: {node['why']}"
    return f"{verdict}: can't be read: {node['trouble']}" if node.get("trouble") else verdict


def row(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a node as a row under :data:`COLUMNS`."""
    from rich.text import Text

    from comfy_fleet.cli.console import SIMULATED, STATUS_STYLE, one_line

    word = state(node)
    job = node.get("job") or ""
    where = Text(str(node.get("url") or ""))
    if node.get("simulated"):
        where = Text(SIMULATED, style="magenta")
    return (
        node["name"],
        Text(one_line(word), style=STATUS_STYLE.get(word.split(":")[0], "")),
        node.get("pool"),
        node.get("done") or 0,
        node.get("failed") or 0,
        job[:8],
        where,
    )


def path(name: str) -> str:
    """Return a node's path in the API. Raises Fail if no node can have that name."""
    return path_of("node", name)


def drained(node: Mapping[str, Any]) -> bool:
    """Tell whether no job needs the node any more, its outputs included."""
    return not node.get("run") and not node.get("work")


def still_working(node: Mapping[str, Any]) -> str:
    """Say what still needs a node: ``job 1b9d6bcd KSampler 21/50``."""
    told = []
    for work in node.get("work") or ():
        what = "its outputs are being fetched" if work.get("phase") == "left" else work.get("message")
        words = ["job", str(work.get("job") or "")[:8], str(work.get("workflow") or ""), str(what or "runs")]
        told.append(" ".join(filter(None, words)))
    return ", ".join(told) or "a job runs"


def wait_for(
    client: Any,
    name: str,
    timeout_s: float,
    done: Callable[[Mapping[str, Any]], bool],
    what: str,
    *,
    tell: Callable[[Mapping[str, Any]], str] = state,
) -> dict[str, Any]:
    """Look at a node until something holds.

    Raises:
        Fail: The time is over; says what ``tell`` makes of the node.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        node = dict(client.get(path(name)))
        if done(node):
            return node
        if time.monotonic() > deadline:
            raise Fail(
                f"node {name} is not {what} after {max(0.0, timeout_s):g} s: {tell(node)}",
                hint=f"fleet node show {name}",
                code=Exit.TIMEOUT,
            )
        time.sleep(LOOK_S)
