"""The servers that clients are tried on: fleets and single ComfyUIs, each started for its turn."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tests.acceptance.up import start_fleet, stop_fleet
from tests.clients.caller import Caller
from tests.comfyui_server import comfyui_of, interpreter

KEYS = ("one-person-0123456789", "another-person-0123456789")
NODES = "2"
REAL_START_S = 240.0


@dataclass(frozen=True)
class Home:
    """A ComfyUI on this machine.

    Attributes:
        folder: Where its programs are.
        python: The interpreter that has its packages; empty: the folder's own.
    """

    folder: Path
    python: str = ""

    @property
    def version(self) -> str:
        """What it calls itself."""
        text = (self.folder / "comfyui_version.py").read_text()
        return text.partition('__version__ = "')[2].partition('"')[0]


@dataclass(frozen=True)
class Server:
    """A server and the two people who use it.

    Attributes:
        name: A line or two for the head of a table's column.
        people: Without keys, the same person twice.
    """

    name: str
    people: tuple[Caller, Caller]

    @property
    def keyed(self) -> bool:
        """Whether it tells the two apart."""
        return bool(self.people[0].key)


@dataclass(frozen=True)
class Column:
    """A server that can be started.

    Attributes:
        name: As its server's.
        start: Runs it for as long as the context lasts.
    """

    name: str
    start: Callable[[], AbstractContextManager[Server]]


def running(text: str) -> Column:
    """Read ``NAME=http://HOST:PORT`` or ``NAME=http://KEY,KEY@HOST:PORT``, a server that runs already."""
    name, _, address = text.partition("=")
    parts = urlsplit(address)
    if not name or parts.scheme != "http" or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=http://[KEY,KEY@]HOST:PORT")
    keys = parts.username.split(",") if parts.username else ["", ""]
    if len(keys) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give two keys with a comma between, or none")
    server = _server(name, f"http://{parts.netloc.rpartition('@')[2]}", (keys[0], keys[1]))
    return Column(name, lambda: nullcontext(server))


def columns(homes: list[Home]) -> list[Column]:
    """Return what there is to start: single ComfyUIs, and fleets without keys and with them."""
    simulated = ["--nodes", NODES, "--job-seconds", "0.2"]
    found = [Column(f"bare\n{home.version}", partial(_bare, home)) for home in homes]
    fleets = [("fleet\nsim", simulated), *((f"fleet\n{home.version}", _nodes_of(home)) for home in homes)]
    for name, options in fleets:
        for keys in ((), KEYS):
            called = f"{name}\nkeys" if keys else name
            found.append(
                Column(
                    called,
                    partial(_fleet, called, options, keys),
                )
            )
    return found


def _nodes_of(home: Home) -> list[str]:
    python = home.python or interpreter(home.folder)
    return ["--nodes", NODES, "--comfyui", str(home.folder), "--comfyui-python", python]


def _server(name: str, url: str, keys: tuple[str, str]) -> Server:
    return Server(name, (Caller(url, keys[0]), Caller(url, keys[1])))


@contextmanager
def _bare(home: Home) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="comfyui-") as folder,
        comfyui_of(home.folder, Path(folder), python=home.python or None) as comfyui,
    ):
        yield _server(f"bare\n{home.version}", comfyui.url, ("", ""))


@contextmanager
def _fleet(name: str, options: list[str], keys: tuple[str, ...]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        env = {}
        if keys:
            file = Path(folder) / "keys"
            file.write_text("".join(f"person{number} {key}\n" for number, key in enumerate(keys)))
            file.chmod(0o600)
            env = {"FLEET_KEYS_FILE": str(file), "FLEET_AGENT_TOKEN": "agents-of-this-run-0123456789"}
        up = start_fleet(Path(folder) / "data", *options, env=env, within_s=REAL_START_S)
        try:
            yield _server(name, up.url, (keys[0], keys[1]) if keys else ("", ""))
        finally:
            stop_fleet(up)
