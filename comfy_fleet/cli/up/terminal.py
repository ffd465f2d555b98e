"""The terminal output of ``fleet up``: the fleet's address, and important log lines of its processes."""

import contextlib
import os
import re
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from comfy_fleet.api.host_names import is_loopback
from comfy_fleet.cli.console import SIMULATED, span, table
from comfy_fleet.cli.up.plan import Plan, public_url
from comfy_fleet.cli.up.public_port import USUAL_CONSOLE_URL
from comfy_fleet.cli.up.supervisor import is_loud
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.text import natural
from comfy_fleet.logs import one_line

_SAY_AGAIN_S = 10.0  # the same line of the same process is shown at most this often
_SHOWN_FIRST = frozenset({"ts", "level", "process", "logger", "event", "msg", "traceback", "reason"})
_COLOUR = re.compile("\x1b\\[[0-9;]*m")  # ComfyUI's log has colors
_PARTS = ("haproxy", "node", "pool")  # fields that name a part of a process


class Terminal:
    """The terminal of a running fleet.

    Attributes:
        stopping: Set once the fleet stops: then its processes' lines are not shown.
    """

    def __init__(self, console: Console, *, verbose: bool, stays: bool = True) -> None:
        """Begin with the fleet's start.

        Args:
            console: The console to print on.
            verbose: Show all log lines.
            stays: Whether Ctrl-C here will stop the fleet even once it is ready.
        """
        self._stays = stays
        self.stopping = False
        self._console = console
        self._progress = console if console.is_terminal else Console(quiet=True)
        self._verbose = verbose
        self._ready = False
        self._told: dict[tuple[object, ...], float] = {}

    def echo(self, process: str, fields: Mapping[str, Any]) -> None:
        """Show a process's log line, if it belongs here now."""
        if not (self._verbose or self._matters(process, fields)):
            return
        self._print(line_of(process, fields), markup=False, style="dim")

    def status(self, words: str) -> Status:
        """Show the current step; never written to files or pipes."""
        return self._progress.status(words)

    def say(self, words: str) -> None:
        """Print a text unchanged."""
        self._print(words, markup=False)

    def _print(self, *what: Any, **how: Any) -> None:
        # A full disk behind a redirected stdout must not end the fleet or stop reading its processes' output.
        with contextlib.suppress(OSError):
            self._console.print(*what, **how)

    def _matters(self, process: str, fields: Mapping[str, Any]) -> bool:
        if self.stopping or not is_loud(fields):
            return False
        if not self._ready and fields.get("level") == "warning":
            return False  # during the start, processes miss each other
        now = time.monotonic()
        key = (process, fields.get("msg"), *(fields.get(part) for part in _PARTS))
        if now - self._told.get(key, float("-inf")) < _SAY_AGAIN_S:
            return False
        self._told[key] = now
        return True

    def ready(self, planned: Plan, nodes: Sequence[Node], took_s: float, *, no_keys: bool = False) -> None:
        """Print that the fleet is ready, and its address.

        Args:
            planned: What runs.
            nodes: Its nodes.
            took_s: How long the start took.
            no_keys: Whether callers need a key, and there is none yet.
        """
        self._ready = True
        settings = planned.settings
        shown = self._print
        shown(f"[bold green]The fleet is ready[/] at [bold]{planned.url}[/]  ({span(took_s)})")
        shown()
        editor = settings.editor and any(not node.simulated for node in nodes)
        for name, value in (
            ("editor", f"{planned.url}/" if editor else ""),
            ("console", planned.console_url),
        ):
            if value:
                shown(Text.assemble((f"{name:<8}", "dim"), value))
        shown()
        rows = [
            (node.name, node.url, SIMULATED if node.simulated else "ComfyUI")
            for node in sorted(nodes, key=lambda node: natural(node.name))
        ]
        if rows:
            shown(table(["<Node", "URL", "What"], rows))
        else:
            shown("no nodes yet: `fleet node add NAME URL`, or an agent on a GPU host adds its own")
        shown()
        if len(kinds := {node.simulated for node in nodes}) == 2:
            shown(
                f"[bold magenta]{SIMULATED}[/] nodes take jobs, too, and answer them with test pictures; "
                "a `fleet up` that asks for none starts none"
            )
        elif True in kinds:
            shown(f"[magenta]{SIMULATED}[/] nodes draw test pictures; real ones: --comfyui DIR, --node URL")
        usual = settings.data == Path(".fleet").absolute()
        there = "" if usual else f" --data {shlex.quote(str(settings.data))}"
        elsewhere = settings.public_url or public_url(socket.gethostname(), settings.port, tls=settings.tls)
        for name, value in (
            ("key", first_key(planned) if no_keys else ""),
            ("try", example(planned)),
            ("from", "" if is_loopback(settings.host) else f"other machines: {elsewhere}"),
            ("data", str(settings.data)),
            ("logs", f"fleet logs -f{there}"),
            ("stop", f"Ctrl-C, or `fleet down{there}`" if self._stays else f"fleet down{there}"),
        ):
            if value:  # lines to copy are never broken
                shown(Text.assemble((f"{name:<6}", "dim"), value))


def line_of(process: str, fields: Mapping[str, Any], *, dated: bool = False) -> str:
    """Return a log line for people: ``15:04:05 error api: ended by itself: REASON again_in_s=0.2``.

    Args:
        process: The process.
        fields: The line's fields.
        dated: Whether to show the day before the time, for lines of other days; then a line without a time
            gets none.
    """
    when = None if dated else datetime.now().astimezone()
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        when = datetime.fromisoformat(fields["ts"]).astimezone()
    time_ = "" if when is None else f"{when:%m-%d %H:%M:%S} " if dated else f"{when:%H:%M:%S} "
    why = f": {fields['reason']}" if fields.get("reason") else ""
    more = "".join(f" {key}={value}" for key, value in fields.items() if key not in _SHOWN_FIRST)
    line = f"{time_}{fields.get('level', 'info')} {process}: {fields.get('msg')}{why}{more}"
    return one_line(_COLOUR.sub("", line))


def trace_of(fields: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines of a log line's traceback."""
    trace = fields.get("traceback")
    return [f"    {one_line(line)}" for line in trace.split("\n")] if isinstance(trace, str) else []


def first_key(planned: Plan) -> str:
    """Return how the first key is made, for the example that follows."""
    line = "fleet key create me --role operator --here"
    if (data := planned.settings.data) != Path(".fleet").absolute():
        line = f"FLEET_DATA={shlex.quote(str(data))} {line}"
    return f"{line}   # there is none yet; then export FLEET_API_KEY=..."


def example(planned: Plan) -> str:
    """Return a command line that can be pasted into another terminal of this machine.

    It reads a key from its file: no key is ever shown.
    """
    settings = planned.settings
    line = f'fleet submit {settings.default_workflow} -p prompt="a red fox" --wait'
    if planned.owners and settings.keys_file:
        find = f'{{ sub(/#.*/, "") }} $1 == "{planned.owners[0]}" {{ print $2; exit }}'
        line = (
            f"export FLEET_API_KEY=$(awk '{find}' {shlex.quote(str(settings.keys_file.absolute()))}); {line}"
        )
    url = planned.console_url
    if url != USUAL_CONSOLE_URL or os.environ.get("FLEET_API_URL", url) != url:
        line = f"export FLEET_API_URL={url}; {line}"
    if settings.tls and settings.data != Path(".fleet").absolute():  # the folder tells its certificate
        line = f"export FLEET_DATA={shlex.quote(str(settings.data))}; {line}"
    return line
