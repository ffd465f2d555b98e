"""Try published clients, unmodified, on single ComfyUIs and on fleets, and show which of them work."""

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.clients.board import ALONE, FAILS, WORKS, Board, Client, Use
from tests.clients.caller import Caller
from tests.clients.published import PUBLISHED, Published, examples, install, picture
from tests.clients.relay import relay
from tests.clients.sequences import SEQUENCES, SOCKET_ONLY
from tests.clients.servers import Column, Home, columns, running

STYLES = {WORKS: "green", ALONE: "yellow", FAILS: "bold red"}
NARROW = 80  # columns of a terminal, and of a file


def _called(sequence: Callable[[Caller, int], Awaitable[bytes]]) -> Use:
    async def use(me: Caller, color: int, _folder: Path) -> bytes:
        return await sequence(me, color)

    return use


def _run(client: Published, installed: Path) -> Use:
    async def use(me: Caller, color: int, folder: Path) -> bytes:
        async with AsyncExitStack() as stack:
            if client.relayed and me.key:
                me = await stack.enter_async_context(relay(me, installed))
            return await picture(client, me, color, installed=installed, job=folder)

    return use


def _clients(folder: Path, homes: Sequence[Home]) -> list[Client]:
    # All versions of ComfyUI have the same examples, and the last home is the newest.
    published = (*(examples(homes[-1].folder) if homes else ()), *PUBLISHED)
    found = [
        Client(one.name, _run(one, folder), saves=one.saves, one_prompt=one.one_prompt) for one in published
    ]
    called = [Client(name, _called(use), saves=name not in SOCKET_ONLY) for name, use in SEQUENCES.items()]
    return found + called


def _homes() -> list[Home]:
    """Return the ComfyUIs that the environment names, the older one first."""
    found = []
    for prefix in ("COMFYUI", "COMFYUI_OTHER"):
        folder = os.environ.get(f"{prefix}_HOME")
        if folder:
            found.append(Home(Path(folder).absolute(), os.environ.get(f"{prefix}_PYTHON", "")))
    return sorted(found, key=lambda home: [int(part) for part in home.version.split(".") if part.isdigit()])


def _table(words: dict[str, dict[str, str]], clients: Sequence[Client]) -> Table:
    table = Table("client", *words, box=None, padding=(0, 1, 0, 0), row_styles=("", "dim"))
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.no_wrap = True
    for client in clients:
        cells = [column.get(client.name, "-") for column in words.values()]
        table.add_row(client.name, *(f"[{STYLES[one]}]{one}[/]" if one in STYLES else one for one in cells))
    return table


def _try_all(board: Board, servers: Sequence[Column], clients: Sequence[Client]) -> dict[str, dict[str, str]]:
    """Start one server after the other and try everything there; returns words by column and client."""
    words: dict[str, dict[str, str]] = {}
    for number, column in enumerate(servers, start=1):
        name = " ".join(column.name.split())
        words[column.name] = {}
        board.tell(f"[{number}/{len(servers)}] {name}: starts")
        try:
            with column.start() as server:
                words[column.name] = asyncio.run(board.column(server, clients))
        except (AssertionError, OSError, pytest.fail.Exception) as error:
            board.failures.append(f"{name}: {type(error).__name__}: {error}")
            board.tell(f"{name}: it could not be tried: {error}")
    return words


def main() -> int:
    """Read the command line, try everything, show the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/try-clients", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".try-clients"), metavar="DIR")
    parser.add_argument("--only", action="append", default=[], metavar="WORD")
    parser.add_argument("--on", action="append", default=[], metavar="WORD")
    parser.add_argument("servers", nargs="*", type=running, metavar="NAME=http://[KEY,KEY@]HOST:PORT")
    chosen = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else NARROW, highlight=False)

    def tell(line: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stderr.flush()

    homes = _homes()
    servers = [
        one
        for one in chosen.servers or columns(homes)
        if not chosen.on or any(word in " ".join(one.name.split()) for word in chosen.on)
    ]
    folder = chosen.folder.absolute()
    clients = [
        one
        for one in _clients(folder, homes)
        if not chosen.only or any(word in one.name for word in chosen.only)
    ]
    if not servers or not clients:
        parser.error("nothing is chosen: no server or no client has that word in its name")
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"{len(clients)} clients on {len(servers)} servers; installing what is missing in {folder}")
    install(folder)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    board = Board(folder / "runs", tell)
    words = _try_all(board, servers, clients)
    for failure in board.failures:
        console.print(f"{failure}\n", markup=False)
    console.print(_table(words, clients))
    if not homes and not chosen.servers:
        console.print(
            "\nCOMFYUI_HOME and COMFYUI_OTHER_HOME name no ComfyUI: only simulated nodes were tried."
        )
    good = all(one != FAILS for column in words.values() for one in column.values())
    known = {client.name for client in clients if client.one_prompt}
    alone = [
        name
        for column in words.values()
        for name, word in column.items()
        if word == ALONE and name not in known
    ]
    return 0 if good and not alone and all(words.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
