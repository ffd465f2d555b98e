"""Run published clients, unmodified, against several servers, and show in a table what worked."""

import argparse
import asyncio
import itertools
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from tests.clients.caller import Caller
from tests.clients.graphs import color_of
from tests.clients.published import PUBLISHED, Published, examples, install, picture
from tests.clients.relay import relay
from tests.clients.sequences import SEQUENCES

Use = Callable[[Caller, int, Path], Awaitable[bytes]]
"""Makes a picture of a color as one person; the folder is for its files."""


@dataclass(frozen=True)
class Server:
    """A server and who uses it: two people, or twice the one that a server without keys knows."""

    name: str
    people: tuple[Caller, Caller]

    @classmethod
    def of(cls, text: str) -> "Server":
        """Read ``NAME=http://HOST:PORT`` or ``NAME=http://KEY,KEY@HOST:PORT``."""
        name, _, address = text.partition("=")
        parts = urlsplit(address)
        if not name or parts.scheme != "http" or not parts.hostname:
            raise argparse.ArgumentTypeError(f"{text!r}: write NAME=http://[KEY,KEY@]HOST:PORT")
        url = f"http://{parts.netloc.rpartition('@')[2]}"
        keys = parts.username.split(",") if parts.username else ["", ""]
        if len(keys) != 2:
            raise argparse.ArgumentTypeError(f"{text!r}: give two keys with a comma between, or none")
        return cls(name, (Caller(url, keys[0]), Caller(url, keys[1])))


class Board:
    """Runs every client against every server and keeps what came of it."""

    def __init__(self, folder: Path, servers: Sequence[Server], clients: dict[str, Use]) -> None:
        self._folder = folder
        self._servers = servers
        self._clients = clients
        self._colors = itertools.count(0x112233, 0x010203)
        self.failures: list[str] = []

    async def fill(self) -> Table:
        """Run everything, one client at a time, each as one person and as two at once."""
        table = Table("client", *(server.name for server in self._servers), title="client × server")
        for name, use in self._clients.items():
            cells = []
            for server in self._servers:
                alone = await self._try(name, server, use, server.people[:1])
                both = await self._try(name, server, use, server.people)
                cells.append(
                    "works" if alone and both else "[red]fails[/red]" if not alone else "[red]alone[/red]"
                )
            table.add_row(name, *cells)
        return table

    async def _try(self, name: str, server: Server, use: Use, people: Sequence[Caller]) -> bool:
        async def one(number: int, me: Caller) -> None:
            color = next(self._colors) & 0xFFFFFF
            slug = "".join(letter if letter.isalnum() else "-" for letter in name)
            folder = self._folder / server.name / f"{slug}-{len(people)}{number}"
            found = color_of(await use(me, color, folder))
            assert found == color, f"got somebody else's picture: {found:06x}, not {color:06x}"

        done = await asyncio.gather(*(one(*each) for each in enumerate(people)), return_exceptions=True)
        errors = [error for error in done if error is not None]
        how = "alone" if len(people) == 1 else "two at once"
        self.failures += [
            f"{name}, {server.name}, {how}: {type(error).__name__}: {error}" for error in errors
        ]
        sys.stderr.write(f"{name}, {server.name}, {how}: {'fails' if errors else 'works'}\n")
        return not errors


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


def main() -> int:
    """Read the command line, run, show the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/try-clients", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the clients are installed")
    parser.add_argument("servers", nargs="+", type=Server.of, metavar="NAME=http://[KEY,KEY@]HOST:PORT")
    parser.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a ComfyUI folder, for its script examples"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="clients whose name has it"
    )
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    install(folder)
    published = (*(examples(chosen.comfyui.absolute()) if chosen.comfyui else ()), *PUBLISHED)
    clients = {client.name: _run(client, folder) for client in published}
    clients |= {name: _called(sequence) for name, sequence in SEQUENCES.items()}
    if chosen.only:
        clients = {name: use for name, use in clients.items() if any(word in name for word in chosen.only)}
    shutil.rmtree(folder / "runs", ignore_errors=True)
    board = Board(folder / "runs", chosen.servers, clients)
    table = asyncio.run(board.fill())
    for failure in board.failures:
        sys.stdout.write(f"{failure}\n\n")
    Console(width=200 if not sys.stdout.isatty() else None).print(table)
    return 1 if board.failures else 0


if __name__ == "__main__":
    sys.exit(main())
