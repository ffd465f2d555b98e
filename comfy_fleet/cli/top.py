"""``fleet top``: the fleet, live in a terminal."""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key

if TYPE_CHECKING:
    from rich.console import Console

    from comfy_fleet.cli.client import Client

LOOK_S = 0.2
"""How often keys and the terminal's size are looked at."""
PATIENCE_S = 10.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Fleet")(top)


def top(
    interval: Annotated[
        float, typer.Option(metavar="S", min=1, max=3600, help="Ask this often, in seconds.")
    ] = 2,
    pool: Annotated[str, typer.Option(help="Only this pool.", show_default="all")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as in a pipe, instead of following it.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Follow the fleet in a terminal: nodes with their GPUs and jobs, the queue, and what has ended.

    q quits, p pauses, s sorts nodes by name or with those in trouble first. For operators.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout

    console = stdout()
    with Client(api, key, timeout_s=PATIENCE_S) as client:
        seen = _ask(client, pool)
        if json_:
            print_json(seen)
        elif once or not console.is_terminal or console.is_dumb_terminal:
            from comfy_fleet.cli.top_frame import Scene, frame

            width = console.width
            for line in frame(Scene(seen=seen, url=client.url, pool=pool), width):
                console.print(line)
        else:
            try:
                _follow(console, client, seen, pool, interval)
            except KeyboardInterrupt:
                raise typer.Exit(Exit.INTERRUPTED) from None


def _ask(client: "Client", pool: str) -> dict[str, Any]:
    try:
        return dict(client.get("/api/v1/overview", pool=pool or None))
    except Fail as error:
        if error.exit is Exit.NOT_FOUND:
            raise Fail(
                "this fleet has no overview: it is of an earlier version",
                hint="`fleet status` and `fleet node ls` work there",
                code=error.exit,
            ) from error
        raise


@dataclass
class _News:
    """What a thread has heard from the API; it is read by another one.

    Attributes:
        seen: The last answer.
        failed: Why there is none now.
        since: Since when.
        fatal: Asking again would not help.
    """

    seen: Mapping[str, Any]
    failed: Fail | None = None
    since: datetime | None = None
    fatal: bool = False


def _follow(
    console: "Console", client: "Client", seen: Mapping[str, Any], pool: str, interval: float
) -> None:
    """Draw until somebody quits.

    Raises:
        Fail: The API refuses to go on.
    """
    from rich.console import Group
    from rich.live import Live

    from comfy_fleet.cli.top_frame import Scene, frame

    news, wanted = _News(seen), threading.Event()
    threading.Thread(target=_listen, args=(client, pool, news, wanted), daemon=True).start()
    scene = Scene(seen=seen, url=client.url, pool=pool, keys=sys.stdin.isatty())
    drawn: object = None
    asked = time.monotonic()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            for letter in pressed(LOOK_S):
                if letter in "qQ\x04":
                    return
                if letter in "pP ":
                    scene = replace(scene, paused=not scene.paused)
                elif letter in "sS":
                    scene = replace(scene, by_name=not scene.by_name)
            if news.fatal and news.failed is not None:
                raise news.failed
            if not scene.paused:
                scene = replace(scene, seen=news.seen, silent=_silence(news))
                if time.monotonic() - asked >= interval:
                    asked = time.monotonic()
                    wanted.set()
            size = console.size
            if drawn != (scene, size):
                drawn = scene, size
                live.update(Group(*frame(scene, size.width, size.height)), refresh=True)


def _listen(client: "Client", pool: str, news: _News, wanted: threading.Event) -> None:
    """Ask whenever it is wanted: an API that is slow to answer must not keep keys from working."""
    while True:
        wanted.wait()
        wanted.clear()
        try:
            news.seen = _ask(client, pool)
            news.failed = news.since = None
        except Fail as error:
            news.since = news.since or datetime.now().astimezone()
            news.failed = error
            news.fatal = not error.passing and error.exit is not Exit.UNREACHABLE
        except RuntimeError:  # the client was closed: the command is over
            return


def _silence(news: _News) -> str:
    failed, since = news.failed, news.since
    return f"no answer since {since:%H:%M:%S}: {failed.message}" if failed and since else ""


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Yield a function that waits so many seconds and returns the keys that were pressed meanwhile."""
    try:
        import termios
        import tty
    except ImportError:  # not on this system
        yield _no_keys
        return
    if not sys.stdin.isatty():
        yield _no_keys
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([file], [], [], seconds)
        return os.read(file, 64).decode(errors="replace") if ready else ""

    tty.setcbreak(file)
    try:
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""
